package capstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// ListType is the predicate type of a revocation list.
const ListType = "https://github.com/openclaw/clawfs/revocation-list/v1"

const (
	listSubject = "revocations"
	maxEntries  = 2000 // of one list; they fit into MaxRecord with reasons of 100 bytes
)

// ErrOldList: a list with this sequence number, or a later one, is in force already.
var ErrOldList = errors.New("revocation list is not newer than the one in force")

// A revocation list says that at a time nothing else was taken back than what it
// names and what earlier lists named. Single revocations say nothing of what was
// withheld; a machine whose policy asks for a list no older than a day notices
// within that day that it is cut off.

// ListStatement is the payload of a revocation list: an in-toto Statement v1 whose
// one subject, "revocations", is the SHA-256 over the netstrings of
// "clawfs-revocation-list/v1", the sequence, and for each entry kind, target,
// reason and issuedAt.
type ListStatement struct {
	Type          string         `json:"_type"`
	Subject       []SubjectEntry `json:"subject"` // exactly one
	PredicateType string         `json:"predicateType"`
	Predicate     ListPredicate  `json:"predicate"`
}

// ListPredicate is the list.
type ListPredicate struct {
	Sequence   int64       `json:"sequence"` // from 1; the highest is in force
	IssuedAt   time.Time   `json:"issuedAt"`
	ValidUntil time.Time   `json:"validUntil"` // first instant at which it says nothing any more
	Revoker    KeyOf       `json:"revoker"`    // the signing key; SignList fills it in
	Revoked    []ListEntry `json:"revoked,omitzero"`
}

// ListEntry is one thing that is taken back.
type ListEntry struct {
	Kind     Kind            `json:"kind"`
	Target   hashpipe.Digest `json:"target"` // what the kind asks for
	Reason   string          `json:"reason"`
	IssuedAt time.Time       `json:"issuedAt"`
}

// EntryOf is a single revocation as an entry of a list.
func EntryOf(r Revocation) ListEntry {
	if r.IsZero() {
		return ListEntry{}
	}
	return ListEntry{Kind: r.Kind(), Target: r.target(), Reason: r.Reason(), IssuedAt: r.IssuedAt()}
}

// NewList lays out a list for SignList. Entries may come in any order; the same
// entry twice is one. The times are cut to whole seconds of UTC.
func NewList(sequence int64, issuedAt, validUntil time.Time, entries []ListEntry) (ListStatement, error) {
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, compareEntries)
	sorted = slices.CompactFunc(sorted, func(a, b ListEntry) bool { return a.Kind == b.Kind && a.Target == b.Target })
	st := ListStatement{
		Type: statementType, PredicateType: ListType,
		Predicate: ListPredicate{
			Sequence: sequence, Revoked: sorted,
			IssuedAt: issuedAt.UTC().Truncate(time.Second), ValidUntil: validUntil.UTC().Truncate(time.Second),
		},
	}
	if len(sorted) == 0 {
		st.Predicate.Revoked = nil
	}
	st.Subject = []SubjectEntry{{Name: listSubject, Digest: DigestSet{st.Predicate.digest()}}}
	if err := st.check(); err != nil {
		return ListStatement{}, fmt.Errorf("revocation list: %w", err)
	}
	return st, nil
}

func compareEntries(a, b ListEntry) int {
	if c := strings.Compare(string(a.Kind), string(b.Kind)); c != 0 {
		return c
	}
	if c := strings.Compare(a.Target.String(), b.Target.String()); c != 0 {
		return c
	}
	return a.IssuedAt.Compare(b.IssuedAt)
}

func (p ListPredicate) digest() hashpipe.Digest {
	b := netstring(nil, "clawfs-revocation-list/v1")
	b = netstring(b, strconv.FormatInt(p.Sequence, 10))
	for _, e := range p.Revoked {
		b = netstring(b, string(e.Kind))
		b = netstring(b, e.Target.String())
		b = netstring(b, e.Reason)
		b = netstring(b, e.IssuedAt.UTC().Format(time.RFC3339))
	}
	return hashpipe.SumBytes(b).Claim()
}

// SignList is SignListContext for a key that lies in this process.
func SignList(st ListStatement, key dsse.PrivateKey) ([]byte, error) {
	return SignListContext(context.Background(), st, key)
}

