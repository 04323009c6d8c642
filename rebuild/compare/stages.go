package compare

import (
	"fmt"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
)

// Artifact is one file that a stage of a build left, measured.
type Artifact struct {
	Stage, Path string
	Size        int64           // bytes
	Digest      hashpipe.Digest // the zero Digest equals nothing
}

// Divergence says where two builds of one recipe first went apart. The zero
// value is none.
type Divergence struct {
	Stage  string            // the first stage whose artifacts differ; empty if none does
	Stages []StageDivergence // every stage with a difference, in the order of the build
	Equal  []string          // the stages before Stage, whose artifacts are all equal
}

// StageDivergence lists the artifacts of one stage that differ.
type StageDivergence struct {
	Stage     string
	Artifacts int      // that either build has
	Differing []string // paths, with a word on those that only one build has
}

// Diverge compares the artifacts of two builds, each in the order of its
// stages. A file that only one build left is a difference.
func Diverge(first, second []Artifact) Divergence {
	type key struct{ stage, path string }
	type pair struct{ a, b *Artifact }
	var order []key // of the first build, then what only the second has
	pairs := map[key]pair{}
	var stages []string
	known := map[string]bool{}
	for which, list := range [2][]Artifact{first, second} {
		for i := range list {
			k := key{list[i].Stage, list[i].Path}
			p, ok := pairs[k]
			if !ok {
				order = append(order, k)
			}
			if !known[k.stage] {
				known[k.stage] = true
				stages = append(stages, k.stage)
			}
			if which == 0 {
				p.a = &list[i]
			} else {
				p.b = &list[i]
			}
			pairs[k] = p
		}
	}
	found := map[string]*StageDivergence{}
	for _, stage := range stages {
		found[stage] = &StageDivergence{Stage: stage}
	}
	for _, k := range order {
		s, p := found[k.stage], pairs[k]
		s.Artifacts++
		switch {
		case p.b == nil:
			s.Differing = append(s.Differing, k.path+" (only the first build has it)")
		case p.a == nil:
			s.Differing = append(s.Differing, k.path+" (only the second build has it)")
		case p.a.Digest.IsZero() || p.a.Digest != p.b.Digest || p.a.Size != p.b.Size:
			s.Differing = append(s.Differing, k.path)
		}
	}
	var d Divergence
	for _, stage := range stages {
		switch s := found[stage]; {
		case len(s.Differing) > 0:
			d.Stages = append(d.Stages, *s)
		case len(d.Stages) == 0:
			d.Equal = append(d.Equal, stage)
		}
	}
	if len(d.Stages) > 0 {
		d.Stage = d.Stages[0].Stage
	}
	return d
}

// String is empty without a difference, else one line for each stage that
// has one, the first diverging stage before all.
func (d Divergence) String() string {
	if d.Stage == "" {
		return ""
	}
	var s strings.Builder
	fmt.Fprintf(&s, "the first stage that differs is %q", shorten(d.Stage))
	if len(d.Equal) > 0 {
		fmt.Fprintf(&s, "; the artifacts of %s before it are equal", count(len(d.Equal), "stage"))
	}
	for i, x := range d.Stages {
		if i == maxNamed {
			fmt.Fprintf(&s, "\nand %s more", count(len(d.Stages)-i, "stage"))
			break
		}
		fmt.Fprintf(&s, "\nstage %q: %d of %s differ", shorten(x.Stage), len(x.Differing), count(x.Artifacts, "artifact"))
		for j, path := range x.Differing {
			if j == maxNamed {
				s.WriteString(", ...")
				break
			}
			s.WriteString([]string{": ", ", "}[min(j, 1)] + shorten(path))
		}
	}
	return s.String()
}
