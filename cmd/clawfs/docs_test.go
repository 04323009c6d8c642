package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
)

// What the documents say of clawfs.toml can be copied into one.
func TestSettingsInDocs(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```[a-z]*\n(\\[[a-z.]+\\]\n.*?)^```$")
	found := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range blocks.FindAllStringSubmatch(string(text), -1) {
			found++
			if _, err := config.ParseSettings([]byte(block[1]), 0); err != nil {
				t.Errorf("%s: %v in\n%s", file, err, block[1])
			}
		}
	}
	if found < 2 {
		t.Errorf("%d blocks of settings in the documents, want at least [fetch] and [build]", found)
	}
}

// The clawfs.toml of a new state directory is valid with each line that is
// commented out in it, and has them all.
func TestSettingsOfInit(t *testing.T) {
	if got, err := config.ParseSettings([]byte(settingsText), 0); err != nil || got.Build.Concurrency != 0 {
		t.Errorf("ParseSettings of init's text = %+v, %v", got, err)
	}
	all := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(settingsText, "$1")
	if _, err := config.ParseSettings([]byte(all), 0); err != nil {
		t.Errorf("ParseSettings of init's text without comment signs: %v", err)
	}
	_, err := config.ParseSettings([]byte("nosuch = 1"), 0)
	if err == nil {
		t.Fatal("an unknown setting was accepted")
	}
	_, list, _ := strings.Cut(err.Error(), "want one of ")
	names := strings.Split(list, ", ")
	if len(names) < 20 {
		t.Fatalf("settings %q, want at least 20", names)
	}
	for _, name := range names {
		key := name[strings.LastIndexByte(name, '.')+1:]
		if !strings.Contains(settingsText, "\n#"+key+" = ") {
			t.Errorf("clawfs.toml of init does not show %s", name)
		}
	}
}

// Whoever is refused finds the reason in the table of operations.md.
func TestReasonsAreDocumented(t *testing.T) {
	source, err := os.ReadFile("../../fs/decide.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| reason | meaning |")
	table, _, _ = strings.Cut(table, "\n\n")
	reasons := regexp.MustCompile(`Reason += "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1)
	if !found || len(reasons) < 10 {
		t.Fatalf("table of reasons found: %t; reasons in fs/decide.go: %d, want at least 10", found, len(reasons))
	}
	for _, r := range reasons {
		switch r[1] {
		case "granted", "unmeasured": // no refusals that anybody sees
			continue
		}
		if !strings.Contains(table, "`"+r[1]+"`") {
			t.Errorf("docs/operations.md does not explain the reason %s", r[1])
		}
	}
}

// The signer program that operations.md shows is the one that tests run.
func TestSignerInDocs(t *testing.T) {
	program, err := os.ReadFile("testdata/signer/clawfs-signer-openssl")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(program) == 0 || !strings.Contains(string(text), "```sh\n"+string(program)+"```\n") {
		t.Error("docs/operations.md does not show testdata/signer/clawfs-signer-openssl as it is")
	}
}
