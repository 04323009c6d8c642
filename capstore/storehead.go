package capstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// HeadType is the predicate type of a store's head.
const HeadType = "https://github.com/openclaw/clawfs/store-head/v1"

const headSubject = "store-head"

// Head is the newest fact that a store acknowledged. Whoever keeps one elsewhere
// can tell later that the whole state directory was put back, which nothing in it
// shows. The zero Head is of no store.
type Head struct {
	Store    string          `json:"store"`    // the store's id, 32 hex digits
	Sequence uint64          `json:"sequence"` // of the fact, from 1
	Hash     hashpipe.Digest `json:"hash"`     // of the chain up to it
	Newest   time.Time       `json:"newest"`   // when it was acknowledged
}

// IsZero reports whether h is the head of no store.
func (h Head) IsZero() bool { return h == Head{} }

// ReadHead returns the head in the directory memory of a store. A store that has
// acknowledged nothing has no fact to name, which is an error.
func ReadHead(memory string) (Head, error) {
	path := filepath.Join(memory, HeadName)
	id, h, found, err := readHead(memory)
	switch {
	case err != nil:
		return Head{}, err
	case !found:
		return Head{}, fmt.Errorf("%s: expected the head of the store, and there is no such file", path)
	case h.n == 0:
		return Head{}, fmt.Errorf("%s: expected at least one fact, and store %s has acknowledged nothing", path, id)
	}
	return Head{Store: id, Sequence: h.n, Hash: h.hash, Newest: time.Unix(h.at, 0).UTC()}, nil
}

// HeadStatement is the payload of a head that is shown to others: an in-toto
// Statement v1 whose one subject, "store-head", is the hash of the chain. Its text
// depends on the head and the key alone, so that a log has one entry for it.
type HeadStatement struct {
	Type          string         `json:"_type"`
	Subject       []SubjectEntry `json:"subject"` // exactly one
	PredicateType string         `json:"predicateType"`
	Predicate     HeadPredicate  `json:"predicate"`
}

// HeadPredicate says which store it is of.
type HeadPredicate struct {
	Store    string    `json:"store"`
	Sequence uint64    `json:"sequence"`
	Newest   time.Time `json:"newest"`
	Signer   KeyOf     `json:"signer"` // the signing key
}

// SignHead has a head signed.
func SignHead(ctx context.Context, h Head, key dsse.Signer) ([]byte, error) {
	st := HeadStatement{
		Type: statementType, PredicateType: HeadType,
		Subject:   []SubjectEntry{{Name: headSubject, Digest: DigestSet{h.Hash}}},
		Predicate: HeadPredicate{Store: h.Store, Sequence: h.Sequence, Newest: h.Newest, Signer: KeyOf{key.Public().ID()}},
	}
	payload, err := st.Payload()
	if err != nil {
		return nil, err
	}
	return dsse.SignContext(ctx, dsse.PayloadType, payload, key)
}

// Payload checks the statement and returns its only encoding.
func (st HeadStatement) Payload() ([]byte, error) {
	if err := st.check(); err != nil {
		return nil, fmt.Errorf("store head: %w", err)
	}
	b, err := json.Marshal(&st, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding store head: %w", err)
	}
	return b, nil
}

func (st HeadStatement) check() error {
	p := st.Predicate
	id, err := hex.DecodeString(p.Store)
	switch {
	case st.Type != statementType:
		return fmt.Errorf("_type is %.200q, want %q", st.Type, statementType)
	case st.PredicateType != HeadType:
		return fmt.Errorf("predicateType is %.200q, want %q", st.PredicateType, HeadType)
	case len(st.Subject) != 1 || st.Subject[0].Name != headSubject:
		return fmt.Errorf("want exactly one subject, %q", headSubject)
	case st.Subject[0].Digest.SHA256.IsZero():
		return fmt.Errorf("subject has no sha256")
	case err != nil || hex.EncodeToString(id) != p.Store || len(id) != len(rowKey{}.id):
		return fmt.Errorf("store is %.100q, want %d lower-case hex digits", p.Store, 2*len(rowKey{}.id))
	case p.Sequence < 1 || p.Sequence > maxInteger:
		return fmt.Errorf("sequence %d is outside 1 to %d", p.Sequence, int64(maxInteger))
	}
	if err := checkTime("newest", p.Newest); err != nil {
		return err
	}
	return checkKeyID("signer.keyid", p.Signer.KeyID)
}

