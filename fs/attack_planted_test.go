package fs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// plantedFaults are what an implementation would do wrong that hashes once and
// serves what it hashed: one for each tier.
var plantedFaults = []struct {
	tier, file, right, wrong string
}{
	// A unit is returned without its check.
	{"blocks", "../hashpipe/checked.go", "err = c.tree.VerifyUnit(unit, data[:n])", "_ = n"},
	// The source is written to the private file, and read again to be hashed.
	{"sealed-copy", "pieces.go", "\t\t\tc.flush()\n\t\t}\n\t}\n\treturn n, err", "\t\t\tc.flush()\n\t\t}\n\t}\n\tfor range 20 {\n\t\tn, err = c.src.ReadAt(p, off)\n\t}\n\treturn n, err"},
	// The kernel serves the source itself.
	{"sealed-reflink", "seal.go", "r, err := readOnly(w)\n\treturn draft{r: r", "r, err := readOnly(src)\n\treturn draft{r: r"},
}

// What these tests rest on is that they would see a wrong byte. So they are run
// against a build with faults, and have to fail on every tier.
func TestStormSeesPlantedFaults(t *testing.T) {
	changed := make(map[string]string)
	for _, f := range plantedFaults {
		path, err := filepath.Abs(f.file)
		if err != nil {
			t.Fatal(err)
		}
		text, ok := changed[path]
		if !ok {
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text = string(source)
		}
		if strings.Count(text, f.right) != 1 {
			t.Fatalf("%s: want %q once: plant the fault for tier %s where the code is now", f.file, f.right, f.tier)
		}
		changed[path] = strings.Replace(text, f.right, f.wrong, 1)
	}
	dir := t.TempDir()
	replace := make(map[string]string)
	for path, text := range changed {
		replace[path] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	// A busy machine opens a few times in a second. A tier whose fault was not seen is
	// attacked for longer.
	unseen := tiers
	for _, seconds := range []string{"3", "12", "48"} {
		var out []byte
		unseen, out = unseenFaults(t, file, unseen, seconds)
		if len(unseen) == 0 {
			return
		}
		t.Logf("in %s s of three attacks, the fault was not seen on tier %s:\n%s", seconds, unseen[0].name, out)
	}
	t.Error("the faulty build passes")
}

// unseenFaults runs the silent storm on some tiers of a build with faults, and
// returns the tiers on which it passed.
func unseenFaults(t *testing.T, overlay string, on []tierCase, seconds string) (unseen []tierCase, out []byte) {
	names := make([]string, len(on))
	for i, tier := range on {
		names[i] = tier.name
	}
	cmd := exec.Command("go", "test", "-count=1", "-overlay", overlay, "-run", "^TestStorm$/^silent$/^("+strings.Join(names, "|")+")$", ".")
	cmd.Env = append(os.Environ(), "CLAWFS_RACE_SECONDS="+seconds)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return on, out
	}
	for _, tier := range on {
		_, part, _ := bytes.Cut(out, []byte("--- FAIL: TestStorm/silent/"+tier.name+" "))
		part, _, _ = bytes.Cut(part, []byte("---"))
		got := regexp.MustCompile(`nobody approved (\d+) times, (\d+) times in a sealed file`).FindSubmatch(part)
		if got == nil || tier.tier == TierSealed && string(got[2]) == "0" {
			unseen = append(unseen, tier)
			continue
		}
		t.Logf("tier %s: %s", tier.name, got[0])
	}
	return unseen, out
}
