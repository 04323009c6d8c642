package compare

import (
	"fmt"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

func artifact(stage, path, content string) Artifact {
	return Artifact{Stage: stage, Path: path, Size: int64(len(content)), Digest: hashpipe.SumBytes([]byte(content)).Claim()}
}

func TestDiverge(t *testing.T) {
	first := []Artifact{
		artifact("tokenize", "vocab.txt", "v"), artifact("train", "w.npz", "1"), artifact("train", "log\x1b.txt", "l"),
		artifact("pack", "m.bin", "m1"), artifact("pack", "readme", "r"),
	}
	second := []Artifact{
		artifact("tokenize", "vocab.txt", "v"), artifact("train", "w.npz", "2"), artifact("train", "log\x1b.txt", "l"),
		artifact("train", "extra", "e"), artifact("pack", "m.bin", "m2"),
	}
	d := Diverge(first, second)
	want := `the first stage that differs is "train"; the artifacts of 1 stage before it are equal
stage "train": 2 of 3 artifacts differ: w.npz, extra (only the second build has it)
stage "pack": 2 of 2 artifacts differ: m.bin, readme (only the first build has it)`
	if d.String() != want {
		t.Errorf("Diverge:\n%s\nwant\n%s", d, want)
	}
	if d := Diverge(first, first); d.Stage != "" || d.String() != "" || len(d.Stages) != 0 {
		t.Errorf("a build against itself: %+v", d)
	}
	if d := Diverge(nil, nil); d.Stage != "" {
		t.Errorf("nothing against nothing: %+v", d)
	}
	// What nobody measured equals nothing.
	blank := []Artifact{{Stage: "train", Path: "x"}}
	if d := Diverge(blank, blank); d.Stage != "train" {
		t.Errorf("without digests: %+v, want a difference", d)
	}
	// The same digest for another length is a lie about one of them.
	long := []Artifact{first[0]}
	long[0].Size++
	if d := Diverge(first[:1], long); d.Stage != "tokenize" {
		t.Errorf("another size: %+v, want a difference", d)
	}
	var many [2][]Artifact
	for i := range 100 {
		for j := range many {
			many[j] = append(many[j], artifact(fmt.Sprint("s", i), strings.Repeat("d/", 2000)+"x", fmt.Sprint(j)))
		}
	}
	if s := Diverge(many[0], many[1]).String(); len(s) > 2000 || !strings.Contains(s, "and 95 stages more") {
		t.Errorf("100 stages: %d bytes: %.300s", len(s), s)
	}
}
