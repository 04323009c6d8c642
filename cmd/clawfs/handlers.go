package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// handler answers the control socket. Who may ask was settled at the accept.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	reply(mux, "GET /v1/status", func(*http.Request) (any, error) { return d.status() })
	reply(mux, "GET /v1/jobs", func(*http.Request) (any, error) { return orEmpty(d.store.Jobs()) })
	reply(mux, "POST /v1/jobs", func(r *http.Request) (any, error) { return d.submit(r) })
	reply(mux, "GET /v1/jobs/{id}", func(r *http.Request) (any, error) { return d.job(r) })
	reply(mux, "POST /v1/jobs/{id}/cancel", func(r *http.Request) (any, error) { return d.cancelJob(r) })
	reply(mux, "POST /v1/jobs/{id}/priority", func(r *http.Request) (any, error) { return d.prioritizeJob(r) })
	mux.HandleFunc("GET /v1/jobs/{id}/log", func(w http.ResponseWriter, r *http.Request) {
		d.copyJobFile(w, r, rebuild.LogFile, "text/plain; charset=utf-8")
	})
	mux.HandleFunc("GET /v1/jobs/{id}/events", func(w http.ResponseWriter, r *http.Request) {
		d.copyJobFile(w, r, rebuild.EventFile, "application/x-ndjson")
	})
	reply(mux, "GET /v1/capabilities", func(r *http.Request) (any, error) {
		if r.FormValue("logged") == "1" {
			return d.loggedCapabilities(d.clock.now())
		}
		return d.capabilities(d.clock.now()), nil
	})
	d.recordHandlers(mux)
	reply(mux, "GET /v1/revocations", func(*http.Request) (any, error) { return d.revocations(), nil })
	reply(mux, "GET /v1/jobs/{id}/record", d.jobRecord)
	reply(mux, "POST /v1/revocations", func(r *http.Request) (any, error) { return d.revoke(r) })
	reply(mux, "POST /v1/records", func(r *http.Request) (any, error) { return d.submitRecord(r) })
	reply(mux, "GET /v1/revocation-lists", func(*http.Request) (any, error) { return d.lists(), nil })
	reply(mux, "POST /v1/affected", func(r *http.Request) (any, error) { return d.affected(r) })
	mux.HandleFunc("GET /v1/view", d.streamView)
	d.storeHandlers(mux)
	reply(mux, "GET /v1/mounts", func(*http.Request) (any, error) { return d.mounts.list(), nil })
	reply(mux, "POST /v1/mounts", func(r *http.Request) (any, error) { return d.mount(r) })
	reply(mux, "POST /v1/mounts/{id}/report", func(r *http.Request) (any, error) { return d.report(r) })
	return mux
}

// reply registers an answer that is one document or one error.
func reply(mux *http.ServeMux, pattern string, answer func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := answer(r)
		if errors.Is(err, capstore.ErrClosed) {
			err = answerError(0, 0, err)
		}
		if err != nil {
			control.ReplyError(w, err)
			return
		}
		control.Reply(w, http.StatusOK, v)
	})
}

// orEmpty keeps an empty list from being encoded as null.
func orEmpty[T any](list []T, err error) ([]T, error) {
	if list == nil {
		list = []T{}
	}
	return list, err
}

// answerError is err as the socket carries it: an HTTP status for curl, an exit
// code for a verb.
func answerError(status, code int, err error) error {
	if errors.Is(err, capstore.ErrClosed) { // a moment later somebody else answers
		status, code, err = http.StatusServiceUnavailable, codeError, fmt.Errorf("the daemon has just let go of its store (%w); next: the same again", err)
	}
	return &control.Error{Status: status, Code: code, Message: err.Error()}
}

// submit verifies an attestation by the policy as it is now and queues its
// rebuild. What does not verify leaves no trace in the queue.
func (d *daemon) submit(r *http.Request) (capstore.Job, error) {
	var in control.Submission
	if err := control.ReadBody(r, &in); err != nil {
		return capstore.Job{}, err
	}
	policy, err := d.state.LoadPolicy()
	if err != nil {
		return capstore.Job{}, err
	}
	att, err := policy.Verify(in.SBA, in.Proof, d.clock.now())
	if err != nil {
		return capstore.Job{}, answerError(http.StatusForbidden, exitCode(refusal("attestation", err)), err)
	}
	if err := capstore.CheckPriority(in.Priority); err != nil {
		return capstore.Job{}, answerError(http.StatusBadRequest, codeUsage, err)
	}
	if err := in.Terms.Check(); err != nil {
		return capstore.Job{}, answerError(http.StatusBadRequest, codeUsage, err)
	}
	if err := d.see(policy.Policy, att, in.Consistency); err != nil {
		return capstore.Job{}, err
	}
	job, err := d.queue.SubmitTerms(in.SBA, att, in.Locations, in.Priority, in.Terms)
	var refused *rebuild.Failure
	if errors.As(err, &refused) {
		return capstore.Job{}, answerError(http.StatusForbidden, codeRefused, err)
	}
	if err != nil {
		return capstore.Job{}, err
	}
	d.log.Info("job accepted", "job", job.ID, "model", job.Model, "version", job.Version, "sba", job.SBA.String(), "publisher", att.PublisherName())
	return job, nil
}

