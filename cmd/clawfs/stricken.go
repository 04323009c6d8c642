package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
)

// How long the daemon waits before it tries to open the store again: where the
// cause can pass by itself, and where somebody has to do something.
const (
	firstReopen  = time.Second
	lastReopen   = 30 * time.Second
	brokenReopen = 5 * time.Minute
)

// journalPatience bounds the wait for the journal of kept records, which others
// have open for a moment only.
const journalPatience = 5 * time.Second

// stricken answers in the daemon's place while the store cannot be opened. Nothing
// new is granted. Mounts go on with what they know; one that starts meanwhile knows
// no capability, and refuses every file. Revocations are taken: they are kept in
// the journal, from which the store takes them when it is open, and sent to the
// mounts.
type stricken struct {
	h     *host
	since time.Time
	poke  chan chan struct{} // somebody wants the next try now; closed after it
	over  chan struct{}      // closed when the store is open

	// opening is held for reading while a revocation is taken, and for writing while
	// the store is opened, which takes what the journal has.
	opening sync.RWMutex

	// mu guards what follows.
	mu      sync.Mutex
	trouble *trouble
	backoff time.Duration
	retryAt time.Time
	tried   chan struct{} // closed after the next try; nil: nobody waits
	unsaved []kept.Record // in force on the mounts, and on no disk
	subs    map[chan capstore.Record]struct{}
}

func newStricken(h *host, t *trouble) *stricken {
	s := &stricken{
		h: h, since: time.Now().UTC(), poke: make(chan chan struct{}), over: make(chan struct{}),
		subs: make(map[chan capstore.Record]struct{}),
	}
	s.note(t)
	return s
}

// note remembers why a try failed, and when the next one is.
func (s *stricken) note(err error) {
	t := new(trouble)
	if !errors.As(err, &t) {
		t = &trouble{causeFailed, err}
	}
	s.mu.Lock()
	changed := s.trouble == nil || s.trouble.Error() != t.Error()
	if changed || s.backoff == 0 {
		s.backoff = firstReopen
	} else {
		s.backoff = min(2*s.backoff, lastReopen)
		if !t.passes() {
			s.backoff = min(2*s.backoff, brokenReopen)
		}
	}
	s.trouble, s.retryAt = t, time.Now().Add(s.backoff).UTC()
	s.mu.Unlock()
	if changed {
		s.h.log.Error("DENY NEW: the store cannot be opened; mounts serve what they know, nothing new is granted, revocations are kept and sent to the mounts",
			"cause", t.cause, "error", t.Error(), "next", t.next(s.h.state))
	}
}

// wait waits for the time of the next try; false: ctx has ended.
func (s *stricken) wait(ctx context.Context) bool {
	s.mu.Lock()
	if s.tried != nil {
		close(s.tried)
		s.tried = nil
	}
	at := s.retryAt
	s.mu.Unlock()
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case tried := <-s.poke:
		s.mu.Lock()
		s.tried = tried
		s.mu.Unlock()
	}
	return true
}

// pause lets nobody add to the journal while the store is opened, and saves before
// what could not be saved yet.
func (s *stricken) pause(open func() error) error {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	unsaved := slices.Clone(s.unsaved)
	s.mu.Unlock()
	if len(unsaved) > 0 {
		if err := s.keep(unsaved...); err != nil {
			return &trouble{causeFull, err}
		}
		s.mu.Lock()
		s.unsaved = nil
		s.mu.Unlock()
	}
	if err := open(); err != nil {
		return err
	}
	s.end() // before the next one is taken, which belongs to the store
	return nil
}

// end lets the mounts come again, to the store.
func (s *stricken) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tried != nil {
		close(s.tried)
		s.tried = nil
	}
	close(s.over)
}

func (s *stricken) handler() http.Handler {
	mux := http.NewServeMux()
	reply(mux, "GET /v1/status", func(*http.Request) (any, error) { return s.status(), nil })
	reply(mux, "GET /v1/mounts", func(*http.Request) (any, error) { return s.h.mounts.list(), nil })
	d := &daemon{state: s.h.state, log: s.h.log, mounts: s.h.mounts, clock: s.h.clock}
	reply(mux, "POST /v1/mounts", func(r *http.Request) (any, error) { return d.mount(r) })
	reply(mux, "POST /v1/mounts/{id}/report", func(r *http.Request) (any, error) { return d.report(r) })
	reply(mux, "POST /v1/revocations", func(r *http.Request) (any, error) { return s.revoke(r) })
	reply(mux, "POST /v1/records", func(r *http.Request) (any, error) { return s.submitRecord(r) })
	reply(mux, "POST /v1/store/open", func(r *http.Request) (any, error) { return s.tryNow(r) })
	mux.HandleFunc("GET /v1/view", s.streamView)
	reply(mux, "/", func(*http.Request) (any, error) { return nil, s.refusal() })
	return mux
}

