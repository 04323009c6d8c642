package sandbox

import "context"

// Runtime is an OCI runtime that was found able to enforce every limit.
type Runtime struct {
	path string
}

// Find probes the runc program at path and this host. It refuses what cannot
// be isolated or limited here, and says what to do.
func Find(path string) (*Runtime, error) { panic("unwritten") }

// String names the runtime's version and the cgroup version, for the record.
func (r *Runtime) String() string { return r.path }

// Run runs the stages in order and returns after every process is dead and
// everything outside Spec.Dir is removed. A *Failure is the build's own fault.
func (r *Runtime) Run(ctx context.Context, s Spec) (Result, error) { panic("unwritten") }

// Sweep kills and removes what runs of dead workers left, and returns their
// ids. It leaves alone what a living worker runs.
func (r *Runtime) Sweep(ctx context.Context) ([]string, error) { panic("unwritten") }
