package capstore

import (
	"iter"
	"runtime"
	"sync"
)

const (
	// aheadRows is how many records one goroutine reads before it gives them on, and
	// aheadMost how many do. Of each MaxRecord bytes that is 72 MiB, for as long as
	// somebody does not read on; as records are, some 300 KB.
	aheadRows = 16
	aheadMost = 8
)

// reading is what sent says of one number.
type reading struct {
	record Record
	ok     bool
	err    error
}

// readAhead gives the records of numbers as sent has them, in order, and reads them on
// all cores. It ends after the first error, and reports whether more is wanted; when it
// returns, nothing is read any more.
func (s *Store) readAhead(numbers iter.Seq2[uint32, error], yield func(Record, error) bool) bool {
	order := make(chan chan []reading, min(runtime.GOMAXPROCS(0), aheadMost)) // as many are being read
	stop := make(chan struct{})                                               // closed when nobody wants more
	var workers sync.WaitGroup
	workers.Go(func() {
		defer close(order)
		var part []uint32
		read := func(end error) bool {
			batch, read := part, make(chan []reading, 1)
			part = nil
			select {
			case order <- read:
			case <-stop:
				return false
			}
			workers.Go(func() { read <- s.readAll(batch, end) })
			return true
		}
		for n, err := range numbers {
			if err != nil {
				read(err)
				return
			}
			if part = append(part, n); len(part) == aheadRows && !read(nil) {
				return
			}
		}
		if len(part) > 0 {
			read(nil)
		}
	})
	defer workers.Wait()
	defer close(stop)
	for read := range order {
		for _, r := range <-read {
			if r.ok && !yield(r.record, r.err) || r.err != nil {
				return false
			}
		}
	}
	return true
}

// readAll reads some records, and ends with an error if there is one.
func (s *Store) readAll(numbers []uint32, end error) []reading {
	list := make([]reading, 0, len(numbers)+1)
	for _, n := range numbers {
		r, ok, err := s.sent(n)
		list = append(list, reading{r, ok, err})
		if err != nil {
			return list
		}
	}
	if end != nil {
		list = append(list, reading{ok: true, err: end})
	}
	return list
}

// numbersOf are the numbers up to last of the records of a kind that are in force. It
// ends with errRetrusted where the Trust is another one than the one that trusted counted.
func (s *Store) numbersOf(kind string, last uint32, trusted uint64) iter.Seq2[uint32, error] {
	return func(yield func(uint32, error) bool) {
		for n := uint32(1); n <= last; n++ {
			now, same := s.view.kindOf(n, trusted)
			if !same {
				yield(0, errRetrusted)
				return
			}
			if now == kind && !yield(n, nil) {
				return
			}
		}
	}
}
