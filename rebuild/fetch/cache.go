// Package fetch keeps what rebuilds read: downloads, data sets and whatever
// else can be named by its content, in one directory that all jobs of a machine
// share.
//
//	DIR/entries/NAME/data   the file or directory itself, read-only
//	DIR/entries/NAME/size   its allocated bytes, in decimal
//	DIR/locks/NAME          locked with flock; its mtime is the last use
//	DIR/partial/NAME/       downloads that were cut off, to be continued
//	DIR/tmp/NAME+RANDOM/    an entry that is being made or removed
//	DIR/lock                locked while entries are evicted
//
// NAME is file-, tree- or make- and 64 hex digits, with .2, .3, … where an
// entry is broken while somebody still uses it.
//
// # What holds
//
// A name is a claim. An entry is measured each time it is leased, and one that
// is not what its name says is removed and fetched again: a broken entry is a
// miss, never a wrong hit. Nothing is synced for the same reason.
//
// An entry comes into being by one rename and goes by one rename, so a process
// that is killed leaves the whole of it or none of it. What it leaves in tmp is
// removed by the next Open or the next maker of the same entry; who holds the
// lock of a name owns its directories in tmp and partial. Locks go with the
// process: shared for a lease, exclusive to make, mend or evict.
//
// # Where things come from
//
// Each fetch has a list of places, which are tried in order; see Place. Bytes
// that are not the ones asked for are never kept. The place that gave them is
// named in a Note, and the next one is asked.
package fetch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cache is an open cache directory, safe for concurrent use. Any number of
// processes may use one directory, each with its own budget.
type Cache struct {
	dir    string
	budget int64
	opts   Options

	open, guarded *http.Transport
	pause         time.Duration // before the first retry; doubles
}

// Open opens the cache in dir, or creates it and its parents, and removes what
// killed processes left. Entries beyond budget bytes on the disk are evicted,
// the least recently used first, whenever one is added and when a lease ends.
//
// The directory belongs to this user and has mode 0700, and nobody else may
// rename any directory above it; all else is refused.
func Open(dir string, budget int64, opts Options) (*Cache, error) {
	c, err := open(dir, budget, opts)
	if err != nil {
		return nil, fmt.Errorf("opening input cache: %w", err)
	}
	return c, nil
}

