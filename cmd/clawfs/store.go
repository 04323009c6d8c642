package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
)

func newStoreCommand(a *app) *cobra.Command {
	return group("store", "Check, back up and repair the store of capabilities",
		`The store holds every capability, revocation and revocation list that was
acknowledged, as signed text, and the jobs. Each signed text stands once more in the
directory kept of the state directory, as lines that a person can read, before it is
acknowledged. So a store that is lost can be made again.

A daemon that cannot open its store goes on without it: mounts serve what they know,
nothing new is granted, clawfs revoke works, and clawfs status says why. verify says
what is wrong; rebuild and restore mend it while that daemon runs, and it goes on
with the new store.`,
		newStoreVerifyCommand(a), newStoreHeadCommand(a), newStoreBackupCommand(a), newStoreRestoreCommand(a), newStoreRebuildCommand(a), newStoreCompactCommand(a))
}

// maxRefusals bounds how many of the refused records are told one by one.
const maxRefusals = 20

// storeSource is what came of one place from which records were taken.
type storeSource struct {
	Source   string   `json:"source"`
	Records  int      `json:"records"` // that were read, with jobs
	Added    int      `json:"added"`
	Known    int      `json:"known"`   // that an earlier source had
	Refused  int      `json:"refused"` // that no key of the policy signed, or that are none
	Refusals []string `json:"refusals,omitempty"`
	Notes    []string `json:"notes,omitempty"` // what could not be read
}

func (s *storeSource) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// remade is what became of the store.
type remade struct {
	Store   string         `json:"store"`
	Old     string         `json:"old"` // where the store of before is
	Records map[string]int `json:"records"`
	Jobs    int            `json:"jobs"`
	Sources []*storeSource `json:"sources"`
	Waiting int            `json:"waiting"` // revocations and lists that the store takes when it opens
	Missing []string       `json:"missing,omitempty"`
	Daemon  string         `json:"daemon"` // "opened it", "none runs", or why it did not
}

// assembly makes a store of records from several sources.
type assembly struct {
	a      *app
	state  config.State
	policy config.Policy
	draft  *capstore.Draft
	lists  *capstore.View // all lists
	bar    *bar
	result remade

	torn  bool // the journal could not be read whole
	whole bool // the store that was there could be read, and all of it
}

// remake makes a store of what use adds, and puts it in the place of the one that
// is there. While use works nobody else opens that one.
func (a *app) remake(ctx context.Context, label string, use func(*assembly) error) (*remade, error) {
	s := a.config()
	if err := s.MakeRun(); err != nil {
		return nil, err
	}
	policy, err := s.LoadPolicy()
	if err != nil {
		return nil, err
	}
	m := &assembly{a: a, state: s, policy: policy, bar: a.progress(label)}
	defer m.bar.done()
	m.result = remade{Store: s.Store(), Records: map[string]int{}, Sources: []*storeSource{}}
	if m.lists, err = capstore.NewView(policy.Trust()); err != nil {
		return nil, err
	}
	m.draft, err = a.newDraft(ctx, policy)
	if err != nil {
		return nil, err
	}
	defer m.draft.Discard()
	// A damaged store of a machine that is new is remade empty. Asked when nobody can have
	// the store open any more, and a swap that was begun has been finished.
	begun := capstore.Begun(s.Memory())
	if err := use(m); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m.draft.Facts() == 0 && m.result.Jobs == 0 && m.heldSomething(begun) {
		return nil, exitf(codeRefused, "no source has a record that a key of the policy signed, and nothing was changed; next: %s", a.command("store", "verify"))
	}
	if m.result.Old, err = m.draft.Commit(time.Now()); err != nil {
		return nil, err
	}
	if err := checkNewestList(memory.Dir(s.Memory()), policy.Trust().Revokers, m.lists); err != nil {
		m.result.Missing = append(m.result.Missing, err.Error())
	}
	if m.torn && !m.whole {
		m.result.Missing = append(m.result.Missing, "what could not be read of the journal, and what could not be read of the store: a capability or a revocation that was acknowledged may be among it; next: clawfs store rebuild with another source too, such as --from BACKUP or --from oci://HOST/REPOSITORY")
	}
	damage, err := kept.ReadWaiting(s.Kept(), func(kept.Record) error { m.result.Waiting++; return nil })
	for _, d := range damage {
		m.result.Missing = append(m.result.Missing, "a record that was acknowledged without a store: "+d.String())
	}
	if err != nil {
		return nil, err
	}
	m.result.Daemon = a.openAgain(ctx)
	return &m.result, nil
}

