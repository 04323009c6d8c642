package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// example is one command line of a document, and what it prints.
type example struct {
	line    int
	command string
	want    string
}

// examples reads the blocks ```console of a document: lines that begin with "$ "
// are commands, lines that begin with "> " go on with one, all others are output.
func examples(text string) (list []example) {
	inside := false
	for i, line := range strings.Split(text, "\n") {
		last := len(list) - 1
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case strings.HasPrefix(line, "$ "):
			list = append(list, example{line: i + 1, command: line[2:] + "\n"})
		case strings.HasPrefix(line, "> "):
			list[last].command += line[2:] + "\n"
		default:
			list[last].want += line + "\n"
		}
	}
	return list
}

// matches compares an output with a document's: … is any text of a line, and alone
// on a line any number of lines.
func matches(want, got string) bool {
	p := regexp.QuoteMeta(want)
	p = regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(p, `(?s:.*)`)
	p = strings.ReplaceAll(p, "…", ".*")
	return regexp.MustCompile(`^` + p + `$`).MatchString(got)
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		want, got string
		is        bool
	}{
		{"a\n", "a\n", true},
		{"a\n", "a\nb\n", false},
		{"a\n", "", false},
		{"", "a\n", false},
		{"a…  -\n", "abc  -\n", true},
		{"a…  -\n", "abc\n  -\n", false},
		{"…\n", "", true},
		{"…\nb\n", "x\ny\nb\n", true},
		{"…\nb\n", "x\ny\n", false},
		{"a.c\n", "abc\n", false},
	} {
		if got := matches(c.want, c.got); got != c.is {
			t.Errorf("matches(%q, %q) = %t, want %t", c.want, c.got, got, c.is)
		}
	}
}

// session runs commands one after the other in one shell, as a person does.
func session(t *testing.T, dir string, env []string, list []example) {
	t.Helper()
	const mark = "--- end of example ---"
	var script strings.Builder
	for _, e := range list {
		fmt.Fprintf(&script, "%secho '%s'\n", e.command, mark)
	}
	cmd := exec.Command("timeout", "120", "bash", "-c", script.String())
	var out bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, &out, &out
	cmd.WaitDelay = 10 * time.Second // the daemon keeps the output open
	err := cmd.Run()
	outputs := strings.Split(out.String(), mark+"\n")
	if len(outputs) != len(list)+1 {
		t.Fatalf("%d of %d examples ran: %v\n%s", len(outputs)-1, len(list), err, out.String())
	}
	for i, e := range list {
		if !matches(e.want, outputs[i]) {
			t.Errorf("line %d: $ %sprinted\n%.1000swant\n%s", e.line, e.command, outputs[i], e.want)
		}
	}
}

// The examples of docs/semantics.md do what the document says.
func TestSemantics(t *testing.T) {
	text, err := os.ReadFile("../../docs/semantics.md")
	if err != nil {
		t.Fatal(err)
	}
	list := examples(string(text))
	if len(list) < 40 {
		t.Fatalf("%d examples in docs/semantics.md, want at least 40", len(list))
	}
	r := newRig(t)
	dir := filepath.Dir(r.src)
	langid := strings.Repeat("langid-weights\n\x00", 1<<16)
	for _, d := range []string{"downloads", "models", "good", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(r.bin, filepath.Join(dir, "bin", "clawfs")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"downloads/langid.bin": langid, "good/langid.bin": langid,
		"downloads/vocab.txt": "the\nof\n", "good/vocab.txt": "the\nof\n",
		"downloads/late.bin": "late\n", "downloads/notes.txt": "notes\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.admit(map[string]string{"langid.bin": langid})
	another := func(model string) func(*capstore.Predicate) {
		return func(p *capstore.Predicate) {
			p.Model = model
			p.SBA.Digest.SHA256 = hashpipe.SumBytes([]byte(model)).Claim()
		}
	}
	r.admitText(r.capabilityFor(r.measured(map[string]string{"vocab.txt": "the\nof\n"}), another("acme/vocab")))
	late := r.capabilityFor(r.measured(map[string]string{"late.bin": "late\n"}), another("acme/late"))
	if err := os.WriteFile(filepath.Join(dir, "late.cap"), late, 0o644); err != nil {
		t.Fatal(err)
	}
	session(t, dir, []string{
		"PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C",
		"HOME=" + dir, "CLAWFS_STATE=" + string(r.state), "GORACE=halt_on_error=1",
	}, list)
}
