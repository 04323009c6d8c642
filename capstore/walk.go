package capstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"

	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Finding is something in a store or its journal that should not be so.
type Finding struct {
	Where string `json:"where"` // a row, or a file of the journal
	What  string `json:"what"`
}

// Checked is how much a check looked at.
type Checked struct {
	Rows      int    `json:"rows"`
	Facts     uint64 `json:"facts"` // of the chain
	Records   int    `json:"records"`
	Jobs      int    `json:"jobs"`
	Kept      int    `json:"kept"`          // records of the journal
	Waiting   int    `json:"waiting"`       // records that no store has taken
	Withdrawn int    `json:"withdrawn"`     // records of keys that the policy does not name any more
	Head      bool   `json:"head,omitzero"` // the chain contains the head that was expected
}

// RevokesWhole says whether a revocation that the view knows takes all of a
// capability back.
func (v *View) RevokesWhole(c Capability) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return !v.look().against(c).IsZero()
}

// Walk calls each with every record, in the order in which they were acknowledged,
// each once, and job with every job. One is in memory at a time, and nobody waits
// for it: what is acknowledged meanwhile is not among them.
func (s *Store) Walk(ctx context.Context, each func(Record) error, job func(Job) error) error {
	db, done, err := s.reader()
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	defer done()
	s.mu.Lock()
	last := s.head.n
	s.mu.Unlock()
	for n := uint64(1); n <= last; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.closing.Load() {
			return fmt.Errorf("reading the store: %w", ErrClosed)
		}
		f, err := factAt(db, s.key, n)
		if err != nil {
			return fmt.Errorf("reading the store: %w", err)
		}
		envelope, sequence, err := openRow(db, s.key, recordKey(f.kind, f.id))
		if err != nil {
			return fmt.Errorf("reading the store: fact %d: %w", n, err)
		}
		if sequence != n && sequence <= last { // it was written again, and comes later
			continue
		}
		if err := each(Record{Kind: f.kind, Envelope: envelope}); err != nil {
			return err
		}
	}
	return scan(db, prefixJob, afterJobs, func(item *badger.Item) error {
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		_, content, err := s.key.open(r)
		if err != nil {
			return err
		}
		j, err := readJob(row{r.key, content})
		if err != nil {
			return err
		}
		if s.closing.Load() {
			return ErrClosed
		}
		return errors.Join(ctx.Err(), job(j))
	})
}

func factAt(db *badger.DB, k rowKey, n uint64) (fact, error) {
	content, sequence, err := openRow(db, k, logKey(n))
	if err != nil {
		return fact{}, fmt.Errorf("fact %d: %w", n, err)
	}
	f, _, _, err := readFact(content)
	if err == nil && sequence != n {
		err = fmt.Errorf("the row says that it is fact %d", sequence)
	}
	if err != nil {
		return fact{}, fmt.Errorf("fact %d: %w: %w", n, ErrDamaged, err)
	}
	return f, nil
}

func openRow(db *badger.DB, k rowKey, key []byte) (content []byte, sequence uint64, err error) {
	value, err := getRow(db, string(key))
	if err != nil {
		return nil, 0, err
	}
	sequence, content, err = k.open(row{key, value})
	if err != nil {
		return nil, 0, fmt.Errorf("row %s: %w: %w", key, ErrDamaged, err)
	}
	return content, sequence, nil
}

// check looks at everything that a store has.
type check struct {
	ctx  context.Context
	db   *badger.DB
	key  rowKey
	last head // the newest fact; zero: none is known
	view *View
	kept string // the directory of the journal
	want expect // a head that the chain has to contain; of the zero Head: none

	tell     func(Finding)
	progress func(rows int) // may be nil
	result   Checked
	journal  map[uint64]bool // the beginnings of the SHA-256 of the envelopes in the journal
}

// Check looks at every row's code, every signature, the chain up to its head, and
// the journal, and tells of each thing that is not as it should be. Records of keys
// that t does not name are counted, and are no finding. If want is not zero, a
// chain that does not contain that head is one. Writes do not wait for it.
func (s *Store) Check(ctx context.Context, t Trust, want Head, tell func(Finding), progress func(rows int)) (Checked, error) {
	view, err := NewView(t)
	if err != nil {
		return Checked{}, err
	}
	db, done, err := s.reader()
	if err != nil {
		return Checked{}, err
	}
	defer done()
	s.mu.Lock()
	at, behind := s.head, s.behind
	s.mu.Unlock()
	if behind != nil {
		tell(Finding{KeptName, fmt.Sprintf("the journal lacks what the store has: %v", behind)})
	}
	c := check{ctx: ctx, db: db, key: s.key, last: at, view: view, kept: keptDir(s.dir), want: expect{head: want}, tell: tell, progress: progress}
	return c.run()
}

