package logserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	merkle "golang.org/x/mod/sumdb/tlog"
	"k8s.io/klog/v2"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	// defaultInterval is the least time between two checkpoints.
	defaultInterval = 500 * time.Millisecond
	// republish is how old a checkpoint of a log that does not grow gets: its
	// cosignatures say that the log is alive.
	republish = 10 * time.Minute
	// batchAge is how long a leaf waits for others to be written with it.
	batchAge = 20 * time.Millisecond
	batchMax = 256
	// pollEvery is how often the published checkpoint is looked at while somebody
	// waits for one.
	pollEvery = 20 * time.Millisecond
	// maxPending bounds the leaves that are being written.
	maxPending = 4096
	// writePatience bounds how long Close waits for leaves that are being written.
	writePatience = 3 * time.Second
)

// Config is what Open needs.
type Config struct {
	Dir string // of a log that Create made
	// Witnesses is the text of a tlog policy that names this log and the quorum
	// without which no checkpoint is published. Empty: there are no witnesses.
	Witnesses []byte
	// Interval is the least time between two checkpoints. Zero: 500 ms. At least
	// 100 ms.
	Interval time.Duration
	Log      *slog.Logger
}

// Log is a log that this process serves.
type Log struct {
	dir       string
	log       *slog.Logger
	lock      *control.Lock
	admission *admission
	policy    tlog.Policy
	reader    *translog.Log
	witnesses *witnessClient

	appender *tessera.Appender
	state    tessera.LogReader
	shutdown func(context.Context) error
	ctx      context.Context // of the appender
	cancel   context.CancelFunc
	polls    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	index    map[tlog.Hash]int64
	heads    map[headOf]knownHead
	size     int64 // leaves of the tree that index has
	pending  map[tlog.Hash]*addition
	behind   bool // index may lack leaves of the tree
	stopping bool

	published publication
}

// addition is a leaf that is being written. index and err are set before done is
// closed.
type addition struct {
	done  chan struct{}
	index int64
	err   error
}

// PendingError says that an entry is not published. If Index is not negative it is
// in the tree, and a later Add of the same envelope returns its proof.
type PendingError struct {
	Index  int64
	Detail string
}

// Error returns the detail.
func (e *PendingError) Error() string { return e.Detail }

func pendingf(index int64, format string, args ...any) *PendingError {
	return &PendingError{Index: index, Detail: fmt.Sprintf(format, args...)}
}

// Redirect sends what the library says to a logger, each sentence once a minute at
// most. It is for the start of a process: the library has one logger for all logs.
func Redirect(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(&seldom{log.Handler(), new(sync.Mutex), make(map[string]time.Time)}).With("part", "tessera"))
}

// seldom is a slog.Handler that leaves out what it passed on within the last
// minute.
type seldom struct {
	slog.Handler
	mu     *sync.Mutex // guards passed, also of the handlers that WithAttrs made
	passed map[string]time.Time
}

