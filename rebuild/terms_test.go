package rebuild

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func termsOf(t testing.TB, paths []string, uids []int64, delegate []dsse.KeyID, notAfter time.Time) capstore.Terms {
	t.Helper()
	r, err := capstore.NewRestrict(paths, uids, nil)
	if err != nil {
		t.Fatal(err)
	}
	terms, err := capstore.NewTerms(r, delegate, notAfter)
	if err != nil {
		t.Fatal(err)
	}
	return terms
}

func (b *bench) submitTerms(version string, terms capstore.Terms) (capstore.Job, error) {
	b.t.Helper()
	envelope, att := b.attest(b.t, b.statement(version, "train"))
	return b.queue.SubmitTerms(envelope, att, capstore.Locations{}, 0, terms)
}

// Other terms are another job, pending or granted, and equal ones the same.
func TestSubmitTerms(t *testing.T) {
	b := newBench(t, mints)
	team := termsOf(t, []string{"team/"}, []int64{1000}, []dsse.KeyID{b.publisher.Public().ID()}, time.Now().Add(30*time.Minute))
	late := termsOf(t, nil, nil, nil, time.Now().Add(10*time.Minute))
	jobs := make(map[string]capstore.Terms)
	for round := range 2 {
		for _, terms := range []capstore.Terms{{}, team, termsOf(t, nil, []int64{1000}, nil, time.Time{}), late} {
			job, err := b.submitTerms("1.0.0", terms)
			if err != nil {
				t.Fatal(err)
			}
			jobs[job.ID] = terms
			if !job.Terms.Equal(terms) {
				t.Errorf("job %s has the terms %+v, want %+v", job.ID, job.Terms, terms)
			}
		}
		if len(jobs) != 4 {
			t.Fatalf("round %d: %d jobs, want one for each of the 4 terms", round, len(jobs))
		}
		if round == 1 {
			break
		}
		// One attestation, one file; it stays until the last of its jobs has ended.
		b.run()
		for id := range jobs {
			if job := b.wait(id); job.Verdict != capstore.Minted {
				t.Fatalf("job %s: %s %s", id, job.Verdict, job.Reason)
			}
		}
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%d envelopes are left", len(left))
	}
	if n := len(b.store.All()); n != 4 {
		t.Errorf("%d capabilities, want 4", n)
	}
	for _, g := range b.store.All() {
		if only := g.Permits(capstore.Use{Path: "model.bin", UID: 1000}); strings.HasPrefix(only, "the paths") != (len(g.Delegates()) == 1) {
			t.Errorf("capability %s permits %q, and is delegated to %q", g.ID(), only, g.Delegates())
		}
	}
}

// A job that ends leaves the attestation to the jobs that still need it.
func TestCancelLeavesOtherTerms(t *testing.T) {
	b := newBench(t, mints)
	first := b.submit("1.0.0")
	second, err := b.submitTerms("1.0.0", termsOf(t, nil, []int64{0}, nil, time.Time{}))
	if err != nil || first.ID == second.ID {
		t.Fatalf("jobs %s and %s, %v", first.ID, second.ID, err)
	}
	if _, err := b.queue.Cancel(first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.queue.sbaFile(second.SBA)); err != nil {
		t.Error(err)
	}
	b.run()
	if job := b.wait(second.ID); job.Verdict != capstore.Minted {
		t.Errorf("job %+v", job)
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%d envelopes are left", len(left))
	}
}

func TestSubmitTermsRefuses(t *testing.T) {
	b := newBench(t, mints)
	for name, terms := range map[string]capstore.Terms{
		"over":            {NotAfter: time.Now().Add(-time.Minute).UTC().Truncate(time.Second)},
		"empty":           {Restrict: &capstore.Restrict{}},
		"an empty list":   {Restrict: &capstore.Restrict{UIDs: []int64{}}},
		"unsorted":        {Restrict: &capstore.Restrict{UIDs: []int64{2, 1}}},
		"no key":          {Delegate: []dsse.KeyID{"nobody"}},
		"an empty key":    {Delegate: []dsse.KeyID{}},
		"part of seconds": {NotAfter: time.Now().UTC().Add(time.Hour).Truncate(time.Second).Add(1)},
		"too long":        {Restrict: &capstore.Restrict{Paths: longPaths()}},
	} {
		if job, err := b.submitTerms("1.0.0", terms); err == nil {
			t.Errorf("%s: submitted as %s", name, job.ID)
		}
	}
	var f *Failure
	if _, err := b.submitTerms("1.0.0", capstore.Terms{NotAfter: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}); !errors.As(err, &f) || f.Verdict != capstore.PolicyRefused {
		t.Errorf("terms that are over: %v, want %s", err, capstore.PolicyRefused)
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%d files left by refused submissions", len(left))
	}
}

// longPaths are the fewest that no job's row has room for.
func longPaths() (list []string) {
	for i := range 9 {
		list = append(list, string(rune('a'+i))+strings.Repeat("/"+strings.Repeat("x", 250), 16))
	}
	return list
}