// SignListContext names the signer's key as the revoker, checks the statement and
// has it signed.
func SignListContext(ctx context.Context, st ListStatement, key dsse.Signer) ([]byte, error) {
	st.Predicate.Revoker.KeyID = key.Public().ID()
	payload, err := st.Payload()
	if err != nil {
		return nil, err
	}
	envelope, err := dsse.SignContext(ctx, dsse.PayloadType, payload, key)
	if err == nil && len(envelope) > MaxRecord {
		return nil, fmt.Errorf("revocation list of %d bytes: at most %d are stored; shorten the reasons", len(envelope), MaxRecord)
	}
	return envelope, err
}

// Payload checks the statement and returns its only encoding.
func (st ListStatement) Payload() ([]byte, error) {
	if err := st.check(); err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	if err := checkKeyID("revoker.keyid", st.Predicate.Revoker.KeyID); err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	b, err := json.Marshal(&st, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding revocation list: %w", err)
	}
	return b, nil
}

func (st ListStatement) check() error {
	p := st.Predicate
	switch {
	case st.Type != statementType:
		return fmt.Errorf("_type is %q, want %q", st.Type, statementType)
	case st.PredicateType != ListType:
		return fmt.Errorf("predicateType is %q, want %q", st.PredicateType, ListType)
	case len(st.Subject) != 1 || st.Subject[0].Name != listSubject:
		return fmt.Errorf("%d subjects, want exactly one of the name %q", len(st.Subject), listSubject)
	case p.Sequence < 1 || p.Sequence > maxInteger:
		return fmt.Errorf("sequence %d is outside 1 to %d", p.Sequence, int64(maxInteger))
	case p.Revoked != nil && len(p.Revoked) == 0:
		return errors.New("revoked is empty: leave it out")
	case len(p.Revoked) > maxEntries:
		return fmt.Errorf("%d entries: at most %d", len(p.Revoked), maxEntries)
	}
	for _, t := range []struct {
		what string
		at   time.Time
	}{{"issuedAt", p.IssuedAt}, {"validUntil", p.ValidUntil}} {
		if err := checkTime(t.what, t.at); err != nil {
			return err
		}
	}
	if !p.IssuedAt.Before(p.ValidUntil) {
		return fmt.Errorf("issuedAt %s is not before validUntil %s", p.IssuedAt.Format(time.RFC3339), p.ValidUntil.Format(time.RFC3339))
	}
	for i, e := range p.Revoked {
		if !slices.Contains(kinds, e.Kind) {
			return fmt.Errorf("entry %d: kind is %q, want one of %q", i+1, e.Kind, kinds)
		}
		if e.Target.IsZero() {
			return fmt.Errorf("entry %d has no target", i+1)
		}
		if err := checkText("reason", e.Reason, 1024); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
		if err := checkTime("issuedAt", e.IssuedAt); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
		if i > 0 {
			if b := p.Revoked[i-1]; compareEntries(b, e) >= 0 || b.Kind == e.Kind && b.Target == e.Target {
				return fmt.Errorf("entry %d: %s %s follows %s %s: entries are unique and sorted", i+1, e.Kind, e.Target, b.Kind, b.Target)
			}
		}
	}
	if got, want := st.Subject[0].Digest.SHA256, p.digest(); got != want {
		return fmt.Errorf("subject is %s, and these entries make %s", got, want)
	}
	return nil
}

// parseList reads a verified payload. It accepts exactly what Payload prints.
func parseList(payload []byte) (ListStatement, error) {
	if err := checkType(payload, ListType); err != nil {
		return ListStatement{}, fmt.Errorf("revocation list: %w", err)
	}
	var st ListStatement
	if err := json.Unmarshal(payload, &st, json.RejectUnknownMembers(true)); err != nil {
		return ListStatement{}, fmt.Errorf("revocation list: %w", dsse.JSONError(err))
	}
	again, err := st.Payload()
	if err != nil {
		return ListStatement{}, err
	}
	if !bytes.Equal(again, payload) {
		return ListStatement{}, fmt.Errorf("revocation list: not in its canonical encoding: %s", firstDifference(payload, again))
	}
	return st, nil
}

// List is a revocation list whose signature by a pinned revoker was checked here.
// The zero List is none.
type List struct{ rec *list }

// list is immutable once published.
type list struct {
	id       hashpipe.Digest
	st       ListStatement
	entries  []Revocation
	named    map[target]bool // by entries
	operator string
	envelope []byte
}

