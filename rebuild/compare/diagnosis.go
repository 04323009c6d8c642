package compare

import (
	"fmt"
	"strconv"
	"strings"
)

// Build is what a ledger says about how the files were made; Hints reads it.
type Build struct {
	Env    map[string]string // for every stage
	Stages []Stage
}

// Stage is one command of a build, with the environment it adds.
type Stage struct {
	Name string
	Argv []string
	Env  map[string]string
}

// String is the diagnosis without hints, one line.
func (d Difference) String() string {
	if d.Equal() {
		return d.Name + ": equal"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s: ", shorten(d.Name))
	if d.SizeA != d.SizeB {
		fmt.Fprintf(&s, "%d bytes in the first build and %d in the second; ", d.SizeA, d.SizeB)
	}
	fmt.Fprintf(&s, "%d of %d bytes differ (%s), the first at offset %d", d.Differing, max(d.SizeA, d.SizeB), share(d.Differing, max(d.SizeA, d.SizeB)), d.First)
	if d.Format != Bytes {
		fmt.Fprintf(&s, "; %s", d.Format)
	}
	switch {
	case d.Part == "":
	case d.HeaderOnly:
		fmt.Fprintf(&s, ", only the header differs: all %s have equal bytes", count(d.Parts, d.Part))
	default:
		fmt.Fprintf(&s, ", %d of %s differ", d.DifferingParts, count(d.Parts, d.Part))
		if len(d.Named) > 0 {
			fmt.Fprintf(&s, " (%s", strings.Join(d.Named, ", "))
			if d.DifferingParts > len(d.Named) {
				s.WriteString(", ...")
			}
			s.WriteString(")")
		}
	}
	for _, n := range d.Notes {
		s.WriteString("; " + n)
	}
	return s.String()
}

// share prints a part in percent and never rounds a difference to nothing.
func share(part, whole int64) string {
	p := 100 * float64(part) / float64(whole)
	if p < 0.01 {
		return "less than 0.01 %"
	}
	return strconv.FormatFloat(p, 'f', 2, 64) + " %"
}

// Hints names the known causes that fit this difference and this build, the
// likeliest first. They are guesses for a person, never a verdict.
func (d Difference) Hints(b Build) []string {
	if d.Equal() {
		return nil
	}
	var hints []string
	if h := threads(b); h != "" && !d.HeaderOnly {
		hints = append(hints, h)
	}
	switch {
	case d.Format == TorchLegacy:
		hints = append(hints, "the legacy format of torch.save stores heap addresses: save with _use_new_zipfile_serialization=True or as safetensors")
	case d.zipTimes:
		hints = append(hints, "zip members carry the time of the build: write them with a fixed date (SOURCE_DATE_EPOCH)")
	case d.Format == Safetensors && d.metadataOrder:
		hints = append(hints, "the order of __metadata__ or of the tensors follows a hash map: save without metadata or sort the keys")
	}
	python := false
	for _, s := range b.Stages {
		for _, arg := range s.Argv {
			python = python || strings.Contains(arg, "python")
		}
	}
	if (python || d.Format == Pickle || d.reordered) && !set(b, "PYTHONHASHSEED") {
		hints = append(hints, "PYTHONHASHSEED is not set: the order of Python sets changes with each run")
	}
	return hints
}

// threads looks for a thread count above one in the stages.
func threads(b Build) string {
	for _, s := range b.Stages {
		words := strings.Fields(strings.Join(s.Argv, " "))
		fasttext, counted := false, false
		for i, w := range words {
			fasttext = fasttext || w == "fasttext" || strings.HasSuffix(w, "/fasttext")
			option, value, found := strings.Cut(strings.Trim(w, `'";`), "=")
			if !isThreadOption(option) {
				continue
			}
			if !found && i+1 < len(words) {
				value = strings.Trim(words[i+1], `'";`)
			}
			counted = true
			if n, err := strconv.Atoi(value); err == nil && n > 1 {
				return fmt.Sprintf("stage %q runs on several threads (%s %d), which add their results in the order in which they finish: use one thread", s.Name, option, n)
			}
		}
		if fasttext && !counted {
			return fmt.Sprintf("stage %q leaves fasttext its default of 12 threads: use -thread 1", s.Name)
		}
		for _, env := range []map[string]string{s.Env, b.Env} {
			for _, name := range []string{"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} {
				if n, err := strconv.Atoi(env[name]); err == nil && n > 1 {
					return fmt.Sprintf("stage %q runs with %s=%d: sums of floats depend on how work is split, use 1", s.Name, name, n)
				}
			}
		}
	}
	return ""
}

func isThreadOption(option string) bool {
	switch strings.ReplaceAll(strings.TrimLeft(option, "-"), "_", "-") {
	case "thread", "threads", "num-threads", "nthreads", "n-threads", "nthread", "jobs", "n-jobs", "num-workers", "workers":
		return strings.HasPrefix(option, "-") || strings.Contains(option, "thread")
	case "j":
		return option == "-j"
	}
	return false
}

func set(b Build, name string) bool {
	if _, ok := b.Env[name]; ok {
		return true
	}
	for _, s := range b.Stages {
		if _, ok := s.Env[name]; ok {
			return true
		}
	}
	return false
}