// CheckClosed is Store.Check of a store that nobody has open and that may be
// damaged. What keeps it from being read is a finding. Badger may end the process.
func CheckClosed(ctx context.Context, dir, memory string, t Trust, want Head, tell func(Finding), progress func(rows int)) (_ Checked, err error) {
	view, err := NewView(t)
	if err != nil {
		return Checked{}, err
	}
	if err := finishSwap(dir, memory); err != nil {
		return Checked{}, err
	}
	c := check{ctx: ctx, view: view, kept: keptDir(dir), want: expect{head: want}, tell: tell, progress: progress}
	s := &Store{dir: dir, memory: memory, view: view}
	for _, d := range []string{dir, memory} {
		if err := durable.PrivateDir(d); err != nil {
			return Checked{}, err
		}
	}
	if s.lock, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return Checked{}, err
	}
	defer func() {
		if late := s.shut(); !errors.Is(late, ErrClosing) { // which says nothing of what was read
			err = errors.Join(err, late)
		}
	}()
	if err := checkSpace(dir, reserveOpen); err != nil {
		return Checked{}, err
	}
	if s.db, err = openBadger(filepath.Join(dir, "db")); err != nil {
		tell(Finding{dir, fmt.Sprintf("the database cannot be opened: %v", err)})
		if s.db != nil {
			s.db = nil
		}
		return c.run()
	}
	c.db = s.db
	if c.key, _, err = readKey(memory); err != nil {
		tell(Finding{KeyName, err.Error()})
	}
	if err := s.identify(); err != nil {
		tell(Finding{dir, err.Error()})
	} else {
		c.last = s.head
		if _, h, found, err := readHead(memory); err == nil && found {
			c.last = h
		}
	}
	return c.run()
}

func (c *check) run() (Checked, error) {
	if err := c.readJournal(); err != nil {
		return c.result, err
	}
	if c.db == nil {
		c.compare()
		return c.result, nil
	}
	if err := c.walkChain(); err != nil {
		return c.result, err
	}
	c.compare()
	return c.result, c.walkRows()
}

// compare tells of a chain without the head that was expected.
func (c *check) compare() {
	if c.want.head.IsZero() {
		return
	}
	if c.result.Head = c.want.met && c.key.name() == c.want.head.Store; !c.result.Head {
		c.tell(c.want.finding(c.key.name(), c.result.Facts))
	}
}

func (c *check) found(where, format string, args ...any) {
	c.tell(Finding{strings.Trim(fmt.Sprintf("%q", where), `"`), fmt.Sprintf(format, args...)})
}

func (c *check) readJournal() error {
	c.journal = make(map[uint64]bool)
	damage, err := kept.Read(c.kept, func(r kept.Record) error {
		c.result.Kept++
		c.journal[uint64(tagOf(hashpipe.SumBytes(r.Envelope).Claim()))] = true
		where := fmt.Sprintf("%s record %d", KeptName, r.N)
		id, err := c.believe(Record{Kind: r.Kind, Envelope: r.Envelope})
		switch {
		case errors.Is(err, dsse.ErrUnverified):
			return c.ctx.Err()
		case err != nil:
			c.found(where, "%v", err)
		case c.db != nil && r.Kind != RecordCapability:
			// What takes something back is never dropped; a capability may have been.
			if _, err := getRow(c.db, string(recordKey(r.Kind, id))); errors.Is(err, ErrNotFound) && !c.outgrown(r) {
				c.found(where, "%s %s is not in the store", r.Kind, id)
			}
		}
		return c.ctx.Err()
	})
	for _, d := range damage {
		c.found(KeptName+"/"+d.File, "byte %d: %s", d.Offset, d.Reason)
	}
	if err != nil {
		return err
	}
	damage, err = kept.ReadWaiting(c.kept, func(r kept.Record) error { c.result.Waiting++; return nil })
	for _, d := range damage {
		c.found(KeptName+"/"+d.File, "byte %d: %s", d.Offset, d.Reason)
	}
	return err
}

// outgrown says whether a list of the journal may be missing in the store, because
// one that is there repeats it.
func (c *check) outgrown(r kept.Record) bool {
	if r.Kind != RecordList {
		return false
	}
	l, err := readList(c.view.revokers, r.Envelope)
	if err != nil {
		return false
	}
	repeated := false
	err = scan(c.db, prefixList, "lst0", func(item *badger.Item) error {
		row, err := rowOf(item)
		if err != nil {
			return err
		}
		if _, content, err := c.key.open(row); err == nil {
			if by, err := readList(c.view.revokers, content); err == nil && by.Sequence() > l.Sequence() && by.repeats(l) {
				repeated = true
			}
		}
		return nil
	})
	return err == nil && repeated
}

// believe verifies a record and returns its id.
func (c *check) believe(r Record) (hashpipe.Digest, error) {
	switch r.Kind {
	case RecordCapability:
		v, err := readCapability(c.view.mints, r.Envelope)
		return v.ID(), err
	case RecordRevocation:
		v, err := readRevocation(c.view.revokers, r.Envelope)
		return v.ID(), err
	case RecordList:
		v, err := readList(c.view.revokers, r.Envelope)
		return v.ID(), err
	}
	return hashpipe.Digest{}, fmt.Errorf("a record of kind %.40q", r.Kind)
}

