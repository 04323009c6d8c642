package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// A policy with a root lies in three files. policy.dsse holds what the root
// signed, and decides. policy.json is the text in it, which everything reads.
// memory/policy-revision holds the newest revision that was installed, so that
// the other two cannot be put back to an older one. InstallPolicy writes them so
// that a reader at any moment, and after a crash at any point, finds a policy
// that is whole, the old one or the new one. Only in the first installation, when
// the old one has no signatures, it finds none between the first two writes.

func (s State) SignedPolicy() string { return s.join("policy.dsse") }
func (s State) Memory() string       { return s.join("memory") }
func (s State) PolicyMemory() string { return s.join("memory", "policy-revision") }

// ErrSigned says that policy.json cannot be edited because it is signed.
var ErrSigned = errors.New("the policy is signed")

// checkInstalled checks a policy, and the text that it was read from, against
// policy.dsse and the memory.
func (s State) checkInstalled(p *verifier.Policy, text []byte) error {
	newest, err := s.newestPolicy()
	if err != nil {
		return err
	}
	envelopes, err := s.signedPolicies()
	if err != nil {
		return err
	}
	switch {
	case p.Root == nil && len(envelopes) == 0 && newest.revision == 0:
		return nil
	case p.Root == nil:
		return fmt.Errorf("it has no root, and revision %d of a signed policy was installed here: somebody replaced it; next: clawfs policy install FILE, with that very revision or, if %s is there, a newer one", max(newest.revision, lastRevision(envelopes)), s.SignedPolicy())
	case len(envelopes) == 0:
		return fmt.Errorf("it has a root, and %s with the signatures is missing; next: clawfs policy install FILE, with the signed policy", s.SignedPolicy())
	}
	for _, e := range envelopes {
		if bytes.Equal(e.Text(), text) {
			return newest.allows(p.Revision, e.Digest())
		}
	}
	return fmt.Errorf("it is not the text that was signed (%s): it was edited by hand; next: clawfs policy install %[1]s, which puts it back, or clawfs policy edit for a new revision", s.SignedPolicy())
}

func lastRevision(envelopes []verifier.SignedPolicy) int64 {
	if len(envelopes) == 0 {
		return 0
	}
	return envelopes[len(envelopes)-1].Policy().Revision
}

// signedPolicies returns what lies in policy.dsse: nothing, one policy, or
// during an installation the old one and the new one.
func (s State) signedPolicies() ([]verifier.SignedPolicy, error) {
	data, err := ReadPublic(s.SignedPolicy())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	envelopes, err := verifier.SplitPolicies(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.SignedPolicy(), err)
	}
	if len(envelopes) > 2 {
		return nil, fmt.Errorf("%s: expected one signed policy, got %d", s.SignedPolicy(), len(envelopes))
	}
	var list []verifier.SignedPolicy
	for _, e := range envelopes {
		p, err := verifier.OpenPolicy(e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.SignedPolicy(), err)
		}
		list = append(list, p)
	}
	return list, nil
}

// InstalledPolicy returns the signed policy of the state directory, the zero
// SignedPolicy if there is none. Unlike LoadPolicy it does not ask whether
// policy.json says the same.
func (s State) InstalledPolicy() (verifier.SignedPolicy, error) {
	list, err := s.signedPolicies()
	if err != nil || len(list) == 0 {
		return verifier.SignedPolicy{}, err
	}
	newest, err := s.newestPolicy()
	if err != nil {
		return verifier.SignedPolicy{}, err
	}
	last := list[len(list)-1]
	return last, newest.allows(last.Policy().Revision, last.Digest())
}

// EditablePolicy is LoadPolicy for a verb that changes policy.json. The error is
// ErrSigned for a policy with a root, whose keys must sign every change.
func (s State) EditablePolicy() (Policy, error) {
	p, err := s.LoadPolicy()
	if err != nil {
		return Policy{}, err
	}
	if p.Root != nil {
		return Policy{}, fmt.Errorf("%w (revision %d), and a change needs %d of its root's keys; next: clawfs policy edit --out DRAFT.json, change that, clawfs policy sign, clawfs policy install", ErrSigned, p.Revision, p.Root.Threshold)
	}
	return p, nil
}

