// Package capstore holds capabilities: signed statements of a mint that a file
// of this SHA-256 is what an independent rebuild of one publisher's recipe
// produced. docs/capability.md is the format.
//
// Nothing here believes a row. A Capability exists only where a pinned key's
// signature over its exact bytes was checked by this process: by a View (what a mount
// process holds), or by a Store, which keeps the same signed bytes in Badger. Both
// keep an index in memory and check a record when it is first asked for. The index is
// a hint for what grants and holds for what refuses: a revocation whose own text
// cannot be read any more refuses its target all the same.
// Badger is a cache of signed texts; whoever can write into it can lose grants,
// but cannot make one. What a store must not lose without a word, the key of its
// rows and its newest fact, lies outside of it.
//
// A revocation is a signed record too. It outranks every capability that it
// names, whichever of the two arrived first, and nothing deletes it. Expiry is
// a field of the signed statement and is judged by whoever asks, at the time of
// asking; this package has no clock.
package capstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// MaxRecord bounds one signed envelope and one job row, in bytes. Two of them
// fit into one Badger transaction of the profile used here (15 % of an 8 MiB
// memtable), so that a job's end and its capability are one commit, and both
// stay below the 1 MiB above which Badger would put a value into its value log,
// where a damaged value reads as an empty one without an error.
const MaxRecord = 512 << 10

// maxInteger is the largest integer that every JSON implementation keeps exact.
const maxInteger = 1<<53 - 1

var (
	// ErrNotFound: the store has no such job.
	ErrNotFound = errors.New("not found")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("store is open in another process")
	// ErrNoSpace: the file system is too full to write safely. Badger writes
	// through memory maps, and a full disk kills the process (SIGBUS), so the
	// store refuses before that.
	ErrNoSpace = errors.New("not enough free space")
	// ErrDamaged: the store is older than, shorter than or different from what
	// it acknowledged. Granting from it could revive a revoked capability.
	ErrDamaged = errors.New("store is damaged or older than its head")
	// ErrForeign: the rows were written by another store, under another key, or by a
	// version with another format. Nothing is granted from them.
	ErrForeign = errors.New("store is not the one of this machine's memory")
	// ErrClosed: the store was closed, or an earlier write had an unknown outcome.
	ErrClosed = errors.New("store is closed")
	// ErrClosing: the store takes nothing more, and its files are not closed yet.
	ErrClosing = errors.New("store is still being closed")
	// ErrFinished: the job has ended, and a job ends once.
	ErrFinished = errors.New("job has already ended")
	// ErrUnfinished: the job has not ended, and only what has ended is removed.
	ErrUnfinished = errors.New("job has not ended")
	// ErrLive: the job's capability still opens files.
	ErrLive = errors.New("its capability is live")
)

// Signer is a public key pinned by the operator, and whose it is.
type Signer struct {
	Operator string
	Key      dsse.PublicKey
}

// Trust names who may grant and who may take back, and how many must grant. Both
// lists of keys are required: a store that nobody may revoke from is a mistake.
type Trust struct {
	Mints, Revokers []Signer
	Rules           []Rule    // nil: one capability of any mint is enough
	Local           string    // the operator whose mint this machine has; "": it has none
	Expires         time.Time // first instant at which it opens nothing any more; zero: never
}

// role is one list of a Trust, checked.
type role struct {
	name     string
	keys     []dsse.PublicKey
	operator map[dsse.KeyID]string
}

func newRole(name string, signers []Signer) (role, error) {
	r := role{name: name, operator: make(map[dsse.KeyID]string, len(signers))}
	if len(signers) == 0 {
		return role{}, fmt.Errorf("trust: no %s key is pinned", name)
	}
	for i, s := range signers {
		if s.Key.IsZero() {
			return role{}, fmt.Errorf("trust: %s %d (operator %q) has no key", name, i+1, s.Operator)
		}
		if err := checkText("operator", s.Operator, 256); err != nil {
			return role{}, fmt.Errorf("trust: %s %d: %w", name, i+1, err)
		}
		if _, twice := r.operator[s.Key.ID()]; twice {
			return role{}, fmt.Errorf("trust: %s key %s is pinned twice", name, s.Key.ID())
		}
		r.keys = append(r.keys, s.Key)
		r.operator[s.Key.ID()] = s.Operator
	}
	return r, nil
}

// open returns the payload of an envelope signed by at least one key of the
// role, and those keys.
func (r role) open(envelope []byte) (payload []byte, signers []dsse.PublicKey, err error) {
	if len(envelope) > MaxRecord {
		return nil, nil, fmt.Errorf("envelope of %d bytes: at most %d are stored", len(envelope), MaxRecord)
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		return nil, nil, err
	}
	payload, signers, err = e.Verify(dsse.PayloadType, r.keys, 1)
	if errors.Is(err, dsse.ErrUnverified) {
		return nil, nil, fmt.Errorf("not signed by a trusted %s: %w", r.name, err)
	}
	if err != nil {
		return nil, nil, err
	}
	return payload, signers, nil
}

// checkType says early that a text is of another kind, before its unknown
// fields would. The strict reader decides.
func checkType(payload []byte, want string) error {
	var head struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(payload, &head); err != nil {
		return dsse.JSONError(err)
	}
	if head.PredicateType != want {
		return fmt.Errorf("predicateType is %.200q, want %q", head.PredicateType, want)
	}
	return nil
}

// signed says whether the key that a statement names as its author is one of
// those whose signature was checked.
func signed(author dsse.KeyID, signers []dsse.PublicKey) bool {
	return slices.ContainsFunc(signers, func(k dsse.PublicKey) bool { return k.ID() == author })
}

// checkText refuses what cannot be shown to a person on one line.
func checkText(what, s string, max int) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is missing", what)
	case len(s) > max:
		return fmt.Errorf("%s of %d bytes: at most %d", what, len(s), max)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s is not UTF-8", what)
	case strings.TrimSpace(s) != s:
		return fmt.Errorf("%s %q begins or ends with a space", what, s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%s %q has a character that cannot be printed", what, s)
		}
	}
	return nil
}

// checkModel wants a clean relative path that can be shown on one line.
func checkModel(m string) error {
	if err := checkText("model", m, 512); err != nil {
		return err
	}
	return checkName("model", m)
}

// checkName has the ledger's rule for names of outputs, which is the one of
// clawfs-tree/v1: what a ledger may promise, a capability can grant.
func checkName(what, p string) error {
	switch {
	case p == "":
		return fmt.Errorf("%s is missing", what)
	case len(p) > maxName:
		return fmt.Errorf("%s of %d bytes: at most %d", what, len(p), maxName)
	case !utf8.ValidString(p):
		return fmt.Errorf("%s %q is not UTF-8", what, p)
	case strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }):
		return fmt.Errorf("%s %q has a control byte or a backslash", what, p)
	}
	for part := range strings.SplitSeq(p, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Errorf("%s %q is not a clean relative path", what, p)
		case len(part) > maxComponent:
			return fmt.Errorf("%s %q: a component of %d bytes: at most %d", what, p, len(part), maxComponent)
		}
	}
	return nil
}

func checkKeyID(what string, id dsse.KeyID) error {
	if _, err := hashpipe.ParseDigest(string(id)); err != nil {
		return fmt.Errorf("%s %q is not the hex SHA-256 of a public key", what, id)
	}
	return nil
}

// keyDigest is a key id as the digest it is. Ids in a checked statement parse.
func keyDigest(id dsse.KeyID) hashpipe.Digest {
	d, err := hashpipe.ParseDigest(string(id))
	if err != nil {
		return hashpipe.Digest{}
	}
	return d
}
