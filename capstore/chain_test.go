package capstore

import (
	"strings"
	"testing"
)

// What nobody pins is read as strictly as what is pinned.
func TestUnverifiedChainRefusals(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	text, _ := c.chain(t, st, Delegation{}, Delegation{})
	lines := strings.SplitAfter(string(text), "\n")
	other, _ := c.chain(t, c.statement(t, "", "a.bin", "b.bin"), Delegation{})
	if chain, err := UnverifiedChain(text); err != nil || len(chain) != 3 || chain[0].Statement.Predicate.Parent != nil || chain[2].Statement.Predicate.Parent.Digest.SHA256 != chain[1].ID {
		t.Fatalf("UnverifiedChain = %d links, %v, want 3", len(chain), err)
	}
	for name, x := range map[string]struct{ text, want string }{
		"nothing":                  {"", "envelope"},
		"no envelope":              {"{}", "envelope"},
		"a broken line":            {lines[0][:40], "envelope"},
		"too large":                {lines[0] + strings.Repeat(" ", MaxRecord), "at most"},
		"no capability":            {string(c.list(t, 1, during)), "capability"},
		"a derived one alone":      {lines[1], "which has to stand before it"},
		"a link left out":          {lines[0] + lines[2], "link 1: its parent is"},
		"a link of another result": {lines[0] + strings.SplitAfter(string(other), "\n")[1], "link 1: its parent is"},
		"a link that is cut":       {lines[0] + lines[1] + lines[2][:40], "link 2: "},
		"a link changed":           {lines[0] + strings.Replace(lines[1], `"sig":"`, `"sig":"AAAA`, 1), "link 1: not signed by the required keys"},
		"five links":               {lines[0] + strings.Repeat(lines[1], MaxDelegations+1), "more than 4 delegations"},
	} {
		chain, err := UnverifiedChain([]byte(x.text))
		if err == nil || !strings.Contains(err.Error(), "reading a capability: ") || !strings.Contains(err.Error(), x.want) || chain != nil {
			t.Errorf("%s: UnverifiedChain = %d links, %v, want an error with %q", name, len(chain), err, x.want)
		}
	}
}
