package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// toy is a package whose tests notice some faults and not others.
var toy = map[string]string{
	"go.mod": "module example.org/toy\n\ngo 1.26\n",
	"door/door.go": `package door

import "errors"

type Verdict int

const (
	Refused Verdict = iota
	Allowed
)

var ErrAge = errors.New("age")

// Enter refuses below 18 and, untested, above 200.
func Enter(age int, banned bool) (Verdict, error) {
	if age < 18 {
		return Refused, ErrAge
	}
	if age > 200 {
		return Refused, ErrAge
	}
	if banned {
		return Refused, nil
	}
	return Allowed, nil
}

// Wait ends because of one comparison only.
func Wait(n int) (steps int) {
	for steps < n {
		steps++
	}
	return steps
}
`,
	"door/door_test.go": `package door

import (
	"os"
	"os/exec"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("CHILD") != "" {
		if v, _ := Enter(30, true); v == Allowed {
			os.Exit(7)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestYoung(t *testing.T) {
	if _, err := Enter(17, false); err != ErrAge {
		t.Fatal(err)
	}
	if v, err := Enter(18, false); v != Allowed || err != nil {
		t.Fatal(v, err)
	}
}

// Only a child is shown somebody who is banned.
func TestBanned(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CHILD=1")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

func TestWait(t *testing.T) {
	if Wait(3) != 3 {
		t.Fatal("steps")
	}
}

func TestAlwaysFails(t *testing.T) { t.Fatal("left out") }
`,
}

func toyRun(t *testing.T) *run {
	t.Helper()
	root := t.TempDir()
	for name, text := range toy {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &run{ctx: t.Context(), root: root, work: t.TempDir(), seed: 1, tests: "^Test", workers: 2, reasons: map[string]string{}, out: new(bytes.Buffer)}
}

func TestPlants(t *testing.T) {
	r := toyRun(t)
	c, err := r.one(area{"door", []part{{folder: "door"}}}, map[string]bool{})
	if err != nil {
		t.Fatal(err)
	}
	var survived []string
	for _, m := range c.open {
		survived = append(survived, m.fn+" | "+m.op+" | "+m.text)
	}
	want := []string{
		"Enter | check removed | age > 200",
		"Enter | > to >= | age > 200",
		"Enter | constant swapped for Allowed | Refused", // beside ErrAge, which the test looks at alone
		"Enter | error kept back | ErrAge",
		"Enter | constant swapped for Allowed | Refused",
	}
	slices.Sort(survived)
	slices.Sort(want)
	if !slices.Equal(survived, want) {
		t.Errorf("survived:\n%s\nwant:\n%s", strings.Join(survived, "\n"), strings.Join(want, "\n"))
	}
	out := r.out.(*bytes.Buffer).String()
	for _, line := range []string{
		"Enter | check removed | age < 18: noticed by TestYoung",
		"Enter | < to <= | age < 18: noticed by TestYoung",
		"Enter | check removed | banned: noticed by TestBanned",
		"Wait | statement dropped | steps++: noticed by a timeout",
		"TestAlwaysFails fails without a mutant and is left out",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("output lacks %q", line)
		}
	}
	for name, text := range toy {
		now, err := os.ReadFile(filepath.Join(r.root, name))
		if err != nil || string(now) != text {
			t.Errorf("%s was changed (%v)", name, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(r.root, "door")); len(left) != 2 {
		t.Errorf("files in the source tree: %d, want 2", len(left))
	}
}

// The sample is the same for the same seed, and another for another.
func TestSample(t *testing.T) {
	r := toyRun(t)
	p, err := load(r.root, "door")
	if err != nil {
		t.Fatal(err)
	}
	all := p.find(r.root, nil)
	for i, m := range all {
		m.id = i
	}
	if len(all) < 10 {
		t.Fatalf("found %d faults, want at least 10", len(all))
	}
	r.number = 5
	one, two := r.choose(all), r.choose(all)
	r.seed = 2
	other := r.choose(all)
	if len(one) != 5 || !slices.Equal(one, two) {
		t.Errorf("the same seed chose %d and %d, and not the same", len(one), len(two))
	}
	if slices.Equal(one, other) {
		t.Error("another seed chose the same")
	}
	names := map[string]bool{}
	for _, m := range all {
		if names[m.name()] {
			t.Errorf("two faults are called %s", m.name())
		}
		names[m.name()] = true
	}
}

func TestReasons(t *testing.T) {
	for text, want := range map[string]string{
		"a | b\n":                    "has no reason",
		"a | b\nc | d\n    why\n":    "has no reason",
		"    why\n":                  "a reason without a fault",
		"a\n    why\na\n    other\n": "twice in the list",
	} {
		file := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readReasons(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("readReasons(%q) = %v, want %q", text, err, want)
		}
	}
	file := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(file, []byte("# note\n\na | b\n    why\n    so\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readReasons(file); err != nil || got["a | b"] != "why so" {
		t.Errorf("readReasons = %v, %v", got, err)
	}
}
