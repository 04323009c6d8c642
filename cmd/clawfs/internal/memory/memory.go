// Package memory keeps what a machine has seen and must not forget: the newest
// checkpoint of each log, and numbers that only grow. It lies in the directory
// memory of the state directory, outside the store, so that an emptied or older
// store does not bring back what was outgrown:
//
//	logs    what package tlog remembers of logs
//	newest  "clawfs-memory/v1", then lines "<kind> <decimal>", sorted
//	lock    flock(2): one process changes the others at a time
//
// The newest revision of a signed policy lies in the same directory and is package
// config's. Both texts end in a line "sha256 <hex of what stands before it>". A file that
// is missing or damaged is ErrLost and never an empty memory: Create makes one
// where there was none, and Reset begins anew where a person says so.
package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	logsName   = "logs"
	newestName = "newest"
	lockName   = "lock"

	newestHeader = "clawfs-memory/v1\n"
	// maxNewest bounds the file newest in bytes, maxKinds its lines.
	maxNewest = 256 << 10
	maxKinds  = 1024
	maxValue  = 1<<53 - 1

	// lockPatience is how long somebody else's change is waited for. It is one
	// fsync long.
	lockPatience = 10 * time.Second
	lockPoll     = 10 * time.Millisecond
)

// ErrLost: what was seen before cannot be read, so nothing can be compared with
// it.
var ErrLost = errors.New("what was seen before is lost")

// Dir is the path of a memory's directory, config.State.Memory.
type Dir string

