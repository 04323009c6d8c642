package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// blobName is what a manifest or a ledger claims of a blob.
type blobName struct {
	what     string // for people: "layer 2 of 5"
	digest   hashpipe.Digest
	size     int64 // -1: nobody said
	manifest bool  // registries keep manifests in another place
}

// maxAttempts bounds how often a broken transfer is taken up again in one call.
// Each must have brought something.
const maxAttempts = 5

// read returns the verified bytes of a small blob of the place.
func (p *pull) read(ctx context.Context, b blobName) ([]byte, error) {
	if b.size > maxDocument {
		return nil, fmt.Errorf("%s: %d bytes, the limit is %d", b.what, b.size, maxDocument)
	}
	body, _, err := p.place.open(ctx, b, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.what, err)
	}
	defer body.Close()
	text, err := readAll(body, maxDocument)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.what, err)
	}
	if got := hashpipe.SumBytes(text); !got.Is(b.digest) {
		return nil, fmt.Errorf("%s: %d bytes that hash to %v, wanted %v: %w", b.what, len(text), got, b.digest, ErrOtherBytes)
	}
	if b.size >= 0 && int64(len(text)) != b.size {
		return nil, fmt.Errorf("%s: has %d bytes, its descriptor says %d", b.what, len(text), b.size)
	}
	return text, ctx.Err()
}

// document brings a small blob into the layout and returns its verified bytes.
func (p *pull) document(ctx context.Context, b blobName) ([]byte, error) {
	if text, err := document(ctx, p.layout, b.digest, b.size); err == nil {
		return text, nil
	}
	text, err := p.read(ctx, b)
	if err != nil {
		return nil, err
	}
	p.seen(len(text))
	return text, writeFile(filepath.Join(p.blobs(), b.digest.String()), text)
}

// blob brings a large blob into the layout.
func (p *pull) blob(ctx context.Context, b blobName) error {
	name := filepath.Join(p.blobs(), b.digest.String())
	if p.have(ctx, b) {
		return nil
	}
	part, err := lockPart(ctx, filepath.Join(p.blobs(), ".part-"+b.digest.String()))
	if err != nil {
		return err
	}
	defer part.Close()  // and with it the lock
	if p.have(ctx, b) { // another Pull was first
		return os.Remove(part.Name())
	}
	for attempt := 1; ; attempt++ {
		before, err := partSize(part, b.size)
		if err != nil {
			return err
		}
		err = p.resume(ctx, b, part, before)
		if err == nil {
			return settle(part, name)
		}
		if resumed := before > 0; errors.Is(err, ErrOtherBytes) {
			// What was there may be another place's lie: this one is asked for
			// all of it before it is blamed.
			if terr := part.Truncate(0); terr != nil {
				return errors.Join(err, terr)
			}
			if !resumed {
				return errors.Join(err, os.Remove(part.Name()))
			}
			continue
		}
		after, serr := partSize(part, b.size)
		if !errors.Is(err, ErrUnreachable) || ctx.Err() != nil || serr != nil || after <= before || attempt == maxAttempts {
			return errors.Join(err, serr)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(attempt) * 100 * time.Millisecond):
		}
	}
}

// have says whether the layout has the blob; one with other bytes counts as
// absent and is replaced.
func (p *pull) have(ctx context.Context, b blobName) bool {
	f, size, err := openBlob(p.layout, b.digest)
	if err != nil {
		return false
	}
	defer f.Close()
	if size != b.size {
		return false
	}
	sum, n, err := hashpipe.SumReader(ctx, io.LimitReader(f, size+1), nil)
	return err == nil && n == size && sum.Is(b.digest)
}

// lockPart opens the file that a blob grows in and waits until no other Pull
// has it.
func lockPart(ctx context.Context, name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// The one before may have given the file its final name meanwhile.
			mine, err1 := f.Stat()
			named, err2 := os.Lstat(name)
			if err1 == nil && err2 == nil && os.SameFile(mine, named) {
				if !mine.Mode().IsRegular() {
					f.Close()
					return nil, fmt.Errorf("%s is not a regular file", name)
				}
				return f, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// partSize returns how many bytes of a blob came before. One that has all or
// more of them never got its name, so it is begun anew.
func partSize(part *os.File, size int64) (int64, error) {
	st, err := part.Stat()
	if err != nil {
		return 0, err
	}
	if st.Size() < size {
		return st.Size(), nil
	}
	return 0, part.Truncate(0)
}

// resume brings what is missing behind the first start bytes of part and
// measures all of it in the same pass.
func (p *pull) resume(ctx context.Context, b blobName, part *os.File, start int64) error {
	body, at, err := p.place.open(ctx, b, start)
	if err != nil {
		return err
	}
	defer body.Close()
	if at != start { // the place begins at 0 whatever it is asked
		if err := part.Truncate(at); err != nil {
			return err
		}
	}
	if _, err := part.Seek(at, io.SeekStart); err != nil {
		return err
	}
	old := io.NewSectionReader(part, 0, at)
	fresh := io.TeeReader(io.LimitReader(&counted{body, p.seen}, b.size-at+1), part)
	sum, n, err := hashpipe.SumReader(ctx, io.MultiReader(old, fresh), nil)
	switch {
	case err != nil:
		return err
	case n > b.size:
		return fmt.Errorf("more than the %d bytes of its descriptor: %w", b.size, ErrOtherBytes)
	case n < b.size:
		return fmt.Errorf("ends after %d of the %d bytes of its descriptor: %w", n, b.size, ErrOtherBytes)
	case !sum.Is(b.digest):
		return fmt.Errorf("%d bytes that hash to %v, wanted %v: %w", n, sum, b.digest, ErrOtherBytes)
	}
	return nil
}

func (p *pull) seen(n int) {
	if p.o.Seen != nil && n > 0 {
		p.o.Seen(int64(n))
	}
}

type counted struct {
	r    io.Reader
	seen func(int)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.seen(n)
	return n, err
}
