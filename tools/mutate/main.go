// Mutate plants faults into the code of clawfs that decides, one at a time,
// and shows which of them the tests notice.
//
// It writes no file of the source tree. All faults of a package are compiled
// into its tests once, through an overlay of the go command, each behind a
// number; the environment of the test process says which one is on. So a fault
// costs a run of some tests and no build. Every test is first run alone and
// without a fault, to learn how long it takes and which faults it passes (in
// its children too); a fault is then shown to the tests that pass it, and to no
// other. What the package's own tests do not notice is shown to the tests of
// the packages that use it.
//
// The faults of a run are a sample: those whose names have the smallest hashes
// with the seed. So the sample stays, for the most part, when the code changes.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	seed := flag.Int64("seed", 1, "of the sample")
	number := flag.Int("n", 80, "faults in each area; 0: all")
	workers := flag.Int("j", 2, "test processes at a time")
	area := flag.String("area", "", "only this area")
	only := flag.String("only", "", "only faults whose name contains this; all of them")
	root := flag.String("root", ".", "of the repository")
	list := flag.String("survivors", "tools/mutate/survivors.txt", "faults that may survive, each with its reason")
	least := flag.Float64("least", 80, "share in percent that must be noticed in each area")
	named := flag.String("named", "", "only the faults whose names stand in this file, one a line")
	tests := flag.String("tests", "^(Test|Fuzz|Example)", "only tests whose name matches")
	own := flag.Bool("own", false, "do not ask the tests of the packages that use the one with the fault")
	dry := flag.Bool("list", false, "print the faults and plant none")
	flag.Parse()
	if flag.NArg() > 0 {
		fail(fmt.Errorf("unexpected argument %q", flag.Arg(0)))
	}
	abs, err := filepath.Abs(*root)
	if err != nil {
		fail(err)
	}
	reasons, err := readReasons(filepath.Join(abs, *list))
	if err != nil {
		fail(err)
	}
	var names map[string]bool
	if *named != "" {
		text, err := os.ReadFile(*named)
		if err != nil {
			fail(err)
		}
		names = map[string]bool{}
		for line := range strings.Lines(string(text)) {
			names[strings.TrimSuffix(line, "\n")] = true
		}
	}
	work, err := os.MkdirTemp("", "clawfs-mutate-")
	if err != nil {
		fail(err)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		fail(err)
	}
	// What a test has started and mounted must not stay.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &run{ctx: ctx, root: abs, work: work, seed: *seed, number: *number, workers: *workers, area: *area, only: *only, named: names, tests: *tests, own: *own, dry: *dry, reasons: reasons, out: os.Stdout}
	ok, err := r.all(areas, *least)
	clear(work)
	if err != nil {
		fail(err)
	}
	if !ok {
		os.Exit(1)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "mutate:", err)
	os.Exit(2)
}

// readReasons reads the faults that may survive: the name of one, and on the
// next line, indented, why. Empty lines and lines that begin with # are left out.
func readReasons(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	reasons := map[string]string{}
	name := ""
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " "):
			if name == "" {
				return nil, fmt.Errorf("%s:%d: a reason without a fault", file, i+1)
			}
			reasons[name] = strings.TrimSpace(reasons[name] + " " + strings.TrimSpace(line))
		default:
			if name != "" && reasons[name] == "" {
				return nil, fmt.Errorf("%s:%d: the fault before has no reason", file, i+1)
			}
			name = line
			if _, twice := reasons[name]; twice {
				return nil, fmt.Errorf("%s:%d: twice in the list", file, i+1)
			}
			reasons[name] = ""
		}
	}
	if name != "" && reasons[name] == "" {
		return nil, fmt.Errorf("%s: the last fault has no reason", file)
	}
	return reasons, nil
}

type run struct {
	ctx               context.Context
	root, work        string
	seed              int64
	number, workers   int
	area, only, tests string
	own, dry          bool
	named             map[string]bool
	reasons           map[string]string
	out               io.Writer
}

// count is a line of the table.
type count struct {
	area                               string
	found, planted, noticed, explained int
	open                               []*mutant
}

func (c count) score() float64 { return 100 * float64(c.noticed) / float64(max(1, c.planted)) }

func (r *run) all(areas []area, least float64) (bool, error) {
	from := time.Now()
	var counts []count
	known := map[string]bool{}
	enough := true
	for _, a := range areas {
		if r.area != "" && r.area != a.name {
			continue
		}
		c, err := r.one(a, known)
		if err != nil {
			return false, fmt.Errorf("%s: %w", a.name, err)
		}
		counts = append(counts, c)
		enough = enough && (c.score() >= least || r.only != "" || r.named != nil)
	}
	if len(counts) == 0 {
		return false, fmt.Errorf("no area is called %q", r.area)
	}
	if r.dry {
		return true, nil
	}
	stale := 0
	if r.area == "" {
		for name := range r.reasons {
			if !known[name] {
				fmt.Fprintf(r.out, "a reason for a fault that there is not: %s\n", name)
				stale++
			}
		}
	}
	fmt.Fprintf(r.out, "\nseed %d, %s\n\n", r.seed, time.Since(from).Round(time.Second))
	fmt.Fprintln(r.out, "| area | possible | planted | noticed | survived | with a reason | score |")
	fmt.Fprintln(r.out, "|---|---|---|---|---|---|---|")
	for _, c := range counts {
		fmt.Fprintf(r.out, "| %s | %d | %d | %d | %d | %d | %.1f %% |\n", c.area, c.found, c.planted, c.noticed, c.planted-c.noticed, c.explained, c.score())
	}
	for _, c := range counts {
		for _, m := range c.open {
			fmt.Fprintf(r.out, "no reason: %s (line %d)\n", m.name(), m.line)
		}
	}
	if !enough {
		fmt.Fprintf(r.out, "less than %.0f %% noticed\nnext: write the tests that notice, or the reasons into tools/mutate/survivors.txt\n", least)
	}
	return enough && stale == 0, nil
}

