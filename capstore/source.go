package capstore

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/openclaw/clawfs/hashpipe"
	"golang.org/x/sys/unix"
)

// source holds the texts of the records that an index names by number. What it
// returns is not verified.
type source interface {
	// text returns a record as it was stored, the id that it was stored under, and
	// a name of the place for messages.
	text(number uint32) (text []byte, id hashpipe.Digest, place string, err error)
	// fact is what was said of it when it came; for a capability id, signer, claim and
	// attestation alone.
	fact(number uint32) (fact, error)
}

// spool is the source of a view that has no store: in memory, or, where a million
// records would not fit, in a private file without a name, which goes with the
// process. Each record stands there as the length of its fact, the length of its
// text (4 bytes each), the fact without its hash, the text. What the file does not
// take, because the disk is full, is kept in memory: a mount process that starts
// then knows what its predecessor knew.
type spool struct {
	file *os.File // nil: in memory

	mu     sync.RWMutex // guards what follows
	memory [][]byte
	places [][]int64          // chunks of numberChunk: by number, the offset in file
	beside map[uint32]bytesAt // what is not in file
	last   uint32
	end    int64
}

// newSpool makes a spool in memory, or, if dir is not "", in a file there.
func newSpool(dir string) (*spool, error) {
	s := &spool{memory: [][]byte{nil}}
	if dir == "" {
		return s, nil
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		s.file = os.NewFile(uintptr(fd), dir+"/records")
		return s, nil
	}
	// A file system without O_TMPFILE: one with a name, for a moment.
	if s.file, err = os.CreateTemp(dir, ".records-*"); err != nil {
		return nil, fmt.Errorf("making a file for records: %w", err)
	}
	if err := os.Remove(s.file.Name()); err != nil {
		s.file.Close()
		return nil, fmt.Errorf("making a file for records: %w", err)
	}
	return s, nil
}

const spoolHead = 8

// maxBeside bounds the records that a full disk leaves in memory, some KB each.
const maxBeside = 20000

// add appends a record and returns its number.
func (s *spool) add(f fact, text []byte) (uint32, error) {
	body := f.body()
	b := make([]byte, 0, spoolHead+len(body)+len(text))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(append(b, body...), text...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == maxNumber {
		return 0, fmt.Errorf("%d records are the most that a view holds", s.last)
	}
	number := s.last + 1
	if s.file == nil {
		s.memory = append(s.memory, b)
		s.last = number
		return number, nil
	}
	if _, err := s.file.WriteAt(b, s.end); err != nil {
		if len(s.beside) >= maxBeside {
			return 0, fmt.Errorf("keeping a record: %w", err)
		}
		if s.beside == nil {
			s.beside = make(map[uint32]bytesAt)
		}
		s.beside[number], s.last = b, number
		return number, nil
	}
	for int(number) >= len(s.places)*numberChunk {
		s.places = append(s.places, make([]int64, numberChunk))
	}
	s.places[number/numberChunk][number%numberChunk] = s.end
	s.end += int64(len(b))
	s.last = number
	return number, nil
}

// place is the bytes of a record.
func (s *spool) place(number uint32) (io.ReaderAt, int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case number == 0 || number > s.last:
		return nil, 0, fmt.Errorf("%w: record %d of %d", ErrNotFound, number, s.last)
	case s.file == nil:
		return bytesAt(s.memory[number]), 0, nil
	case s.beside[number] != nil:
		return s.beside[number], 0, nil
	}
	return s.file, s.places[number/numberChunk][number%numberChunk], nil
}

// bytesAt is an io.ReaderAt of a text in memory.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, b[min(off, int64(len(b))):])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (s *spool) text(number uint32) ([]byte, hashpipe.Digest, string, error) {
	where := fmt.Sprintf("record %d", number)
	r, at, err := s.place(number)
	if err != nil {
		return nil, hashpipe.Digest{}, where, err
	}
	var head [spoolHead]byte
	if _, err := r.ReadAt(head[:], at); err != nil {
		return nil, hashpipe.Digest{}, where, err
	}
	body, size := int(binary.BigEndian.Uint32(head[:])), int(binary.BigEndian.Uint32(head[4:]))
	if size > MaxRecord || body > MaxRecord {
		return nil, hashpipe.Digest{}, where, fmt.Errorf("%w: a record of %d bytes", ErrDamaged, size)
	}
	b := make([]byte, body+size)
	if _, err := r.ReadAt(b, at+spoolHead); err != nil {
		return nil, hashpipe.Digest{}, where, err
	}
	return b[body:], idOf(b), where, nil
}

// holds reports whether a record has a text.
func (s *spool) holds(number uint32) bool {
	r, at, err := s.place(number)
	if err != nil {
		return false
	}
	var head [spoolHead]byte
	_, err = r.ReadAt(head[:], at)
	return err == nil && binary.BigEndian.Uint32(head[4:]) > 0
}

// fact reads no more than it has to: that of a capability can be long.
func (s *spool) fact(number uint32) (fact, error) {
	r, at, err := s.place(number)
	if err != nil {
		return fact{}, err
	}
	var b [spoolHead + revocationBody]byte
	n, err := r.ReadAt(b[:], at)
	if err != nil && n < spoolHead+1+8+3*32 {
		return fact{}, err
	}
	size := int(binary.BigEndian.Uint32(b[:]))
	if body := b[spoolHead:n]; size <= len(body) {
		return readBody(body[:size])
	}
	c := cutter{b: b[spoolHead+1+8+32+32:]}
	e := entry{signer: c.digest()}
	e.claim, e.sba = tag(c.uint64()), tag(c.uint64())
	if c.short {
		return fact{}, fmt.Errorf("%w: record %d", ErrDamaged, number)
	}
	return fact{kind: RecordCapability, id: idOf(b[spoolHead:]), entry: e}, nil
}

// revocationBody is the length of the body of a revocation's fact.
const revocationBody = 1 + 8 + 3*32 + 1 + 32

// idOf is the id in a fact.
func idOf(body []byte) hashpipe.Digest {
	c := cutter{b: body}
	c.take(1 + 8)
	return c.digest()
}
