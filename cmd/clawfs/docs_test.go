package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

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
