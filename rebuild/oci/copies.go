package oci

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// Copy is a file that has the same bytes as something measured elsewhere.
type Copy struct {
	// Path is relative to the directory that was searched.
	Path string
	Sum  hashpipe.Sum
}

// Copies finds the regular files below dir, or dir itself if it is one, whose
// bytes equal one of wanted, in lexical order. Only files of a wanted size are read; links are not
// followed. It serves images, sources and datasets alike: names may hold any
// byte, and directories may be nested deeper than a path can say.
func Copies(ctx context.Context, dir string, wanted []hashpipe.Measurement) ([]Copy, error) {
	s := search{ctx: ctx, sizes: map[int64]bool{}, sums: map[hashpipe.Sum]bool{}}
	for _, m := range wanted {
		if m.Sum().IsZero() {
			return nil, fmt.Errorf("searching %s for copies: something wanted was never measured", dir)
		}
		s.sizes[m.Size()], s.sums[m.Sum()] = true, true
	}
	top, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	find := s.dir
	if info, err := top.Stat(); err == nil && info.Mode().IsRegular() {
		find = s.file
	}
	if err := find(top); err != nil {
		return nil, fmt.Errorf("searching %s for copies: %w", dir, err)
	}
	return s.found, nil
}

// search is one call of Copies.
type search struct {
	ctx   context.Context
	sizes map[int64]bool
	sums  map[hashpipe.Sum]bool
	at    []string // components of the directory that is searched
	found []Copy
}

func (s *search) dir(dir *os.File) error {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if !e.IsDir() && !e.Type().IsRegular() {
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: e.Name(), Err: err}
		}
		f := os.NewFile(uintptr(fd), e.Name())
		s.at = append(s.at, e.Name())
		if e.IsDir() {
			err = s.dir(f)
		} else {
			err = s.file(f)
		}
		s.at = s.at[:len(s.at)-1]
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *search) file(f *os.File) error {
	st, err := f.Stat()
	if err != nil || !s.sizes[st.Size()] {
		return err
	}
	sum, _, err := hashpipe.SumReader(s.ctx, io.LimitReader(f, st.Size()+1), nil)
	if err == nil && s.sums[sum] {
		s.found = append(s.found, Copy{Path: strings.Join(s.at, "/"), Sum: sum})
	}
	return err
}