// refusal is the answer to everything that needs the store.
func (s *stricken) refusal() error {
	s.mu.Lock()
	t := s.trouble
	s.mu.Unlock()
	return answerError(http.StatusServiceUnavailable, codeRefused, fmt.Errorf("the store cannot be opened, so nothing new is granted and nothing is known of what was; mounts serve what they know: %w; next: %s", t, t.next(s.h.state)))
}

func (s *stricken) status() control.Status {
	s.mu.Lock()
	t, retry, unsaved := s.trouble, s.retryAt, len(s.unsaved)
	s.mu.Unlock()
	waiting, damage := 0, 0
	lost, err := kept.ReadWaiting(s.h.state.Kept(), func(kept.Record) error { waiting++; return nil })
	damage = len(lost)
	policy, policyErr := s.h.state.LoadPolicy()
	warnings := slices.Concat(s.h.clock.warnings(time.Now()), policyWarnings(policy, policyErr, time.Now()), memoryWarnings(s.h.state), auditWarnings(s.h.mounts.list()))
	if err != nil || damage > 0 {
		warnings = append(warnings, fmt.Sprintf("of what was revoked without a store, %d records cannot be read (%s); next: revoke it again", damage, errOr(err, "they were damaged")))
	}
	if unsaved > 0 {
		warnings = append(warnings, fmt.Sprintf("%d revocations are in force on the mounts and on no disk: they are lost if the daemon and the mounts end; next: make room in the file system of %s", unsaved, s.h.state.Kept()))
	}
	return control.Status{
		Version: readVersion().Version, Protocol: control.Protocol(), Resources: resources(s.h.listener), PID: os.Getpid(), State: string(s.h.state), StartedAt: s.h.started,
		Store: &control.StoreTrouble{Cause: t.cause, Error: t.Error(), Next: t.next(s.h.state), Since: s.since, RetryAt: retry, Waiting: waiting},
		Jobs:  map[string]int{}, Mounts: s.h.mounts.list(), Warnings: warnings,
	}
}

// tryNow lets the store be opened at once, and answers after that.
func (s *stricken) tryNow(r *http.Request) (control.Status, error) {
	tried := make(chan struct{})
	select {
	case s.poke <- tried:
	case <-s.over:
		return control.Status{}, nil
	case <-r.Context().Done():
		return control.Status{}, r.Context().Err()
	}
	select {
	case <-tried:
	case <-s.over:
		return control.Status{}, nil
	case <-r.Context().Done():
		return control.Status{}, r.Context().Err()
	}
	return s.status(), nil
}

// checked is a view that checks what is handed over, by the policy of now.
func (s *stricken) checked() (*capstore.View, error) {
	policy, err := s.h.state.LoadPolicy()
	if err != nil {
		return nil, err
	}
	return capstore.NewView(policy.Trust())
}

// revoke is daemon.revoke without a store.
func (s *stricken) revoke(r *http.Request) (control.Revocation, error) {
	var in control.Envelope
	if err := control.ReadBody(r, &in); err != nil {
		return control.Revocation{}, err
	}
	view, err := s.checked()
	if err != nil {
		return control.Revocation{}, err
	}
	rev, err := view.Revoke(in.Envelope)
	if err != nil {
		return control.Revocation{}, answerError(http.StatusForbidden, recordCode(err), err)
	}
	if err := s.take(capstore.Record{Kind: capstore.RecordRevocation, Envelope: in.Envelope}); err != nil {
		return control.Revocation{}, err
	}
	s.h.log.Warn("revoked without a store", "kind", string(rev.Kind()), "target", rev.Target(), "reason", rev.Reason())
	answer := revocationAnswer(rev)
	answer.Alone = true
	return answer, nil
}

// submitRecord takes what takes something back.
func (s *stricken) submitRecord(r *http.Request) (control.RecordAnswer, error) {
	var in control.RecordSubmission
	if err := control.ReadBody(r, &in); err != nil {
		return control.RecordAnswer{}, err
	}
	rec, err := registry.Identify(in.Envelope)
	if err != nil {
		return control.RecordAnswer{}, answerError(http.StatusForbidden, codeRefused, err)
	}
	view, err := s.checked()
	if err != nil {
		return control.RecordAnswer{}, err
	}
	kind := capstore.RecordRevocation
	switch {
	case string(rec.Kind) != in.Kind:
		err = fmt.Errorf("handed over as %.40q, and it is a %s", in.Kind, rec.Kind)
	case rec.Kind == registry.Revocation:
		_, err = view.Revoke(in.Envelope)
	case rec.Kind == registry.RevocationList:
		kind = capstore.RecordList
		var l capstore.List
		if l, err = view.AdmitList(in.Envelope); err == nil {
			err = s.checkList(l)
		}
	default:
		return control.RecordAnswer{}, s.refusal()
	}
	if err != nil {
		return control.RecordAnswer{}, answerError(http.StatusForbidden, recordCode(err), err)
	}
	if err := s.take(capstore.Record{Kind: kind, Envelope: in.Envelope}); err != nil {
		return control.RecordAnswer{}, err
	}
	s.h.log.Warn("taken back by a record from elsewhere, without a store", "kind", kind, "record", rec.ID.String())
	return control.RecordAnswer{Kind: in.Kind, ID: rec.ID, Outcome: control.RecordAdmitted}, nil
}

