package main

import (
	"fmt"
	"net/http"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

// recordHandlers answer those who fetch signed records.
func (d *daemon) recordHandlers(mux *http.ServeMux) {
	reply(mux, "GET /v1/capabilities/{id}/envelope", func(r *http.Request) (any, error) { return d.capabilityText(r) })
}

func (d *daemon) capabilityText(r *http.Request) (control.Envelope, error) {
	id, err := hashpipe.ParseDigest(r.PathValue("id"))
	if err != nil {
		return control.Envelope{}, answerError(http.StatusBadRequest, codeUsage, err)
	}
	if g, ok := d.store.View().Get(id); ok {
		return control.Envelope{Envelope: g.Envelope()}, nil
	}
	return control.Envelope{}, answerError(http.StatusNotFound, codeRefused, fmt.Errorf("no capability %s; next: clawfs caps", id))
}
