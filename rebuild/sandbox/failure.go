package sandbox

import "fmt"

// Kind says what about the build itself went wrong.
type Kind string

const (
	// BuildFailed: a stage could not be started or did not exit with status 0.
	BuildFailed Kind = "build failed"
	// Timeout: a stage or the run used up its wall clock.
	Timeout Kind = "timeout"
	// LimitExceeded: memory, processes, /out or log.
	LimitExceeded Kind = "limit exceeded"
	// OutputMissing: an output is absent or is not a plain file.
	OutputMissing Kind = "output missing"
	// NotComparable: the machine lacks what Spec.Needs asks for. Nothing ran.
	NotComparable Kind = "not comparable"
)

// Failure is the build's own fault, in contrast to every other error of Run,
// which is this host's.
type Failure struct {
	Kind  Kind
	Stage string // empty if none had started
	// Detail says what happened, with expected and found values.
	Detail string
	// LogTail is the end of the log with control characters escaped, at most
	// 4 KiB of what the build printed.
	LogTail string
}

func (f *Failure) Error() string {
	if f.Stage == "" {
		return fmt.Sprintf("%s: %s", f.Kind, f.Detail)
	}
	return fmt.Sprintf("stage %s: %s: %s", f.Stage, f.Kind, f.Detail)
}
