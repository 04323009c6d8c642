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
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	demo := exec.CommandContext(ctx, "../examples/quantize/demo.sh")
	demo.Env = append(os.Environ(), "CLAWFS="+built.clawfs)
	demo.Cancel = func() error { return demo.Process.Signal(syscall.SIGTERM) } // it unmounts and ends its daemon
	demo.WaitDelay = time.Minute
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("examples/quantize/demo.sh: %v; if a program is missing: sudo make clients\n%s", err, out)
	}
	for _, want := range []string{"COPIED_INPUT", "EACCES: permission denied", "granted acme/tiny-q8", "8 of 12 tensors differ", "done in"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("examples/quantize/demo.sh did not say %q:\n%s", want, out)
		}
	}
}
