package capstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// A delegated capability is a text of several envelopes, one a line: that of the
// mint, and then for each delegation a capability that names its parent by the
// SHA-256 of its payload and is signed by a key that the parent's "delegate"
// lists. Whoever derived it wrote only its parent, minter, restrict, delegate and
// dates; all else is equal to the parent's. What it permits is what every link
// permits, so nobody has to compare two links to see that the later one is
// narrower.

// MaxDelegations is how many links may follow what the mint signed.
const MaxDelegations = 4

// splitChain returns the envelopes of a capability's text, the mint's first. The
// envelope of a mint may itself be written on several lines.
func splitChain(text []byte) ([][]byte, error) {
	first, rest, several := bytes.Cut(text, []byte("\n"))
	if _, err := dsse.Parse(first); !several || err != nil || len(bytes.TrimSpace(rest)) == 0 {
		return [][]byte{text}, nil
	}
	links := [][]byte{first}
	for line := range bytes.SplitSeq(bytes.TrimSuffix(rest, []byte("\n")), []byte("\n")) {
		if len(links) > MaxDelegations {
			return nil, fmt.Errorf("capability: more than %d delegations", MaxDelegations)
		}
		links = append(links, line)
	}
	return links, nil
}

// readLink checks a derived capability against the one before it.
func readLink(parent Statement, parentID hashpipe.Digest, envelope []byte) (Statement, hashpipe.Digest, error) {
	fail := func(format string, args ...any) (Statement, hashpipe.Digest, error) {
		return Statement{}, hashpipe.Digest{}, fmt.Errorf(format, args...)
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		return Statement{}, hashpipe.Digest{}, err
	}
	// The key stands in the text that it signs: it is read before, and believed
	// only because the parent names it.
	st, err := parseStatement(e.UnverifiedPayload())
	if err != nil {
		return Statement{}, hashpipe.Digest{}, err
	}
	p := st.Predicate
	switch {
	case p.Parent == nil:
		return fail("it names no parent")
	case p.Parent.Digest.SHA256 != parentID:
		return fail("its parent is %s, and %s stands before it", p.Parent.Digest.SHA256, parentID)
	case !slices.Contains(parent.Predicate.Delegate, p.Minter.KeyID):
		return fail("%w: key %s may not derive from %s, which names %d keys that may", dsse.ErrUnverified, p.Minter.KeyID, parentID, len(parent.Predicate.Delegate))
	}
	payload, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{p.Minter.PublicKey}, 1)
	if err != nil {
		return Statement{}, hashpipe.Digest{}, err
	}
	same := st
	same.Predicate.Parent, same.Predicate.Minter = parent.Predicate.Parent, parent.Predicate.Minter
	same.Predicate.Restrict, same.Predicate.Delegate = parent.Predicate.Restrict, parent.Predicate.Delegate
	same.Predicate.NotBefore, same.Predicate.NotAfter = parent.Predicate.NotBefore, parent.Predicate.NotAfter
	got, err := same.Payload()
	if err != nil {
		return Statement{}, hashpipe.Digest{}, err
	}
	want, err := parent.Payload()
	if err != nil {
		return Statement{}, hashpipe.Digest{}, err
	}
	if !bytes.Equal(got, want) {
		return fail("it is not of the parent's result: %s", firstDifference(got, want))
	}
	return st, hashpipe.SumBytes(payload).Claim(), nil
}

// checkParent holds for a capability of a mint, and for a derived one.
func (p Predicate) checkParent() error {
	switch {
	case p.Parent == nil && !p.Minter.PublicKey.IsZero():
		return errors.New("minter.publicKey belongs to a derived capability: that of a mint is pinned")
	case p.Parent == nil:
		return nil
	case p.Parent.Digest.SHA256.IsZero():
		return errors.New("parent digest is missing")
	case p.Minter.PublicKey.IsZero():
		return errors.New("minter.publicKey is missing: a derived capability carries it")
	case p.Minter.PublicKey.ID() != p.Minter.KeyID:
		return fmt.Errorf("minter.publicKey hashes to %s, and minter.keyid is %q", p.Minter.PublicKey.ID(), p.Minter.KeyID)
	}
	return nil
}

// Delegation says how much of a capability is handed on. Both times are cut to
// whole seconds of UTC.
type Delegation struct {
	NotBefore, NotAfter time.Time
	Restrict            *Restrict
	Delegate            []dsse.KeyID // who may hand it on further; nil: nobody
}

// ErrNotDelegable is in the error of Delegate for a capability that may not be
// handed on with that key, or no further.
var ErrNotDelegable = errors.New("it may not be handed on")

// Delegate is DelegateContext for a key that lies in this process.
func Delegate(text []byte, d Delegation, key dsse.PrivateKey) ([]byte, error) {
	return DelegateContext(context.Background(), text, d, key)
}