// see compares the checkpoint of a log proof with what was seen of the log
// before, and remembers it. A log that shows two trees is refused here from the
// moment on at which both are on the disk.
func (d *daemon) see(policy *verifier.Policy, att verifier.Attestation, consistency []byte) error {
	c := att.Checkpoint()
	if c.IsZero() {
		return nil
	}
	proof, err := tlog.ParseConsistency(consistency)
	if err == nil {
		err = memory.Dir(d.state.Memory()).See(c, proof)
	}
	var r *tlog.Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r) && r.Reason == tlog.ReasonFork:
		d.log.Error("LOG FORK: the log signed two trees", "log", c.Origin(), "size", c.Size(), "root", c.Root().String(), "error", err)
	default:
		d.log.Warn("log proof refused", "log", c.Origin(), "size", c.Size(), "error", err)
	}
	if r == nil {
		return err // nothing was found out about the log
	}
	err = seenRefusal(policy, att, err, "FILE.sba")
	return answerError(http.StatusForbidden, exitCode(refusal("attestation", err)), err)
}

func (d *daemon) job(r *http.Request) (capstore.Job, error) {
	job, err := d.store.Job(r.PathValue("id"))
	return jobAnswer(r.PathValue("id"), job, err)
}

func (d *daemon) cancelJob(r *http.Request) (capstore.Job, error) {
	job, err := d.queue.Cancel(r.PathValue("id"))
	if errors.Is(err, capstore.ErrFinished) {
		if ended, gone := d.store.Job(r.PathValue("id")); gone == nil {
			err = fmt.Errorf("job %s cannot be cancelled: %w: %s %s", ended.ID, capstore.ErrFinished, ended.State, ended.Verdict)
		}
	}
	job, err = jobAnswer(r.PathValue("id"), job, err)
	if err == nil {
		d.log.Info("job cancelled", "job", job.ID)
	}
	return job, err
}

func (d *daemon) prioritizeJob(r *http.Request) (capstore.Job, error) {
	var in control.Priority
	if err := control.ReadBody(r, &in); err != nil {
		return capstore.Job{}, err
	}
	if err := capstore.CheckPriority(in.Priority); err != nil {
		return capstore.Job{}, answerError(http.StatusBadRequest, codeUsage, err)
	}
	job, err := d.queue.SetPriority(r.PathValue("id"), in.Priority)
	if errors.Is(err, rebuild.ErrRunning) {
		return job, answerError(http.StatusConflict, codeError, err)
	}
	return jobAnswer(r.PathValue("id"), job, err)
}

func jobAnswer(id string, job capstore.Job, err error) (capstore.Job, error) {
	switch {
	case errors.Is(err, capstore.ErrNotFound):
		return job, answerError(http.StatusNotFound, codeError, fmt.Errorf("no such job: %.64q; next: clawfs jobs", id))
	case errors.Is(err, capstore.ErrFinished):
		return job, answerError(http.StatusConflict, codeError, err)
	}
	return job, err
}

// jobRecord answers with what the worker signed about a job.
func (d *daemon) jobRecord(r *http.Request) (any, error) {
	job, err := d.job(r)
	if err != nil {
		return nil, err
	}
	envelope, err := d.queue.Record(job.ID)
	switch {
	case errors.Is(err, os.ErrNotExist) && !job.State.HasEnded():
		return nil, answerError(http.StatusConflict, codePending, fmt.Errorf("job %s has not ended yet", job.ID))
	case errors.Is(err, os.ErrNotExist):
		return nil, answerError(http.StatusNotFound, codeRefused, fmt.Errorf("job %s has no signed record: it was cancelled, its attestation was not believed, or the worker could not sign", job.ID))
	case err != nil:
		return nil, err
	}
	return control.Envelope{Envelope: envelope}, nil
}

// followEvery is how often a followed file is looked at for more.
const followEvery = 200 * time.Millisecond

