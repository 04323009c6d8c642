package sandbox

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

func TestArtifacts(t *testing.T) {
	r, s := spec(t)
	s.Inputs = []Input{{"data", tree(t, map[string]string{"x": "1"})}}
	s.Stages = []Stage{
		{Name: "one", Argv: []string{"payload", "cat", "/out/x", "/in/data/x"}, Artifacts: []string{"x"}},
		{Name: "two", Argv: []string{"payload", "cat", "/out/y", "/in/stages/one/x", "/in/data/x"}},
		{Name: "three", Argv: []string{"payload", "cat", "/out/a", "/in/stages/one/x", "/in/stages/two/y"}, Artifacts: []string{"a"}},
	}
	var res Result
	var err error
	clean(t, func() { res, err = r.Run(t.Context(), s) })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, st := range res.Stages {
		for _, a := range st.Artifacts {
			f, err := a.Open()
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(f)
			f.Close()
			if err != nil || hashpipe.SumBytes(b) != a.Measurement().Sum() || a.Measurement().Size() != int64(len(b)) {
				t.Errorf("artifact %s keeps %q, %v; measured %v", a.Path(), b, err, a.Measurement().Sum())
			}
			if a.Recipe() != recipe || a.Run() != res.Run {
				t.Errorf("artifact %s is of recipe %v, run %q of %q", a.Path(), a.Recipe(), a.Run(), res.Run)
			}
			got = append(got, st.Name+" "+a.Stage()+"/"+a.Path()+"="+string(b))
		}
	}
	if got, want := strings.Join(got, ", "), "one one/x=1, three three/a=111"; got != want {
		t.Errorf("artifacts = %s, want %s", got, want)
	}
	if read(t, res.Outputs[0]) != "111" {
		t.Error("the output is not that of the last stage")
	}
	if kept, _ := filepath.Glob(s.Dir + "/*/*"); len(kept) != 2 {
		t.Errorf("kept %q, want one file of the first stage and one of the last", kept)
	}
}

func TestArtifactsRefuse(t *testing.T) {
	r, s := spec(t, "makeall", "symlink /out/a /etc/passwd", "symlink /out/d /etc", "hardlink /out/h", "fifo /out/f", "setuid /out/s", "dir /out/e")
	s.Stages[0].Artifacts = []string{"a", "d/passwd", "h", "f", "s", "e", "none", "h.other"}
	s.Stages = append(s.Stages, Stage{Name: "next", Argv: []string{"payload", "env"}})
	var told []string
	s.Progress = func(stage string) { told = append(told, stage) }
	_, _, err := run1(t, r, s)
	wantFailure(t, err, OutputMissing, "build", "8 of 8 artifacts: a (/out/a) is a symbolic link; d/passwd (/out/d/passwd) is reached through a symbolic link; "+
		"h (/out/h) has 2 hard links, wanted 1; f (/out/f) is not a regular file; s (/out/s) has set-id bits (mode 4755); e (/out/e) is a directory; "+
		"none (/out/none) does not exist; h.other (/out/h.other) has 2 hard links, wanted 1")
	if len(told) != 1 {
		t.Errorf("stages %q started, want only the first", told)
	}
	r, s = spec(t, "sparse", "8388609")
	s.Stages[0].Artifacts = []string{"a"}
	_, _, err = run1(t, r, s)
	wantFailure(t, err, LimitExceeded, "build", "artifacts are 8388609 bytes long, the limit is 8388608")
	// Artifacts and outputs together: each within the limit, the sum is not. A
	// file that is both counts once.
	r, s = spec(t, "sparse", "5000000")
	s.Stages[0].Artifacts = []string{"a"}
	if _, _, err := run1(t, r, s); err != nil {
		t.Error(err)
	}
	s.Stages = append(s.Stages, Stage{Name: "next", Argv: s.Stages[0].Argv})
	_, _, err = run1(t, r, s)
	wantFailure(t, err, LimitExceeded, "next", "outputs, with the artifacts before them, are 10000000 bytes long, the limit is 8388608")
	// What was kept goes when a later stage fails.
	r, s = spec(t, "env")
	s.Stages[0].Artifacts = []string{"a"}
	s.Stages = append(s.Stages, Stage{Name: "next", Argv: []string{"payload", "exit", "1"}})
	_, _, err = run1(t, r, s)
	wantFailure(t, err, BuildFailed, "next", "status 1")
	if left, _ := filepath.Glob(s.Dir + "/*"); len(left) != 0 {
		t.Errorf("the failed run left %q", left)
	}
}

// TestSurvivor: a grandchild in a session of its own rewrites all of a file as
// fast as it can when the stage's first process ends. What is kept then is what
// a later stage still finds, and what was measured.
func TestSurvivor(t *testing.T) {
	r, s := spec(t, "survive")
	s.Limits.OutputBytes = 16 << 20
	s.Stages[0].Artifacts = []string{"a"}
	s.Stages = append(s.Stages, Stage{Name: "next", Argv: []string{"payload", "cat", "/out/a", "/in/stages/build/a"}})
	for range 3 {
		var res Result
		var err error
		clean(t, func() { res, err = r.Run(t.Context(), s) })
		if err != nil {
			t.Fatal(err)
		}
		early, late := res.Stages[0].Artifacts[0], res.Outputs[0]
		read(t, Output{file: early.file, name: "artifact"})
		read(t, late)
		if early.Measurement().Sum() != late.Measurement().Sum() || early.Measurement().Size() != 4<<20 {
			t.Errorf("the artifact of %d bytes changed after the stage's end: %v, then %v", early.Measurement().Size(), early.Measurement().Sum(), late.Measurement().Sum())
		}
	}
}