// one plants the faults of an area.
func (r *run) one(a area, known map[string]bool) (count, error) {
	c := count{area: a.name}
	packages := map[string]*pkg{}
	var all []*mutant
	for _, p := range a.parts {
		loaded, err := load(r.root, p.folder)
		if err != nil {
			return c, err
		}
		packages[p.folder] = loaded
		all = append(all, loaded.find(r.root, p.files)...)
	}
	for i, m := range all {
		m.id = i + 1
		known[m.name()] = true
	}
	c.found = len(all)
	chosen := r.choose(all)
	if r.dry {
		for _, m := range chosen {
			fmt.Fprintf(r.out, "%s:%d: %s\n", m.file, m.line, m.name())
		}
		return c, nil
	}
	for _, p := range a.parts {
		mine := slices.DeleteFunc(slices.Clone(chosen), func(m *mutant) bool { return m.pkg != packages[p.folder].path })
		if len(mine) == 0 {
			continue
		}
		if err := r.part(p, packages[p.folder], mine, &c); err != nil {
			return c, fmt.Errorf("%s: %w", p.folder, err)
		}
	}
	return c, nil
}

// choose takes the sample.
func (r *run) choose(all []*mutant) []*mutant {
	if r.named != nil {
		return slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return !r.named[m.name()] })
	}
	if r.only != "" {
		return slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return !strings.Contains(m.name(), r.only) })
	}
	if r.number == 0 || r.number >= len(all) {
		return all
	}
	hash := func(m *mutant) []byte {
		h := sha256.Sum256(fmt.Appendf(nil, "%d %s", r.seed, m.name()))
		return h[:]
	}
	chosen := slices.Clone(all)
	slices.SortFunc(chosen, func(a, b *mutant) int { return bytes.Compare(hash(a), hash(b)) })
	chosen = chosen[:r.number]
	slices.SortFunc(chosen, func(a, b *mutant) int { return cmp.Compare(a.id, b.id) })
	return chosen
}

// part plants the faults of one package and shows them to its tests, and those
// that survive to the tests of its users.
func (r *run) part(p part, loaded *pkg, mutants []*mutant, c *count) error {
	work, err := os.MkdirTemp(r.work, "p")
	if err != nil {
		return err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	defer clear(work)
	overlay, mutants, err := loaded.plant(r.root, work, mutants)
	if err != nil {
		return err
	}
	c.planted += len(mutants)
	left := mutants
	for i, folder := range append([]string{p.folder}, p.users...) {
		if len(left) == 0 || i > 0 && r.own {
			break
		}
		from := time.Now()
		s, err := build(r.ctx, r.root, folder, r.tests, work, overlay)
		if err != nil {
			return err
		}
		if err := s.record(work, r.out); err != nil {
			return err
		}
		fmt.Fprintf(r.out, "%s: %d faults for %d tests of %s, recorded in %s\n", p.folder, len(left), len(s.tests), folder, time.Since(from).Round(time.Second))
		if left = r.suite(s, work, left); r.ctx.Err() != nil {
			return r.ctx.Err()
		}
	}
	c.noticed += len(mutants) - len(left)
	for _, m := range left {
		if reason := r.reasons[m.name()]; reason != "" {
			c.explained++
			fmt.Fprintf(r.out, "survived, with a reason: %s\n    %s\n", m.name(), reason)
		} else {
			c.open = append(c.open, m)
		}
	}
	return nil
}

// suite shows faults to the tests of one package and returns those that survive.
func (r *run) suite(s *suite, work string, mutants []*mutant) []*mutant {
	var mu sync.Mutex // guards left and the output
	var left []*mutant
	queue := make(chan *mutant)
	var wg sync.WaitGroup
	for range r.workers {
		wg.Go(func() {
			for m := range queue {
				if r.ctx.Err() != nil {
					continue
				}
				from := time.Now()
				res, asked := s.show(work, m.id)
				mu.Lock()
				verdict := fmt.Sprintf("noticed by %s", res.by)
				if !res.noticed {
					left = append(left, m)
					verdict = fmt.Sprintf("SURVIVED %d tests", asked)
				}
				fmt.Fprintf(r.out, "%s:%d: %s: %s (%.1f s)\n", m.file, m.line, strings.TrimPrefix(m.name(), m.file+" | "), verdict, time.Since(from).Seconds())
				mu.Unlock()
			}
		})
	}
	for _, m := range mutants {
		queue <- m
	}
	close(queue)
	wg.Wait()
	slices.SortFunc(left, func(a, b *mutant) int { return cmp.Compare(a.id, b.id) })
	return left
}