// Handle passes a record on, or not.
func (s *seldom) Handle(ctx context.Context, r slog.Record) error {
	const most = 1024
	s.mu.Lock()
	early := r.Time.Sub(s.passed[r.Message]) < time.Minute
	if !early {
		if len(s.passed) >= most {
			clear(s.passed)
		}
		s.passed[r.Message] = r.Time
	}
	s.mu.Unlock()
	if early {
		return nil
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs returns a handler with the same memory.
func (s *seldom) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &seldom{s.Handler.WithAttrs(attrs), s.mu, s.passed}
}

// WithGroup returns a handler with the same memory.
func (s *seldom) WithGroup(name string) slog.Handler {
	return &seldom{s.Handler.WithGroup(name), s.mu, s.passed}
}

// Open takes the directory of a log for this process and reads all its leaves. It
// refuses a tree that does not have the root that the log's own checkpoint has.
// Until Close ends the log signs and publishes checkpoints.
func Open(cfg Config) (*Log, error) {
	vkey, err := VerifierKey(cfg.Dir)
	if err != nil {
		return nil, err
	}
	signer, err := readKey(cfg.Dir, vkey)
	if err != nil {
		return nil, err
	}
	policy, err := policyFor(vkey, cfg.Witnesses)
	if err != nil {
		return nil, err
	}
	names := make(map[string]string)
	group, err := witnessGroup(policy, names)
	if err != nil {
		return nil, err
	}
	admission, err := openAdmission(PolicyFile(cfg.Dir), cfg.Log)
	if err != nil {
		return nil, err
	}
	lock, err := control.TakeLock(filepath.Join(cfg.Dir, lockFile))
	var held *control.LockedError
	if errors.As(err, &held) {
		return nil, fmt.Errorf("another process (pid %d) serves the log %s already", held.PID, cfg.Dir)
	}
	if err != nil {
		return nil, err
	}
	l := &Log{
		dir: cfg.Dir, log: cfg.Log, lock: lock, admission: admission, policy: policy, witnesses: newWitnessClient(names, cfg.Log),
		index: make(map[tlog.Hash]int64), heads: make(map[headOf]knownHead), pending: make(map[tlog.Hash]*addition),
	}
	l.published.changed = make(chan struct{})
	if l.reader, err = translog.Open(l.tree(), policy); err == nil {
		err = l.start(tessera.NewAppendOptions().
			WithCheckpointSigner(signer).
			WithCheckpointInterval(orDefault(cfg.Interval, defaultInterval)).
			WithCheckpointRepublishInterval(republish).
			WithBatching(batchMax, batchAge).
			WithWitnesses(group, &tessera.WitnessOptions{Timeout: witnessPatience}))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return l, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

func (l *Log) tree() string { return filepath.Join(l.dir, translog.TreeDir) }

// policyFor is the policy by which the log judges its own checkpoints: nobody gets
// a proof from here that a verifier with the same policy would refuse.
func policyFor(vkey tlog.VerifierKey, witnesses []byte) (tlog.Policy, error) {
	if len(witnesses) == 0 {
		return tlog.ParsePolicy(fmt.Appendf(nil, "log %s\nquorum none\n", vkey))
	}
	p, err := tlog.ParsePolicy(witnesses)
	if err != nil {
		return tlog.Policy{}, err
	}
	for _, s := range p.Logs() {
		if s.Key == vkey {
			return p, nil
		}
	}
	return tlog.Policy{}, fmt.Errorf("witness policy: expected the line \"log %s\", because the policy must be one by which this log's proofs are believed", vkey)
}

func (l *Log) start(options *tessera.AppendOptions) (err error) {
	l.ctx, l.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			l.cancel()
		}
	}()
	if err := errors.Join(l.dropUncosigned(), l.sweep()); err != nil {
		return err
	}
	driver, err := posix.New(l.ctx, posix.Config{Path: l.tree(), HTTPClient: l.witnesses.client()})
	if err != nil {
		return fmt.Errorf("log %s: %w", l.dir, err)
	}
	first := !exists(filepath.Join(l.tree(), ".state", "treeState"))
	l.appender, l.shutdown, l.state, err = tessera.NewAppender(l.ctx, driver, options)
	if err != nil && first {
		// The driver wants the checkpoint of the empty tree to be cosigned at once.
		// It has the empty tree now, and asks the witnesses again by itself.
		l.log.Warn("the first checkpoint is not published yet", "error", err)
		l.appender, l.shutdown, l.state, err = tessera.NewAppender(l.ctx, driver, options)
	}
	if err != nil {
		return fmt.Errorf("log %s: %w", l.dir, err)
	}
	if err := l.check(); err != nil {
		return fmt.Errorf("log %s: %w", l.dir, err)
	}
	l.polls.Go(l.poll)
	return nil
}

// dropUncosigned removes a checkpoint that lacks the quorum, as after a change of
// the witness policy: the driver would not ask for another one before the log
// grows. A checkpoint that is wrong in another way stays, and is an error.
func (l *Log) dropUncosigned() error {
	_, err := l.reader.Checkpoint(context.Background())
	var r *tlog.Refusal
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.As(err, &r) && r.Reason == tlog.ReasonQuorum:
		l.log.Warn("the published checkpoint lacks the quorum of witnesses; asking for another one", "error", err)
		if err := os.Remove(filepath.Join(l.tree(), translog.CheckpointPath)); err != nil {
			return fmt.Errorf("log: %w", err)
		}
		return durable.SyncDir(l.tree())
	}
	return fmt.Errorf("log %s: its own checkpoint: %w", l.dir, err)
}

