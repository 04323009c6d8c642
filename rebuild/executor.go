package rebuild

import (
	"context"

	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

// Executor is where builds run: on this machine, as sandbox.Runtime, or on one
// that an engine chooses. A *sandbox.Failure of Run is the build's own fault;
// every other error is no answer, whether a machine was lost or a job preempted.
type Executor interface {
	Run(context.Context, sandbox.Spec) (sandbox.Result, error)
	// Sweep removes what dead workers left and returns the names of it.
	Sweep(context.Context) ([]string, error)
	// String is for the record.
	String() string
}

// hosted is an Executor that knows the machine before it runs anything, so
// that a ledger for another one is refused before its inputs are fetched.
type hosted interface{ Host() sandbox.Host }

// onHost says whether bytes built on h may be expected to be the ledger's.
func onHost(h sandbox.Host, st verifier.Statement, image []string) error {
	if err := sameClass(platformOf(h), h.CPUFeatures, st.Predicate.Platform); err != nil {
		return err
	}
	return dispatchable(st, image, h.CPUFeatures)
}
