package capstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/openclaw/clawfs/hashpipe"
	"golang.org/x/sys/unix"
)

// sweep looks for rows that do not verify, in the background: Open and Retrust read
// no records but lists.
type sweep struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // why it ended early; set before done is closed
}

const (
	// sweepFirst is how many rows Open and Retrust wait for, so that of a small store
	// Rejected says all at once.
	sweepFirst = 2000
	sweepNice  = 10 // of the thread that looks at the others
	sweepWait  = 50 * time.Millisecond
)

// Sending reports whether somebody is reading a snapshot: what can wait should.
func (s *Store) Sending() bool { return s.sending.Load() > 0 }

// Swept reports whether Rejected is about all rows that were there at Open, or at the
// last Retrust.
func (s *Store) Swept() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sweep == nil {
		return false
	}
	select {
	case <-s.sweep.done:
		return s.sweep.err == nil
	default:
		return false
	}
}

// sweepAgain begins a sweep, and waits for its first rows. Callers hold s.mu, or own s.
func (s *Store) sweepAgain() {
	s.endSweep()
	ctx, cancel := context.WithCancel(context.Background())
	w := &sweep{cancel: cancel, done: make(chan struct{})}
	s.sweep = w
	first := make(chan struct{})
	db, last, lists, rows := s.db, uint32(s.head.n), maps.Clone(s.lists), 0
	go func() {
		enough := sync.OnceFunc(func() { close(first) })
		defer enough()
		defer close(w.done) // before enough: whoever waited for a small store sees it Swept
		// Locked and not unlocked: the thread ends with the goroutine, and nobody else
		// runs at its nice value.
		runtime.LockOSThread()
		w.err = s.check(ctx, db, last, lists, func() {
			if rows++; rows == sweepFirst {
				enough()
				_ = unix.Setpriority(unix.PRIO_PROCESS, 0, sweepNice) // without it, it is only less polite
			}
			for rows > sweepFirst && s.Sending() && ctx.Err() == nil {
				time.Sleep(sweepWait)
			}
		})
	}()
	<-first
}

// endSweep stops a sweep and waits for its end.
func (s *Store) endSweep() {
	if s.sweep != nil {
		s.sweep.cancel()
		<-s.sweep.done
	}
}

// check looks at the records of the facts up to last, and then at every row that is
// none of them. It takes no lock for longer than one record; s.mu, never.
func (s *Store) check(ctx context.Context, db *badger.DB, last uint32, lists map[hashpipe.Digest]uint32, seen func()) error {
	for n := uint32(1); n <= last; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.view.check(n)
		seen()
	}
	for _, part := range [][2]string{{"", prefixLog}, {afterLog, ""}} {
		err := scan(db, part[0], part[1], func(item *badger.Item) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := rowOf(item)
			if err != nil {
				return err
			}
			if why := s.checkRow(r, last, lists); why != nil {
				s.view.reject(shown(r.key), why)
			}
			seen()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shown is a row's key for people. One that somebody planted can have any bytes.
func shown(key []byte) string { return strings.Trim(fmt.Sprintf("%q", key), `"`) }

// check verifies the record of a number without keeping it. A capability that a key
// of now signed and that does not verify is forgotten.
func (v *View) check(number uint32) {
	if v.fails(number) {
		v.lose(number)
	}
}

func (v *View) fails(number uint32) (forget bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if !v.index.lives(number) {
		return false
	}
	text, id, place, err := v.source.text(number)
	if errors.Is(err, ErrClosed) {
		return false
	}
	f, unknown := v.source.fact(number)
	if err == nil && unknown == nil {
		err = v.verify(f, text, id)
	}
	if err == nil {
		return false
	}
	v.reject(place, err)
	return f.kind == RecordCapability && v.pins(f.kind, f.signer)
}

func (v *View) verify(f fact, text []byte, id hashpipe.Digest) error {
	var got hashpipe.Digest
	switch f.kind {
	case RecordCapability:
		c, err := readCapability(v.mints, text)
		if err != nil {
			return err
		}
		got = c.ID()
	case RecordRevocation:
		r, err := readRevocation(v.revokers, text)
		if err != nil {
			return err
		}
		if got = r.ID(); f.target != r.about() {
			return fmt.Errorf("it takes back %s %s, and was recorded for %s %s", r.Kind(), r.Target(), f.target.kind, f.target.digest)
		}
	default:
		l, err := readList(v.revokers, text)
		if err != nil {
			return err
		}
		got = l.ID()
	}
	if got != id {
		return fmt.Errorf("the row holds %s %s", f.kind, got)
	}
	return nil
}

// checkRow looks at a row that is no fact's. Records of facts up to last were looked
// at already.
func (s *Store) checkRow(r row, last uint32, lists map[hashpipe.Digest]uint32) error {
	key := string(r.key)
	kind := ""
	for _, k := range factKinds {
		if id, ok := strings.CutPrefix(key, recordPrefix(k)); ok {
			kind = k
			if d, err := hashpipe.ParseDigest(id); err == nil && (lists[d] > 0 && k == RecordList || k != RecordList && len(s.view.find(k, d)) > 0) {
				return nil
			}
		}
	}
	if kind == "" && key != formatKey && !strings.HasPrefix(key, prefixJob) {
		return errors.New("unknown kind of row")
	}
	sequence, _, err := s.key.open(r)
	if err != nil {
		return err
	}
	if kind != "" && sequence <= uint64(last) {
		return errors.New("no fact names it")
	}
	return nil
}