// sweep removes blobs that a killed process has not finished.
func (l *Log) sweep() error {
	left, err := filepath.Glob(filepath.Join(l.dir, blobTemporary))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

const blobTemporary = ".blob.*"

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// check reads all leaves, and compares the tree that they make with the published
// checkpoint and with the tiles on which the next leaves are put.
func (l *Log) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := l.reader.Checkpoint(l.ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var leaves frontier
	if err := l.scan(func(h tlog.Hash) error {
		leaves.add(h)
		if !c.IsZero() && leaves.size == c.Size() && leaves.root() != c.Root() {
			return fmt.Errorf("expected the root %v at size %d, which the log has signed, and its entries make %v: restore the directory from a copy that is whole", c.Root(), c.Size(), leaves.root())
		}
		return nil
	}); err != nil {
		return err
	}
	if leaves.size < c.Size() {
		return fmt.Errorf("expected at least %d entries, which the log has signed, got %d: restore the directory from a copy that is not older", c.Size(), leaves.size)
	}
	if !c.IsZero() {
		l.published.set(c)
	}
	if leaves.size == 0 {
		return nil
	}
	tiles := merkle.TileHashReader(merkle.Tree{N: leaves.size, Hash: leaves.root()}, l.reader.UnverifiedTiles(l.ctx))
	if _, err := tiles.ReadHashes([]int64{0}); err != nil {
		return fmt.Errorf("its tiles do not belong to its %d entries: %w", leaves.size, err)
	}
	return nil
}

// scan adds the leaves of the tree that index does not have and shows each to
// also. Called with mu held.
func (l *Log) scan(also func(tlog.Hash) error) error {
	integrated, err := l.state.IntegratedSize(l.ctx)
	if err != nil {
		return err
	}
	for size := int64(integrated); l.size < size; {
		first := l.size - l.size%bundleWidth
		width := min(size-first, bundleWidth)
		data, err := l.state.ReadEntryBundle(l.ctx, uint64(first/bundleWidth), uint8(width%bundleWidth))
		if err != nil {
			return err
		}
		records, err := translog.SplitBundle(data, int(width))
		if err != nil {
			return fmt.Errorf("entries %d to %d: %w", first, first+width-1, err)
		}
		for _, r := range records[l.size-first:] {
			leaf, err := tlog.ParseLeaf(r)
			if err == nil {
				err = l.learnHead(leaf)
			}
			if err != nil {
				return fmt.Errorf("entry %d: %w", l.size, err)
			}
			h := merkle.RecordHash(r)
			if _, ok := l.index[h]; !ok {
				l.index[h] = l.size
			}
			l.size++
			if err := also(h); err != nil {
				return err
			}
		}
	}
	return nil
}

const bundleWidth = 256

// Add takes an envelope and returns the text of the proof that it is in the log,
// when a checkpoint that has it is published. The same leaf is added once, however
// often and by however many it is asked for. The error is a *Refusal if the log
// does not take it, and a *PendingError if ctx or the log ended before it was
// published.
func (l *Log) Add(ctx context.Context, envelope []byte) ([]byte, error) {
	leaf, err := l.admission.admit(envelope, time.Now())
	if err != nil {
		return nil, err
	}
	index, err := l.append(ctx, leaf, envelope)
	if err != nil {
		return nil, err
	}
	c, err := l.await(ctx, index)
	if err != nil {
		return nil, err
	}
	p, err := l.reader.Prove(ctx, c, index)
	if err != nil {
		return nil, err
	}
	proof, err := p.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := tlog.Verify(l.policy, proof, leaf); err != nil {
		return nil, fmt.Errorf("the log's own proof: %w", err)
	}
	return proof, nil
}

// append returns the index of a leaf in the tree, and puts it there if it is not.
func (l *Log) append(ctx context.Context, leaf tlog.Leaf, envelope []byte) (int64, error) {
	h := leaf.Hash()
	l.mu.Lock()
	l.catchUp()
	if err := l.nextHead(leaf, envelope); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	if i, ok := l.index[h]; ok {
		l.mu.Unlock()
		return i, nil
	}
	a, ok := l.pending[h]
	switch {
	case ok:
	case l.stopping:
		l.mu.Unlock()
		return 0, pendingf(-1, "the log is ending; ask again")
	case l.behind:
		l.mu.Unlock()
		return 0, pendingf(-1, "the log cannot read its tree; its operator's log says why")
	case len(l.pending) >= maxPending:
		l.mu.Unlock()
		return 0, pendingf(-1, "the log is busy; ask again")
	default:
		a = &addition{done: make(chan struct{})}
		l.pending[h] = a
		// Not of the request, which may be given up halfway.
		go l.write(a, leaf, envelope)
	}
	l.mu.Unlock()
	select {
	case <-a.done:
		return a.index, a.err
	case <-ctx.Done():
		return 0, pendingf(-1, "the entry is still being written; ask again")
	}
}

// write puts the blob on stable storage and then the leaf into the tree.
func (l *Log) write(a *addition, leaf tlog.Leaf, envelope []byte) {
	var i tessera.Index
	err := l.writeBlob(leaf, envelope)
	if err == nil {
		i, err = l.appender.Add(l.ctx, tessera.NewEntry(leaf.Encode()))()
	}
	h := leaf.Hash()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, h)
	if err == nil {
		a.index = int64(i.Index)
		l.index[h] = a.index
	} else {
		// It may be in the tree all the same.
		l.log.Error("an entry could not be written", "payload", leaf.Payload(), "error", err)
		l.behind = true
		l.catchUp()
		if known, ok := l.index[h]; ok {
			a.index, err = known, nil
		}
	}
	a.err = err
	close(a.done)
}

