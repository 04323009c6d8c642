package sandbox

import (
	"bytes"
	"io"
	"os"
	"time"
)

// follow passes on what a node tells while it works, until the returned
// function is called; that passes on the rest and returns an error of
// Spec.Log. A node that tells nonsense is not believed and not refused: what
// counts is its answer.
func (x *exchange) follow(s Spec) (stop func() error) {
	f := follower{x: x, log: newBuildLog(s.Log, s.Limits.LogBytes), spec: s}
	ask, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(followEvery)
		defer tick.Stop()
		for {
			select {
			case <-ask:
				f.look()
				return
			case <-tick.C:
				f.look()
			}
		}
	}()
	return func() error {
		close(ask)
		<-done
		return f.log.writeError()
	}
}

// follower reads two files that grow.
type follower struct {
	x       *exchange
	spec    Spec
	log     *buildLog
	logged  int64
	told    int64 // bytes of the stages' file
	stages  int   // of the recipe that were told
	partial []byte
}

func (f *follower) look() {
	f.logged += f.more(logFile, f.logged, f.spec.Limits.LogBytes, f.log)
	var told bytes.Buffer
	f.told += f.more(stagesFile, f.told, maxOrder, &told)
	f.partial = append(f.partial, told.Bytes()...)
	for f.stages < len(f.spec.Stages) {
		line, rest, whole := bytes.Cut(f.partial, []byte("\n"))
		if !whole || string(line) != f.spec.Stages[f.stages].Name {
			return
		}
		f.partial = rest
		f.stages++
		if f.spec.Progress != nil {
			f.spec.Progress(string(line))
		}
	}
}

// more copies what was added to a file after offset, up to limit bytes in all.
func (f *follower) more(name string, offset, limit int64, to io.Writer) int64 {
	if offset >= limit {
		return 0
	}
	file, err := f.x.open(name, 0)
	if err != nil {
		return 0
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() <= offset {
		return 0
	}
	n, _ := io.Copy(to, io.NewSectionReader(file, offset, limit-offset))
	return n
}

// teller is the node's side: each line goes out at once.
type teller struct{ f *os.File }

func newTeller(path string) (teller, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	return teller{f}, err
}

func (t teller) stage(name string) { t.f.WriteString(name + "\n") }