// Create makes an empty memory. It is fs.ErrExist if there is any part of one.
func (d Dir) Create() error {
	if err := os.Mkdir(string(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("memory: %w", err)
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range []string{logsName, newestName} {
		if _, err := os.Lstat(d.path(name)); err == nil {
			return fmt.Errorf("memory: %s: %w", d.path(name), fs.ErrExist)
		}
	}
	return d.begin()
}

// Reset begins an empty memory in place of what is there, which it keeps under
// the names that it returns. From then on the first checkpoint of each log is
// believed again, whatever was seen before.
func (d Dir) Reset(now time.Time) (kept []string, err error) {
	if err := os.Mkdir(string(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("memory: %w", err)
	}
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, name := range []string{logsName, newestName} {
		old := d.path(fmt.Sprintf("%s.until-%d", name, now.UnixNano()))
		if err := os.Rename(d.path(name), old); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return kept, fmt.Errorf("memory: %w", err)
		}
		kept = append(kept, old)
	}
	return kept, d.begin()
}

func (d Dir) begin() error {
	return errors.Join(d.write(logsName, tlog.NewMemory().Encode()), d.write(newestName, []byte(newestHeader)))
}

// Logs returns what is remembered of logs.
func (d Dir) Logs() (tlog.Memory, error) {
	text, err := d.read(logsName, tlog.MaxMemory)
	if err != nil {
		return tlog.Memory{}, err
	}
	m, err := tlog.ParseMemory(text)
	if err != nil {
		return tlog.Memory{}, d.lost(logsName, err)
	}
	return m, nil
}

// See remembers that c was seen, and returns nil if c is the newest checkpoint
// of its log so far, or an older one, each shown by proof to be of the tree that
// is remembered (Compare). What it returns is on stable storage: a fork, too,
// whose two checkpoints are kept and which refuses the log from then on. What is
// not shown is a *tlog.Refusal; every other error refuses, too.
func (d Dir) See(c tlog.Checkpoint, proof tlog.Consistency) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := d.Logs()
	if err != nil {
		return err
	}
	seen, refused := Compare(old, c, proof)
	if text := seen.Encode(); len(text) > tlog.MaxMemory {
		return errors.Join(refused, fmt.Errorf("memory: %s: expected at most %d bytes, got %d", d.path(logsName), tlog.MaxMemory, len(text)))
	} else if !bytes.Equal(text, old.Encode()) {
		if err := d.write(logsName, text); err != nil {
			return errors.Join(refused, err)
		}
	}
	return refused
}

// Compare returns what m is after c was seen, also with an error (as
// tlog.Memory.Advance). proof is looked at if c has another size than the newest
// checkpoint of its log: of a newer one it shows that its tree extends that one,
// of an older one, that its tree is extended by it.
func Compare(m tlog.Memory, c tlog.Checkpoint, proof tlog.Consistency) (tlog.Memory, error) {
	size, _, seen := m.Newest(c.Origin())
	switch {
	case !seen || size == c.Size():
		return m.Advance(c, nil)
	case c.Size() < size && len(proof) > 0:
		return m, m.Extends(c, proof)
	}
	return m.Advance(c, proof)
}

// Kind says what a remembered number counts.
type Kind string

// The kinds that are known here. A kind may go on with ":" and a name, such as
// "list-sequence:acme".
const (
	Time         Kind = "time"          // seconds since 1970
	ListSequence Kind = "list-sequence" // of revocation lists, with the id of the key
)

var kindPattern = regexp.MustCompile(`^[a-z][a-z-]{0,31}(:[a-z0-9][a-z0-9._-]{0,63})?$`)

// Raise remembers that value, from 0 to 2^53-1, was seen of a kind, and returns
// the highest that ever was: value, or more, which tells the caller that value
// was outgrown. It returns after that is on stable storage.
func (d Dir) Raise(k Kind, value int64) (newest int64, err error) {
	if !kindPattern.MatchString(string(k)) || value < 0 || value > maxValue {
		return 0, fmt.Errorf("memory: expected a kind and a value from 0 to 2^53-1, got %.100q and %d", string(k), value)
	}
	unlock, err := d.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	all, err := d.numbers()
	if err != nil {
		return 0, err
	}
	if old, seen := all[k]; seen && old >= value {
		return old, nil
	} else if !seen && len(all) == maxKinds {
		return 0, fmt.Errorf("memory: %d kinds are remembered, which is the most", maxKinds)
	}
	all[k] = value
	return value, d.write(newestName, encodeNumbers(all))
}

// Newest returns the highest value that was seen of a kind; seen is false if
// none was.
func (d Dir) Newest(k Kind) (value int64, seen bool, err error) {
	all, err := d.numbers()
	value, seen = all[k]
	return value, seen, err
}

// Numbers returns the highest value of each kind of which one was seen.
func (d Dir) Numbers() (map[Kind]int64, error) { return d.numbers() }

// Now returns the later of the wall clock and the newest time seen before, and
// remembers it, in whole seconds. So a clock that is set back revives nothing
// that had expired; one that was wrongly ahead stays ahead until Reset.
func (d Dir) Now(wall time.Time) (time.Time, error) {
	newest, err := d.Raise(Time, wall.Unix())
	if err != nil {
		return time.Time{}, err
	}
	if newest > wall.Unix() {
		return time.Unix(newest, 0).UTC(), nil
	}
	return wall, nil
}

func (d Dir) numbers() (map[Kind]int64, error) {
	text, err := d.read(newestName, maxNewest)
	if err != nil {
		return nil, err
	}
	all, err := parseNumbers(string(text))
	if err != nil {
		return nil, d.lost(newestName, err)
	}
	return all, nil
}

func encodeNumbers(all map[Kind]int64) []byte {
	var lines []string
	for k, v := range all {
		lines = append(lines, fmt.Sprintf("%s %d\n", k, v))
	}
	slices.Sort(lines)
	return []byte(newestHeader + strings.Join(lines, ""))
}

func parseNumbers(text string) (map[Kind]int64, error) {
	rest, ok := strings.CutPrefix(text, newestHeader)
	if !ok {
		return nil, fmt.Errorf("expected the line %q first", newestHeader)
	}
	all := make(map[Kind]int64)
	for line := range strings.Lines(rest) {
		kind, number, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		v, err := strconv.ParseInt(number, 10, 64)
		if err != nil || v < 0 || v > maxValue || !kindPattern.MatchString(kind) {
			return nil, fmt.Errorf(`expected "<kind> <decimal>", got %.100q`, line)
		}
		all[Kind(kind)] = v
	}
	if len(all) > maxKinds || string(encodeNumbers(all)) != text {
		return nil, fmt.Errorf("expected at most %d lines, sorted, one for each kind", maxKinds)
	}
	return all, nil
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

func (d Dir) lost(name string, err error) error {
	return fmt.Errorf("%s: %w (%v), so that an older or forked log would look like a new one; next: put the file back from a backup of the same day, or, if you take that risk, clawfs memory reset --yes", d.path(name), ErrLost, err)
}

// checksumSize is the length of the last line.
const checksumSize = len("sha256 ") + 64 + 1

func checksum(text []byte) string { return fmt.Sprintf("sha256 %s\n", hashpipe.SumBytes(text)) }

func (d Dir) read(name string, limit int64) ([]byte, error) {
	b, err := config.ReadLong(d.path(name), limit+int64(checksumSize))
	if err != nil {
		return nil, d.lost(name, err)
	}
	n := len(b) - checksumSize
	if n < 0 || string(b[n:]) != checksum(b[:n]) {
		return nil, d.lost(name, errors.New("its checksum does not match"))
	}
	return b[:n], nil
}

// write puts text under name, whole or not at all.
func (d Dir) write(name string, text []byte) error {
	if err := durable.Replace(d.path(name), []byte(string(text)+checksum(text)), 0o600); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}

// lock waits for the right to change the memory. It goes with the process.
func (d Dir) lock() (unlock func(), err error) {
	f, err := os.OpenFile(d.path(lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.lost(lockName, err)
	}
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end):
			f.Close()
			return nil, fmt.Errorf("memory: locking %s: %w", d.path(lockName), err)
		}
	}
}