// checkList refuses a list from the future, and one that is older than one that was
// seen of the same key.
func (s *stricken) checkList(l capstore.List) error {
	if now := s.h.clock.now(); l.IssuedAt().After(now.Add(maxListSkew)) {
		return fmt.Errorf("revocation list %d: it says that it was issued at %s, and here it is %s; one of the clocks is wrong", l.Sequence(), l.IssuedAt().Format(time.RFC3339), now.Format(time.RFC3339))
	}
	seen, known, err := memory.Dir(s.h.state.Memory()).Newest(listKind(l.Revoker()))
	if err == nil && known && l.Sequence() < seen {
		err = fmt.Errorf("%w: expected a sequence from %d, got %d", capstore.ErrOldList, seen, l.Sequence())
	}
	return err
}

// take returns after a record that takes something back is on stable storage and
// on its way to the mounts.
func (s *stricken) take(r capstore.Record) error {
	s.opening.RLock()
	defer s.opening.RUnlock()
	select {
	case <-s.over:
		return answerError(http.StatusServiceUnavailable, codeError, errors.New("the store has just been opened; ask again"))
	default:
	}
	k := kept.Record{Kind: r.Kind, Envelope: r.Envelope}
	s.publish(r, k)
	if err := s.keep(k); err != nil {
		return fmt.Errorf("it is in force on the mounts until they end, and is not recorded; make room, and do it again: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsaved = slices.DeleteFunc(s.unsaved, func(u kept.Record) bool { return &u.Envelope[0] == &k.Envelope[0] })
	return nil
}

// keep puts records into the journal.
func (s *stricken) keep(records ...kept.Record) error {
	j, err := openJournal(s.h.state.Kept())
	if err != nil {
		return err
	}
	for _, r := range records {
		if err = j.Wait(r); err != nil {
			break
		}
	}
	return errors.Join(err, j.Close())
}

// openJournal waits a moment for another process that has it.
func openJournal(dir string) (*kept.Journal, error) {
	for end := time.Now().Add(journalPatience); ; time.Sleep(20 * time.Millisecond) {
		j, err := kept.Open(dir)
		if !errors.Is(err, kept.ErrLocked) || time.Now().After(end) {
			return j, err
		}
	}
}

// publish sends a record to each mount that is there, and to those that come before
// it is in the journal.
func (s *stricken) publish(r capstore.Record, k kept.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsaved = append(s.unsaved, k)
	for ch := range s.subs {
		select {
		case ch <- r:
		default: // it does not read; it comes again and reads the journal
			delete(s.subs, ch)
			close(ch)
		}
	}
}

// streamView sends a mount what takes something back, and no capability: one that
// runs keeps those it has, and one that starts refuses every file, but it is there.
func (s *stricken) streamView(w http.ResponseWriter, r *http.Request) {
	stream, err := control.NewStream(w)
	if err != nil {
		control.ReplyError(w, err)
		return
	}
	ch := make(chan capstore.Record, 1024)
	s.mu.Lock()
	s.subs[ch] = struct{}{}
	unsaved := slices.Clone(s.unsaved)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, there := s.subs[ch]; there {
			delete(s.subs, ch)
			close(ch)
		}
	}()
	if stream.Send(control.ViewLine{Kind: control.LineNoStore}) != nil {
		return
	}
	send := func(k kept.Record) error {
		if k.Kind != capstore.RecordRevocation && k.Kind != capstore.RecordList {
			return r.Context().Err()
		}
		return stream.Write(control.ViewLine{Kind: k.Kind, Envelope: k.Envelope})
	}
	if _, err := kept.ReadWaiting(s.h.state.Kept(), send); err != nil {
		s.h.log.Error("what was revoked without a store is not sent to a mount", "error", err)
	}
	for _, k := range unsaved {
		if send(k) != nil {
			return
		}
	}
	if _, err := kept.Read(s.h.state.Kept(), send); err != nil {
		s.h.log.Error("what was revoked is not sent to a mount", "error", err)
	}
	if stream.Send(control.ViewLine{Kind: control.LineHeartbeat}) != nil {
		return
	}
	follow(r.Context(), stream, ch, s.over)
}
