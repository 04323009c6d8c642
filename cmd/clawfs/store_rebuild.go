package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/bundle"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newStoreRebuildCommand(a *app) *cobra.Command {
	var from []string
	var place placeFlags
	var log logFlags
	c := &cobra.Command{
		Use:   "rebuild [--from SOURCE]...",
		Short: "Make the store again of what is known elsewhere",
		Long: `rebuild makes a store of every record that the sources have and that a key of the
policy signed, and puts it in the place of the one that is there. A SOURCE is

  kept       the journal in the state directory: every record that was acknowledged
  store      what can be read of the store that is there, also of a damaged one
  FILE       a backup, a bundle of clawfs bundle, or one signed record
  PLACE      a registry (oci://HOST/REPOSITORY), or an OCI layout directory
  log        what the transparency log of --log has: capabilities and revocations

Without --from they are kept and store. Jobs are in the store and in backups only.
The answer says for each source what it had, what was added, what an earlier one had
already, and what was refused, and why.

The new store is made beside the old one, which is then kept under the name that is
printed. No daemon may have the store open; one that runs without a store goes on
with the new one, and mounts get what it has.

Exit code 3: nothing was found, a list that this machine has seen is in none of the
sources, or neither the journal nor the store could be read whole.`,
		Example: `  clawfs store rebuild
  clawfs store rebuild --from kept --from store --from oci://registry.example/acme/trust
  clawfs store rebuild --from kept --from log --log https://log.example --log-policy log.policy`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(from) == 0 {
				from = []string{"kept", "store"}
			}
			if slices.Contains(from, "") {
				return exitf(codeUsage, "--from is empty; want kept, store, log, a file or a place")
			}
			r, err := a.rebuild(c.Context(), from, place, log)
			return a.printRemade(r, err)
		},
	}
	c.Flags().StringArrayVar(&from, "from", nil, "a `source` of records (repeat); default kept and store")
	place.register(c)
	log.register(c, "`URL` or directory of the log that --from log reads")
	return c
}

func (a *app) rebuild(ctx context.Context, from []string, place placeFlags, log logFlags) (*remade, error) {
	var take []func(*assembly) error
	all := func(kind string) bool { return isSigned(kind) || kind == kindJob }
	for _, f := range from {
		t, err := a.rebuildFrom(ctx, f, all, place, log)
		if err != nil {
			return nil, err
		}
		take = append(take, t)
	}
	return a.remake(ctx, "rebuilding the store", func(m *assembly) error {
		for _, t := range take {
			if err := t(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// rebuildFrom opens a source before anything is begun, so that a wrong name changes
// nothing.
func (a *app) rebuildFrom(ctx context.Context, from string, all func(string) bool, place placeFlags, log logFlags) (func(*assembly) error, error) {
	switch from {
	case "kept":
		return func(m *assembly) error { return m.fromKept(all) }, nil
	case "store":
		return func(m *assembly) error { return m.fromStore(ctx, all) }, nil
	case "log":
		policy, location, err := a.logs(log)
		if err != nil {
			return nil, err
		}
		l, err := translog.Open(location, policy)
		if err != nil {
			return nil, err
		}
		c, err := l.Checkpoint(ctx)
		if err != nil {
			return nil, logRefusal(err)
		}
		return func(m *assembly) error { return m.fromLog(ctx, location, l, c) }, nil
	}
	info, err := os.Stat(from)
	if err == nil && info.Mode().IsRegular() {
		return a.rebuildFromFile(from)
	}
	if err != nil && !strings.HasPrefix(from, "oci://") {
		return nil, exitf(codeUsage, "--from %s: want kept, store, log, a file, a directory or oci://HOST/REPOSITORY: %w", printable(from), err)
	}
	p, err := a.openPlace(from, place)
	if err != nil {
		return nil, err
	}
	tags, err := p.Tags(ctx)
	if err != nil {
		return nil, registryError(err)
	}
	return func(m *assembly) error { return m.fromPlace(ctx, p, tags) }, nil
}

func (a *app) rebuildFromFile(path string) (func(*assembly) error, error) {
	err := checkArchive(path)
	if err == nil {
		return func(m *assembly) error { return m.fromArchive(path, false) }, nil
	}
	if !errors.Is(err, kept.ErrNoArchive) {
		return nil, err
	}
	return func(m *assembly) error { return m.fromBundle(path) }, nil
}

// recordKinds are the kinds of the store for those of a place.
var recordKinds = map[registry.Kind]string{
	registry.Capability:     capstore.RecordCapability,
	registry.Revocation:     capstore.RecordRevocation,
	registry.RevocationList: capstore.RecordList,
}

// addFound adds what somebody else has, if it is of a kind that the store keeps.
func (m *assembly) addFound(s *storeSource, where string, envelope []byte) error {
	rec, err := registry.Identify(envelope)
	if err != nil {
		s.note("%s: %v", where, err)
		return nil
	}
	kind, keeps := recordKinds[rec.Kind]
	if !keeps {
		return nil
	}
	return m.add(s, capstore.Record{Kind: kind, Envelope: envelope}, capstore.Elsewhere)
}

// fromBundle takes the records of a bundle, or of a file with one record.
func (m *assembly) fromBundle(path string) error {
	s := m.source(path)
	// Several lines are a capability that was handed on, or several records.
	if text, err := readBounded(path, dsse.MaxEnvelope); err == nil {
		if rec, err := registry.Identify(text); err == nil && m.isOne(rec.Kind, text) {
			return m.addFound(s, path, text)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = bundle.Read(bufio.NewReader(io.LimitReader(f, bundle.MaxBytes+1)), func(it bundle.Item) error {
		return m.addFound(s, fmt.Sprintf("line %d", it.Line), it.Envelope)
	})
	var format *bundle.FormatError
	if errors.As(err, &format) {
		s.note("%v", err)
		return nil
	}
	return err
}

// isOne says whether a text is one record, and not several of which the first looks
// like one.
func (m *assembly) isOne(kind registry.Kind, text []byte) bool {
	if kind != registry.Capability || !bytes.Contains(bytes.TrimSpace(text), []byte("\n")) {
		return true
	}
	view, err := capstore.NewView(m.policy.Trust())
	if err == nil {
		_, err = view.Admit(text)
	}
	return err == nil
}

// fromPlace takes what a registry lists: what takes something back first.
func (m *assembly) fromPlace(ctx context.Context, p *registry.Place, tags []string) error {
	s := m.source(p.String())
	slices.SortFunc(tags, registry.Order)
	for _, tag := range tags {
		kind, ours := registry.KindOf(tag)
		if _, keeps := recordKinds[kind]; !ours || !keeps {
			continue
		}
		rec, err := p.Fetch(ctx, tag)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.note("%s: %v", tag, err)
			continue
		}
		if err := m.addFound(s, tag, rec.Envelope); err != nil {
			return err
		}
	}
	return nil
}

// fromLog takes the capabilities and revocations of a log, each of which was checked
// against the log's checkpoint.
func (m *assembly) fromLog(ctx context.Context, location string, l *translog.Log, c tlog.Checkpoint) error {
	s := m.source(location)
	return l.Entries(ctx, c, 0, func(index int64, record []byte) error {
		leaf, err := tlog.ParseLeaf(record)
		if err != nil {
			s.note("entry %d: %v", index, err)
			return nil
		}
		if k := leaf.Kind(); k != tlog.KindCapability && k != tlog.KindRevocation {
			return nil
		}
		envelope, err := l.Envelope(ctx, leaf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.note("entry %d: %v", index, err)
			return nil
		}
		return m.addFound(s, fmt.Sprintf("entry %d", index), envelope)
	})
}