// UnverifiedHead reads the payload of a head, and accepts exactly what Payload
// prints. Who signed it is not checked.
func UnverifiedHead(payload []byte) (Head, dsse.KeyID, error) {
	if err := checkType(payload, HeadType); err != nil {
		return Head{}, "", fmt.Errorf("store head: %w", err)
	}
	var st HeadStatement
	if err := json.Unmarshal(payload, &st, json.RejectUnknownMembers(true)); err != nil {
		return Head{}, "", fmt.Errorf("store head: %w", dsse.JSONError(err))
	}
	again, err := st.Payload()
	if err != nil {
		return Head{}, "", err
	}
	if !bytes.Equal(again, payload) {
		return Head{}, "", fmt.Errorf("store head: not in its canonical encoding: %s", firstDifference(payload, again))
	}
	p := st.Predicate
	return Head{Store: p.Store, Sequence: p.Sequence, Hash: st.Subject[0].Digest.SHA256, Newest: p.Newest}, p.Signer.KeyID, nil
}

// VerifyHead returns the head that a mint or a revoker of t signed, and that key.
func VerifyHead(t Trust, envelope []byte) (Head, dsse.PublicKey, error) {
	var all []Signer
	for _, s := range slices.Concat(t.Mints, t.Revokers) {
		if !slices.ContainsFunc(all, func(o Signer) bool { return o.Key.ID() == s.Key.ID() }) {
			all = append(all, s) // a key may have both roles
		}
	}
	r, err := newRole("mint or revoker", all)
	if err != nil {
		return Head{}, dsse.PublicKey{}, err
	}
	payload, signers, err := r.open(envelope)
	if err != nil {
		return Head{}, dsse.PublicKey{}, fmt.Errorf("store head: %w", err)
	}
	h, by, err := UnverifiedHead(payload)
	if err != nil {
		return Head{}, dsse.PublicKey{}, err
	}
	for _, k := range signers {
		if k.ID() == by {
			return h, k, nil
		}
	}
	return Head{}, dsse.PublicKey{}, fmt.Errorf("store head: %w: signer.keyid is %s, and the signature is by %s", dsse.ErrUnverified, by, signers[0].ID())
}

// expect is the comparison of a chain with a head that stands elsewhere.
type expect struct {
	head Head
	met  bool
	at   hashpipe.Digest // what the chain has at that number; zero: it does not reach it
}

func (e *expect) pass(h head) {
	if h.n == e.head.Sequence {
		e.at, e.met = h.hash, h.hash == e.head.Hash
	}
}

// finding says why the store whose id is store, with a chain of facts, does not
// contain the head.
func (e *expect) finding(store string, facts uint64) Finding {
	h := e.head
	what := fmt.Sprintf("expected fact %d of store %s, of %s", h.Sequence, h.Store, h.Newest.Format(time.RFC3339))
	switch {
	case store != h.Store:
		what += fmt.Sprintf(", and this is store %s: it was made anew, or is another machine's; next, if clawfs store rebuild or restore was run since: clawfs store head --out FILE, which is the head from now on; else: clawfs store rebuild --from kept --from store --from log, and clawfs pull", store)
	case e.at.IsZero():
		what += fmt.Sprintf(", and the chain ends at fact %d: THE STATE DIRECTORY IS OLDER THAN THE HEAD; next: put back the newer copy, or clawfs store rebuild --from kept --from store --from log, and clawfs pull", facts)
	default:
		what += fmt.Sprintf(" with hash %s, got hash %s: THE STORE WAS PUT BACK to an older copy and went on from there; next: clawfs store rebuild --from kept --from store --from log, and clawfs pull", h.Hash, e.at)
	}
	return Finding{Where: headSubject, What: what}
}
