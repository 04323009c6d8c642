package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
)

// daemonKinds are the kinds of records that submitRecord admits.
var daemonKinds = []registry.Kind{registry.Revocation, registry.RevocationList, registry.Capability}

// submitRecord admits a record that somebody fetched. What it may do, its
// signatures by pinned keys say; who hands it over and where it was does not
// matter.
func (d *daemon) submitRecord(r *http.Request) (control.RecordAnswer, error) {
	var in control.RecordSubmission
	if err := control.ReadBody(r, &in); err != nil {
		return control.RecordAnswer{}, err
	}
	rec, err := registry.Identify(in.Envelope)
	if err != nil {
		return control.RecordAnswer{}, answerError(http.StatusForbidden, codeRefused, err)
	}
	if string(rec.Kind) != in.Kind {
		return control.RecordAnswer{}, answerError(http.StatusForbidden, codeRefused, fmt.Errorf("handed over as %.40q, and it is a %s", in.Kind, rec.Kind))
	}
	answer := control.RecordAnswer{Kind: in.Kind, ID: rec.ID, Outcome: control.RecordKnown}
	before := d.store.View().Generation()
	switch rec.Kind {
	case registry.Capability:
		if !pinsMint(*d.pinned.policy.Load(), rec) {
			answer.Outcome, answer.Reason = control.RecordSkipped, fmt.Sprintf("the mint %s is not pinned in the policy", rec.Claims.Signer)
			return answer, nil
		}
		err = d.admitCapability(in.Envelope)
	case registry.Revocation:
		err = d.admitRevocation(in.Envelope)
	case registry.RevocationList:
		answer.Reason, err = d.admitList(in.Envelope)
	default:
		err = answerError(http.StatusForbidden, codeRefused, fmt.Errorf("the daemon keeps no records of kind %s", rec.Kind))
	}
	if err != nil {
		return control.RecordAnswer{}, err
	}
	if d.store.View().Generation() != before {
		answer.Outcome = control.RecordAdmitted
	}
	return answer, nil
}

// pinsMint says whether the mint that a capability names is one of the policy.
func pinsMint(p config.Policy, rec registry.Record) bool {
	return slices.ContainsFunc(p.Trust().Mints, func(s capstore.Signer) bool { return s.Key.ID() == rec.Claims.Signer })
}

// admitCapability asks an empty view first, to tell an envelope that is refused
// from a store that fails.
func (d *daemon) admitCapability(envelope []byte) error {
	view, err := capstore.NewView(d.pinned.policy.Load().Trust())
	if err != nil {
		return err
	}
	if _, err := view.Admit(envelope); err != nil {
		return answerError(http.StatusForbidden, recordCode(err), err)
	}
	before := d.store.View().Generation()
	c, err := d.store.Admit(envelope)
	if err != nil {
		return err
	}
	if d.store.View().Generation() != before {
		d.log.Info("capability admitted", "capability", c.ID().String(), "model", c.Model(), "version", c.Version(), "operator", c.Operator())
	}
	return nil
}

func (d *daemon) admitRevocation(envelope []byte) error {
	before := d.store.View().Generation()
	rev, err := d.store.Revoke(envelope)
	switch {
	case rev.IsZero() && err != nil:
		return answerError(http.StatusForbidden, recordCode(err), err)
	case err != nil:
		return err
	case d.store.View().Generation() != before:
		d.log.Warn("revoked by a record from elsewhere", "kind", string(rev.Kind()), "target", rev.Target(), "reason", rev.Reason())
	}
	return nil
}

// maxListSkew is how far a revoker's clock may be ahead of this machine's.
const maxListSkew = 5 * time.Minute

// admitList returns why a list that is in order was not taken: one that is as new
// is in force. It refuses a list from the future, which would be fresh for longer
// than the policy asks. As admitCapability, it asks an empty view first.
func (d *daemon) admitList(envelope []byte) (known string, err error) {
	view, err := capstore.NewView(d.pinned.policy.Load().Trust())
	if err != nil {
		return "", err
	}
	if l, err := view.AdmitList(envelope); err != nil {
		return "", answerError(http.StatusForbidden, recordCode(err), err)
	} else if now := d.clock.now(); l.IssuedAt().After(now.Add(maxListSkew)) {
		return "", answerError(http.StatusForbidden, codeRefused, fmt.Errorf("revocation list %d: it says that it was issued at %s, and here it is %s; one of the clocks is wrong", l.Sequence(), l.IssuedAt().Format(time.RFC3339), now.Format(time.RFC3339)))
	}
	before := d.store.View().Generation()
	l, err := d.store.AdmitList(envelope)
	switch {
	case errors.Is(err, capstore.ErrOldList):
		return err.Error(), nil
	case l.IsZero() && err != nil:
		return "", answerError(http.StatusForbidden, recordCode(err), err)
	case err != nil:
		return "", err
	}
	// That it was seen is remembered outside the store before it is acknowledged.
	if _, err := memory.Dir(d.state.Memory()).Raise(listKind(l.Revoker()), l.Sequence()); err != nil {
		return "", fmt.Errorf("revocation list %d is in force and stored, and is not remembered outside the store: %w", l.Sequence(), err)
	}
	if d.store.View().Generation() != before {
		d.log.Warn("revocation list admitted", "sequence", l.Sequence(), "entries", len(l.Entries()), "until", l.ValidUntil())
	}
	return "", nil
}