// copyJobFile sends a file that the worker writes; with follow=1 until the job
// has ended. A client that does not read is cut off like any other stream's.
func (d *daemon) copyJobFile(w http.ResponseWriter, r *http.Request, name, kind string) {
	job, err := d.job(r)
	if err != nil {
		control.ReplyError(w, err)
		return
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	f, err := openJobFile(r.Context(), d, job, name, r.FormValue("follow") == "1")
	if err != nil || f == nil {
		return
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	beat, whole := time.Now(), true
	for {
		// The state is read before the file, so that what was written before
		// the end is sent.
		job, err := d.store.Job(job.ID)
		rc.SetWriteDeadline(time.Now().Add(10 * time.Second))
		ended := err != nil || job.State.HasEnded() || r.FormValue("follow") != "1"
		for {
			n, err := f.Read(buf)
			if n > 0 {
				whole = buf[n-1] == '\n'
				if _, err := w.Write(buf[:n]); err != nil {
					return
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				d.log.Error("reading a job's file", "job", job.ID, "error", err)
				return
			}
		}
		if rc.Flush() != nil || ended {
			return
		}
		if name == rebuild.EventFile && whole && time.Since(beat) > control.Heartbeat {
			beat = time.Now()
			io.WriteString(w, "\n")
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(followEvery):
		}
	}
}

// openJobFile waits for the worker to make the file if the answer follows it.
// It returns nil if there is none.
func openJobFile(ctx context.Context, d *daemon, job capstore.Job, name string, follow bool) (*os.File, error) {
	for {
		f, err := os.Open(filepath.Join(d.queue.JobDir(job.ID), name))
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		now, err := d.store.Job(job.ID)
		if err != nil || now.State.HasEnded() || !follow {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// streamView feeds one mount process. A mount that falls behind loses the
// stream and starts again with the whole store.
func (d *daemon) streamView(w http.ResponseWriter, r *http.Request) {
	s, err := control.NewStream(w)
	if err != nil {
		control.ReplyError(w, err)
		return
	}
	snapshot, extent, updates, cancel := d.store.SubscribeAt(1024)
	defer cancel()
	for rec, err := range snapshot {
		if err != nil {
			d.log.Error("the stream of a mount ends before it is whole", "error", err)
			return
		}
		if s.Write(control.ViewLine(rec)) != nil {
			return
		}
	}
	if s.Send(control.ViewLine{Kind: control.LineSnapshot, Extent: extent}) != nil {
		return
	}
	follow(r.Context(), s, updates, nil)
}

// follow sends records as they come, and heartbeats, until ctx ends, over is closed,
// or nothing more comes.
func follow(ctx context.Context, s *control.Stream, updates <-chan capstore.Record, over <-chan struct{}) {
	beat := time.NewTicker(control.Heartbeat)
	defer beat.Stop()
	for {
		line := control.ViewLine{Kind: control.LineHeartbeat}
		select {
		case <-ctx.Done():
			return
		case <-over:
			return
		case <-beat.C:
		case rec, open := <-updates:
			if !open {
				return
			}
			line = control.ViewLine(rec)
		}
		if s.Send(line) != nil {
			return
		}
	}
}

// revoke admits a revocation that the caller signed. When it answers, the
// revocation is on stable storage and on its way to the mounts.
func (d *daemon) revoke(r *http.Request) (control.Revocation, error) {
	var in control.Envelope
	if err := control.ReadBody(r, &in); err != nil {
		return control.Revocation{}, err
	}
	rev, err := d.store.Revoke(in.Envelope)
	if rev.IsZero() && err != nil {
		return control.Revocation{}, answerError(http.StatusForbidden, recordCode(err), err)
	}
	if err != nil {
		return control.Revocation{}, err
	}
	d.log.Warn("revoked", "kind", string(rev.Kind()), "target", rev.Target(), "reason", rev.Reason())
	answer := revocationAnswer(rev)
	answer.Alone = true
	return answer, nil
}

func (d *daemon) mount(r *http.Request) (control.Mount, error) {
	var in control.MountRequest
	if err := control.ReadBody(r, &in); err != nil {
		return control.Mount{}, err
	}
	for _, path := range []string{in.Source, in.Mountpoint} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return control.Mount{}, answerError(http.StatusBadRequest, codeUsage, fmt.Errorf("%q is not an absolute, clean path", path))
		}
	}
	if !in.AuditUntil.IsZero() {
		if err := checkAudit(in.AuditUntil, d.clock.now()); err != nil {
			return control.Mount{}, answerError(http.StatusBadRequest, codeUsage, fmt.Errorf("end of audit mode: %w", err))
		}
		d.log.Warn("a mount in audit mode is asked for: files that nobody granted will open", "mountpoint", in.Mountpoint, "until", in.AuditUntil)
	}
	m, err := d.mounts.add(newRecord(in.Source, in.Mountpoint, false, in.MountOptions))
	if err != nil {
		return control.Mount{}, answerError(http.StatusConflict, codeMount, err)
	}
	return m, nil
}

func (d *daemon) report(r *http.Request) (any, error) {
	var in control.MountReport
	if err := control.ReadReport(r, &in); err != nil {
		return nil, err
	}
	d.mounts.report(r.PathValue("id"), in)
	return struct{}{}, nil
}
