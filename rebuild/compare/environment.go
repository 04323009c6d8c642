package compare

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Environment is what surrounded one build: the values that Trace looks for in
// the output, and those that Delta lists. The zero Environment knows nothing.
type Environment struct {
	// Began is when the build began, to a day; zero if nobody knows.
	Began time.Time
	// Varied are "name=value" pairs as sandbox.Result.Varied has them:
	// hostname, workdir, uidmap, cpus, uptime and others.
	Varied []string
	// Features are the processor's, by which numeric libraries choose their
	// code, and the machine's other names; nil if nobody knows.
	Features []string
}

// value returns the value of a pair, "" if there is none.
func (e Environment) value(name string) string {
	for _, pair := range e.Varied {
		if key, value, _ := strings.Cut(pair, "="); key == name {
			return value
		}
	}
	return ""
}

// Delta says in what the surroundings of two builds differed, one line each.
func Delta(first, second Environment) []string {
	var lines, seen []string
	for _, pair := range slices.Concat(first.Varied, second.Varied) {
		name, _, _ := strings.Cut(pair, "=")
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		switch a, b := first.value(name), second.value(name); {
		case a == "random" && b == "random":
			lines = append(lines, shorten(name)+": drawn at random for each")
		case a != b:
			lines = append(lines, fmt.Sprintf("%s: %s in the first build and %s in the second", shorten(name), given(a), given(b)))
		}
	}
	if first.Features != nil && second.Features != nil {
		for _, f := range []struct {
			has, lacks []string
			which      string
		}{{first.Features, second.Features, "first"}, {second.Features, first.Features, "second"}} {
			var only []string
			for _, x := range f.has {
				if !slices.Contains(f.lacks, x) {
					only = append(only, shorten(x))
				}
			}
			if len(only) > 0 {
				slices.Sort(only)
				lines = append(lines, "processor features of the "+f.which+" build's machine alone: "+strings.Join(only, ", "))
			}
		}
	}
	if d := second.Began.Sub(first.Began); !first.Began.IsZero() && !second.Began.IsZero() && d != 0 {
		lines = append(lines, fmt.Sprintf("start: %s in the first build and %s in the second", first.Began.UTC().Format(time.RFC3339), second.Began.UTC().Format(time.RFC3339)))
	}
	return lines
}

func given(value string) string {
	if value == "" {
		return "unset"
	}
	return shorten(value)
}
