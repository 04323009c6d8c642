package logserver

import (
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/tessera/client"

	"github.com/openclaw/clawfs/verifier/tlog"
)

// Another implementation's client finds what ours finds.
func TestOtherClient(t *testing.T) {
	w := newWorld(t)
	l := w.open(t)
	w.fillLeaves(t, l, 300)
	base, err := url.Parse(w.serve(t, l, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	other, err := client.NewHTTPFetcher(base, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := other.ReadCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.trust(t).Checkpoint(text)
	if err != nil || c.Size() != 300 {
		t.Fatalf("checkpoint of size %d, %v, want 300", c.Size(), err)
	}
	builder, err := client.NewProofBuilder(t.Context(), 300, other.ReadTile)
	if err != nil {
		t.Fatal(err)
	}
	ours := openLog(t, base.String(), w.trust(t))
	compare := func(what string, got [][]byte, want []tlog.Hash) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%s: the other client has %d hashes, ours %d", what, len(got), len(want))
		}
		for i := range got {
			if string(got[i]) != string(want[i][:]) {
				t.Errorf("%s: hash %d is %x there and %x here", what, i, got[i], want[i])
			}
		}
	}
	for _, index := range []int64{0, 1, 255, 256, 299} {
		theirs, err := builder.InclusionProof(t.Context(), uint64(index))
		if err != nil {
			t.Fatal(err)
		}
		p, err := ours.Prove(t.Context(), c, index)
		if err != nil {
			t.Fatal(err)
		}
		compare("inclusion", theirs, p.Path)
	}
	for _, from := range []int64{1, 255, 256, 257, 299} {
		theirs, err := builder.ConsistencyProof(t.Context(), uint64(from), 300)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ours.Consistency(t.Context(), from, 300)
		if err != nil {
			t.Fatal(err)
		}
		compare("consistency", theirs, p)
	}
}

// What the library repeats is told once a minute, whatever stands beside it.
func TestSeldom(t *testing.T) {
	var out sink
	log := slog.New(&seldom{slog.NewTextHandler(&out, nil), new(sync.Mutex), make(map[string]time.Time)})
	for range 3 {
		log.With("part", "a").Info("one")
		log.WithGroup("g").Warn("two")
	}
	late := slog.NewRecord(time.Now().Add(2*time.Minute), slog.LevelInfo, "one", 0)
	if err := log.Handler().Handle(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if one, two := strings.Count(out.String(), "msg=one"), strings.Count(out.String(), "msg=two"); one != 2 || two != 1 {
		t.Errorf("one was told %d times, two %d times, want 2 and 1:\n%s", one, two, out.String())
	}
}
