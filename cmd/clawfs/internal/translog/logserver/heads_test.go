package logserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// head is that of one store in a history.
func (w *world) head(t testing.TB, key dsse.PrivateKey, sequence uint64, history string) []byte {
	t.Helper()
	e, err := capstore.SignHead(context.Background(), capstore.Head{
		Store: "0102030405060708090a0b0c0d0e0f10", Sequence: sequence,
		Hash: hashpipe.SumBytes([]byte(history)).Claim(), Newest: time.Date(2026, 11, 20, 0, 0, int(sequence), 0, time.UTC),
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func payload(t testing.TB, envelope []byte) []byte {
	t.Helper()
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return e.UnverifiedPayload()
}

// The heads of a store go forward, also after a restart; the newest one gets a proof
// again.
func TestHeadsGoForward(t *testing.T) {
	w := newWorld(t)
	l := w.mustOpen(t)
	refused := func(what string, e []byte, want string) {
		t.Helper()
		var r *Refusal
		if _, err := l.Add(t.Context(), e); !errors.As(err, &r) || r.Malformed || !r.Backward || !strings.Contains(r.Detail, want) {
			t.Errorf("%s: Add = %v, want a Refusal with %q", what, err, want)
		}
	}
	taken := func(what string, e []byte) {
		t.Helper()
		if _, err := l.Add(t.Context(), e); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	taken("the first", w.head(t, w.mint, 3, "a"))
	taken("a later one", w.head(t, w.mint, 5, "a"))
	for range 2 {
		refused("an older one", w.head(t, w.mint, 4, "a"), "goes back")
		refused("another history", w.head(t, w.mint, 5, "b"), "two histories")
		refused("the first again, which is in the log", w.head(t, w.mint, 3, "a"), "goes back")
		taken("the newest again", w.head(t, w.mint, 5, "a"))
		w.close(t, l)
		l = w.mustOpen(t)
	}
	if l.Size() != 2 {
		t.Errorf("size = %d, want 2", l.Size())
	}
	newest := hashpipe.SumBytes(payload(t, w.head(t, w.mint, 5, "a"))).Claim()
	refused("an older one", w.head(t, w.mint, 4, "a"), newest.String())
	taken("of another key, an older one", w.head(t, w.revoker, 4, "a"))
	taken("a later one of another history", w.head(t, w.mint, 6, "b")) // which a machine with the head of 5 notices
	w.close(t, l)

	// Without the envelope nobody knows what goes back.
	blob := filepath.Join(w.dir, translog.TreeDir, filepath.FromSlash(translog.BlobPath(newest)))
	text, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	for _, harm := range []func() error{
		func() error { return os.WriteFile(blob, w.head(t, w.mint, 1, "a"), 0o644) },
		func() error { return os.WriteFile(blob, text[:10], 0o644) },
		func() error { return os.Remove(blob) },
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(w.config()); err == nil || !strings.Contains(err.Error(), "envelope of a store's head") {
			t.Errorf("Open = %p, %v, want an error of the envelope", l, err)
		}
	}
}
