package main

import (
	"net/http"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// affected answers what would change, and changes nothing.
func (d *daemon) affected(r *http.Request) (control.Affected, error) {
	var in control.AffectedRequest
	if err := control.ReadBody(r, &in); err != nil {
		return control.Affected{}, err
	}
	changed, built, err := d.store.View().Suppose(in.Kind, in.Target, d.clock.now())
	if err != nil {
		return control.Affected{}, answerError(http.StatusBadRequest, codeUsage, err)
	}
	a := control.Affected{Kind: in.Kind, Target: in.Target, Changed: []control.Consequence{}, Built: []control.Consequence{}}
	for _, c := range changed {
		k := consequence(c.Capability, c.Files, string(c.Before), string(c.After))
		k.Agreed, k.Needed = c.Agreement.Operators, c.Agreement.Needed
		a.Changed = append(a.Changed, k)
	}
	for _, g := range built {
		state := string(g.State(d.clock.now()))
		a.Built = append(a.Built, consequence(g.Capability(), g.Subjects(), state, state))
	}
	return a, nil
}

func consequence(c capstore.Capability, files []capstore.Subject, before, after string) control.Consequence {
	k := control.Consequence{
		ID: c.ID(), Model: c.Model(), Version: c.Version(), Claim: c.Claim(), Operator: c.Operator(), Before: before, After: after,
	}
	for _, s := range files {
		k.Files = append(k.Files, control.File{Name: s.Name, SHA256: s.Digest, Size: s.Size})
	}
	return k
}
