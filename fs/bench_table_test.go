package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// ratio is how many times as fast as the reference something was, by the clock
// and by CPU time, and how long it took.
type ratio struct{ wall, cpu, seconds float64 }

// line is a row with what was measured.
type line struct {
	row
	disk    string
	ones    []float64          // seconds of the reference, in each round
	columns map[string][]ratio // by kind, in each round
	again   func(tb testing.TB, k kind, around func(*peer, func(*peer)))
}

// add takes what one round gave. Peers that saw different things fail.
func (l *line) add(tb testing.TB, one taken, got map[string]taken) {
	tb.Helper()
	l.ones = append(l.ones, one.wall)
	sum := one.sum // 0: the reference does something else
	for name, t := range got {
		if sum == 0 {
			sum = t.sum
		}
		if t.sum != sum {
			tb.Fatalf("%s on %s: %s saw %.0f, others %.0f: not the same bytes", l.name, l.disk, name, t.sum, sum)
		}
		of := ratio{one.wall / t.wall, one.cpu / t.cpu, t.wall}
		if l.inMiB {
			of = ratio{wall: t.wall}
		}
		if !(of.wall > 0) {
			tb.Fatalf("%s on %s: %s took %v, the reference %v", l.name, l.disk, name, t, one)
		}
		l.columns[name] = append(l.columns[name], of)
	}
}

// wanted returns what a kind should reach, at least (in MiB: at most).
func (l *line) wanted(kind string) (float64, bool) {
	for prefix, n := range l.want {
		if strings.HasPrefix(kind, prefix) {
			return n, true
		}
	}
	return 0, false
}

// wall returns the median by the clock.
func wall(of []ratio) float64 { return median(pick(of, func(r ratio) float64 { return r.wall })) }

// best compares the fastest rounds. It differs from the median if the machine had
// other things to do in the slow ones.
func (l *line) best(name string) float64 {
	return slices.Min(l.ones) / slices.Min(pick(l.columns[name], func(r ratio) float64 { return r.seconds }))
}

func pick(of []ratio, what func(ratio) float64) (all []float64) {
	for _, r := range of {
		all = append(all, what(r))
	}
	return all
}

func median(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	return of[len(of)/2]
}

// table is all that was measured.
type table struct {
	load  string // at the beginning
	lines []*line
	notes []string
}

func (t *table) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(t.notes, n) {
		t.notes = append(t.notes, n)
	}
}

// print writes Markdown to stdout, and every ratio to -bench-out.
func (t *table) print(tb testing.TB) {
	tb.Helper()
	fmt.Printf("\n\nEach cell: how many times as fast as what is 1: median of the rounds (least to most), fastest round against fastest round, and by CPU time.\n")
	fmt.Printf("%d cores, %s, load %s before and %s after.\n", runtime.NumCPU(), runtime.Version(), t.load, firstLine("/proc/loadavg"))
	for _, n := range t.notes {
		fmt.Println("Note:", n)
	}
	for _, disk := range []string{"ext4", "xfs"} {
		lines := slices.DeleteFunc(slices.Clone(t.lines), func(l *line) bool { return l.disk != disk || len(l.columns) == 0 })
		var names []string
		for _, k := range kinds() {
			if slices.ContainsFunc(lines, func(l *line) bool { return l.columns[k.name] != nil }) {
				names = append(names, k.name)
			}
		}
		if len(names) == 0 {
			continue
		}
		fmt.Printf("\n| %s | 1 is | %s | want |\n|%s\n", disk, strings.Join(names, " | "), strings.Repeat("---|", len(names)+3))
		for _, l := range lines {
			fmt.Printf("| %s | %s |", l.name, l.one())
			for _, name := range names {
				fmt.Printf(" %s |", l.cell(name))
			}
			fmt.Printf(" %s |\n", l.verdicts(names))
		}
	}
	fmt.Println()
	if *benchOut != "" {
		t.write(tb, filepath.Join(*benchOut, "ratios.jsonl"))
	}
}

func firstLine(file string) string {
	text, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// one says what 1 is, and how fast that was on this machine.
func (l *line) one() string {
	if l.inMiB {
		return "MiB"
	}
	took := median(l.ones)
	if l.bytes > 0 {
		return fmt.Sprintf("%s: %.2f GB/s", l.reference, float64(l.bytes)/took/1e9)
	}
	return fmt.Sprintf("%s: %.2f µs each", l.reference, took/float64(l.times)*1e6)
}

func (l *line) cell(name string) string {
	of := l.columns[name]
	switch {
	case of == nil:
		return "–"
	case name == l.reference:
		return "1"
	}
	walls := pick(of, func(r ratio) float64 { return r.wall })
	span := fmt.Sprintf("%s (%s to %s)", digits(median(walls)), digits(slices.Min(walls)), digits(slices.Max(walls)))
	if l.inMiB {
		return span
	}
	return fmt.Sprintf("%s, best %s, CPU %s", span, digits(l.best(name)), digits(median(pick(of, func(r ratio) float64 { return r.cpu }))))
}

// digits shows two significant ones, and none behind the point of large numbers.
func digits(n float64) string {
	switch {
	case n >= 10:
		return fmt.Sprintf("%.0f", n)
	case n >= 0.095:
		return fmt.Sprintf("%.2f", n)
	}
	return fmt.Sprintf("%.2g", n)
}

// verdicts compares with what is wanted. It is unclear if the median and the best
// round say different things.
func (l *line) verdicts(names []string) string {
	var all []string
	for _, name := range names {
		want, some := l.wanted(name)
		if !some || l.columns[name] == nil {
			continue
		}
		sign, word, got := "≥", "unclear", wall(l.columns[name])
		switch {
		case l.inMiB && got <= want:
			sign, word = "≤", "met"
		case l.inMiB:
			sign, word = "≤", "**missed**"
		case got >= want && l.best(name) >= want:
			word = "met"
		case got < want && l.best(name) < want:
			word = "**missed**"
		}
		all = append(all, fmt.Sprintf("%s %s %s %s", name, sign, digits(want), word))
	}
	return strings.Join(all, "; ")
}

// write makes one JSON text a line of every ratio.
func (t *table) write(tb testing.TB, file string) {
	tb.Helper()
	f, err := os.Create(file)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	for _, l := range t.lines {
		for name, of := range l.columns {
			for round, r := range of {
				err := json.MarshalWrite(f, struct {
					Disk, Row, Reference, Kind string
					Round                      int
					Wall, CPU                  float64
					ReferenceSeconds           float64
					MiB                        bool
				}{l.disk, l.name, l.reference, name, round, r.wall, r.cpu, l.ones[round], l.inMiB})
				if err == nil {
					_, err = f.WriteString("\n")
				}
				if err != nil {
					tb.Fatal(err)
				}
			}
		}
	}
}