// LockPolicy waits until no other process changes the policy, and keeps them
// waiting until unlock is called.
func (s State) LockPolicy() (unlock func(), err error) {
	dir, err := os.Open(string(s))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w %s; next: clawfs init --state %s", ErrNoState, s, s)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", s, err)
	}
	return func() { dir.Close() }, nil
}

// Installation is what InstallPolicy found and did.
type Installation struct {
	Before   *verifier.Policy // nil if it could not be read
	Policy   verifier.SignedPolicy
	Restored bool // Policy was installed before; its files are whole again
}

// InstallPolicy makes the last of the signed policies in data the policy of the
// state directory. By default it must follow from the policy here by the rule of
// verifier.NextPolicies. With first it is taken as it is, because somebody who
// may decide it says so; that is refused where a policy with a root is or was
// installed. The very policy that is or was installed is put back, whoever
// changed its files.
//
// InstallPolicy returns after the policy is on stable storage. After an error of
// the file system or a crash it is the old one or the new one, and installing
// again completes it. An error that is about data is a *verifier.Refusal.
func (s State) InstallPolicy(data []byte, first bool, now time.Time) (Installation, error) {
	unlock, err := s.LockPolicy()
	if err != nil {
		return Installation{}, err
	}
	defer unlock()
	in, err := s.nextPolicy(data, first, now)
	if err != nil {
		return in, err
	}
	return in, s.install(in.Policy)
}

// CheckPolicy is InstallPolicy without installing.
func (s State) CheckPolicy(data []byte, first bool, now time.Time) (Installation, error) {
	return s.nextPolicy(data, first, now)
}

func (s State) nextPolicy(data []byte, first bool, now time.Time) (in Installation, err error) {
	envelopes, err := verifier.SplitPolicies(data)
	if err != nil {
		return in, err
	}
	newest, err := s.newestPolicy()
	if err != nil {
		return in, err
	}
	list, err := s.signedPolicies()
	if err != nil {
		return in, fmt.Errorf("%w; if %s is damaged: move it away, then clawfs policy install the revision that it was", err, s.SignedPolicy())
	}
	var installed verifier.SignedPolicy
	if len(list) > 0 {
		installed = list[len(list)-1]
	}
	here, readErr := s.currentPolicy(installed, newest)
	in.Before = here
	last, err := verifier.OpenPolicy(envelopes[len(envelopes)-1])
	if err != nil {
		return in, err
	}
	known := newest.revision == last.Policy().Revision && newest.digest == last.Digest()
	switch {
	case known, readErr == nil && !installed.IsZero() && installed.Digest() == last.Digest():
		in.Policy, in.Restored = last, true
		return in, nil
	case first && newest.revision > 0:
		return in, &verifier.Refusal{Reason: verifier.ReasonPolicy, Detail: fmt.Sprintf("revision %d of a signed policy was installed here, whose root's keys must sign the next one: leave out --first", newest.revision)}
	case readErr != nil:
		return in, readErr
	case first:
		in.Policy, err = verifier.FirstPolicy(here, last.Envelope(), now)
		return in, err
	}
	in.Policy, err = verifier.NextPolicies(here, envelopes, now)
	return in, err
}

// currentPolicy is the policy whose root signs the next one: that of policy.dsse,
// or where there is none, policy.json's.
func (s State) currentPolicy(installed verifier.SignedPolicy, newest revision) (*verifier.Policy, error) {
	if !installed.IsZero() {
		return installed.Policy(), newest.allows(installed.Policy().Revision, installed.Digest())
	}
	text, err := ReadPublic(s.Policy())
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := verifier.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", s.Policy(), err)
	}
	if newest.revision > 0 {
		if p.Root == nil {
			return p, fmt.Errorf("policy %s: it has no root, and revision %d of a signed policy was installed here: somebody replaced it; next: clawfs policy install FILE, with that very revision", s.Policy(), newest.revision)
		}
		return p, newest.allows(p.Revision, hashpipe.SumBytes(text).Claim())
	}
	return p, nil
}

