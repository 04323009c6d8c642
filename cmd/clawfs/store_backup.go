package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

func newStoreBackupCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Write the store to one file, while the daemon works",
		Long: `backup writes every capability, revocation and revocation list, the jobs, and
policy.json, policy.dsse and clawfs.toml as they are to FILE, or to standard output.
FILE is text, one record a line, and says at its end how many lines it has and their
SHA-256, so that one that was cut is noticed. A FILE that is there is not replaced.

NO PRIVATE KEY is in it: not mint.key, not revoke.key, not the key of the store's
rows. Keep those elsewhere. Nor are the fetched inputs of builds, the logs and what
memory remembers. Who reads FILE learns which models were granted; who writes it can
leave records out, and cannot make one.

A daemon that runs writes what it has acknowledged when it is asked, and goes on.`,
		Example: "  clawfs store backup /backup/clawfs-$(date +%F).jsonl\n  clawfs store backup - | ssh backup 'cat > clawfs.jsonl'",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.backup(c.Context(), args[0])
		},
	}
}

// backedUp is the answer of `store backup`.
type backedUp struct {
	File    string         `json:"file"`
	Bytes   int64          `json:"bytes"`
	Records map[string]int `json:"records"`
	Files   []string       `json:"files"`
}

func (a *app) backup(ctx context.Context, path string) error {
	r := backedUp{File: path, Records: map[string]int{}, Files: []string{}}
	if path == "-" {
		// The backup is the one result.
		count := &counted{w: a.stdout}
		if err := a.writeBackup(ctx, count, &r); err != nil {
			return err
		}
		a.notef("%d bytes, no private key\n", count.n)
		return nil
	}
	if _, err := os.Lstat(path); err == nil {
		return exitf(codeUsage, "%s is there already, and a backup replaces nothing; give another name", printable(path))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := durable.CreateFrom(path, 0o600, func(f *os.File) error {
		count := &counted{w: f}
		err := a.writeBackup(ctx, count, &r)
		r.Bytes = count.n
		return err
	})
	if err != nil {
		return err
	}
	return a.print(r, func() {
		a.printf("wrote %s: %d bytes\n", printable(path), r.Bytes)
		a.printf("  %d capabilities, %d revocations, %d revocation lists, %d jobs\n", r.Records[capstore.RecordCapability], r.Records[capstore.RecordRevocation], r.Records[capstore.RecordList], r.Records[kindJob])
		for _, f := range r.Files {
			a.printf("  %s\n", f)
		}
		a.printf("no private key is in it: keep mint.key and revoke.key elsewhere\n")
	})
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// backupFile is a text of the state directory in a backup.
type backupFile struct {
	Name string `json:"name"`
	Text []byte `json:"text"`
}

func (a *app) writeBackup(ctx context.Context, out io.Writer, r *backedUp) error {
	w, err := kept.NewArchive(out, "", time.Now())
	if err != nil {
		return err
	}
	bar := a.progress("writing the backup")
	defer bar.done()
	add := func(kind string, text []byte) error {
		r.Records[kind]++
		bar.add(int64(len(text)))
		return w.Add(kind, text)
	}
	s, err := a.client().Status(ctx)
	var gone *control.UnreachableError
	switch {
	case err == nil && s.Store != nil:
		return exitf(codeRefused, "the store cannot be opened, and a backup of it would not be one: %s; next: %s", s.Store.Error, a.command("store", "verify"))
	case err == nil:
		err = a.backupOfDaemon(ctx, add)
	case errors.As(err, &gone):
		err = a.backupOfStore(ctx, add)
	}
	if err != nil {
		return a.answered(err)
	}
	state := a.config()
	for _, path := range []string{state.Policy(), state.SignedPolicy(), state.Settings()} {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		line, err := json.Marshal(backupFile{filepath.Base(path), text})
		if err != nil {
			return err
		}
		if len(line) > kept.MaxEnvelope {
			a.warnf("%s is not in the backup: it has %d bytes, which is more than a line may have\n", path, len(text))
			continue
		}
		if err := w.Add(kindFile, line); err != nil {
			return err
		}
		r.Files = append(r.Files, filepath.Base(path))
	}
	return w.Close()
}

func (a *app) backupOfDaemon(ctx context.Context, add func(string, []byte) error) error {
	whole := false
	err := a.client().StoreRecords(ctx, func(l control.ViewLine) error {
		switch l.Kind {
		case control.LineSnapshot:
			whole = true
			return nil
		case control.LineError:
			return fmt.Errorf("the daemon could not read its store: %s; next: %s", l.Envelope, a.command("store", "verify"))
		}
		return add(l.Kind, l.Envelope)
	})
	if err == nil && !whole {
		err = errors.New("the daemon's answer ended before it was whole")
	}
	return err
}

func (a *app) backupOfStore(ctx context.Context, add func(string, []byte) error) error {
	s := a.config()
	if err := s.Check(); err != nil {
		return err
	}
	policy, err := s.LoadPolicy()
	if err != nil {
		return err
	}
	if err := a.probe(ctx); err != nil {
		return exit(codeRefused, fmt.Errorf("%w; next: %s", err, a.command("store", "verify")))
	}
	store, err := openStore(s, policy)
	if err != nil {
		return err
	}
	err = store.Walk(ctx,
		func(r capstore.Record) error { return add(r.Kind, r.Envelope) },
		func(j capstore.Job) error {
			text, err := json.Marshal(&j, json.Deterministic(true))
			if err != nil {
				return err
			}
			return add(kindJob, text)
		})
	return errors.Join(err, closeLast(store))
}
