package witness

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// The names in the directory of a witness.
const (
	keyFile   = "witness.key"
	vkeyFile  = "witness.vkey"
	stateFile = "state"
	forksDir  = "forks"
	lockFile  = "lock"
)

const stateHeader = "clawfs-witness/v1\n"

// state is what a witness has said.
type state struct {
	cosigned int64 // time of the last cosignature in seconds since 1970, 0 if there is none
	memory   tlog.Memory
}

func (s state) encode() string {
	return fmt.Sprintf("%scosigned %d\n%s", stateHeader, s.cosigned, s.memory.Encode())
}

func parseState(text string) (state, error) {
	rest, ok := strings.CutPrefix(text, stateHeader)
	if !ok {
		return state{}, fmt.Errorf("expected the line %q first, got %q", stateHeader, clip(text))
	}
	line, rest, ok := strings.Cut(rest, "\n")
	digits, named := strings.CutPrefix(line, "cosigned ")
	seconds, err := strconv.ParseInt(digits, 10, 64)
	if !ok || !named || err != nil || seconds < 0 || strconv.FormatInt(seconds, 10) != digits {
		return state{}, fmt.Errorf("expected a line \"cosigned <seconds>\" second, got %q", clip(line))
	}
	memory, err := tlog.ParseMemory([]byte(rest))
	if err != nil {
		return state{}, err
	}
	return state{seconds, memory}, nil
}

// readState reads the state in dir and checks that each newest checkpoint in it
// carries the cosignature of key.
func readState(dir string, key tlog.VerifierKey) (s state, text string, err error) {
	path := filepath.Join(dir, stateFile)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s, "", fmt.Errorf("%s is missing, and with it what this witness has cosigned: it must not sign again; next: find the file, or make another witness (clawfs witness init) and replace the key of this one in every policy", path)
	}
	if err != nil {
		return s, "", fmt.Errorf("witness state: %w", err)
	}
	defer f.Close()
	const most = tlog.MaxMemory + 1024
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return s, "", fmt.Errorf("witness state: %w", err)
	}
	if len(b) > most {
		return s, "", fmt.Errorf("%s: expected at most %d bytes, got more", path, most)
	}
	if s, err = parseState(string(b)); err != nil {
		return s, "", fmt.Errorf("%s is damaged, and this witness must not sign without it: %w", path, err)
	}
	for _, origin := range s.memory.Origins() {
		if err := key.CheckSigned(s.memory.Note(origin)); err != nil {
			return s, "", fmt.Errorf("%s was not written by this witness, which must not sign with it: %w", path, err)
		}
	}
	return s, string(b), nil
}

// Init makes the directory of a witness with a key of its own, and the state of
// one that has cosigned nothing. The directory appears whole or not at all;
// dir may be an empty directory, and anything else at its place is an error.
func Init(dir, name string) (tlog.VerifierKey, error) {
	fail := func(err error) (tlog.VerifierKey, error) { return tlog.VerifierKey{}, fmt.Errorf("witness: %w", err) }
	if names, err := os.ReadDir(dir); err == nil && len(names) > 0 {
		return fail(fmt.Errorf("%s exists already and is not changed; next: choose another directory", dir))
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		return fail(err)
	}
	private, err := key.PEM()
	if err != nil {
		return fail(err)
	}
	cosigner, err := tlog.NewCosigner(name, key)
	if err != nil {
		return fail(err)
	}
	if name == "none" {
		return fail(errors.New(`the name "none" means in a policy that no witness is needed; next: choose another --name`))
	}
	parent := filepath.Dir(dir)
	made, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".new-") // mode 0700
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(made) // does nothing after the rename
	err = errors.Join(
		os.Mkdir(filepath.Join(made, forksDir), 0o700),
		durable.Replace(filepath.Join(made, keyFile), private, 0o600),
		durable.Replace(filepath.Join(made, vkeyFile), []byte(cosigner.VerifierKey().String()+"\n"), 0o644),
		durable.Replace(filepath.Join(made, stateFile), []byte(state{memory: tlog.NewMemory()}.encode()), 0o600),
	)
	if err != nil {
		return fail(err)
	}
	// rename(2) replaces an empty directory and refuses any other.
	if err := unix.Rename(made, dir); err != nil {
		return fail(fmt.Errorf("making %s: %w", dir, err))
	}
	if err := durable.SyncDir(parent); err != nil {
		return fail(err)
	}
	return cosigner.VerifierKey(), nil
}

// PolicyLine returns the line of a policy (C2SP tlog-policy) that names a
// witness, without a URL.
func PolicyLine(k tlog.VerifierKey) string { return "witness " + k.Name() + " " + k.String() + "\n" }

// Status is what a witness has cosigned, as it is on the disk.
type Status struct {
	Key tlog.VerifierKey
	// Serving is the pid of the process that serves the witness, 0 if none does.
	Serving  int
	Cosigned time.Time // of the last cosignature, zero if there is none
	Logs     []Log     // sorted by origin
}

// Log is the newest checkpoint of a log that was cosigned.
type Log struct {
	Origin string
	Size   int64
	Root   tlog.Hash
	// Evidence are the files of the two checkpoints of a log that forked.
	Evidence []string
}

// Inspect reads the state of a witness, also while it is served.
func Inspect(dir string) (Status, error) {
	key, err := readVerifierKey(dir)
	if err != nil {
		return Status{}, err
	}
	s, _, err := readState(dir, key)
	if err != nil {
		return Status{}, err
	}
	pid, err := control.Holder(filepath.Join(dir, lockFile))
	if err != nil {
		return Status{}, fmt.Errorf("witness: %w", err)
	}
	status := Status{Key: key, Serving: pid}
	if s.cosigned > 0 {
		status.Cosigned = time.Unix(s.cosigned, 0).UTC()
	}
	for _, origin := range s.memory.Origins() {
		l := Log{Origin: origin}
		l.Size, l.Root, _ = s.memory.Newest(origin)
		if _, _, forked := s.memory.Fork(origin); forked {
			l.Evidence = []string{evidence(dir, origin, l.Size, 0), evidence(dir, origin, l.Size, 1)}
		}
		status.Logs = append(status.Logs, l)
	}
	return status, nil
}
