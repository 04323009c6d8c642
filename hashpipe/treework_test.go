package hashpipe

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
)

// failingAt returns an error for reads at one offset.
type failingAt struct {
	*bytes.Reader
	off int64
}

var errPlanted = errors.New("planted")

func (f failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off == f.off {
		return 0, errPlanted
	}
	return f.Reader.ReadAt(p, off)
}

func TestTreeWork(t *testing.T) {
	content := pattern(9*UnitSize + 4097)
	size := int64(len(content))
	want, err := Measure(t.Context(), bytes.NewReader(content), nil)
	if err != nil {
		t.Fatal(err)
	}
	start := func(size int64) *TreeWork {
		t.Helper()
		w, err := NewTreeWork(size, 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	r := bytes.NewReader(content)

	w := start(size)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for {
				more, err := w.Step(t.Context(), r)
				if err != nil {
					t.Error(err)
				}
				if !more {
					return
				}
			}
		})
	}
	all.Wait()
	if got, err := w.Tree(r); err != nil || !got.Is(want.Tree().Claim()) {
		t.Errorf("Tree = %v, %v, want that of Measure", got.Claim(), err)
	}
	if tree, err := w.Tree(bytes.NewReader(append(bytes.Clone(content), 0))); tree != nil || !errors.Is(err, ErrChanged) {
		t.Errorf("Tree of a content that goes on = %v, want ErrChanged", err)
	}

	// Whatever is unfinished gives no tree.
	w = start(size)
	if tree, err := w.Tree(r); tree != nil || err == nil {
		t.Error("a tree of which no unit was hashed")
	}
	if _, err := w.Step(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if tree, err := w.Tree(r); tree != nil || err == nil {
		t.Error("a tree of which some units were hashed")
	}
	w = start(size)
	failed := 0
	for {
		more, err := w.Step(t.Context(), failingAt{r, 2 * UnitSize})
		if err != nil {
			if failed++; !errors.Is(err, errPlanted) {
				t.Fatal(err)
			}
			continue
		}
		if !more {
			break
		}
	}
	if tree, err := w.Tree(r); failed != 1 || tree != nil || err == nil {
		t.Errorf("a tree with %d runs that failed: %v", failed, err)
	}
	w = start(size + 1)
	for more := true; more; {
		if more, err = w.Step(t.Context(), r); err != nil && !errors.Is(err, ErrChanged) {
			t.Fatal(err)
		}
	}
	if tree, err := w.Tree(r); tree != nil || err == nil {
		t.Error("a tree of a content that is too short")
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if more, err := start(size).Step(stopped, r); more || !errors.Is(err, context.Canceled) {
		t.Errorf("Step after the end = %v, %v", more, err)
	}
	if w, err := NewTreeWork(-1, 1, nil); w != nil || err == nil {
		t.Error("a negative size was taken")
	}
	if w, err := NewTreeWork(1, 0, nil); w != nil || err == nil {
		t.Error("no workers were taken")
	}
}
