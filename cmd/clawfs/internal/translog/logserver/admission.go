package logserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// Refusal says why a log does not take an envelope.
type Refusal struct {
	// Malformed: it is nothing that a log takes, whoever signed it. Else the list
	// does not let this signer add this.
	Malformed bool
	// Backward: it is a store's head that does not go on from those before it.
	Backward bool
	Detail   string
}

// Error returns the detail.
func (r *Refusal) Error() string { return r.Detail }

func malformed(err error) *Refusal { return &Refusal{Malformed: true, Detail: err.Error()} }
func forbidden(err error) *Refusal { return &Refusal{Detail: err.Error()} }

// admission decides who may add what, by a policy.json: a ledger needs all that a
// rebuild by that policy would (package verifier), a capability a mint of it, a
// revocation a revoker of it, a store's head either of the two. Policies are not taken: none are signed.
type admission struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	policy *verifier.Policy
	seen   version // of the file, also of a broken one
}

// version tells one content of a file from another without reading it.
type version struct {
	inode   uint64
	size    int64
	changed time.Time
}

func openAdmission(path string, log *slog.Logger) (*admission, error) {
	a := &admission{path: path, log: log}
	v, err := versionOf(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if a.policy, err = readPolicy(path); err != nil {
		return nil, err
	}
	a.seen = v
	return a, nil
}

func versionOf(path string) (version, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return version{}, err
	}
	v := version{size: fi.Size(), changed: fi.ModTime()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		v.inode = st.Ino
	}
	return v, nil
}

func readPolicy(path string) (*verifier.Policy, error) {
	text, err := config.ReadPublic(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := verifier.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// current returns the policy, read again if the file has changed. Of a file that
// cannot be used it tells the log once for each content, and keeps the policy
// that it has: a misspelt list must neither open the log to everybody nor close
// it to all.
func (a *admission) current() *verifier.Policy {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, err := versionOf(a.path)
	if err != nil {
		v = version{}
	}
	if v == a.seen {
		return a.policy
	}
	a.seen = v
	p, err := readPolicy(a.path)
	if err != nil {
		a.log.Error("THE NEW policy.json CANNOT BE USED; the log goes on with the one before", "path", a.path, "error", err)
		return a.policy
	}
	a.policy = p
	a.log.Info("policy.json was read again", "path", a.path, "publishers", len(p.Publishers), "mints", len(p.Mints), "revokers", len(p.Revokers))
	return a.policy
}

// admit returns the leaf of an envelope that may be added at the moment now. The
// error is a *Refusal.
func (a *admission) admit(envelope []byte, now time.Time) (tlog.Leaf, error) {
	e, err := dsse.Parse(envelope)
	if err != nil {
		return tlog.Leaf{}, malformed(err)
	}
	if t := e.UnverifiedPayloadType(); t != dsse.PayloadType {
		return tlog.Leaf{}, malformed(fmt.Errorf("expected payloadType %q, got %.100q", dsse.PayloadType, t))
	}
	kind, err := translog.ClaimedKind(e.UnverifiedPayload())
	if err != nil {
		return tlog.Leaf{}, malformed(err)
	}
	policy := a.current()
	var leaf tlog.Leaf
	switch kind {
	case tlog.KindSBA:
		leaf, err = admitSBA(policy, envelope, now)
	case tlog.KindCapability:
		leaf, err = admitCapability(policy, envelope, e)
	case tlog.KindRevocation:
		leaf, err = admitRevocation(policy, envelope, e)
	case tlog.KindStoreHead:
		leaf, err = admitHead(policy, envelope, e)
	default:
		err = fmt.Errorf("a log takes no entries of kind %s", kind)
	}
	var r *verifier.Refusal
	if errors.As(err, &r) && r.Reason == verifier.ReasonMalformed {
		return tlog.Leaf{}, malformed(err)
	}
	if err != nil {
		return tlog.Leaf{}, forbidden(err)
	}
	return leaf, nil
}

func admitSBA(policy *verifier.Policy, envelope []byte, now time.Time) (tlog.Leaf, error) {
	v, err := verifier.New(policy)
	if err != nil {
		return tlog.Leaf{}, err
	}
	sba, err := verifier.ParseSBA(envelope)
	if err != nil {
		return tlog.Leaf{}, err
	}
	att, err := v.Verify(sba, now)
	if err != nil {
		return tlog.Leaf{}, err
	}
	return tlog.LeafOf(tlog.KindSBA, att.Ledger().Payload(), att.Publisher(), att.Ledger().Statement().Predicate.Model)
}

func admitCapability(policy *verifier.Policy, envelope []byte, e dsse.Envelope) (tlog.Leaf, error) {
	view, err := viewOf(policy)
	if err != nil {
		return tlog.Leaf{}, err
	}
	c, err := view.Admit(envelope)
	if err != nil {
		return tlog.Leaf{}, err
	}
	key, err := keyOf(policy.Mints, c.Minter())
	if err != nil {
		return tlog.Leaf{}, err
	}
	// View verified the payload of this very envelope.
	return tlog.LeafOf(tlog.KindCapability, e.UnverifiedPayload(), key, c.Model())
}

func admitRevocation(policy *verifier.Policy, envelope []byte, e dsse.Envelope) (tlog.Leaf, error) {
	view, err := viewOf(policy)
	if err != nil {
		return tlog.Leaf{}, err
	}
	r, err := view.Revoke(envelope)
	if err != nil {
		return tlog.Leaf{}, err
	}
	key, err := keyOf(policy.Revokers, r.Revoker())
	if err != nil {
		return tlog.Leaf{}, err
	}
	return tlog.LeafOf(tlog.KindRevocation, e.UnverifiedPayload(), key, "")
}

func admitHead(policy *verifier.Policy, envelope []byte, e dsse.Envelope) (tlog.Leaf, error) {
	p := config.Policy{Policy: policy}
	_, key, err := capstore.VerifyHead(p.Trust(), envelope)
	if err != nil {
		return tlog.Leaf{}, err
	}
	return tlog.LeafOf(tlog.KindStoreHead, e.UnverifiedPayload(), key, "")
}

func viewOf(policy *verifier.Policy) (*capstore.View, error) {
	p := config.Policy{Policy: policy}
	return capstore.NewView(p.Trust())
}

func keyOf(operators []verifier.Operator, id dsse.KeyID) (dsse.PublicKey, error) {
	for _, o := range operators {
		for _, k := range o.Keys {
			if k.ID() == id {
				return k, nil
			}
		}
	}
	return dsse.PublicKey{}, fmt.Errorf("policy: no key has the id %s: %w", id, fs.ErrNotExist)
}
