package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

type syscallStat = syscall.Stat_t

// Lease is the use of one entry, which stays where it is until Close or the end
// of the process. Others may lease the same entry at the same time.
type Lease struct {
	c    *Cache
	path string
	k    *lock
	once sync.Once
}

// Path is the file or directory that was measured. It must not be changed.
func (l *Lease) Path() string { return l.path }

// Close ends the lease. The entry stays for the next one, if it fits into the
// budget. An error is one of eviction; the lease has ended all the same.
func (l *Lease) Close() error {
	var err error
	l.once.Do(func() {
		l.k.touch()
		l.k.close()
		err = l.c.Evict(context.Background())
	})
	return err
}

// Make leases what fill makes in the directory that it is given, and what check
// accepts. It serves things that are named by their content in ways of their
// own: a checked-out commit, the blobs of an image. key is that name, of any
// form; equal keys mean equal content.
//
// fill runs once among all processes that ask for the key; the others wait for
// it. check is called before the entry becomes one, and again at each lease on
// the directory that the lease is of; an entry that it refuses is removed and
// filled again. fill says what modes and times files have; see Freeze. If it
// fails with an error that is ENOSPC or EDQUOT, whatever nobody uses is evicted
// and it is called again in an empty directory; an error of a program that tells
// so in words alone must be made one.
func (c *Cache) Make(ctx context.Context, key string, fill, check func(ctx context.Context, dir string) error) (*Lease, error) {
	return c.lease(ctx, recipe{
		name:  "make-" + hashpipe.SumBytes([]byte(key)).String(),
		check: check,
		fill: func(ctx context.Context, _, work string) error {
			data := filepath.Join(work, "data")
			if err := os.Mkdir(data, 0o700); err != nil {
				return err
			}
			if err := fill(ctx, data); err != nil {
				return err
			}
			return check(ctx, data)
		},
	})
}

// recipe says how one entry is made and checked.
type recipe struct {
	name string
	// fill makes work/data and checks it. It has partial/NAME for itself.
	fill func(ctx context.Context, name, work string) error
	// check says why data is not what the name says. A *claimError and an
	// exhausted machine are no fault of the entry.
	check func(ctx context.Context, data string) error
}

// claimError is an error of what was asked for, which no place can mend.
type claimError struct{ error }

// mendable is how long a broken entry that others use is waited for.
const mendable = time.Second

// lease hands out an entry, and makes it first if need be.
//
// An entry that is broken while others use it cannot be removed under them:
// they get to keep it, and this one and all that come are given another under
// the next name.
func (c *Cache) lease(ctx context.Context, r recipe) (*Lease, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	name, copies, told := r.name, 1, false
	var broken ident
	var since time.Time
	for d := firstLook; ; d = min(2*d, lastLook) {
		l, bad, err := c.hit(ctx, name, broken, r)
		if l != nil || err != nil {
			return l, err
		}
		if bad != broken && bad != (ident{}) {
			broken, since = bad, time.Now()
		}
		l, err = c.miss(ctx, name, broken, r)
		if l != nil || err != nil {
			return l, err
		}
		if broken != (ident{}) && time.Since(since) > mendable {
			copies++
			name, broken = r.name+"."+strconv.Itoa(copies), ident{}
			continue
		}
		if !told {
			c.Note(Note{Entry: name, Event: Waiting})
			told = true
		}
		if err := sleep(ctx, d); err != nil {
			return nil, err
		}
	}
}

// ident tells an entry from one that took its name later.
type ident struct {
	ino  uint64
	time syscall.Timespec
}

func (c *Cache) ident(name string) (ident, error) {
	info, err := os.Lstat(c.entry(name))
	if errors.Is(err, fs.ErrNotExist) {
		return ident{}, nil
	}
	if err != nil {
		return ident{}, err
	}
	st := info.Sys().(*syscallStat)
	return ident{st.Ino, st.Ctim}, nil
}

// hit leases an entry that is there. Nil means that there is none, or that its
// lock could not be had; then bad may say which one turned out to be broken.
func (c *Cache) hit(ctx context.Context, name string, broken ident, r recipe) (l *Lease, bad ident, err error) {
	if id, err := c.ident(name); err != nil || id == (ident{}) || id == broken {
		return nil, ident{}, err
	}
	k, err := c.tryLock(name, unix.LOCK_SH)
	if k == nil || err != nil {
		return nil, ident{}, err
	}
	defer func() {
		if l == nil {
			k.close()
		}
	}()
	id, err := c.ident(name)
	if err != nil || id == (ident{}) {
		return nil, ident{}, err
	}
	data := filepath.Join(c.entry(name), "data")
	if err := r.check(ctx, data); err != nil {
		var claim *claimError
		switch {
		case ctx.Err() != nil:
			return nil, ident{}, context.Cause(ctx)
		case errors.As(err, &claim) || exhausted(err):
			return nil, ident{}, fmt.Errorf("checking input %s: %w", data, err)
		}
		c.Note(Note{Entry: name, Event: Broken, Err: err})
		return nil, id, nil
	}
	if err := k.touch(); err != nil {
		return nil, ident{}, err
	}
	c.Note(Note{Entry: name, Event: Hit})
	return &Lease{c: c, path: data, k: k}, ident{}, nil
}

// miss makes an entry that is not there, or that is the broken one. Nil means
// that others hold its lock, or were faster.
func (c *Cache) miss(ctx context.Context, name string, broken ident, r recipe) (l *Lease, err error) {
	k, err := c.tryLock(name, unix.LOCK_EX)
	if k == nil || err != nil {
		return nil, err
	}
	defer func() {
		if l == nil {
			k.close()
		}
	}()
	if id, err := c.ident(name); err != nil || id != (ident{}) && id != broken {
		return nil, err
	}
	if err := errors.Join(c.discard(name), c.sweep(name)); err != nil {
		return nil, err
	}
	err = c.fill(ctx, name, r)
	if full(err) {
		if freed, e := c.evict(ctx, 0); e == nil && freed > 0 {
			err = c.fill(ctx, name, r)
		}
	}
	if err != nil {
		k.touch() // of the partial downloads
		c.tidy(k, name)
		k.close()
		if _, e := c.evict(context.WithoutCancel(ctx), c.budget); e != nil {
			return nil, errors.Join(err, e)
		}
		return nil, err
	}
	id, err := c.ident(name)
	if err != nil {
		return nil, err
	}
	if err := k.touch(); err != nil {
		return nil, err
	}
	shared, err := k.share()
	if !shared || err != nil {
		return nil, err
	}
	// What was checked in tmp was renamed and is this, unless somebody evicted
	// it between the two locks.
	if now, err := c.ident(name); err != nil || now != id {
		return nil, err
	}
	l = &Lease{c: c, path: filepath.Join(c.entry(name), "data"), k: k}
	if _, err := c.evict(ctx, c.budget); err != nil {
		k.close()
		return nil, err
	}
	return l, nil
}

// fill makes an entry under its lock.
func (c *Cache) fill(ctx context.Context, name string, r recipe) (err error) {
	work := c.newTmp(name)
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	defer func() {
		if e := remove(work); e != nil && err == nil {
			err = e
		}
	}()
	if err := r.fill(ctx, name, work); err != nil {
		return err
	}
	size, err := allocated(filepath.Join(work, "data"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "size"), strconv.AppendInt(nil, size, 10), 0o600); err != nil {
		return err
	}
	if err := os.Rename(work, c.entry(name)); err != nil {
		return err
	}
	return remove(c.partial(name))
}
