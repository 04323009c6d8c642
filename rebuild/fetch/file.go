package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// File leases a read-only file whose SHA-256 is want, and fetches it first if
// it is not here. A place that gives more than most bytes is wrong.
//
// seen, if not nil, is called with numbers of bytes that arrived, or that were
// measured of a file that was here. Bytes that are fetched a second time count
// twice.
//
// An error is a *Mismatch if every place gave something else, an *Unavailable
// if that is not known of every place, or an error of this machine: then no
// place is to blame, and errors.Is tells ENOSPC.
func (c *Cache) File(ctx context.Context, want hashpipe.Digest, most int64, places []Place, seen func(bytes int64)) (*Lease, error) {
	if want.IsZero() {
		return nil, errors.New("fetching a file: no digest says which")
	}
	what := "file " + want.String()
	return c.lease(ctx, recipe{
		name: "file-" + want.String(),
		check: func(ctx context.Context, data string) error {
			return checkFile(ctx, data, want, most, seen)
		},
		fill: func(ctx context.Context, name, work string) error {
			return c.each(ctx, what, name, work, places, func(ctx context.Context, p Place, u *url.URL) error {
				return c.fileFrom(ctx, name, filepath.Join(work, "data"), p, u, want, most, seen)
			})
		},
	})
}

// fileFrom makes the file data from one place.
func (c *Cache) fileFrom(ctx context.Context, name, data string, p Place, u *url.URL, want hashpipe.Digest, most int64, seen func(int64)) error {
	accept := func() error {
		if err := Freeze(data); err != nil {
			return &local{err}
		}
		return checkFile(ctx, data, want, most, nil)
	}
	if u.Scheme != "" {
		return c.newDownload(name, p, u, most, seen).use(ctx, func(path string) error {
			if err := os.Rename(path, data); err != nil {
				return &local{err}
			}
			return accept()
		})
	}
	f, err := c.openLocal(p, u.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := copyTo(ctx, f, data, most, seen); err != nil {
		return err
	}
	return accept()
}

// use downloads, and has accept look at what came. Bytes of several answers that
// turn out wrong together are no lie of the server: it may have changed the file
// meanwhile, or a crash of this machine may have lost some. So they are thrown
// away once, and all is asked for again. A download that this machine could not
// take in stays for the next try.
func (d *download) use(ctx context.Context, accept func(path string) error) error {
	for {
		if err := d.run(ctx); err != nil {
			return err
		}
		pieces := d.resumed
		err := accept(d.path)
		if !errors.As(err, new(*wrong)) {
			return err
		}
		if e := d.again(); e != nil {
			return e
		}
		if !pieces {
			return err
		}
		d.c.Note(Note{Entry: d.name, Event: Restarted, Place: d.place, Err: err})
	}
}

// checkFile measures a frozen file.
func checkFile(ctx context.Context, path string, want hashpipe.Digest, most int64, seen func(int64)) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &wrong{"a file", "a " + KindOf(info.Mode())}
	}
	if err := Frozen(path); err != nil {
		return err
	}
	sum, n, err := hashpipe.SumReader(ctx, f, seen)
	if err != nil {
		return err
	}
	if !sum.Is(want) {
		return &wrong{"SHA-256 " + want.String(), fmt.Sprintf("%s of %d bytes", sum, n)}
	}
	if n > most {
		return &claimError{fmt.Errorf("file %s has %d bytes, expected at most %d", want, n, most)}
	}
	return nil
}

// copyTo copies a regular file to a new one in steps, so that it can be
// stopped, and little more than most bytes of it. os.File uses copy_file_range,
// which shares blocks where the file system can.
func copyTo(ctx context.Context, in *os.File, path string, most int64, seen func(int64)) error {
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, &wrong{"a file", "a " + KindOf(info.Mode())})
	} else if info.Size() > most {
		return &wrong{fmt.Sprintf("at most %d bytes", most), fmt.Sprintf("%d", info.Size())}
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &local{err}
	}
	_, err = copySteps(ctx, in, out, most, seen)
	if e := out.Close(); err == nil && e != nil {
		err = &local{e}
	}
	return err
}

func copySteps(ctx context.Context, in, out *os.File, most int64, seen func(int64)) (sum int64, err error) {
	for err == nil && ctx.Err() == nil && sum <= most {
		var n int64
		n, err = io.CopyN(out, in, 8<<20)
		sum += n
		if seen != nil && n > 0 {
			seen(n)
		}
	}
	switch {
	case ctx.Err() != nil:
		return sum, context.Cause(ctx)
	case sum > most:
		return sum, &wrong{fmt.Sprintf("at most %d bytes", most), "more"}
	case errors.Is(err, io.EOF):
		return sum, nil
	}
	return sum, err
}

// KindOf names the type of a file for a person.
func KindOf(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeNamedPipe:
		return "named pipe"
	case fs.ModeSocket:
		return "socket"
	}
	return "device"
}
