package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/hashpipe"
)

func newStoreCompactCommand(a *app) *cobra.Command {
	var ended bool
	c := &cobra.Command{
		Use:   "compact [--drop-ended]",
		Short: "Make the store anew, without what no longer says anything",
		Long: `compact copies the store into a new one, without the revocation lists that a later
one of the same key repeats whole, and without the room that deleted rows take. With
--drop-ended, capabilities that have expired or were revoked as a whole are left out,
too, and clawfs caps does not show them any more. One that another contradicts stays,
and so does one that something was built from: whether a file opens does not change.

A revocation is never left out, and nothing is taken from the journal in kept:
clawfs store rebuild brings back what was left out. A store with findings is not
compacted. No daemon may run; mounts go on meanwhile. The old store is kept under the
name that is printed; remove it when you like.`,
		Example: "  clawfs store compact\n  clawfs store compact --drop-ended",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.compact(c.Context(), ended)
		},
	}
	c.Flags().BoolVar(&ended, "drop-ended", false, "leave out capabilities that have expired or were revoked")
	return c
}

// compacted is the answer of `store compact`.
type compacted struct {
	remade
	Before  int64          `json:"before"` // bytes on the disk
	After   int64          `json:"after"`
	Dropped map[string]int `json:"dropped"` // by kind
}

func (a *app) compact(ctx context.Context, ended bool) error {
	s := a.config()
	if status, err := a.client().Status(ctx); err == nil {
		return exitf(codeRefused, "a daemon runs (pid %d), and has the store; mounts go on without it; next: kill %[1]d, then this again", status.PID)
	}
	v, err := a.verifyStore(ctx, capstore.Head{})
	if err != nil {
		return err
	}
	if v.Found > 0 {
		return exitf(codeRefused, "the store has %d findings, the first of them %s: %s; nothing was changed; next: %s", v.Found, v.Findings[0].Where, v.Findings[0].What, a.command("store", "verify"))
	}
	r := compacted{Before: diskUse(s.Store()), Dropped: map[string]int{}}
	made, err := a.remake(ctx, "compacting the store", func(m *assembly) error { return m.compact(ctx, ended, r.Dropped) })
	if err != nil {
		return err
	}
	r.remade = *made
	r.After = diskUse(s.Store())
	return a.printRemadeAs(made, r, func() {
		a.printf("store    %s: %s, before %s\n", s.Store(), humanize.IBytes(uint64(r.After)), humanize.IBytes(uint64(r.Before)))
		a.printf("left out %d revocation lists, %d capabilities\n", r.Dropped[capstore.RecordList], r.Dropped[capstore.RecordCapability])
		a.printf("has      %d capabilities, %d revocations, %d revocation lists, %d jobs\n", r.Records[capstore.RecordCapability], r.Records[capstore.RecordRevocation], r.Records[capstore.RecordList], r.Jobs)
		if n := r.Sources[0].Refused; n > 0 {
			a.printf("left out %d records that the policy does not believe; next: clawfs store rebuild, when it does\n", n)
		}
		a.printf("before   %s\n", r.Old)
		a.showMissing(made)
	})
}

// compact copies the store twice: what takes something back first, which says what
// can be left out of the rest.
func (m *assembly) compact(ctx context.Context, ended bool, dropped map[string]int) error {
	view, err := capstore.NewView(m.policy.Trust())
	if err != nil {
		return err
	}
	read := func(each func(capstore.Record) error) error {
		var stopped error
		err := m.a.child(ctx, []string{"dump"}, func(out io.Reader) error {
			_, err := kept.ReadArchive(out, func(r kept.Record) error {
				if r.Kind == kindNote {
					stopped = fmt.Errorf("the store: %s", r.Envelope)
				} else {
					stopped = each(capstore.Record{Kind: r.Kind, Envelope: r.Envelope})
				}
				return stopped
			})
			return err
		})
		if stopped != nil {
			return stopped
		}
		return err
	}
	s := m.source("store")
	var lists []capstore.Record
	speaks := said{results: make(map[quarrel]hashpipe.Digest), disputed: make(map[quarrel]bool), bases: make(map[hashpipe.Digest]bool)}
	err = read(func(r capstore.Record) error {
		switch r.Kind {
		case capstore.RecordRevocation:
			if ended {
				_ = view.Apply(r) // an error says that its key is not pinned, and it revokes nothing
			}
			return m.add(s, r, capstore.OwnStore)
		case capstore.RecordList:
			if view.Apply(r) != nil {
				lists = append(lists, r) // of a former revoker: it stays
			} else {
				dropped[r.Kind]++
			}
		case capstore.RecordCapability:
			if !ended {
				return nil
			}
			return m.note(speaks, r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range view.Lists() {
		lists = append(lists, capstore.Record{Kind: capstore.RecordList, Envelope: l.Envelope()})
		dropped[capstore.RecordList]--
	}
	for _, l := range lists {
		if err := m.add(s, l, capstore.OwnStore); err != nil {
			return err
		}
	}
	now := time.Now()
	return read(func(r capstore.Record) error {
		if takesBackKind(r.Kind) {
			return nil
		}
		if r.Kind == capstore.RecordCapability && ended {
			over, err := m.over(view, speaks, r, now)
			if err != nil || over {
				dropped[r.Kind]++
				return err
			}
		}
		return m.add(s, r, capstore.OwnStore)
	})
}

// quarrel is what two capabilities can contradict each other about.
type quarrel struct{ sba, class hashpipe.Digest }

// said is what capabilities say of each other, whether they have ended or not.
type said struct {
	results  map[quarrel]hashpipe.Digest // the first of each
	disputed map[quarrel]bool            // there are several
	bases    map[hashpipe.Digest]bool    // claims that something was built from
}

func (m *assembly) note(s said, r capstore.Record) error {
	c, ok, err := m.capability(r)
	if err != nil || !ok {
		return err
	}
	over := quarrel{c.SBA(), c.Class()}
	if first, known := s.results[over]; !known {
		s.results[over] = c.Result()
	} else if first != c.Result() {
		s.disputed[over] = true
	}
	for _, b := range c.Bases() {
		s.bases[b] = true
	}
	return nil
}

// capability is that of a record; ok is false if no key of the policy signed it.
func (m *assembly) capability(r capstore.Record) (c capstore.Capability, ok bool, err error) {
	one, err := capstore.NewView(m.policy.Trust())
	if err != nil {
		return c, false, err
	}
	c, refused := one.Admit(r.Envelope)
	return c, refused == nil, nil // add says why it is none
}

// over says whether a capability opens nothing any more, and never will, and keeps
// nothing from opening.
func (m *assembly) over(revoked *capstore.View, s said, r capstore.Record, now time.Time) (bool, error) {
	c, ok, err := m.capability(r)
	if err != nil || !ok || s.disputed[quarrel{c.SBA(), c.Class()}] || s.bases[c.Claim()] {
		return false, err
	}
	return !now.Before(c.NotAfter()) || revoked.RevokesWhole(c), nil
}

// diskUse is what the files of a directory take on the disk, in bytes: Badger's
// have holes.
func diskUse(dir string) (n int64) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), "ballast") {
			if info, err := os.Lstat(path); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					n += st.Blocks * 512
				}
			}
		}
		return nil
	})
	return n
}
