package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

// recordHandlers answer those who bring or fetch signed records.
func (d *daemon) recordHandlers(mux *http.ServeMux) {
	reply(mux, "POST /v1/records", func(r *http.Request) (any, error) { return d.admitRecord(r) })
	reply(mux, "GET /v1/capabilities/{id}/envelope", func(r *http.Request) (any, error) { return d.capabilityText(r) })
}

// admitRecord takes a record that its bearer vouches for in no way: the store
// checks the signatures against the keys that the policy pins.
func (d *daemon) admitRecord(r *http.Request) (control.RecordResult, error) {
	var in control.RecordRequest
	if err := control.ReadBody(r, &in); err != nil {
		return control.RecordResult{}, err
	}
	known := d.recordIDs(in.Kind)
	var id hashpipe.Digest
	var err error
	switch in.Kind {
	case capstore.RecordCapability:
		var c capstore.Capability
		c, err = d.store.Admit(in.Envelope)
		id = c.ID()
	case capstore.RecordRevocation:
		var v capstore.Revocation
		v, err = d.store.Revoke(in.Envelope)
		id = v.ID()
	case capstore.RecordList:
		var l capstore.List
		l, err = d.store.AdmitList(in.Envelope)
		id = l.ID()
	default:
		return control.RecordResult{}, answerError(http.StatusBadRequest, codeUsage, fmt.Errorf("record of kind %.64q: want %q, %q or %q", in.Kind, capstore.RecordCapability, capstore.RecordRevocation, capstore.RecordList))
	}
	switch {
	case errors.Is(err, capstore.ErrOldList):
		return control.RecordResult{}, answerError(http.StatusConflict, codeRefused, err)
	case errors.Is(err, capstore.ErrNoSpace), errors.Is(err, capstore.ErrClosed), errors.Is(err, capstore.ErrDamaged), err != nil && !id.IsZero():
		return control.RecordResult{}, err
	case err != nil:
		return control.RecordResult{}, answerError(http.StatusForbidden, codeSignature, err)
	}
	if !known[id] {
		d.log.Info("record admitted", "kind", in.Kind, "id", id.String())
	}
	return control.RecordResult{ID: id, Added: !known[id]}, nil
}

// recordIDs are those of a kind that the store has.
func (d *daemon) recordIDs(kind string) map[hashpipe.Digest]bool {
	ids := make(map[hashpipe.Digest]bool)
	switch kind {
	case capstore.RecordCapability:
		for _, g := range d.store.All() {
			ids[g.ID()] = true
		}
	case capstore.RecordRevocation:
		for _, r := range d.store.View().Revocations() {
			ids[r.ID()] = true
		}
	case capstore.RecordList:
		for _, l := range d.store.View().Lists() {
			ids[l.ID()] = true
		}
	}
	return ids
}

func (d *daemon) capabilityText(r *http.Request) (control.Envelope, error) {
	id, err := hashpipe.ParseDigest(r.PathValue("id"))
	if err != nil {
		return control.Envelope{}, answerError(http.StatusBadRequest, codeUsage, err)
	}
	for _, g := range d.store.All() {
		if g.ID() == id {
			return control.Envelope{Envelope: g.Envelope()}, nil
		}
	}
	return control.Envelope{}, answerError(http.StatusNotFound, codeRefused, fmt.Errorf("no capability %s; next: clawfs caps", id))
}
