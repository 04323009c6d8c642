package verifier

import (
	"bytes"
	"context"
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

// RotationType is the predicate type of a key rotation.
const RotationType = "https://github.com/openclaw/clawfs/key-rotation/v1"

// Role is the part of a policy in which a key is replaced.
type Role string

// The roles of a rotation.
const (
	RolePublisher Role = "publisher"
	RoleMint      Role = "mint"
	RoleRevoker   Role = "revoker"
)

// Roles are all of them.
var Roles = []Role{RolePublisher, RoleMint, RoleRevoker}

// maxReason bounds the reason of a rotation in bytes.
const maxReason = 1024

// RotationStatement says that one key takes another's place: an in-toto
// Statement v1 whose one subject is the old key, by its key id. It is only a
// text in Go's shape; a Rotation is one that both keys signed.
type RotationStatement struct {
	Type          string            `json:"_type"`
	Subject       []RotatedKey      `json:"subject"` // exactly one
	PredicateType string            `json:"predicateType"`
	Predicate     RotationPredicate `json:"predicate"`
}

// RotatedKey holds a key id as in-toto's digest set: it is the SHA-256 of the
// key's SPKI.
type RotatedKey struct {
	Digest DigestSet `json:"digest"` // sha256 alone
}

// RotationPredicate says which key takes which key's place, and where.
type RotationPredicate struct {
	Role      Role     `json:"role"`
	Name      string   `json:"name"` // of the publisher's rule, or of the operator
	Old       NamedKey `json:"old"`
	New       NamedKey `json:"new"`
	NotBefore Time     `json:"notBefore"` // from when the new key counts; not before IssuedAt
	Reason    string   `json:"reason"`    // one line, for people
	IssuedAt  Time     `json:"issuedAt"`
}

// NamedKey is a key beside its id.
type NamedKey struct {
	KeyID     dsse.KeyID     `json:"keyid"`
	PublicKey dsse.PublicKey `json:"publicKey"`
}

// Rotation is a rotation record that both keys signed: the old one authorises
// it, the new one shows that somebody holds it. Only ParseRotation makes one.
// Whether the old key may speak is for a policy to say (AdoptRotation).
type Rotation struct {
	predicate RotationPredicate
	digest    hashpipe.Digest
}

// Predicate returns what the record says.
func (r Rotation) Predicate() RotationPredicate { return r.predicate }

// Digest returns the record's identity: the SHA-256 of its payload.
func (r Rotation) Digest() hashpipe.Digest { return r.digest }

// NewRotation lays out a rotation for SignRotation. Times are cut to seconds.
func NewRotation(role Role, name string, old, fresh dsse.PublicKey, notBefore time.Time, reason string, issuedAt time.Time) (RotationStatement, error) {
	id, err := hashpipe.ParseDigest(string(old.ID()))
	if err != nil {
		return RotationStatement{}, fmt.Errorf("rotation: old key: %w", err)
	}
	st := RotationStatement{
		Type:          StatementType,
		Subject:       []RotatedKey{{DigestSet{SHA256: id}}},
		PredicateType: RotationType,
		Predicate: RotationPredicate{
			Role: role, Name: name, Old: NamedKey{old.ID(), old}, New: NamedKey{fresh.ID(), fresh},
			NotBefore: At(notBefore), Reason: reason, IssuedAt: At(issuedAt),
		},
	}
	if err := st.check(); err != nil {
		return RotationStatement{}, fmt.Errorf("rotation: %w", err)
	}
	return st, nil
}

// SignRotation has both keys of st sign it and returns the envelope. It refuses
// signers that hold other keys than the statement names.
func SignRotation(ctx context.Context, st RotationStatement, old, fresh dsse.Signer) ([]byte, error) {
	payload, err := st.Payload()
	if err != nil {
		return nil, err
	}
	if old.Public() != st.Predicate.Old.PublicKey || fresh.Public() != st.Predicate.New.PublicKey {
		return nil, errors.New("rotation: the signers are not the keys that it names")
	}
	return dsse.SignContext(ctx, dsse.PayloadType, payload, old, fresh)
}

// ParseRotation reads a record and verifies both signatures with the keys that
// it names itself. Every error is a *Refusal.
func ParseRotation(envelope []byte) (Rotation, error) {
	e, err := dsse.Parse(envelope)
	if err != nil {
		return Rotation{}, refuse(ReasonMalformed, "rotation: %v", err)
	}
	unverified, err := ParseRotationStatement(e.UnverifiedPayload())
	if err != nil {
		return Rotation{}, err
	}
	keys := []dsse.PublicKey{unverified.Predicate.Old.PublicKey, unverified.Predicate.New.PublicKey}
	payload, _, err := e.Verify(dsse.PayloadType, keys, len(keys))
	if errors.Is(err, dsse.ErrUnverified) {
		return Rotation{}, refuse(ReasonSignature, "rotation: %v; both the old and the new key have to sign", err)
	}
	if err != nil {
		return Rotation{}, refuse(ReasonMalformed, "rotation: %v", err)
	}
	st, err := ParseRotationStatement(payload)
	if err != nil {
		return Rotation{}, err
	}
	return Rotation{st.Predicate, hashpipe.SumBytes(payload).Claim()}, nil
}

// ParseRotationStatement accepts exactly what Payload prints. The error is a
// *Refusal of ReasonMalformed.
func ParseRotationStatement(payload []byte) (RotationStatement, error) {
	var st RotationStatement
	if err := decodeStrict(payload, &st); err != nil {
		return RotationStatement{}, refuse(ReasonMalformed, "rotation: %v", err)
	}
	again, err := st.Payload()
	if err != nil {
		return RotationStatement{}, refuse(ReasonMalformed, "%v", err)
	}
	if !bytes.Equal(again, payload) {
		return RotationStatement{}, refuse(ReasonMalformed, "rotation: expected its one text, without spaces and in the usual order of fields")
	}
	return st, nil
}

// Payload checks the statement and returns its only encoding.
func (st RotationStatement) Payload() ([]byte, error) {
	if err := st.check(); err != nil {
		return nil, fmt.Errorf("rotation: %w", err)
	}
	data, err := json.Marshal(&st, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("rotation: %w", dsse.JSONError(err))
	}
	return data, nil
}

func (st RotationStatement) check() error {
	p := st.Predicate
	switch {
	case st.Type != StatementType:
		return fmt.Errorf("_type: expected %q, got %q", StatementType, clip(st.Type))
	case st.PredicateType != RotationType:
		return fmt.Errorf("predicateType: expected %q, got %q", RotationType, clip(st.PredicateType))
	case !slices.Contains(Roles, p.Role):
		return fmt.Errorf("role: expected one of %q, got %q", Roles, clip(string(p.Role)))
	}
	if err := checkParty(p.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	for _, k := range []struct {
		what string
		key  NamedKey
	}{{"old", p.Old}, {"new", p.New}} {
		if k.key.PublicKey.IsZero() || k.key.PublicKey.ID() != k.key.KeyID {
			return fmt.Errorf("%s: expected a publicKey and its keyid, got keyid %q", k.what, clip(string(k.key.KeyID)))
		}
	}
	if p.Old.PublicKey == p.New.PublicKey {
		return errors.New("the old key and the new key are the same")
	}
	if len(st.Subject) != 1 {
		return fmt.Errorf("subject: expected exactly the old key, got %d subjects", len(st.Subject))
	}
	if d := st.Subject[0].Digest; d != (DigestSet{SHA256: d.SHA256}) || d.SHA256.String() != string(p.Old.KeyID) {
		return errors.New("subject: expected the old key's id as the digest sha256 alone")
	}
	if p.NotBefore.IsZero() || p.IssuedAt.IsZero() {
		return errors.New("notBefore or issuedAt is missing")
	}
	if p.NotBefore.Time().Before(p.IssuedAt.Time()) {
		return fmt.Errorf("notBefore: expected %s (issuedAt) or later, got %s", p.IssuedAt, p.NotBefore)
	}
	return checkReason(p.Reason)
}

// checkReason wants one line that can be shown.
func checkReason(s string) error {
	if s == "" || len(s) > maxReason || !utf8.ValidString(s) || strings.TrimSpace(s) != s ||
		strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("reason: expected one printable line of 1 to %d bytes, got %q", maxReason, clip(s))
	}
	return nil
}

// AdoptRotation returns a copy of p in which the new key of r stands beside the
// old one, judged at the moment now. Every error about r is a *Refusal:
//
//   - the old key is not a key of that role and name, or is outside its window:
//     it authorises nothing (ReasonSigner);
//   - the record is from the future (ReasonTime);
//   - the new key is in the role already, or p cannot hold it (ReasonPolicy).
//
// Of a publisher the new key counts from r's notBefore on, and the old one no
// longer retireAfter after that (after now, if that is later), or at the end that
// its window has already. A rule whose threshold is above 1 admits no overlap: its
// one holder would have two of the keys that must be different, so that
// retireAfter has to be 0.
//
// For mints and revokers retireAfter is without meaning. The old key stays,
// because what it signed would end with it, and a record whose notBefore is in
// the future is refused until then (ReasonTime).
func (p *Policy) AdoptRotation(r Rotation, retireAfter time.Duration, now time.Time) (*Policy, error) {
	q := r.predicate
	switch {
	case q.New.PublicKey.IsZero():
		return nil, refuse(ReasonMalformed, "rotation: it is empty")
	case retireAfter < 0:
		return nil, fmt.Errorf("rotation: expected to retire the old key after 0 or more, got %s", retireAfter)
	case q.IssuedAt.Time().After(now.Add(maxSkew)):
		return nil, refuse(ReasonTime, "rotation: it says it was issued at %s, and here it is %s; one of the clocks is wrong", q.IssuedAt, now.UTC().Format(timeLayout))
	}
	return p.edit(func(c *Policy) error {
		if q.Role == RolePublisher {
			return c.rotatePublisher(q, retireAfter, now)
		}
		return c.rotateOperator(q, now)
	})
}

func (p *Policy) rotatePublisher(q RotationPredicate, retireAfter time.Duration, now time.Time) error {
	i, err := p.publisher(q.Name)
	if err != nil {
		return refuse(ReasonSigner, "rotation: %v", err)
	}
	rule := &p.Publishers[i]
	if err := checkRotated(q, "publisher", rule.Keys); err != nil {
		return err
	}
	window := rule.Windows[q.Old.KeyID]
	if err := window.at(q.Old.KeyID, now); err != nil {
		return refuse(ReasonSigner, "rotation of publisher %s: %v", q.Name, err)
	}
	if rule.Threshold > 1 && retireAfter > 0 {
		return refuse(ReasonPolicy, "rotation of publisher %s: %d different keys must sign, and while the old and the new key both count one holder has two of them; next: clawfs key adopt --retire-after 0",
			q.Name, rule.Threshold)
	}
	if rule.Windows == nil {
		rule.Windows = make(map[dsse.KeyID]Window)
	}
	start := q.NotBefore
	if start.Time().After(now) {
		rule.Windows[q.New.KeyID] = Window{NotBefore: start}
	} else {
		start = At(now)
	}
	if end := At(start.Time().Add(retireAfter)); window.NotAfter.IsZero() || end.Time().Before(window.NotAfter.Time()) {
		window.NotAfter = end
	}
	rule.Windows[q.Old.KeyID] = window
	rule.Keys = append(rule.Keys, q.New.PublicKey)
	return nil
}

func (p *Policy) rotateOperator(q RotationPredicate, now time.Time) error {
	operators := p.Mints
	if q.Role == RoleRevoker {
		operators = p.Revokers
	}
	i := slices.IndexFunc(operators, func(o Operator) bool { return o.Operator == q.Name })
	if i < 0 {
		return refuse(ReasonSigner, "rotation: policy: there is no %s %q", q.Role, clip(q.Name))
	}
	if err := checkRotated(q, string(q.Role), operators[i].Keys); err != nil {
		return err
	}
	if q.NotBefore.Time().After(now) {
		return refuse(ReasonTime, "rotation of %s %s: the new key counts from %s, and now is %s; adopt it then", q.Role, q.Name, q.NotBefore, now.UTC().Format(timeLayout))
	}
	operators[i].Keys = append(operators[i].Keys, q.New.PublicKey)
	return nil
}

func checkRotated(q RotationPredicate, what string, keys []dsse.PublicKey) error {
	switch {
	case !slices.Contains(keys, q.Old.PublicKey):
		return refuse(ReasonSigner, "rotation: key %s is not a key of %s %s, so it hands nothing on", q.Old.KeyID, what, q.Name)
	case slices.Contains(keys, q.New.PublicKey):
		return refuse(ReasonPolicy, "rotation: key %s is a key of %s %s already", q.New.KeyID, what, q.Name)
	}
	return nil
}