// DelegateContext derives a narrower capability from text, which is one, and
// returns the text of the new one. key is one that the last link of text names:
// it is asked for a signature only then. The mint's signature is not checked here,
// because whoever delegates need not pin the mint: a reader checks all of it. An
// error has ErrNotDelegable, or is about text or d, or is the signer's, with
// dsse.ErrWrongSignature if what it answered is no signature of key.
func DelegateContext(ctx context.Context, text []byte, d Delegation, key dsse.Signer) ([]byte, error) {
	derived, err := derive(ctx, text, d, key)
	if err != nil {
		return nil, fmt.Errorf("delegating: %w", err)
	}
	return derived, nil
}

func derive(ctx context.Context, text []byte, d Delegation, key dsse.Signer) ([]byte, error) {
	chain, links, err := unverifiedChain(text)
	if err != nil {
		return nil, err
	}
	if len(links) > MaxDelegations {
		return nil, fmt.Errorf("%w: it was handed on %d times already, which is the most", ErrNotDelegable, MaxDelegations)
	}
	parent, id := chain[len(chain)-1].Statement, chain[len(chain)-1].ID
	own := key.Public()
	if !slices.Contains(parent.Predicate.Delegate, own.ID()) {
		return nil, fmt.Errorf("%w: capability %s does not name the key %s as one that may; it names %q", ErrNotDelegable, id, own.ID(), parent.Predicate.Delegate)
	}
	st := parent
	st.Predicate.Parent = &Reference{DigestSet{id}}
	st.Predicate.Minter = Minter{own.ID(), own}
	st.Predicate.Restrict = d.Restrict
	st.Predicate.Delegate = d.Delegate
	st.Predicate.NotBefore = d.NotBefore.UTC().Truncate(time.Second)
	st.Predicate.NotAfter = d.NotAfter.UTC().Truncate(time.Second)
	payload, err := st.Payload()
	if err != nil {
		return nil, err
	}
	envelope, err := dsse.SignContext(ctx, dsse.PayloadType, payload, key)
	if err != nil {
		return nil, err
	}
	// What stands before a line break has to be one envelope: the mint's may have
	// been written on several lines.
	var out []byte
	for _, link := range append(links, envelope) {
		line, err := oneLine(link)
		if err != nil {
			return nil, err
		}
		out = append(append(out, line...), '\n')
	}
	if len(out) > MaxRecord {
		return nil, fmt.Errorf("the capability would have %d bytes: at most %d are stored", len(out), MaxRecord)
	}
	return out, nil
}

// UnverifiedLink is what one link of a capability's text says.
type UnverifiedLink struct {
	ID        hashpipe.Digest // SHA-256 of the payload
	Statement Statement
}

// UnverifiedChain reads a capability's text for somebody who need not pin its
// mint: the first link is what the text says that a mint signed, which nobody
// checked; each later one is signed by a key that the one before it names. It
// grants nothing.
func UnverifiedChain(text []byte) ([]UnverifiedLink, error) {
	chain, _, err := unverifiedChain(text)
	if err != nil {
		return nil, fmt.Errorf("reading a capability: %w", err)
	}
	return chain, nil
}

func unverifiedChain(text []byte) (chain []UnverifiedLink, links [][]byte, err error) {
	if len(text) > MaxRecord {
		return nil, nil, fmt.Errorf("capability of %d bytes: at most %d are stored", len(text), MaxRecord)
	}
	if links, err = splitChain(text); err != nil {
		return nil, nil, err
	}
	e, err := dsse.Parse(links[0])
	if err != nil {
		return nil, nil, err
	}
	st, err := parseStatement(e.UnverifiedPayload())
	if err != nil {
		return nil, nil, err
	}
	if st.Predicate.Parent != nil {
		return nil, nil, fmt.Errorf("capability: it is derived from %s, which has to stand before it", st.Predicate.Parent.Digest.SHA256)
	}
	id := hashpipe.SumBytes(e.UnverifiedPayload()).Claim()
	chain = append(chain, UnverifiedLink{id, st})
	for i, link := range links[1:] {
		if st, id, err = readLink(st, id, link); err != nil {
			return nil, nil, fmt.Errorf("link %d: %w", i+1, err)
		}
		chain = append(chain, UnverifiedLink{id, st})
	}
	return chain, links, nil
}

// result is the identity of what was measured: the claim, the platform class, and
// size and fs-verity digest of each output.
func (st Statement) result() hashpipe.Digest {
	p := st.Predicate
	b := netstring(nil, "clawfs-result/v1")
	b = netstring(b, p.Claim.String())
	b = p.Platform.class(b)
	for _, s := range st.subjects() {
		b = netstring(b, strconv.FormatInt(s.Size, 10))
		b = netstring(b, s.Verity.String())
	}
	return hashpipe.SumBytes(b).Claim()
}

// class appends the platform class: two machines are of one class if the ledger
// says the same of both.
func (p Platform) class(b []byte) []byte {
	for _, s := range append([]string{p.OS, p.Arch, p.CPUDispatch, p.Accelerator}, slices.Sorted(slices.Values(p.CPUFeatures))...) {
		b = netstring(b, s)
	}
	return b
}

func oneLine(envelope []byte) ([]byte, error) {
	v := jsontext.Value(slices.Clone(envelope))
	if err := v.Compact(); err != nil {
		return nil, err
	}
	return v, nil
}