// catchUp reads what index may lack. What is not known to be in the tree must not
// be added again. Called with mu held.
func (l *Log) catchUp() {
	if !l.behind {
		return
	}
	if err := l.scan(func(tlog.Hash) error { return nil }); err != nil {
		l.log.Error("the tree cannot be read", "error", err)
		return
	}
	l.behind = false
}

// writeBlob keeps the envelope of a leaf that is not in the tree. One that was left
// by an addition that did not end is replaced.
func (l *Log) writeBlob(leaf tlog.Leaf, envelope []byte) error {
	path := filepath.Join(l.tree(), filepath.FromSlash(translog.BlobPath(leaf.Payload())))
	dir := filepath.Dir(path)
	if !exists(dir) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := errors.Join(durable.SyncDir(filepath.Dir(dir)), durable.SyncDir(l.tree())); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(l.dir, blobTemporary)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	_, err = f.Write(envelope)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

// await returns a published checkpoint that has the leaf at index.
func (l *Log) await(ctx context.Context, index int64) (tlog.Checkpoint, error) {
	for {
		c, changed := l.published.get()
		if c.Size() > index {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			detail := "no checkpoint with it is published yet"
			if why := l.witnesses.report(); why != "" {
				detail = "no checkpoint with it has the quorum of witnesses yet (" + why + ")"
			}
			return tlog.Checkpoint{}, pendingf(index, "the entry has index %d, and %s; ask again", index, detail)
		case <-l.ctx.Done():
			return tlog.Checkpoint{}, pendingf(index, "the entry has index %d, and the log is ending; ask again", index)
		}
	}
}

// publication is the newest checkpoint that was published and checked.
type publication struct {
	mu      sync.Mutex // guards what follows
	newest  tlog.Checkpoint
	changed chan struct{} // closed when newest is replaced
}

func (p *publication) get() (tlog.Checkpoint, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newest, p.changed
}

func (p *publication) set(c tlog.Checkpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.newest = c
	close(p.changed)
	p.changed = make(chan struct{})
}

// poll looks at what the driver publishes. The library's own awaiter lets all that
// wait fail if it cannot read the checkpoint once.
func (l *Log) poll() {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	var last string
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-look.C:
			l.admission.current() // so that a broken list is told of before somebody needs it
			continue
		case <-tick.C:
		}
		text, err := os.ReadFile(filepath.Join(l.tree(), translog.CheckpointPath))
		if err != nil || string(text) == last {
			continue
		}
		last = string(text)
		c, err := l.reader.Checkpoint(l.ctx)
		if err != nil {
			l.log.Error("the published checkpoint is refused by the log's own policy", "error", err)
			continue
		}
		l.published.set(c)
		l.log.Info("checkpoint", "size", c.Size(), "cosignatures", len(c.Cosignatures()))
	}
}

// Size returns the size of the newest checkpoint that was published.
func (l *Log) Size() int64 {
	c, _ := l.published.get()
	return c.Size()
}

// Policy returns the policy by which the log's proofs are believed.
func (l *Log) Policy() tlog.Policy { return l.policy }

// Close ends additions, waits a bounded time for those that are being written and
// for a last checkpoint, and lets go of the directory. What was acknowledged does
// not depend on it.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	l.stopping = true
	var left []*addition
	for _, a := range l.pending {
		left = append(left, a)
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	for _, a := range left {
		select {
		case <-a.done:
		case <-ctx.Done():
		}
	}
	if err := l.shutdown(ctx); err != nil {
		l.log.Warn("the last entries are not published; the next process publishes them", "error", err)
	}
	l.cancel()
	l.polls.Wait()
	return l.lock.Release()
}
