// Package logserver keeps a transparency log in a directory, and serves it.
//
// The tree is kept by the POSIX driver of github.com/transparency-dev/tessera. It
// may not lie on a network file system, which the driver's locks do not survive.
// The directory:
//
//	log.key       the log's key, in the form of golang.org/x/mod/sumdb/note; 0600
//	log.vkey      its verifier key (package tlog), a line
//	policy.json   who may add what (package verifier); read again when it changes
//	lock          held by the one process that serves the directory
//	tree/         what may be public (package translog), and .state, which may not
//
// An entry is taken in this order: the envelope verifies by policy.json; the same
// leaf is not in the tree yet; the envelope is on stable storage as a blob; the
// leaf is in the tree; a checkpoint of a tree that has it was cosigned by the
// quorum; the proof verifies. Only then is the addition acknowledged, so that what
// was acknowledged outlives a kill at any point.
package logserver

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	keyFile    = "log.key"
	vkeyFile   = "log.vkey"
	policyFile = "policy.json"
	lockFile   = "lock"
)

// PolicyFile is where the log in dir has the list of who may add what.
func PolicyFile(dir string) string { return filepath.Join(dir, policyFile) }

// Create makes the directory of a log, which must not exist, with a new key for
// the origin and policy as its policy.json. It returns the log's verifier key.
func Create(dir, origin string, policy []byte) (tlog.VerifierKey, error) {
	none := tlog.VerifierKey{}
	if _, err := verifier.ParsePolicy(policy); err != nil {
		return none, err
	}
	if strings.Contains(origin, "+") {
		return none, fmt.Errorf("origin %q: expected no '+', which ends a name in a verifier key", origin)
	}
	secret, text, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return none, fmt.Errorf("log key: %w", err)
	}
	vkey, err := tlog.ParseVerifierKey(text) // also checks the origin
	if err != nil {
		return none, fmt.Errorf("log key: %w", err)
	}
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); err == nil {
		return none, fmt.Errorf("%s exists already; a log is never made over something", dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return none, err
	}
	// Beside its place, so that there is a whole log or none.
	building, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".")
	if err != nil {
		return none, fmt.Errorf("log: %w", err)
	}
	defer os.RemoveAll(building) // does nothing after the rename
	for _, f := range []struct {
		name string
		text string
		perm fs.FileMode
	}{
		{keyFile, secret + "\n", 0o600},
		{vkeyFile, text + "\n", 0o644},
		{policyFile, string(policy), 0o644},
	} {
		if err := durable.WriteNew(filepath.Join(building, f.name), []byte(f.text), f.perm); err != nil {
			return none, fmt.Errorf("log: %w", err)
		}
	}
	if err := os.Mkdir(filepath.Join(building, translog.TreeDir), 0o755); err != nil {
		return none, fmt.Errorf("log: %w", err)
	}
	if err := durable.SyncDir(building); err != nil {
		return none, err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, building, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE); err != nil {
		return none, &fs.PathError{Op: "making log", Path: dir, Err: err}
	}
	return vkey, durable.SyncDir(filepath.Dir(dir))
}

// VerifierKey reads the verifier key of the log in dir.
func VerifierKey(dir string) (tlog.VerifierKey, error) {
	text, err := config.ReadPublic(filepath.Join(dir, vkeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return tlog.VerifierKey{}, fmt.Errorf("%s is not the directory of a log: %w; next: name the directory that clawfs log init made", dir, err)
	}
	if err != nil {
		return tlog.VerifierKey{}, fmt.Errorf("log: %w", err)
	}
	return tlog.ParseVerifierKey(strings.TrimSuffix(string(text), "\n"))
}

// readKey reads the log's key and checks that it is the one of vkey.
func readKey(dir string, vkey tlog.VerifierKey) (note.Signer, error) {
	text, err := config.ReadSecret(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	signer, err := note.NewSigner(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return nil, fmt.Errorf("log key %s: it is damaged", filepath.Join(dir, keyFile))
	}
	const text1 = "clawfs log key\n"
	sig, err := signer.Sign([]byte(text1))
	if err != nil || signer.Name() != vkey.Name() || signer.KeyHash() != vkey.KeyHash() || !vkey.Verify([]byte(text1), sig) {
		return nil, fmt.Errorf("log key %s: expected the key of %s, got another one", filepath.Join(dir, keyFile), vkey)
	}
	return signer, nil
}
