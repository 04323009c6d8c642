// Package witness is a witness of transparency logs: it cosigns a checkpoint of
// a log if that extends every checkpoint of the log that it cosigned before
// (https://c2sp.org: tlog-witness, tlog-cosignature with Ed25519).
//
// A witness is a directory, which Init makes and one process at a time serves:
//
//	witness.key   PKCS#8, 0600
//	witness.vkey  the verifier key: a line <name>+<id>+<base64>
//	state         what was cosigned
//	forks/        of each log that signed two trees of one size, both checkpoints
//	lock          held by the process that serves it
//
// The state is
//
//	clawfs-witness/v1
//	cosigned <time of the last cosignature in seconds since 1970, or 0>
//	<a log memory, as package tlog writes it>
//
// with the witness's own cosignature on each newest checkpoint. It is on stable
// storage before a cosignature leaves the process. A witness that forgets signs
// forks, so a state that is missing, damaged or not of this key is an error and
// never a fresh start; an older copy of a state cannot be told from it, so the
// directory must not be restored from a backup.
//
// A log that forked is refused from then on: nothing says which of its trees is
// the one that others see.
package witness

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// Witness cosigns for the logs that it was opened with.
type Witness struct {
	dir      string
	cosigner tlog.Cosigner
	logs     map[string]keys   // by origin
	origins  map[string]string // by the hex SHA-256 of the origin
	log      *slog.Logger
	lock     *control.Lock
	now      func() time.Time

	// mu guards the rest. Held from the comparison with what was cosigned until
	// the new state is on the disk, so that no two checkpoints pass at once.
	mu    sync.Mutex
	state state
	saved string // what the file state holds; "" if a write failed half way
}

// keys are what a checkpoint of one log is checked with.
type keys struct {
	submitted tlog.Policy // the log's keys
	cosigned  tlog.Policy // and this witness
}

// Open takes the witness in dir for this process. The keys are those of the logs
// that it may cosign, at least one. A directory that another process serves, and
// a state that is missing or not this witness's, are errors.
func Open(dir string, logs []tlog.VerifierKey, log *slog.Logger) (*Witness, error) {
	if len(logs) == 0 {
		return nil, errors.New("witness: expected at least one log to cosign, got none")
	}
	cosigner, err := readKey(dir)
	if err != nil {
		return nil, err
	}
	lock, err := control.TakeLock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("witness %s: %w", dir, err)
	}
	w := &Witness{dir: dir, cosigner: cosigner, log: log, lock: lock, now: time.Now, logs: make(map[string]keys), origins: make(map[string]string)}
	if err := w.load(logs); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return w, nil
}

func (w *Witness) load(logs []tlog.VerifierKey) (err error) {
	if err := durable.Sweep(filepath.Join(w.dir, stateFile)); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	if w.state, w.saved, err = readState(w.dir, w.cosigner.VerifierKey()); err != nil {
		return err
	}
	lines := make(map[string]string)
	for _, k := range logs {
		lines[k.Name()] += "log " + k.String() + "\n"
	}
	for origin, text := range lines {
		var k keys
		if k.submitted, err = tlog.ParsePolicy([]byte(text + "quorum none\n")); err != nil {
			return fmt.Errorf("log %q: %w", origin, err)
		}
		text += "witness self " + w.cosigner.VerifierKey().String() + "\nquorum self\n"
		if k.cosigned, err = tlog.ParsePolicy([]byte(text)); err != nil {
			return fmt.Errorf("log %q: %w", origin, err)
		}
		w.logs[origin], w.origins[hashOf(origin)] = k, origin
	}
	return w.writeEvidence()
}

// Close lets another process serve the directory.
func (w *Witness) Close() error { return w.lock.Release() }

// VerifierKey returns the key by which others know the witness.
func (w *Witness) VerifierKey() tlog.VerifierKey { return w.cosigner.VerifierKey() }

// problem is a refusal that is answered with a status of HTTP.
type problem struct {
	status int
	text   string
}

func (p *problem) Error() string { return p.text }

func problemf(status int, format string, args ...any) error {
	return &problem{status, fmt.Sprintf(format, args...)}
}

// conflict says that the client counts from another size than the witness.
type conflict struct{ size int64 }

func (c *conflict) Error() string {
	return fmt.Sprintf("the newest checkpoint that was cosigned has size %d", c.size)
}

