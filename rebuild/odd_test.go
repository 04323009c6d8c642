package rebuild

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier"
)

// TestOddLedgers: whatever a ledger or its image asks for, there is an answer:
// a job without one is built again.
func TestOddLedgers(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	var many []string
	for i := range 4000 {
		many = append(many, fmt.Sprintf("V%d=%s", i, long[:1000]))
	}
	stage := func(change func(*verifier.Stage)) func(*site) {
		return func(s *site) { change(&s.params().Stages[0]) }
	}
	for name, change := range map[string]func(*site){
		"one byte of memory":     stage(func(g *verifier.Stage) { g.Limits = &verifier.StageLimits{MemoryBytes: 1} }),
		"one process":            stage(func(g *verifier.Stage) { g.Limits = &verifier.StageLimits{Processes: 1} }),
		"one byte of output":     stage(func(g *verifier.Stage) { g.Limits = &verifier.StageLimits{OutputBytes: 1} }),
		"long variable of image": func(s *site) { s.image([]string{"PATH=/bin", "X=" + long}) },
		"4 MB of variables":      func(s *site) { s.image(append(many, "PATH=/bin")) },
		"work in /in":            stage(func(g *verifier.Stage) { g.WorkDir = "/in/new" }),
		"artifact through a link": stage(func(g *verifier.Stage) {
			g.Argv, g.Artifacts = []string{"payload", "link"}, []string{"model.bin/x"}
		}),
		"deep artifact": stage(func(g *verifier.Stage) { g.Artifacts = []string{strings.Repeat("d/", 2000) + "x"} }),
	} {
		s := newSite(t)
		change(s)
		rep, err := Reproduce(t.Context(), s.config(nil), s.ledger(), s.loc)
		rep.Close()
		if !errors.As(err, new(*Failure)) {
			t.Errorf("%s: Reproduce = %.400v, want an answer that does not grant", name, err)
		}
	}
}
