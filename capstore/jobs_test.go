package capstore

import (
	"bytes"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

func pendingJob() Job {
	return Job{SBA: digestOf("ledger"), Model: "acme/langid", Version: "1.2.0", State: JobPending,
		Locations: Locations{Source: "/src", Datasets: map[string]string{"corpus": "/data"}}}
}

func addJob(t *testing.T, s *Store) Job {
	t.Helper()
	j, err := s.AddJob(pendingJob())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJobLife(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	j := addJob(t, s)
	if !isJobID(j.ID) || j.CreatedAt.IsZero() || j.State != JobPending {
		t.Fatalf("added job is %+v", j)
	}
	j.State, j.Attempts, j.StartedAt = JobRunning, 1, time.Now().UTC()
	if err := s.PutJob(j); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	got, err := s.Job(j.ID)
	if err != nil || !reflect.DeepEqual(got, j) {
		t.Fatalf("Job = %+v, %v, want %+v", got, err, j)
	}
	j.Verdict = Minted
	c, err := s.FinishJob(j, w.capability(t, "", "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	got, err = s.Job(j.ID)
	if err != nil || got.State != JobDone || got.Verdict != Minted || got.Capability != c.ID() || got.FinishedAt.IsZero() {
		t.Fatalf("Job = %+v, %v", got, err)
	}
	if g := s.Lookup(digestOf("a.bin")); len(g) != 1 || g[0].ID() != c.ID() {
		t.Error("the finished job's capability is not there")
	}
	// The same end again, as a queue after a crash says it.
	if again, err := s.FinishJob(j, c.Envelope()); err != nil || again.ID() != c.ID() {
		t.Errorf("finishing again: %v", err)
	}
	if len(s.All()) != 1 {
		t.Errorf("%d capabilities after finishing twice", len(s.All()))
	}
}

func TestJobsAreOldestFirst(t *testing.T) {
	s := openStore(t, storeDir(t), newWorld(t).trust())
	if jobs, err := s.Jobs(); err != nil || len(jobs) != 0 {
		t.Fatalf("Jobs of an empty store = %v, %v", jobs, err)
	}
	start := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	for _, minute := range []int{3, 1, 4, 0, 2} {
		j := pendingJob()
		j.CreatedAt = start.Add(time.Duration(minute) * time.Minute)
		if _, err := s.AddJob(j); err != nil {
			t.Fatal(err)
		}
	}
	jobs, err := s.Jobs()
	if err != nil || len(jobs) != 5 {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
	for i, j := range jobs {
		if got := int(j.CreatedAt.Sub(start) / time.Minute); got != i {
			t.Errorf("job %d is of minute %d", i, got)
		}
	}
}

func TestAddJobRefusals(t *testing.T) {
	s := openStore(t, storeDir(t), newWorld(t).trust())
	for name, tc := range map[string]struct {
		edit func(*Job)
		want string
	}{
		"zero":                  {func(j *Job) { *j = Job{} }, `state ""`},
		"id of the caller's":    {func(j *Job) { j.ID = "abcdefghij" }, "want none"},
		"running":               {func(j *Job) { j.State = JobRunning }, "running"},
		"done":                  {func(j *Job) { j.State = JobDone; j.Verdict = BuildFailed }, "done"},
		"unknown state":         {func(j *Job) { j.State = "queued" }, "queued"},
		"verdict":               {func(j *Job) { j.Verdict = BuildFailed }, "verdict BUILD_FAILED on a job that is pending"},
		"capability":            {func(j *Job) { j.Capability = digestOf("x") }, "a minted job has one"},
		"no sba":                {func(j *Job) { j.SBA = digestOf("x"); j.SBA = Job{}.SBA }, "sba digest is missing"},
		"no model":              {func(j *Job) { j.Model = "" }, "model is missing"},
		"model leads out":       {func(j *Job) { j.Model = "../x" }, "not a clean relative path"},
		"no version":            {func(j *Job) { j.Version = "" }, "version is missing"},
		"negative attempts":     {func(j *Job) { j.Attempts = -1 }, "-1 attempts"},
		"priority too high":     {func(j *Job) { j.Priority = MaxPriority + 1 }, "priority 11: want -10 to 10"},
		"priority too low":      {func(j *Job) { j.Priority = MinPriority - 1 }, "priority -11"},
		"more fetches":          {func(j *Job) { j.Attempts, j.Fetches = 1, 2 }, "1 attempts, of which 2"},
		"waits for the moon":    {func(j *Job) { j.Waits, j.NotBefore = "moon", time.Now().UTC() }, `waits for "moon"`},
		"waits without an end":  {func(j *Job) { j.Waits = WaitFetch }, `waits for "fetch" until 0001`},
		"a time and no purpose": {func(j *Job) { j.NotBefore = time.Now().UTC() }, `waits for ""`},
		"too long": {func(j *Job) {
			j.Locations.Source = strings.Repeat("x", MaxRecord)
		}, "want 1 to 524288"},
	} {
		t.Run(name, func(t *testing.T) {
			j := pendingJob()
			tc.edit(&j)
			_, err := s.AddJob(j)
			wantError(t, err, "adding job", tc.want)
		})
	}
	if jobs, err := s.Jobs(); err != nil || len(jobs) != 0 {
		t.Errorf("refused jobs left %d rows, %v", len(jobs), err)
	}
}

func TestPutJobRefusals(t *testing.T) {
	s := openStore(t, storeDir(t), newWorld(t).trust())
	j := addJob(t, s)
	for name, tc := range map[string]struct {
		edit func(*Job)
		want string
		is   error
	}{
		"unknown id":     {func(j *Job) { j.ID = "abcdefghij" }, "abcdefghij", ErrNotFound},
		"no id":          {func(j *Job) { j.ID = "" }, "", ErrNotFound},
		"id with prefix": {func(j *Job) { j.ID = "../../../" + j.ID }, "", ErrNotFound},
		"other sba":      {func(j *Job) { j.SBA = digestOf("x") }, "stays so", nil},
		"other model":    {func(j *Job) { j.Model = "acme/other" }, "stays so", nil},
		"other creation": {func(j *Job) { j.CreatedAt = j.CreatedAt.Add(1) }, "stays so", nil},
		"unknown state":  {func(j *Job) { j.State = "paused" }, `state is "paused"`, nil},
		"done, no verdict": {func(j *Job) {
			j.State = JobDone
		}, `verdict is ""`, nil},
		"unknown verdict": {func(j *Job) { j.State, j.Verdict = JobDone, "OK" }, `verdict is "OK"`, nil},
		"runs and waits": {func(j *Job) {
			j.State, j.Waits, j.NotBefore = JobRunning, WaitBudget, time.Now().UTC()
		}, "a job that is running waits", nil},
		"minted without a capability": {func(j *Job) {
			j.State, j.Verdict = JobDone, Minted
		}, "without its capability", nil},
		"minted by its own word": {func(j *Job) {
			j.State, j.Verdict, j.Capability = JobDone, Minted, digestOf("x")
		}, "without its capability", nil},
		"capability of a failed job": {func(j *Job) {
			j.State, j.Verdict, j.Capability = JobDone, BuildFailed, digestOf("x")
		}, "no other has", nil},
	} {
		t.Run(name, func(t *testing.T) {
			edited := j
			tc.edit(&edited)
			err := s.PutJob(edited)
			wantError(t, err, "writing job", tc.want)
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if got, err := s.Job(j.ID); err != nil || !reflect.DeepEqual(got, j) {
				t.Errorf("the refused job changed the row: %+v, %v", got, err)
			}
		})
	}
	if _, err := s.Job("abcdefghij"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Job of an unknown id: %v, want ErrNotFound", err)
	}
}

func TestJobEndsOnce(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	for _, end := range []func(Job) error{
		func(j Job) error { j.State = JobCancelled; return s.PutJob(j) },
		func(j Job) error { j.State, j.Verdict = JobDone, BuildFailed; return s.PutJob(j) },
		func(j Job) error { j.Verdict = Nondeterministic; _, err := s.FinishJob(j, nil); return err },
	} {
		j := addJob(t, s)
		if err := end(j); err != nil {
			t.Fatal(err)
		}
		j.State = JobRunning
		if err := s.PutJob(j); !errors.Is(err, ErrFinished) {
			t.Errorf("running again: %v, want ErrFinished", err)
		}
		j.Verdict = Minted
		if _, err := s.FinishJob(j, w.capability(t, "", "a.bin")); !errors.Is(err, ErrFinished) {
			t.Errorf("minting after the end: %v, want ErrFinished", err)
		}
	}
	if len(s.All()) != 0 {
		t.Error("a job that had ended granted something")
	}
}

func TestFinishJobRefusals(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	j := addJob(t, s)
	good := w.capability(t, "", "a.bin")
	otherModel := w.statement(t, "", "a.bin")
	otherModel.Predicate.Model = "acme/other"
	for name, tc := range map[string]struct {
		verdict  Verdict
		envelope []byte
		edit     func(*Job)
		want     string
	}{
		"no verdict":                {"", nil, nil, `verdict is ""`},
		"unknown verdict":           {"FINE", nil, nil, `verdict is "FINE"`},
		"minted, no capability":     {Minted, nil, nil, "has one and no other verdict has"},
		"failed with a capability":  {BuildFailed, good, nil, "has one and no other verdict has"},
		"stranger's capability":     {Minted, sign(t, payloadOf(t, w.statement(t, "", "a.bin")), w.stranger), nil, "not signed by a trusted mint"},
		"capability of another SBA": {Minted, w.capability(t, "other", "a.bin"), nil, "capability is for"},
		"of another model":          {Minted, sign(t, payloadOf(t, otherModel), w.mint), nil, "capability is for acme/other"},
		"unknown job":               {Minted, good, func(j *Job) { j.ID = "abcdefghij" }, "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			edited := j
			edited.Verdict = tc.verdict
			if tc.edit != nil {
				tc.edit(&edited)
			}
			c, err := s.FinishJob(edited, tc.envelope)
			wantError(t, err, "finishing job", tc.want)
			if !c.IsZero() || len(s.All()) != 0 {
				t.Error("the refused end granted something")
			}
			if got, err := s.Job(j.ID); err != nil || !reflect.DeepEqual(got, j) {
				t.Errorf("the refused end changed the row: %+v, %v", got, err)
			}
		})
	}
}

// TestRemoveJob: only the rows of ended jobs go, and not those that say where a
// live capability came from.
func TestRemoveJob(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	pending, running, failed, minted := addJob(t, s), addJob(t, s), addJob(t, s), addJob(t, s)
	running.State = JobRunning
	if err := s.PutJob(running); err != nil {
		t.Fatal(err)
	}
	failed.Verdict = BuildFailed
	if _, err := s.FinishJob(failed, nil); err != nil {
		t.Fatal(err)
	}
	minted.Verdict = Minted
	c, err := s.FinishJob(minted, w.capability(t, "", "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]error{pending.ID: ErrUnfinished, running.ID: ErrUnfinished, minted.ID: ErrLive} {
		if err := s.RemoveJob(id); !errors.Is(err, want) {
			t.Errorf("RemoveJob = %v, want %v", err, want)
		}
	}
	for range 2 {
		if err := s.RemoveJob(failed.ID); err != nil {
			t.Errorf("removing a job that failed: %v", err)
		}
	}
	if err := s.remove(minted.ID, c.NotBefore().Add(-time.Hour)); !errors.Is(err, ErrLive) {
		t.Errorf("before its capability begins: %v, want %v", err, ErrLive)
	}
	if _, err := s.Revoke(w.revocation(t, KindCapability, c.ID().String())); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveJob(minted.ID); err != nil {
		t.Errorf("removing a job whose capability is revoked: %v", err)
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	jobs, err := s.Jobs()
	if err != nil || len(jobs) != 2 {
		t.Errorf("%d jobs after opening again (%v), want the pending and the running one", len(jobs), err)
	}
	if n := len(s.All()); n != 1 {
		t.Errorf("%d capabilities, want 1: no capability goes with its job's row", n)
	}
}

// An expired capability keeps no row.
func TestRemoveJobExpired(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	j := addJob(t, s)
	j.Verdict = Minted
	c, err := s.FinishJob(j, w.capability(t, "", "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.remove(j.ID, c.NotAfter()); err != nil {
		t.Errorf("removing at the end of the capability: %v", err)
	}
	if _, err := s.Job(j.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the row is still there: %v", err)
	}
}

// What a build prints does not keep its job from ending.
func TestJobTextsAreCut(t *testing.T) {
	s := openStore(t, storeDir(t), newWorld(t).trust())
	j := addJob(t, s)
	j.Verdict = BuildFailed
	j.Reason = "bad \xff\xfe byte"
	j.Diagnosis = strings.Repeat("é\x00\xff", maxRecordTest)
	j.Log = strings.Repeat("\x01", maxRecordTest)
	if _, err := s.FinishJob(j, nil); err != nil {
		t.Fatal(err)
	}
	got, err := s.Job(j.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Reason != "bad \uFFFD byte" || len(got.Diagnosis) > maxDiagnosis || !strings.HasSuffix(got.Diagnosis, "(cut)") || len(got.Log) > maxLog {
		t.Errorf("reason %q, diagnosis of %d bytes, log of %d", got.Reason, len(got.Diagnosis), len(got.Log))
	}
}

const maxRecordTest = 1 << 20

// Every changed byte of a job's row is an error that names the row, and the
// other jobs are still listed.
func TestDamagedJobRows(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	good, bad := addJob(t, s), addJob(t, s)
	value, err := getRow(s.db, prefixJob+bad.ID)
	if err != nil {
		t.Fatal(err)
	}
	key := []byte(prefixJob + bad.ID)
	for i := range value {
		broken := bytes.Clone(value)
		broken[i] ^= 1
		if _, err := s.openJob(row{key, broken}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d changed: %v, want ErrDamaged", i, err)
		}
	}
	if _, err := s.openJob(row{[]byte(prefixJob + good.ID), value}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a row under another job's key: %v, want ErrDamaged", err)
	}
	another, err := getRow(s.db, prefixJob+good.ID)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for name, broken := range map[string][]byte{
		"empty": nil, "cut": value[:len(value)/2], "no code": value[rowHeader:], "other text": append(value[:rowHeader:rowHeader], `{}`...), "of another job": another,
	} {
		db, err := badger.Open(badger.DefaultOptions(filepath.Join(dir, "db")).WithLogger(nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set(key, broken) }); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, dir, w.trust())
		if _, err := s.Job(bad.ID); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: Job = %v, want ErrDamaged", name, err)
		}
		if err := s.PutJob(bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: PutJob = %v, want ErrDamaged", name, err)
		}
		jobs, err := s.Jobs()
		wantError(t, err, "listing jobs", bad.ID)
		if len(jobs) != 1 || jobs[0].ID != good.ID {
			t.Errorf("%s: Jobs lists %d jobs, want the good one", name, len(jobs))
		}
		closeStore(t, s)
	}
}

func TestVerdicts(t *testing.T) {
	final := map[Verdict]bool{FetchFailed: false, PolicyRefused: true, BuildFailed: true, Timeout: false, LimitExceeded: true,
		OutputMissing: true, CopiedInput: true, NotComparable: true, Nondeterministic: true, Disputed: false, Minted: true}
	if len(final) != len(verdicts) {
		t.Fatalf("%d verdicts, want %d", len(verdicts), len(final))
	}
	for v, want := range final {
		if !v.Valid() || v.IsFinal() != want || v.Granted() != (v == Minted) {
			t.Errorf("%s: valid %v, final %v, granted %v", v, v.Valid(), v.IsFinal(), v.Granted())
		}
	}
	for _, v := range []Verdict{"", "minted", "GRANTED"} {
		if v.Valid() || v.IsFinal() || v.Granted() {
			t.Errorf("%q counts as a verdict", v)
		}
	}
}

// Who reads many jobs holds up neither a grant nor a revocation; Close alone
// waits for it, because a database that is closed under a reader panics.
func TestLongReadsHoldUpNothing(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	addJob(t, s)
	db, done, err := s.reader()
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	err = scan(db, prefixJob, afterJobs, func(*badger.Item) error {
		rows++
		if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
			return err
		}
		_, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String()))
		return err
	})
	if err != nil || rows != 1 || !isRevoked(t, s.Lookup(digestOf("a.bin"))) {
		t.Fatalf("%d rows read while writing: %v", rows, err)
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		t.Errorf("the store closed under a reader: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	done()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, _, err := s.reader(); !errors.Is(err, ErrClosed) {
		t.Errorf("reading a closed store: %v, want ErrClosed", err)
	}
}
