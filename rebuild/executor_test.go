package rebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// machines is an Executor that runs every build here, in the name of another
// machine each time.
type machines struct {
	runtime *sandbox.Runtime
	// as changes what the n-th says of itself, from 1, or fails in its place.
	as    func(n int, h *sandbox.Host) error
	specs []sandbox.Spec
}

func (m *machines) Run(ctx context.Context, s sandbox.Spec) (sandbox.Result, error) {
	m.specs = append(m.specs, s)
	r, err := m.runtime.Run(ctx, s)
	if err != nil {
		return r, err
	}
	r.Host.Name = fmt.Sprint("n", len(m.specs))
	if err := m.as(len(m.specs), &r.Host); err != nil {
		return sandbox.Result{}, err
	}
	return r, nil
}

func (m *machines) Sweep(context.Context) ([]string, error) { return nil, nil }
func (m *machines) String() string                          { return "machines" }

// It is the class of the machine that ran the build that counts.
func TestReproduceElsewhere(t *testing.T) {
	lost := errors.New("node n2 was lost")
	for _, tt := range []struct {
		name    string
		as      func(n int, h *sandbox.Host) error
		verdict capstore.Verdict
		want    string
	}{
		{"same class", func(int, *sandbox.Host) error { return nil }, "", ""},
		{"first is of another", func(n int, h *sandbox.Host) error { h.Arch = "pdp11"; return nil }, capstore.NotComparable, "on n1: "},
		{"second is of another", func(n int, h *sandbox.Host) error {
			if n == 2 {
				h.CPUFeatures = nil
			}
			return nil
		}, capstore.NotComparable, "on n2: the ledger's bytes are promised on processors with"},
		{"second is lost", func(n int, _ *sandbox.Host) error {
			if n == 2 {
				return lost
			}
			return nil
		}, "", "build 2 of 2: node n2 was lost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.st.Predicate.Platform.CPUFeatures = sandbox.ThisHost().CPUFeatures[:1]
			m := &machines{runtime: s.runtime, as: tt.as}
			c := s.config(nil)
			c.Executor = m
			rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
			if err == nil {
				defer rep.Close()
			}
			var f *Failure
			switch failed := errors.As(err, &f); {
			case tt.want == "":
				if err != nil {
					t.Fatal(err)
				}
				if len(m.specs) != 2 || len(m.specs[0].Variation.NotOn) != 0 || !slices.Equal(m.specs[1].Variation.NotOn, []string{"n1"}) {
					t.Errorf("%d builds; the second avoids %q, want n1", len(m.specs), m.specs[1].Variation.NotOn)
				}
				if n := m.specs[0].Needs; n.Arch != HostPlatform().Arch || len(n.CPUFeatures) != 1 {
					t.Errorf("Needs = %+v, want the ledger's platform", n)
				}
			case failed != (tt.verdict != "") || failed && f.Verdict != tt.verdict || !strings.Contains(err.Error(), tt.want):
				t.Errorf("Reproduce: %v, want %q with %q", err, tt.verdict, tt.want)
			}
		})
	}
}

// A node that lacks what the ledger names says so before it builds.
func TestReproduceNeeds(t *testing.T) {
	s := newSite(t)
	s.st.Predicate.Platform.CPUFeatures = []string{"avx9000"}
	m := &machines{runtime: s.runtime}
	c := s.config(nil)
	c.Executor = m
	_, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
	var f *Failure
	if !errors.As(err, &f) || f.Verdict != capstore.NotComparable || !strings.Contains(f.Detail, "lacks avx9000") {
		t.Errorf("Reproduce: %v, want %s", err, capstore.NotComparable)
	}
}

// Inputs and outputs are in Scratch, where the executor's machines have them.
func TestRunJobScratch(t *testing.T) {
	s := newJobSite(t)
	m := &machines{runtime: s.runtime, as: func(int, *sandbox.Host) error { return nil }}
	s.config.Executor, s.config.Scratch = m, t.TempDir()
	r, err := RunJob(t.Context(), s.config)
	if err != nil || r.Verdict != capstore.Minted {
		t.Fatalf("RunJob = %+v, %v", r, err)
	}
	for _, p := range append([]string{m.specs[0].Rootfs}, m.specs[0].Inputs[0].Path, m.specs[1].Dir) {
		if rel, err := filepath.Rel(s.config.Scratch, p); err != nil || !filepath.IsLocal(rel) {
			t.Errorf("%s is not below the scratch directory %s", p, s.config.Scratch)
		}
	}
	if left, err := os.ReadDir(s.config.Scratch); err != nil || len(left) > 0 {
		t.Errorf("left in the scratch directory: %v, %v", left, err)
	}
}