func readList(revokers role, envelope []byte) (List, error) {
	payload, signers, err := revokers.open(envelope)
	if err != nil {
		return List{}, err
	}
	st, err := parseList(payload)
	if err != nil {
		return List{}, err
	}
	by := st.Predicate.Revoker.KeyID
	if !signed(by, signers) {
		return List{}, fmt.Errorf("revocation list: %w: revoker.keyid is %s, and the signature is by %s", dsse.ErrUnverified, by, signers[0].ID())
	}
	l := &list{
		id: hashpipe.SumBytes(payload).Claim(), st: st,
		operator: revokers.operator[by], envelope: slices.Clone(envelope),
	}
	for _, e := range st.Predicate.Revoked {
		single, err := NewRevocation(e.Kind, e.Target.String(), e.Reason, e.IssuedAt)
		if err != nil {
			return List{}, err
		}
		single.Predicate.Revoker.KeyID = by
		text, err := single.Payload()
		if err != nil {
			return List{}, err
		}
		l.entries = append(l.entries, Revocation{&revocation{
			id: hashpipe.SumBytes(text).Claim(), st: single, operator: l.operator, envelope: l.envelope,
		}})
	}
	l.named = named(l.entries)
	return List{l}, nil
}

func named(entries []Revocation) map[target]bool {
	m := make(map[target]bool, len(entries))
	for _, r := range entries {
		m[target{r.Kind(), r.target()}] = true
	}
	return m
}

// IsZero reports whether l is no list at all.
func (l List) IsZero() bool { return l.rec == nil }

func (l List) predicate() ListPredicate {
	if l.rec == nil {
		return ListPredicate{}
	}
	return l.rec.st.Predicate
}

// ID is the SHA-256 of the signed payload.
func (l List) ID() hashpipe.Digest {
	if l.rec == nil {
		return hashpipe.Digest{}
	}
	return l.rec.id
}

// Sequence numbers the lists; the highest is in force.
func (l List) Sequence() int64 { return l.predicate().Sequence }

// IssuedAt is when the revoker says it was written.
func (l List) IssuedAt() time.Time { return l.predicate().IssuedAt }

// ValidUntil is the first instant at which it says nothing any more.
func (l List) ValidUntil() time.Time { return l.predicate().ValidUntil }

// Revoker is the key id that signed it.
func (l List) Revoker() dsse.KeyID { return l.predicate().Revoker.KeyID }

// Operator is whose revoker key signed it, as pinned in the Trust of the reader.
func (l List) Operator() string {
	if l.rec == nil {
		return ""
	}
	return l.rec.operator
}

// Entries are what it takes back, each as a Revocation whose envelope is the
// list's; a copy.
func (l List) Entries() []Revocation {
	if l.rec == nil {
		return nil
	}
	return slices.Clone(l.rec.entries)
}

// Envelope is the signed text; a copy.
func (l List) Envelope() []byte {
	if l.rec == nil {
		return nil
	}
	return slices.Clone(l.rec.envelope)
}

// List returns the list that is in force: of those seen the one with the highest
// sequence. It is zero if none was seen.
func (v *View) List() List {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.list
}

// Lists returns the lists that somebody needs who knows nothing yet, in order of
// their sequence: the one in force, and each earlier one that no later one of the
// same key repeats whole. What an earlier one took back stays taken back.
func (v *View) Lists() []List {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var all []List
	for _, l := range v.lists {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b List) int {
		if a.Sequence() != b.Sequence() {
			return int(min(max(a.Sequence()-b.Sequence(), -1), 1))
		}
		return strings.Compare(a.ID().String(), b.ID().String())
	})
	return all
}

// AdmitList checks the envelope against the pinned revokers. A list that is not
// newer than the one in force is ErrOldList, unless it was seen before.
func (v *View) AdmitList(envelope []byte) (List, error) { return v.admitList(envelope, false) }