func open(dir string, budget int64, opts Options) (*Cache, error) {
	if budget <= 0 {
		return nil, fmt.Errorf("expected a budget of at least 1 byte, got %d", budget)
	}
	opts, err := opts.checked()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := private(dir); err != nil {
		return nil, err
	}
	for _, sub := range []string{"entries", "locks", "partial", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	c := &Cache{dir: dir, budget: budget, opts: opts, pause: 500 * time.Millisecond}
	c.open, c.guarded = transport(opts, false), transport(opts, true)
	if err := errors.Join(c.sweep(""), c.sweepLocks()); err != nil {
		return nil, err
	}
	return c, nil
}

// Close closes idle connections. Leases stay.
func (c *Cache) Close() error {
	c.open.CloseIdleConnections()
	c.guarded.CloseIdleConnections()
	return nil
}

// private refuses a directory that somebody else could write or exchange.
func private(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	uid := uint32(os.Geteuid())
	st := info.Sys().(*syscallStat)
	if !info.IsDir() || st.Uid != uid || info.Mode().Perm() != 0o700 {
		return fmt.Errorf("%s: expected a directory of user %d with mode 0700, got %v of user %d; "+
			"who can write here chooses the inputs of builds. Next: chown %d %s && chmod 0700 %s", dir, uid, info.Mode(), st.Uid, uid, dir, dir)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for above := filepath.Dir(real); ; above = filepath.Dir(above) {
		info, err := os.Lstat(above)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscallStat)
		shared := info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
		if st.Uid != 0 && st.Uid != uid || shared {
			return fmt.Errorf("%s lies below %s, which others can change (%v of user %d); choose another directory", dir, above, info.Mode(), st.Uid)
		}
		if above == "/" {
			return nil
		}
	}
}

// Usage is what a cache holds at one moment.
type Usage struct {
	Entries int   // whole entries
	Bytes   int64 // allocated for entries and partial downloads
	Leased  int64 // of these, in use or being made
	Partial int64 // of these, partial downloads
	Budget  int64
}

// Usage looks at the directory. What is being made at the moment counts only
// with its partial downloads.
func (c *Cache) Usage() (Usage, error) {
	all, err := c.list()
	if err != nil {
		return Usage{}, fmt.Errorf("looking at the input cache: %w", err)
	}
	u := Usage{Budget: c.budget}
	for _, h := range all {
		if h.whole {
			u.Entries++
		}
		u.Bytes += h.bytes
		u.Partial += h.partial
		k, err := c.tryLock(h.name, unix.LOCK_EX)
		if err != nil {
			return Usage{}, fmt.Errorf("looking at the input cache: %w", err)
		}
		if k == nil {
			u.Leased += h.bytes
			continue
		}
		k.close()
	}
	return u, nil
}

// Evict removes entries and partial downloads that nobody uses, the least
// recently used first, until the rest fits into the budget.
func (c *Cache) Evict(ctx context.Context) error {
	if _, err := c.evict(ctx, c.budget); err != nil {
		return fmt.Errorf("evicting from the input cache: %w", err)
	}
	return nil
}

// evict returns the number of bytes that it set free.
func (c *Cache) evict(ctx context.Context, budget int64) (freed int64, err error) {
	all, err := c.list()
	if err != nil || sumBytes(all) <= budget {
		return 0, err
	}
	g, err := c.wait(ctx, filepath.Join(c.dir, "lock"))
	if err != nil {
		return 0, err
	}
	defer g.close()
	if all, err = c.list(); err != nil {
		return 0, err
	}
	total := sumBytes(all)
	slices.SortStableFunc(all, func(a, b held) int { return a.used.Compare(b.used) })
	for _, h := range all {
		if total <= budget {
			break
		}
		if err := context.Cause(ctx); err != nil {
			return freed, err
		}
		gone, err := c.expel(h.name)
		if err != nil {
			return freed, err
		}
		if gone {
			total, freed = total-h.bytes, freed+h.bytes
			c.Note(Note{Entry: h.name, Event: Evicted, Bytes: h.bytes})
		}
	}
	return freed, nil
}

// expel removes all of one name unless somebody uses it.
func (c *Cache) expel(name string) (bool, error) {
	k, err := c.tryLock(name, unix.LOCK_EX)
	if k == nil || err != nil {
		return false, err
	}
	defer k.close()
	if err := errors.Join(c.discard(name), remove(c.partial(name))); err != nil {
		return false, err
	}
	return true, k.drop()
}

// discard removes an entry. The caller holds its lock.
func (c *Cache) discard(name string) error {
	work := c.newTmp(name)
	if err := os.Rename(c.entry(name), work); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return remove(work)
}

// sweep removes what dead processes left in tmp, of one name or, if it is
// empty, of all. The caller holds the lock of that one name.
func (c *Cache) sweep(one string) error {
	left, err := os.ReadDir(filepath.Join(c.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range left {
		name, _, ok := strings.Cut(e.Name(), "+")
		if !ok || one != "" && name != one {
			continue
		}
		if err := c.sweepOne(name, e.Name(), one != ""); err != nil {
			return fmt.Errorf("removing what a killed process left: %w", err)
		}
	}
	if one != "" {
		return nil
	}
	locks, err := os.ReadDir(filepath.Join(c.dir, "locks"))
	if err != nil {
		return err
	}
	for _, e := range locks {
		if err := c.sweepLock(e.Name()); err != nil {
			return fmt.Errorf("removing what a killed process left: %w", err)
		}
	}
	return nil
}

// sweepLock removes a lock file that nobody holds and that is of nothing.
func (c *Cache) sweepLock(name string) error {
	if _, err := os.Lstat(c.entry(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	k, err := c.tryLock(name, unix.LOCK_EX)
	if k == nil || err != nil {
		return err
	}
	defer k.close()
	return c.tidy(k, name)
}

func (c *Cache) sweepOne(name, tmp string, locked bool) error {
	if !locked {
		k, err := c.tryLock(name, unix.LOCK_EX)
		if k == nil || err != nil {
			return err
		}
		defer k.close()
		defer c.tidy(k, name)
	}
	return remove(filepath.Join(c.dir, "tmp", tmp))
}

// sweepLocks removes the lock files that have nothing to lock.
func (c *Cache) sweepLocks() error {
	all, err := os.ReadDir(filepath.Join(c.dir, "locks"))
	if err != nil {
		return err
	}
	for _, e := range all {
		if id, err := c.ident(e.Name()); err != nil || id != (ident{}) {
			continue
		}
		k, err := c.tryLock(e.Name(), unix.LOCK_EX)
		if err != nil {
			return err
		}
		if k != nil {
			c.tidy(k, e.Name())
			k.close()
		}
	}
	return nil
}

// tidy removes the lock file, which the caller holds, of a name that has
// nothing.
func (c *Cache) tidy(k *lock, name string) error {
	os.Remove(c.partial(name)) // if it is empty
	for _, p := range []string{c.entry(name), c.partial(name)} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return k.drop()
}

// held is one name and what it takes.
type held struct {
	name    string
	used    time.Time
	bytes   int64 // with partial
	partial int64
	whole   bool
}

func sumBytes(all []held) (n int64) {
	for _, h := range all {
		n += h.bytes
	}
	return n
}

// list finds the names that have an entry or partial downloads.
func (c *Cache) list() ([]held, error) {
	found := map[string]*held{}
	for _, sub := range []string{"entries", "partial"} {
		names, err := os.ReadDir(filepath.Join(c.dir, sub))
		if err != nil {
			return nil, err
		}
		for _, e := range names {
			h := found[e.Name()]
			if h == nil {
				h = &held{name: e.Name()}
				found[e.Name()] = h
			}
			n, err := c.sizeOf(sub, e.Name())
			if err != nil {
				return nil, err
			}
			h.bytes += n
			if sub == "entries" {
				h.whole = true
			} else {
				h.partial = n
			}
		}
	}
	all := make([]held, 0, len(found))
	for _, h := range found {
		if info, err := os.Lstat(c.lockFile(h.name)); err == nil {
			h.used = info.ModTime()
		}
		all = append(all, *h)
	}
	return all, nil
}

// sizeOf believes the size file, for walking each entry at each insertion
// would cost more than a wrong size does: the budget is missed by as much.
func (c *Cache) sizeOf(sub, name string) (int64, error) {
	if sub == "entries" {
		b, err := os.ReadFile(filepath.Join(c.entry(name), "size"))
		if n, err2 := strconv.ParseInt(string(b), 10, 64); err == nil && err2 == nil && n >= 0 {
			return n, nil
		}
	}
	return allocated(filepath.Join(c.dir, sub, name))
}

func (c *Cache) entry(name string) string   { return filepath.Join(c.dir, "entries", name) }
func (c *Cache) partial(name string) string { return filepath.Join(c.dir, "partial", name) }
func (c *Cache) newTmp(name string) string {
	return filepath.Join(c.dir, "tmp", name+"+"+rand.Text())
}

// Note passes on what a caller of Make learnt of a place. The nil cache has
// nobody to tell.
func (c *Cache) Note(n Note) {
	if c != nil && c.opts.Observer != nil {
		c.opts.Observer(n)
	}
}