// heldSomething says whether the store that would be replaced may have something:
// records that were refused or, if it ever had a fact, some that nobody has looked
// for or could read.
func (m *assembly) heldSomething(begun bool) bool {
	some := func(what func(*storeSource) bool) bool { return slices.ContainsFunc(m.result.Sources, what) }
	return some(func(s *storeSource) bool { return s.Records > 0 }) ||
		begun && (!some(func(s *storeSource) bool { return s.Source == "store" }) || some(func(s *storeSource) bool { return len(s.Notes) > 0 }))
}

// newDraft waits a moment for a daemon that is just trying to open the store.
func (a *app) newDraft(ctx context.Context, policy config.Policy) (*capstore.Draft, error) {
	s := a.config()
	for end := time.Now().Add(10 * time.Second); ; wait(ctx, time.After(50*time.Millisecond)) {
		d, err := capstore.NewDraft(s.Store(), s.Memory(), policy.Trust())
		if !errors.Is(err, capstore.ErrLocked) || ctx.Err() != nil {
			return d, err
		}
		status, gone := a.client().Status(ctx)
		if gone == nil && status.Store == nil {
			return nil, exitf(codeRefused, "the daemon (pid %d) has the store open and works with it; mounts go on without it; next: kill %[1]d, then this again", status.PID)
		}
		if time.Now().After(end) {
			return nil, exit(codeRefused, err)
		}
	}
}

// openAgain lets a daemon that runs without a store open the new one.
func (a *app) openAgain(ctx context.Context) string {
	c := a.client()
	status, err := c.Status(ctx)
	var gone *control.UnreachableError
	switch {
	case errors.As(err, &gone):
		return "none runs"
	case err != nil:
		return err.Error()
	case status.Store != nil:
		if _, err = c.OpenStore(ctx); err == nil {
			status, err = c.Status(ctx)
		}
	}
	switch {
	case err != nil:
		return err.Error()
	case status.Store != nil:
		return status.Store.Error
	}
	return "opened it"
}

// source begins another one.
func (m *assembly) source(name string) *storeSource {
	s := &storeSource{Source: name}
	m.result.Sources = append(m.result.Sources, s)
	return s
}

// add takes one record, also one of a job.
func (m *assembly) add(s *storeSource, r capstore.Record, from capstore.Origin) error {
	s.Records++
	m.bar.add(int64(len(r.Envelope)))
	var added bool
	var err error
	if r.Kind == kindJob {
		var j capstore.Job
		if err = json.Unmarshal(r.Envelope, &j, json.RejectUnknownMembers(true)); err != nil {
			err = &capstore.RefusedError{Err: fmt.Errorf("job: %w", err)}
		} else {
			added, err = m.draft.AddJob(j)
		}
	} else {
		added, err = m.draft.Add(r, from)
	}
	var refused *capstore.RefusedError
	switch {
	case errors.As(err, &refused):
		s.Refused++
		if len(s.Refusals) < maxRefusals {
			s.Refusals = append(s.Refusals, fmt.Sprintf("record %d (%s): %v", s.Records, r.Kind, err))
		}
		return nil
	case err != nil:
		return err
	case !added:
		s.Known++
		return nil
	}
	s.Added++
	if r.Kind == kindJob {
		m.result.Jobs++
		return nil
	}
	m.result.Records[r.Kind]++
	if r.Kind == capstore.RecordList {
		_ = m.lists.Apply(r) // an error says that its key is not pinned, and it counts nowhere
	}
	return nil
}

// kindJob and kindFile are kinds of what a backup has beside signed records.
const (
	kindJob  = "job"
	kindFile = "file"
)

// isSigned says whether a kind is one of the store's signed records.
func isSigned(kind string) bool { return kind == capstore.RecordCapability || takesBackKind(kind) }

func takesBackKind(kind string) bool {
	return kind == capstore.RecordRevocation || kind == capstore.RecordList
}

// fromKept takes what the journal has, of the kinds that are wanted.
func (m *assembly) fromKept(wanted func(kind string) bool) error {
	s := m.source("kept")
	damage, err := kept.Read(m.state.Kept(), func(r kept.Record) error {
		if !wanted(r.Kind) {
			return nil
		}
		return m.add(s, capstore.Record{Kind: r.Kind, Envelope: r.Envelope}, capstore.OwnJournal)
	})
	for _, d := range damage {
		s.note("%s", d)
	}
	m.torn = m.torn || len(damage) > 0
	return err
}