// admitList takes an older list, too, if it may be one of several in any order.
func (v *View) admitList(envelope []byte, older bool) (List, error) {
	if v.stored {
		return List{}, errStored
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	l, err := readList(v.revokers, envelope)
	if err != nil {
		return List{}, fmt.Errorf("admitting revocation list: %w", err)
	}
	if have, err := v.newer(l); !older && err != nil || !have.IsZero() {
		return have, err
	}
	v.addList(l)
	return l, nil
}

// newer returns the list if it was seen before, and ErrOldList if it is not newer
// than the one in force.
func (v *View) newer(l List) (have List, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if have, ok := v.lists[l.ID()]; ok {
		return have, nil
	}
	if v.outgrown[l.ID()] {
		return l, nil
	}
	if l.Sequence() == v.list.Sequence() && !l.repeatedBy(v.list) {
		return List{}, fmt.Errorf("%w: two lists have the sequence %d, %s of key %s, which is in force, and %s of key %s, which takes back what that one does not: none of it is in force; the next list has to name it", ErrOldList, l.Sequence(), v.list.ID(), v.list.Revoker(), l.ID(), l.Revoker())
	}
	if l.Sequence() <= v.list.Sequence() {
		return List{}, fmt.Errorf("%w: expected a sequence above %d, got %d", ErrOldList, v.list.Sequence(), l.Sequence())
	}
	return List{}, nil
}

// addList takes a list in any order, as rows have none.
func (v *View) addList(l List) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.lists[l.ID()]; ok || v.outgrown[l.ID()] {
		return
	}
	v.lists[l.ID()] = l
	for _, r := range l.rec.entries {
		v.revoke(r)
	}
	if l.Sequence() > v.list.Sequence() {
		v.list = l
	}
	v.outgrow(l)
	v.generation.Add(1)
}

// outgrow lets go of the lists that a later one of the same key repeats whole, of which there is
// one for each day or hour; fresh is the list that was added last. What they took
// back stays in force. Callers hold v.mu.
func (v *View) outgrow(fresh List) {
	for id, l := range v.lists {
		switch {
		case l.Sequence() < fresh.Sequence() && fresh.repeats(l):
			delete(v.lists, id)
			v.outgrown[id] = true
		case l.Sequence() > fresh.Sequence() && l.repeats(fresh):
			delete(v.lists, fresh.ID())
			v.outgrown[fresh.ID()] = true
		}
	}
}

// repeats reports whether l takes back everything that old does, and ends only
// with it: both are of one key, so that no Trust believes old and not l.
func (l List) repeats(old List) bool {
	if l.predicate().Revoker != old.predicate().Revoker {
		return false
	}
	return old.repeatedBy(l)
}

// repeatedBy reports whether by takes back everything that l does.
func (l List) repeatedBy(by List) bool {
	return !slices.ContainsFunc(l.rec.entries, func(r Revocation) bool { return !by.rec.named[target{r.Kind(), r.target()}] })
}

func (v *View) isOutgrown(id hashpipe.Digest) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.outgrown[id]
}

func (v *View) knowsList(id hashpipe.Digest) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, ok := v.lists[id]
	return ok || v.outgrown[id]
}

// AdmitList is View.AdmitList, and returns after the list is in force in the view
// and on stable storage. If the write fails its entries are in force all the same,
// until this process ends, and the error says so; call it again.
func (s *Store) AdmitList(envelope []byte) (List, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := readList(s.view.revokers, envelope)
	if err != nil {
		return List{}, fmt.Errorf("admitting revocation list: %w", err)
	}
	have, err := s.view.newer(l)
	if err != nil {
		return List{}, err
	}
	if !have.IsZero() && !s.unsaved[l.ID()] {
		return have, nil
	}
	if s.db == nil {
		return List{}, fmt.Errorf("admitting revocation list: %w", ErrClosed) // nobody goes by the view any more
	}
	if have.IsZero() {
		s.view.addList(l)
		s.publish(Record{Kind: RecordList, Envelope: l.Envelope()})
	}
	if err := s.recordList(l); err != nil {
		s.unsaved[l.ID()] = true
		return l, fmt.Errorf("revocation list %d is in force until this process ends, and is not recorded%s: %w", l.Sequence(), s.keepWaiting(RecordList, l.rec.envelope), err)
	}
	delete(s.unsaved, l.ID())
	return l, nil
}

// recordList writes a list that is in force. Callers hold s.mu.
func (s *Store) recordList(l List) error {
	if err := s.record(reserveRevoke, l.fact(), l.rec.envelope); err != nil {
		return err
	}
	s.lists[l.ID()] = uint32(s.head.n)
	s.view.own(uint32(s.head.n), l.fact())
	return nil
}
