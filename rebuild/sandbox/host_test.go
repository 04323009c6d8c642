package sandbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A machine without what the recipe needs says so and starts nothing.
func TestNeeds(t *testing.T) {
	h := ThisHost()
	for _, n := range []Needs{
		{OS: "plan9", Arch: h.Arch}, {OS: h.OS, Arch: "pdp11"}, {Arch: "pdp11"},
		{OS: h.OS, Arch: h.Arch, CPUFeatures: []string{h.CPUFeatures[0], "avx99"}},
		{CPUFeatures: []string{""}},
	} {
		r, s := spec(t, "cat", "/out/a", "/bin/payload")
		s.Needs = n
		s.Progress = func(string) { t.Errorf("%+v: a stage started", n) }
		_, err := r.Run(t.Context(), s)
		wantFailure(t, err, NotComparable, "", h.Name)
	}
	for _, n := range []Needs{{}, {OS: h.OS, Arch: h.Arch, CPUFeatures: slices.Clone(h.CPUFeatures)}} {
		if err := n.check(h); err != nil {
			t.Errorf("%v, want this machine to have what it has", err)
		}
	}
	if err := (Needs{CPUFeatures: h.CPUFeatures[:1]}).check(Host{Name: "bare"}); err == nil || !strings.Contains(err.Error(), "bare lacks") {
		t.Errorf("a machine that tells no features: %v", err)
	}
}

func TestOneCPULess(t *testing.T) {
	for _, tt := range []struct {
		have, want []int
	}{{nil, []int{}}, {[]int{3}, []int{}}, {[]int{0, 1}, []int{1}}, {[]int{2, 5, 70}, []int{5, 70}}} {
		var set unix.CPUSet
		for _, c := range tt.have {
			set.Set(c)
		}
		if got := allButFirst(set); !slices.Equal(got, tt.want) {
			t.Errorf("allButFirst(%v) = %v, want %v", tt.have, got, tt.want)
		}
	}
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	r, s := spec(t, "probe", "/out/a")
	s.Variation.OneCPULess = true
	got, log, err := run1(t, r, s)
	if err != nil {
		t.Fatalf("%v %s", err, log)
	}
	want, err := Variation{OneCPULess: true}.cpuList()
	if may.Count() > 1 && (err != nil || want == "" || !strings.Contains(got, "Cpus_allowed_list: "+want+"\n")) {
		t.Errorf("want the processors %q (%v) of %d in\n%s", want, err, may.Count(), got)
	}
	s.Variation.CPUs = []int{0}
	var f *Failure
	if _, err := r.Run(t.Context(), s); err == nil || errors.As(err, &f) {
		t.Errorf("both CPUs and one less: %v", err)
	}
}