// install writes the files. While policy.json changes, policy.dsse holds both.
func (s State) install(p verifier.SignedPolicy) error {
	newest, err := s.newestPolicy()
	if err != nil {
		return err
	}
	if err := newest.allows(p.Policy().Revision, p.Digest()); err != nil {
		return err
	}
	list, err := s.signedPolicies()
	if err != nil {
		return err
	}
	text, err := ReadPublic(s.Policy())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	envelope, err := dsse.Merge(p.Envelope()) // on one line
	if err != nil {
		return err
	}
	envelope = append(envelope, '\n')
	both := envelope
	for _, old := range list {
		if bytes.Equal(old.Text(), text) && old.Digest() != p.Digest() {
			line, err := dsse.Merge(old.Envelope())
			if err != nil {
				return err
			}
			both = append(append(line, '\n'), envelope...)
		}
	}
	if len(both) > MaxFile {
		return fmt.Errorf("installing a policy: it and the old one have %d bytes, at most %d are allowed", len(both), MaxFile)
	}
	if err := os.Mkdir(s.Memory(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := durable.Replace(s.SignedPolicy(), both, 0o600); err != nil {
		return err
	}
	if err := durable.Replace(s.Policy(), p.Text(), 0o600); err != nil {
		return err
	}
	if err := s.rememberPolicy(p.Policy().Revision, p.Digest()); err != nil {
		return err
	}
	return durable.Replace(s.SignedPolicy(), envelope, 0o600)
}

// RememberPolicy raises the memory to p, which LoadPolicy returned, so that a
// policy that was put here by other means than InstallPolicy is remembered, too.
func (s State) RememberPolicy(p Policy) error {
	if p.Root == nil {
		return nil
	}
	unlock, err := s.LockPolicy()
	if err != nil {
		return err
	}
	defer unlock()
	newest, err := s.newestPolicy()
	if err != nil || newest.revision >= p.Revision {
		return err
	}
	if err := os.Mkdir(s.Memory(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.rememberPolicy(p.Revision, p.Digest)
}

// revision is the newest signed policy that was installed. Its file holds the
// revision in decimal, a space, and the SHA-256 of the text in hex.
type revision struct {
	revision int64
	digest   hashpipe.Digest
}

// allows refuses an older revision, and another text of the same one.
func (r revision) allows(n int64, digest hashpipe.Digest) error {
	switch {
	case n < r.revision:
		return &verifier.Refusal{Reason: verifier.ReasonRollback, Detail: fmt.Sprintf("revision %d was put back: revision %d was installed here already; next: clawfs policy install FILE, with revision %[2]d or a newer one", n, r.revision)}
	case n == r.revision && digest != r.digest:
		return &verifier.Refusal{Reason: verifier.ReasonRollback, Detail: fmt.Sprintf("another text of revision %d was installed here already (sha256 %s, this one has %s): the root's keys have signed two", n, r.digest, digest)}
	}
	return nil
}

func (s State) newestPolicy() (revision, error) {
	b, err := ReadPublic(s.PolicyMemory())
	if errors.Is(err, fs.ErrNotExist) {
		return revision{}, nil
	}
	if err != nil {
		return revision{}, err
	}
	var r revision
	number, hex, ok := bytes.Cut(bytes.TrimSuffix(b, []byte("\n")), []byte(" "))
	n, err := strconv.ParseInt(string(number), 10, 64)
	if err == nil {
		r.revision = n
		r.digest, err = hashpipe.ParseDigest(string(hex))
	}
	if !ok || err != nil || n < 1 || !bytes.Equal(r.encode(), b) {
		return revision{}, fmt.Errorf(`%s: expected one line "REVISION SHA256", got %.100q; next: write there the revision and the SHA-256 of the newest policy that you know of`, s.PolicyMemory(), b)
	}
	return r, nil
}

func (r revision) encode() []byte { return fmt.Appendf(nil, "%d %s\n", r.revision, r.digest) }

func (s State) rememberPolicy(n int64, digest hashpipe.Digest) error {
	return durable.Replace(s.PolicyMemory(), revision{n, digest}.encode(), 0o600)
}
