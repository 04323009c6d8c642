package kept

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Read calls each with every record of the journal in dir that can be read, in
// order, and returns what cannot be. One record and one line are in memory at a
// time. A directory that does not exist holds nothing.
//
// It takes no lock: a line that is just being written, at the very end, is not
// damage and not read. An error of each, and one of the file system, ends it.
func Read(dir string, each func(Record) error) ([]Damage, error) {
	files, err := list(dir)
	if err != nil {
		return nil, fmt.Errorf("kept records: %w", err)
	}
	var damage []Damage
	next := uint64(1)
	for i, path := range files {
		r := reader{path: path, each: each, next: next, last: i == len(files)-1}
		if err := r.read(); err != nil {
			return damage, fmt.Errorf("kept records: %w", err)
		}
		damage, next = append(damage, r.damage...), r.next
	}
	return damage, nil
}

// ReadWaiting is Read of the records that no store has taken yet.
func ReadWaiting(dir string, each func(Record) error) ([]Damage, error) {
	r := reader{path: filepath.Join(dir, waitingName), each: each, next: 1, last: true}
	err := r.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return r.damage, fmt.Errorf("records that wait for a store: %w", err)
	}
	return r.damage, nil
}

// list returns the files of the journal in order.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if _, ok := firstOf(e.Name()); ok {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(files)
	return files, nil
}

func open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is %s, not a regular file", path, info.Mode().Type())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// reader goes through one file.
type reader struct {
	path string
	each func(Record) error
	last bool // no file follows: what is behind the last line end may be in the making

	next   uint64 // the number that comes next; afterwards, that of the file after this one
	damage []Damage
	head   header
	headed bool // head could be read
}

func (r *reader) tell(offset int64, format string, args ...any) {
	r.damage = append(r.damage, Damage{filepath.Base(r.path), offset, fmt.Sprintf(format, args...)})
}

func (r *reader) read() error {
	f, err := open(r.path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if first, ok := firstOf(r.path); ok && first > r.next {
		r.tell(0, "records %d to %d are missing before it", r.next, first-1)
		r.next = first
	} else if ok {
		r.next = first // a writer that did not know whether its last line arrived wrote it again
	}
	in := bufio.NewReaderSize(f, maxLine)
	for offset := int64(0); ; {
		text, size, err := nextLine(in)
		switch {
		case errors.Is(err, io.EOF):
			if size > 0 && !r.last {
				r.tell(offset, "%d bytes without a line end", size)
			}
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", r.path, err)
		case offset == 0:
			r.readHead(text)
		default:
			if err := r.readLine(text, offset); err != nil {
				return err
			}
		}
		offset += size
	}
}

func (r *reader) readHead(text []byte) {
	h, err := parseHeader(text)
	switch first, named := firstOf(r.path); {
	case err != nil:
		r.tell(0, "%v", err)
	case named && h.First != first:
		r.tell(0, "the first line says that it begins with record %d", h.First)
	default:
		r.head, r.headed = h, true
	}
}

func (r *reader) readLine(text []byte, offset int64) error {
	rec, err := parseRecord(text)
	if err != nil {
		r.tell(offset, "%v", err)
		return nil
	}
	switch {
	case rec.N > r.next+1:
		r.tell(offset, "records %d to %d are missing before it", r.next, rec.N-1)
	case rec.N > r.next:
		r.tell(offset, "record %d is missing before it", r.next)
	}
	r.next = max(r.next, rec.N+1)
	if err := r.each(rec); err != nil {
		return fmt.Errorf("%s, record %d: %w", r.path, rec.N, err)
	}
	return nil
}

// nextLine returns a line with its end, nil for one that is too long for a record,
// and how many bytes it passed. With io.EOF it passed what has no line end.
func nextLine(in *bufio.Reader) (text []byte, size int64, err error) {
	text, err = in.ReadSlice('\n')
	size = int64(len(text))
	for errors.Is(err, bufio.ErrBufferFull) {
		var more []byte
		more, err = in.ReadSlice('\n')
		text, size = nil, size+int64(len(more))
	}
	return text, size, err
}