// fromStore takes what can be read of the store that is there. Badger may die of
// it, so a child reads.
func (m *assembly) fromStore(ctx context.Context, wanted func(kind string) bool) error {
	s := m.source("store")
	if _, err := os.Stat(m.state.Store() + "/db"); errors.Is(err, fs.ErrNotExist) {
		s.note("there is none at %s", m.state.Store())
		return nil
	}
	var stopped error
	err := m.a.child(ctx, []string{"dump"}, func(out io.Reader) error {
		_, err := kept.ReadArchive(out, func(r kept.Record) error {
			switch {
			case r.Kind == kindNote:
				s.note("%s", r.Envelope)
			case wanted(r.Kind):
				stopped = m.add(s, capstore.Record{Kind: r.Kind, Envelope: r.Envelope}, capstore.OwnStore)
			}
			return stopped
		})
		return err
	})
	if stopped != nil {
		return stopped
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.note("it can be read in part or not at all: %v", err)
	}
	m.whole = len(s.Notes) == 0
	return nil
}

func (a *app) showRemade(r *remade) {
	var rows [][]string
	for _, s := range r.Sources {
		rows = append(rows, []string{s.Source, strconv.Itoa(s.Records), strconv.Itoa(s.Added), strconv.Itoa(s.Known), strconv.Itoa(s.Refused)})
	}
	a.table([]string{"SOURCE", "RECORDS", "ADDED", "KNOWN", "REFUSED"}, rows)
	for _, s := range r.Sources {
		for _, n := range s.Notes {
			a.printf("not read from %s: %s\n", printable(s.Source), printable(n))
		}
		for _, n := range s.Refusals {
			a.printf("refused from %s: %s\n", printable(s.Source), printable(n))
		}
		if more := s.Refused - len(s.Refusals); more > 0 {
			a.printf("refused from %s: %d more\n", printable(s.Source), more)
		}
	}
	a.printf("store    %s: %d capabilities, %d revocations, %d revocation lists, %d jobs\n", r.Store,
		r.Records[capstore.RecordCapability], r.Records[capstore.RecordRevocation], r.Records[capstore.RecordList], r.Jobs)
	if r.Waiting > 0 {
		a.printf("waiting  %d revocations and lists that were acknowledged without a store; it takes them when it opens\n", r.Waiting)
	}
	a.printf("before   %s\n", r.Old)
	a.printf("daemon   %s\n", printable(r.Daemon))
	a.showMissing(r)
}

func (a *app) showMissing(r *remade) {
	for _, m := range r.Missing {
		a.printf("MISSING  %s\n", printable(a.here(m)))
	}
}

// printRemade prints the answer; its exit code says whether something is missing.
func (a *app) printRemade(r *remade, err error) error {
	if err != nil {
		return err
	}
	return a.printRemadeAs(r, r, func() { a.showRemade(r) })
}

// printRemadeAs prints an answer that has r in it.
func (a *app) printRemadeAs(r *remade, answer any, show func()) error {
	if err := a.print(answer, show); err != nil {
		return err
	}
	if len(r.Missing) > 0 {
		return &quietExit{codeRefused}
	}
	return nil
}

// child runs a part of the work on a store in a process that Badger may end; read
// gets what it writes. A child that dies is a *trouble.
func (a *app) child(ctx context.Context, mode []string, read func(io.Reader) error) error {
	cmd, err := a.selfCommand(append([]string{"store-probe"}, mode...)...)
	if err != nil {
		return err
	}
	var errs cut
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("reading the store in a child: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	readErr := read(bufio.NewReaderSize(out, 64<<10))
	if readErr != nil {
		// What is left is of no use, and a child must not wait for a reader.
		go io.Copy(io.Discard, out)
		time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return &trouble{causeCrashed, fmt.Errorf("reading the store ends the process that does it (%v): %s", err, lastWords(errs.Bytes()))}
	}
	return readErr
}

// kindNote is what a child says beside the records, in an archive.
const kindNote = "note"

// dumpStore writes what can be read of the store as an archive. Its parent has a
// draft of the store, so that nobody else opens it.
func (a *app) dumpStore(ctx context.Context) error {
	s := a.config()
	w, err := kept.NewArchive(a.stdout, "", time.Now())
	if err != nil {
		return err
	}
	err = capstore.Salvage(ctx, s.Store(), s.Memory(),
		func(r capstore.Record) error {
			if len(r.Envelope) == 0 || len(r.Envelope) > capstore.MaxRecord {
				return w.Add(kindNote, fmt.Appendf(nil, "a %s of %d bytes", r.Kind, len(r.Envelope)))
			}
			return w.Add(r.Kind, r.Envelope)
		},
		func(j capstore.Job) error { return addJob(w, j) },
		func(f capstore.Finding) { _ = w.Add(kindNote, []byte(f.Where+": "+f.What)) })
	if err != nil {
		// What was read stays of use, and the parent is told.
		if err := w.Add(kindNote, []byte(strings.TrimSpace(err.Error())+".")); err != nil {
			return err
		}
	}
	return w.Close()
}

func addJob(w *kept.Archive, j capstore.Job) error {
	text, err := json.Marshal(&j, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	return w.Add(kindJob, text)
}