// walkChain follows the facts to the head, and looks for the record of each.
func (c *check) walkChain() error {
	at := firstHead(c.key)
	met := c.last.n == 0
	var broken error
	err := scan(c.db, prefixLog, afterLog, func(item *badger.Item) error {
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		c.count()
		next, f, err := at.add(c.key, r)
		if err != nil {
			if broken == nil {
				broken = err
				c.found(string(r.key), "%v", err)
			}
			return c.ctx.Err()
		}
		at, met = next, met || c.last.is(next)
		c.want.pass(at)
		c.result.Facts = at.n
		key := recordKey(f.kind, f.id)
		if _, err := getRow(c.db, string(key)); errors.Is(err, ErrNotFound) {
			c.found(string(key), "fact %d: %s %s was acknowledged, and its row is missing", at.n, f.kind, f.id)
		} else if err != nil {
			c.found(string(key), "fact %d: %v", at.n, err)
		}
		if at.n <= c.last.n && !c.journal[uint64(tagOf(f.envelope))] { // later ones came after the journal was read
			c.found(string(key), "fact %d: %s %s is not in the journal of kept records; next: clawfs store compact, or start the daemon once", at.n, f.kind, f.id)
		}
		return c.ctx.Err()
	})
	if err == nil && !met {
		c.found(HeadName, "%d facts were acknowledged, and the rows hold %d that do not lead there", c.last.n, at.n)
	}
	return err
}

func (c *check) walkRows() error {
	return scan(c.db, "", "", func(item *badger.Item) error {
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		key := string(r.key)
		if strings.HasPrefix(key, prefixLog) {
			return nil
		}
		c.count()
		if err := c.checkRow(key, r); err != nil {
			c.found(key, "%v", err)
		}
		return c.ctx.Err()
	})
}

func (c *check) checkRow(key string, r row) error {
	sequence, content, err := c.key.open(r)
	if err != nil {
		return err
	}
	kind := ""
	switch {
	case key == formatKey:
		return nil
	case strings.HasPrefix(key, prefixJob):
		c.result.Jobs++
		_, err := readJob(row{r.key, content})
		return err
	case strings.HasPrefix(key, prefixCapability):
		kind = RecordCapability
	case strings.HasPrefix(key, prefixRevocation):
		kind = RecordRevocation
	case strings.HasPrefix(key, prefixList):
		kind = RecordList
	default:
		return errors.New("unknown kind of row")
	}
	c.result.Records++
	f, err := factAt(c.db, c.key, sequence)
	switch {
	case err != nil:
		return fmt.Errorf("no fact names it: %w", err)
	case f.kind != kind || string(recordKey(kind, f.id)) != key || !hashpipe.SumBytes(content).Is(f.envelope):
		return fmt.Errorf("fact %d names another record", sequence)
	}
	id, err := c.believe(Record{Kind: kind, Envelope: content})
	switch {
	case errors.Is(err, dsse.ErrUnverified):
		c.result.Withdrawn++
		return nil
	case err != nil:
		return err
	case id != f.id:
		return fmt.Errorf("the row holds %s %s", kind, id)
	}
	return nil
}

func (c *check) count() {
	c.result.Rows++
	if c.progress != nil {
		c.progress(c.result.Rows)
	}
}

// Salvage calls each with every record, and job with every job, that can still be
// read of a store which cannot be opened, in no particular order, and tells what
// cannot. The caller has a Draft of the store, so that nobody else opens it. A job
// is one only if its row carries the store's code. Badger may end the process.
func Salvage(ctx context.Context, dir, memory string, each func(Record) error, job func(Job) error, tell func(Finding)) (err error) {
	key, _, err := readKey(memory)
	if err != nil {
		tell(Finding{KeyName, err.Error()})
	}
	if err := checkSpace(dir, reserveOpen); err != nil {
		return err
	}
	db, err := openBadger(filepath.Join(dir, "db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBadger(db, commitPatience, nil)) }()
	return scan(db, "", "", func(item *badger.Item) error {
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		content := r.value[min(rowHeader, len(r.value)):]
		switch name := string(r.key); {
		case strings.HasPrefix(name, prefixCapability):
			err = each(Record{Kind: RecordCapability, Envelope: content})
		case strings.HasPrefix(name, prefixRevocation):
			err = each(Record{Kind: RecordRevocation, Envelope: content})
		case strings.HasPrefix(name, prefixList):
			err = each(Record{Kind: RecordList, Envelope: content})
		case strings.HasPrefix(name, prefixJob):
			var j Job
			if _, content, err = key.open(r); err == nil {
				j, err = readJob(row{r.key, content})
			}
			if err != nil {
				tell(Finding{strings.Trim(fmt.Sprintf("%q", name), `"`), err.Error()})
				return ctx.Err()
			}
			err = job(j)
		}
		return errors.Join(err, ctx.Err())
	})
}
