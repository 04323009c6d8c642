package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/hashpipe"
)

func newStoreRestoreCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Go back to the grants and jobs of a backup; revocations stay",
		Long: `restore makes a store of FILE, which clawfs store backup wrote, and puts it in the
place of the one that is there. Every signature is checked by the keys of the policy.

What was taken back stays so, whatever FILE has: the revocations and lists in the
journal, and those of the store that is there as far as it can be read, are added.
Capabilities and jobs are those of FILE; clawfs store rebuild has the later ones, too.

The new store is made beside the old one, which is then kept under the name that is
printed. A restore that is interrupted leaves the one or the other. No daemon may
have the store open; one that runs without a store goes on with the new one.

The policy, its signed form and clawfs.toml in FILE are not put back: who is trusted
is not for a backup to say. Those that differ are written beside those that are
there, as NAME.restored.

Exit code 3: FILE was cut or changed, a list that this machine has seen is in none of
the sources, or neither the journal nor the store could be read whole.`,
		Example: "  clawfs store restore /backup/clawfs-2026-11-27.jsonl",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.restore(c.Context(), args[0])
			return a.printRemade(r, err)
		},
	}
}

func (a *app) restore(ctx context.Context, path string) (*remade, error) {
	if err := checkArchive(path); err != nil {
		return nil, err
	}
	return a.remake(ctx, "restoring", func(m *assembly) error {
		if err := m.fromArchive(path, true); err != nil {
			return err
		}
		if err := m.fromKept(takesBackKind); err != nil {
			return err
		}
		return m.fromStore(ctx, takesBackKind)
	})
}

// checkArchive reads a backup once before anything of it is used.
func checkArchive(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = kept.ReadArchive(f, func(kept.Record) error { return nil })
	if errors.Is(err, kept.ErrNoArchive) || errors.Is(err, kept.ErrCut) {
		return exitf(codeRefused, "%s: %w; nothing was changed", printable(path), err)
	}
	return err
}

// fromArchive takes what a backup has, which checkArchive has read.
func (m *assembly) fromArchive(path string, files bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	s := m.source(path)
	_, err = kept.ReadArchive(f, func(r kept.Record) error {
		switch {
		case isSigned(r.Kind) || r.Kind == kindJob:
			return m.add(s, capstore.Record{Kind: r.Kind, Envelope: r.Envelope}, capstore.Elsewhere)
		case r.Kind == kindFile && files:
			return m.restoreFile(s, r.Envelope)
		}
		return nil
	})
	return err
}

// restoreFile writes a text that differs from the one that is there beside it.
func (m *assembly) restoreFile(s *storeSource, line []byte) error {
	var f backupFile
	if err := json.Unmarshal(line, &f, json.RejectUnknownMembers(true)); err != nil {
		s.note("a file: %v", err)
		return nil
	}
	for _, path := range []string{m.state.Policy(), m.state.SignedPolicy(), m.state.Settings()} {
		if filepath.Base(path) != f.Name {
			continue
		}
		have, err := os.ReadFile(path)
		if err == nil && hashpipe.SumBytes(have).Claim() == hashpipe.SumBytes(f.Text).Claim() {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path+".restored", f.Text, 0o600); err != nil {
			return err
		}
		s.note("%s differs from the one that is there, and stands beside it as %s", f.Name, path+".restored")
		return nil
	}
	s.note("a file of the name %q", fmt.Sprintf("%.64s", f.Name))
	return nil
}
