package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCompilerRefuses builds each program of testdata/refused as if it stood
// in the folder that its first line names. Each one tries to skip a step of
// the path from claim to grant, and each must fail with the error that its
// second line gives as a regular expression. The program that wants "builds"
// is the control: without it a broken harness would look like a refusal.
func TestCompilerRefuses(t *testing.T) {
	programs, err := filepath.Glob("testdata/refused/*.go.txt")
	if err != nil || len(programs) < 10 {
		t.Fatalf("programs that must be refused: found %d (%v), want at least 10", len(programs), err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	controls := 0
	for _, program := range programs {
		name := strings.TrimSuffix(filepath.Base(program), ".go.txt")
		source, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitN(string(source), "\n", 3)
		folder, ok1 := strings.CutPrefix(lines[0], "// in: ")
		want, ok2 := strings.CutPrefix(lines[1], "// want: ")
		if !ok1 || !ok2 {
			t.Errorf("%s: first lines must be `// in: FOLDER` and `// want: REGEXP`", program)
			continue
		}
		if want == "builds" {
			controls++
		}
		t.Run(name, func(t *testing.T) {
			abs, err := filepath.Abs(program)
			if err != nil {
				t.Fatal(err)
			}
			pkg := folder + "/refused_" + name
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
				filepath.Join(root, pkg, "main.go"): abs,
			}})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "overlay.json")
			if err := os.WriteFile(file, overlay, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", "build", "-overlay", file, "-o", os.DevNull, "./"+pkg)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			if want == "builds" {
				if err != nil {
					t.Fatalf("the control program does not build: %v\n%s", err, out)
				}
				return
			}
			if err == nil {
				t.Fatalf("%s builds: the compiler lets this step be skipped", name)
			}
			if !regexp.MustCompile(want).Match(out) {
				t.Errorf("go build said\n%s\nwant a match of %q", out, want)
			}
		})
	}
	if controls == 0 {
		t.Error("no control program: nothing shows that the harness can build anything")
	}
}
