package capstore

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/openclaw/clawfs/hashpipe"
)

// database is the source of a store's view. Numbers are those of facts. Until open
// and after close every answer is ErrClosed.
type database struct {
	mu  sync.RWMutex // guards what follows; held while something is read
	db  *badger.DB
	key rowKey
}

func (d *database) open(db *badger.DB, k rowKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.db, d.key = db, k
}

// close returns when nobody reads any more.
func (d *database) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.db = nil
}

// record returns the body of a fact, the text of its record, and the key of the
// record's row. If the fact can be read and the record cannot, body is there beside
// the error.
func (d *database) record(number uint32) (body, text []byte, key string, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	body, f, err := d.readFact(number)
	if err != nil {
		return nil, nil, string(logKey(uint64(number))), err
	}
	key = string(recordKey(f.kind, f.id))
	value, err := getRow(d.db, key)
	if errors.Is(err, ErrNotFound) {
		return body, nil, key, fmt.Errorf("fact %d: %s %s was acknowledged, and its row is missing", number, f.kind, f.id)
	}
	if err != nil {
		return body, nil, key, err
	}
	sequence, text, err := d.key.open(row{[]byte(key), value})
	if err == nil && (sequence != uint64(number) || !hashpipe.SumBytes(text).Is(f.envelope)) {
		err = errors.New("it holds another record")
	}
	if err != nil {
		return body, nil, key, fmt.Errorf("fact %d: %s %s was acknowledged, and its row is altered: %w", number, f.kind, f.id, err)
	}
	return body, text, key, nil
}

// readFact is for callers that hold d.mu.
func (d *database) readFact(number uint32) (body []byte, f fact, err error) {
	if d.db == nil {
		return nil, fact{}, ErrClosed
	}
	key := logKey(uint64(number))
	value, err := getRow(d.db, string(key))
	if err != nil {
		return nil, fact{}, fmt.Errorf("fact %d: %w", number, err)
	}
	sequence, content, err := d.key.open(row{key, value})
	if err == nil && sequence != uint64(number) {
		err = fmt.Errorf("it is fact %d", sequence)
	}
	if err == nil {
		f, body, _, err = readFact(content)
	}
	if err != nil {
		return nil, fact{}, fmt.Errorf("fact %d: %w: %w", number, ErrDamaged, err)
	}
	return body, f, nil
}

func (d *database) text(number uint32) ([]byte, hashpipe.Digest, string, error) {
	body, text, key, err := d.record(number)
	if err != nil {
		return nil, hashpipe.Digest{}, key, err
	}
	return text, idOf(body), key, nil
}

func (d *database) fact(number uint32) (fact, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, f, err := d.readFact(number)
	return f, err
}

// batch is some facts in a row, which one goroutine checks.
type batch struct {
	before head // the position before the first row, by the word of the row before it
	rows   []row
	heads  []head
	facts  []fact
	err    error
	done   chan struct{}
}

const batchRows = 512

// readFacts calls each with every fact, in order, and the position after it. The
// rows are checked on all cores. The caller owns s.
func (s *Store) readFacts(each func(head, fact)) error {
	work := make(chan *batch)                           // to be checked
	order := make(chan *batch, 2*runtime.GOMAXPROCS(0)) // the same, in order
	stop := make(chan struct{})                         // closed when nobody wants more
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for b := range work {
				b.check(s.key)
				close(b.done)
			}
		})
	}
	var scanned error
	workers.Go(func() {
		defer close(order)
		defer close(work)
		scanned = s.scanFacts(func(b *batch) bool {
			select {
			case order <- b:
			case <-stop:
				return false
			}
			select {
			case work <- b:
			case <-stop: // nobody waits for b.done
				return false
			}
			return true
		})
	})
	defer workers.Wait()
	defer close(stop)
	for b := range order {
		<-b.done
		for i, f := range b.facts {
			each(b.heads[i], f)
		}
		if b.err != nil {
			return b.err
		}
	}
	return scanned
}

func (b *batch) check(k rowKey) {
	at, o := b.before, k.opener()
	b.heads, b.facts = make([]head, 0, len(b.rows)), make([]fact, 0, len(b.rows))
	for _, r := range b.rows {
		next, f, err := at.add(o, r)
		if err != nil {
			b.err = err
			return
		}
		at = next
		b.heads, b.facts = append(b.heads, at), append(b.facts, f)
	}
}

var errStopped = errors.New("nobody wants more")

// scanFacts cuts the log into batches. More is not read after send returned false.
func (s *Store) scanFacts(send func(*batch) bool) error {
	at := firstHead(s.key)
	b := &batch{before: at, done: make(chan struct{})}
	flush := func() bool {
		if len(b.rows) == 0 {
			return true
		}
		next := &batch{before: at, done: make(chan struct{})}
		ok := send(b)
		b = next
		return ok
	}
	err := scan(s.db, prefixLog, afterLog, func(item *badger.Item) error {
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		at = at.claimed(r)
		b.rows = append(b.rows, r)
		if len(b.rows) == batchRows && !flush() {
			return errStopped
		}
		return nil
	})
	if err == nil && !flush() || errors.Is(err, errStopped) {
		return nil
	}
	return err
}
