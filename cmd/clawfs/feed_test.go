package main

import (
	"errors"
	"log/slog"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// feedOf is a feed of a view that is empty, from a daemon that sends some lines.
func feedOf(t *testing.T, trust capstore.Trust, lines ...control.ViewLine) *feed {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s, err := control.NewStream(w)
		if err != nil {
			t.Error(err)
			return
		}
		for _, l := range lines {
			if err := s.Send(l); err != nil {
				t.Error(err)
			}
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	view, err := capstore.NewView(trust)
	if err != nil {
		t.Fatal(err)
	}
	return newFeed(control.NewClient(path), view, slog.New(slog.DiscardHandler))
}

// A daemon without its store is heard as little as none: what was revoked may lie
// in the store. What it sends counts.
func TestDaemonWithoutStoreIsNotHeard(t *testing.T) {
	r := newRig(t)
	policy, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind  string
		heard bool
	}{{control.LineNoStore, false}, {control.LineSnapshot, true}} {
		f := feedOf(t, policy.Trust(), control.ViewLine{Kind: tt.kind}, control.ViewLine{Kind: control.LineHeartbeat})
		err := f.follow(t.Context()) // ends with the stream
		select {
		case <-f.complete:
		default:
			t.Fatalf("%s: the mount does not begin: %v", tt.kind, err)
		}
		if silence := f.silence(); (silence < time.Minute) != tt.heard || !tt.heard && silence != math.MaxInt64 {
			t.Errorf("%s: silent for %v, want that it was heard: %v", tt.kind, silence, tt.heard)
		}
	}
}

// A mount reports to be as far as the lines are that it has applied, whatever else
// its view has.
func TestFeedReaches(t *testing.T) {
	r := newRig(t)
	policy, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	capability := r.capability(r.measured(map[string]string{"a.bin": "a"}))
	line := func(kind string, envelope []byte, extent uint64) control.ViewLine {
		return control.ViewLine{Kind: kind, Envelope: envelope, Extent: extent}
	}
	for name, tt := range map[string]struct {
		lines []control.ViewLine
		want  uint64
	}{
		"a snapshot that is not whole": {[]control.ViewLine{line(capstore.RecordCapability, capability, 0)}, 0},
		"a snapshot":                   {[]control.ViewLine{line(capstore.RecordCapability, capability, 0), line(control.LineSnapshot, nil, 7)}, 7},
		"a record after it":            {[]control.ViewLine{line(control.LineSnapshot, nil, 7), line(capstore.RecordCapability, capability, 8)}, 8},
		"a heartbeat after it":         {[]control.ViewLine{line(control.LineSnapshot, nil, 7), line(control.LineHeartbeat, nil, 0)}, 7},
		"a record that is refused":     {[]control.ViewLine{line(control.LineSnapshot, nil, 7), line(capstore.RecordRevocation, capability, 8)}, 0},
		"a record after one that is refused": {[]control.ViewLine{
			line(capstore.RecordRevocation, capability, 0), line(control.LineSnapshot, nil, 7), line(capstore.RecordCapability, capability, 8),
		}, 0},
		"no store": {[]control.ViewLine{line(control.LineNoStore, nil, 0), line(capstore.RecordCapability, capability, 8)}, 0},
	} {
		f := feedOf(t, policy.Trust(), tt.lines...)
		_ = f.follow(t.Context()) // ends with the stream
		if got := f.reached.Load(); got != tt.want {
			t.Errorf("%s: reached %d, want %d", name, got, tt.want)
		}
	}
}

// A start waits for a snapshot as long as it comes, and says how far it is.
func TestSnapshotIsAwaited(t *testing.T) {
	r := newRig(t)
	policy, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	f := feedOf(t, policy.Trust())
	const patience = time.Second
	var said []int64
	records := func(n int64) error { said = append(said, n); return nil }
	if err := f.await(t.Context(), patience, records); err == nil || !strings.Contains(err.Error(), "nothing came for 1s after 0 records") || slices.Max(said) > 0 {
		t.Fatalf("without a daemon: %v, and it said %v", err, said)
	}
	if err := f.await(t.Context(), patience, func(int64) error { return errAgain }); !errors.Is(err, errAgain) {
		t.Fatalf("nobody wants it any more: %v", err)
	}
	said = nil
	go func() {
		for range 20 {
			time.Sleep(patience / 5)
			f.progress.Add(1)
		}
		f.begin()
	}()
	if err := f.await(t.Context(), patience, records); err != nil {
		t.Error(err)
	}
	if len(said) < 2 || !slices.IsSorted(said) || said[len(said)-1] < 5 || said[len(said)-1] > 20 {
		t.Errorf("it said %v", said)
	}
}
