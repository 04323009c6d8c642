package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// storeHandlers answer what is about the whole store.
func (d *daemon) storeHandlers(mux *http.ServeMux) {
	reply(mux, "POST /v1/store/open", func(*http.Request) (any, error) { return d.status() })
	mux.HandleFunc("GET /v1/store/check", d.checkStore)
	mux.HandleFunc("GET /v1/store/records", d.streamRecords)
}

// checkStore sends what a check finds, and how far it is.
func (d *daemon) checkStore(w http.ResponseWriter, r *http.Request) {
	var want capstore.Head
	if text := r.FormValue("head"); text != "" {
		if err := json.Unmarshal([]byte(text), &want, json.RejectUnknownMembers(true)); err != nil || want.IsZero() {
			control.ReplyError(w, &control.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("head %.200q: want the head of a store: %v", text, err)})
			return
		}
	}
	s, err := control.NewStream(w)
	if err != nil {
		control.ReplyError(w, err)
		return
	}
	var beat time.Time
	send := func(l control.StoreLine) {
		if err == nil {
			err = s.Send(l)
		}
	}
	checked, checkErr := d.store.Check(r.Context(), d.pinned.policy.Load().Trust(), want,
		func(f capstore.Finding) { send(control.StoreLine{Finding: &f}) },
		func(rows int) {
			if now := time.Now(); now.Sub(beat) >= control.Heartbeat {
				beat = now
				send(control.StoreLine{Rows: rows})
			}
		})
	l := control.StoreLine{Checked: &checked}
	if checkErr != nil {
		l = control.StoreLine{Error: checkErr.Error()}
	}
	send(l)
}

// streamRecords sends everything that a backup has of the store, and then one line
// that says that this was all. Nobody waits for a client that reads slowly.
func (d *daemon) streamRecords(w http.ResponseWriter, r *http.Request) {
	s, err := control.NewStream(w)
	if err != nil {
		control.ReplyError(w, err)
		return
	}
	err = d.store.Walk(r.Context(),
		func(rec capstore.Record) error { return s.Write(control.ViewLine(rec)) },
		func(j capstore.Job) error {
			text, err := json.Marshal(&j, json.Deterministic(true))
			if err != nil {
				return err
			}
			return s.Write(control.ViewLine{Kind: kindJob, Envelope: text})
		})
	if err != nil {
		d.log.Error("reading the store for a backup", "error", err)
		_ = s.Send(control.ViewLine{Kind: control.LineError, Envelope: []byte(err.Error())})
		return
	}
	_ = s.Send(control.ViewLine{Kind: control.LineSnapshot})
}
