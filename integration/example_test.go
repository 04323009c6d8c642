package integration

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The cheapest of the examples runs whole: two ledgers, the second of which
// converts what the first one makes, and llama.cpp as the client. The script
// ends with an error at the first step that does not end as it says, refusals
// before grants.
func TestExampleQuantize(t *testing.T) {
	example(t, "quantize", "clients", "COPIED_INPUT", "EACCES: permission denied", "granted acme/tiny-q8", "8 of 12 tensors differ")
}

// Three operators, a log with two witnesses, a registry, and a node that builds
// nothing, each a process of its own: one result is not enough, two are, a lie
// freezes, and what is taken back is refused at the next open.
func TestExampleQuorum(t *testing.T) {
	example(t, "quorum", "servers", "missing: bob, carol", "reproduced-2 by alice, bob", "no proof came with this one", "revoked claim", "training data withdrawn", "3 capabilities, 2 revocations, 0 revocation lists")
}

// example runs a demo, which has to print some texts. target of the Makefile gets
// the programs of others that it needs.
func example(t *testing.T, name, target string, texts ...string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	script := "../examples/" + name + "/demo.sh"
	demo := exec.CommandContext(ctx, script)
	demo.Env = append(os.Environ(), "CLAWFS="+built.clawfs)
	demo.Cancel = func() error { return demo.Process.Signal(syscall.SIGTERM) } // it unmounts and ends its daemons
	demo.WaitDelay = time.Minute
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v; if a program is missing: sudo make %s\n%s", script, err, target, out)
	}
	for _, want := range append(texts, "done in") {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s did not say %q:\n%s", script, want, out)
		}
	}
}