// cosign returns the line of the cosignature after the state that holds it is on
// stable storage. Its errors are a *problem, a *conflict, or something that is
// wrong here.
func (w *Witness) cosign(r request) ([]byte, error) {
	origin, err := tlog.ClaimedOrigin(r.checkpoint)
	if err != nil {
		return nil, statusOf(err)
	}
	k, ok := w.logs[origin]
	if !ok {
		return nil, problemf(404, "this witness does not know the log %q", clip(origin))
	}
	c, err := k.submitted.Checkpoint(r.checkpoint)
	if err != nil {
		return nil, statusOf(err)
	}
	if r.old > uint64(c.Size()) {
		return nil, problemf(400, "expected an old size of at most %d, the checkpoint's, got %d", c.Size(), r.old)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.advance(k, c, r)
}

// advance holds w.mu.
func (w *Witness) advance(k keys, c tlog.Checkpoint, r request) ([]byte, error) {
	newest, root, seen := w.state.memory.Newest(c.Origin())
	_, _, forked := w.state.memory.Fork(c.Origin())
	if !forked && seen && c.Size() == newest && c.Root() != root {
		w.state.memory, _ = w.state.memory.Advance(c, nil)
		forked = true
		w.reportFork(c.Origin())
	}
	if forked {
		if err := errors.Join(w.save(w.state), w.writeEvidence()); err != nil {
			return nil, err
		}
	}
	if r.old != uint64(newest) { // 0 if nothing was seen
		return nil, &conflict{newest}
	}
	if _, err := w.state.memory.Advance(c, r.proof); err != nil {
		return nil, statusOf(err)
	}
	next := w.state
	if now := w.now().Unix(); now > next.cosigned {
		next.cosigned = now
	} else if now < next.cosigned-60 {
		w.log.Warn("the clock is behind the last cosignature, whose time is used again", "clock", now, "last", next.cosigned)
	}
	line, err := w.cosigner.Cosign(c, time.Unix(next.cosigned, 0))
	if err != nil {
		return nil, err
	}
	// What is kept is what others will see: with the cosignature, and verified.
	cosigned, err := k.cosigned.Checkpoint(append(c.Note(), line...))
	if err != nil {
		return nil, fmt.Errorf("verifying the own cosignature: %w", err)
	}
	if next.memory, err = w.state.memory.Advance(cosigned, r.proof); err != nil {
		return nil, err
	}
	if err := w.save(next); err != nil {
		return nil, err
	}
	w.state = next
	return line, nil
}

// reportFork puts the evidence into the log of the process. The log is refused
// from here on also if the disk does not take the evidence, and each later
// request for it tries the disk again.
func (w *Witness) reportFork(origin string) {
	first, second, _ := w.state.memory.Fork(origin)
	w.log.Error("FORK: a log signed two trees of one size; it is refused from now on",
		"origin", origin, "first", string(first), "second", string(second), "evidence", filepath.Join(w.dir, forksDir))
}

// newest returns the newest cosigned checkpoint of the log whose origin has that
// hash, nil if there is none.
func (w *Witness) newest(hash string) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.memory.Note(w.origins[hash])
}

// save writes the state unless the file holds it already, as it does when the
// same tree is cosigned again within a second.
func (w *Witness) save(s state) error {
	text := s.encode()
	if text == w.saved {
		return nil
	}
	w.saved = "" // what the file holds after a failure is not known
	if err := durable.Replace(filepath.Join(w.dir, stateFile), []byte(text), 0o600); err != nil {
		return fmt.Errorf("nothing is cosigned, because the state cannot be written: %w", err)
	}
	w.saved = text
	return nil
}

// writeEvidence writes the files of forks that are not there.
func (w *Witness) writeEvidence() error {
	for _, origin := range w.state.memory.Origins() {
		first, second, ok := w.state.memory.Fork(origin)
		if !ok {
			continue
		}
		size, _, _ := w.state.memory.Newest(origin)
		for i, note := range [][]byte{first, second} {
			path := evidence(w.dir, origin, size, i)
			if _, err := os.Lstat(path); err == nil {
				continue
			}
			if err := durable.Replace(path, note, 0o644); err != nil {
				return fmt.Errorf("keeping the evidence of a fork: %w", err)
			}
		}
	}
	return nil
}

func evidence(dir, origin string, size int64, i int) string {
	return filepath.Join(dir, forksDir, fmt.Sprintf("%s-size-%d-%c.checkpoint", hashOf(origin)[:16], size, 'a'+i))
}

// hashOf names a log where its origin cannot stand, as the protocol does.
func hashOf(origin string) string { return hashpipe.SumBytes([]byte(origin)).String() }

// readKey reads the key of the witness in dir, with its name.
func readKey(dir string) (tlog.Cosigner, error) {
	key, err := readVerifierKey(dir)
	if err != nil {
		return tlog.Cosigner{}, err
	}
	text, err := config.ReadSecret(filepath.Join(dir, keyFile))
	if err != nil {
		return tlog.Cosigner{}, fmt.Errorf("witness key: %w", err)
	}
	private, err := dsse.ParsePrivateKey(text, nil)
	if err != nil {
		return tlog.Cosigner{}, fmt.Errorf("witness %s: %w", filepath.Join(dir, keyFile), err)
	}
	c, err := tlog.NewCosigner(key.Name(), private)
	if err != nil {
		return tlog.Cosigner{}, fmt.Errorf("witness %s: %w", dir, err)
	}
	if c.VerifierKey() != key {
		return tlog.Cosigner{}, fmt.Errorf("witness %s: expected the private half of %s, got that of %s", filepath.Join(dir, keyFile), key, c.VerifierKey())
	}
	return c, nil
}

// readVerifierKey reads the public half.
func readVerifierKey(dir string) (tlog.VerifierKey, error) {
	path := filepath.Join(dir, vkeyFile)
	text, err := config.ReadPublic(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, there := os.Lstat(dir); there == nil {
			return tlog.VerifierKey{}, fmt.Errorf("%s is not the directory of a witness: %w; next: name the directory that clawfs witness init made", dir, err)
		}
		return tlog.VerifierKey{}, fmt.Errorf("%s is not the directory of a witness: %w; next: clawfs witness init %s --name NAME", dir, err, dir)
	}
	if err != nil {
		return tlog.VerifierKey{}, fmt.Errorf("witness: %w", err)
	}
	line, _ := strings.CutSuffix(string(text), "\n")
	key, err := tlog.ParseVerifierKey(line)
	if err != nil {
		return tlog.VerifierKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// clip bounds hostile text in an answer.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