// A worker that does not keep the terms gets no capability into the store.
func TestTermsAreKept(t *testing.T) {
	for name, change := range map[string]func(*capstore.Terms){
		"without the restriction": func(w *capstore.Terms) { w.Restrict = nil },
		"wider":                   func(w *capstore.Terms) { w.Restrict = &capstore.Restrict{UIDs: []int64{1000, 1001}} },
		"for longer":              func(w *capstore.Terms) { w.NotAfter = time.Time{} },
		"handed to nobody":        func(w *capstore.Terms) { w.Delegate = nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
				change(&job.Terms)
				return mints(ctx, b, dir, job, l)
			})
			job, err := b.submitTerms("1.0.0", termsOf(t, nil, []int64{1000}, []dsse.KeyID{b.publisher.Public().ID()}, time.Now().Add(time.Minute)))
			if err != nil {
				t.Fatal(err)
			}
			b.run()
			if job = b.wait(job.ID); job.Verdict != capstore.PolicyRefused || !strings.Contains(job.Reason, "not what the job is for") {
				t.Errorf("job ended as %s: %s", job.Verdict, job.Reason)
			}
			if n := len(b.store.All()); n != 0 {
				t.Errorf("%d capabilities", n)
			}
		})
	}
}

// The real worker mints under the terms of its job.
func TestRunJobTerms(t *testing.T) {
	s := newJobSite(t)
	until := time.Now().Add(20 * time.Minute)
	terms := termsOf(t, []string{"team/"}, []int64{1000}, []dsse.KeyID{s.publisher.Public().ID()}, until)
	s.place(s.envelope, jobFile{ID: "aaaaaaaaaa", SBA: s.att.Digest(), Attempt: 1, Locations: s.loc, Terms: terms})
	r, err := RunJob(t.Context(), s.config)
	if err != nil || r.Verdict != capstore.Minted {
		t.Fatalf("RunJob = %+v, %v", r, err)
	}
	c, err := s.store(t, filepath.Join(t.TempDir(), "store")).Admit(r.Capability)
	if err != nil {
		t.Fatal(err)
	}
	if !c.NotAfter().Equal(until.Truncate(time.Second)) || len(c.Delegates()) != 1 || c.Restrictions()[0].String() != terms.Restrict.String() {
		t.Errorf("until %v, delegates %q, restrictions %q; want %+v", c.NotAfter(), c.Delegates(), c.Restrictions(), terms)
	}
	// Terms that are over while the job waited: nothing is fetched or built.
	s.dir = t.TempDir()
	s.config.Dir = s.dir
	var phases []Phase
	s.config.Observer = func(e Event) { phases = append(phases, e.Phase) }
	s.place(s.envelope, jobFile{ID: "aaaaaaaaaa", SBA: s.att.Digest(), Attempt: 1, Locations: s.loc, Terms: capstore.Terms{NotAfter: time.Now().UTC().Truncate(time.Second)}})
	r, err = RunJob(t.Context(), s.config)
	if err != nil || r.Verdict != capstore.PolicyRefused || !strings.Contains(r.Reason, "was asked for until") {
		t.Errorf("RunJob = %+v, %v", r, err)
	}
	if len(phases) != 1 || phases[0] != PhaseVerify {
		t.Errorf("phases %q, want %q alone", phases, PhaseVerify)
	}
	// Terms that nobody could have asked for are no job.
	s.place(s.envelope, jobFile{ID: "aaaaaaaaab", SBA: s.att.Digest(), Attempt: 1, Locations: s.loc, Terms: capstore.Terms{Restrict: &capstore.Restrict{}}})
	if r, err := RunJob(t.Context(), s.config); err == nil || !strings.Contains(err.Error(), "terms: restrict") {
		t.Errorf("RunJob = %+v, %v", r, err)
	}
}

// What a list took back is not built or minted again, nor what ran in an image
// that was taken back meanwhile.
func TestListForbidsMinting(t *testing.T) {
	b := newBench(t, mints)
	envelope, att := b.attest(t, b.statement("1.0.0", "train"))
	list := func(sequence int64, kind capstore.Kind, r string) {
		t.Helper()
		target := digest(r)
		if kind == capstore.KindSBA {
			target = att.Digest()
		}
		st, err := capstore.NewList(sequence, time.Now(), time.Now().Add(time.Hour), []capstore.ListEntry{{Kind: kind, Target: target, Reason: "planted in a test", IssuedAt: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}})
		if err != nil {
			t.Fatal(err)
		}
		e, err := capstore.SignList(st, b.revoker)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.AdmitList(e); err != nil {
			t.Fatal(err)
		}
	}
	job := b.submit("2.0.0")
	list(1, capstore.KindImage, "image")
	b.run()
	if job = b.wait(job.ID); job.Verdict != capstore.PolicyRefused || !strings.Contains(job.Reason, "image") {
		t.Errorf("in a revoked image: %s %s", job.Verdict, job.Reason)
	}
	list(2, capstore.KindSBA, "")
	var f *Failure
	if job, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); !errors.As(err, &f) || f.Verdict != capstore.PolicyRefused {
		t.Errorf("Submit of an attestation that a list took back = %s, %v, want %s", job.ID, err, capstore.PolicyRefused)
	}
}
