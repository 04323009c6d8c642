package registry

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// Kind is what sort of record a signed text is.
type Kind string

// The kinds, in the order in which whoever receives several should take them:
// what takes back comes before what grants.
const (
	Revocation     Kind = "revocation"
	RevocationList Kind = "revocation-list"
	Policy         Kind = "policy"
	SBA            Kind = "sba"
	Provenance     Kind = "provenance" // what a worker signed about a job, also about one that failed
	Capability     Kind = "capability"
)

// shape is what this package knows of one kind. A kind has its place in this
// table and nowhere else.
type shape struct {
	kind   Kind
	prefix string         // of its tags
	rest   *regexp.Regexp // what stands behind the prefix
	types  []string       // predicate types of a statement, or the payload type of what is none
	// read fills in what the statement claims and returns the rest of the tag.
	read func(st statement, r *Record) (string, error)
}

var shapes = []shape{
	{Revocation, "rev-", digestOnly, []string{capstore.RevocationType}, readRevocation},
	{RevocationList, "list-", numberAndID, []string{capstore.ListType}, readList},
	{Policy, "policy-", numberAndID, []string{verifier.PolicyPayloadType}, readPolicy},
	{SBA, "sba-", digestOnly, []string{verifier.LedgerType}, readSBA},
	{Provenance, "rec-", digestAndID, []string{record.ProvenanceType, record.FailureType}, readProvenance},
	{Capability, "cap-", digestAndTwoIDs, []string{capstore.CapabilityType}, readCapability},
}

// Order compares tags by the order of the kinds above, numbered ones of a kind by
// their number: a list of revocations is taken before a later one. What is no tag
// of ours is last.
func Order(a, b string) int {
	ka, _ := KindOf(a)
	kb, _ := KindOf(b)
	return cmp.Or(cmp.Compare(rank(ka), rank(kb)), cmp.Compare(Number(a), Number(b)), cmp.Compare(a, b))
}

// Number is the sequence in the tag of a list, or the revision in that of a
// policy; 0 for the other kinds.
func Number(tag string) int64 {
	if k, _ := KindOf(tag); k != RevocationList && k != Policy {
		return 0
	}
	_, rest, _ := strings.Cut(tag, "-")
	digits, _, _ := strings.Cut(rest, "-")
	n, _ := strconv.ParseInt(digits, 10, 64) // at most 16 digits: see numberAndID
	return n
}

func rank(k Kind) int {
	if i := slices.IndexFunc(shapes, func(s shape) bool { return s.kind == k }); i >= 0 {
		return i
	}
	return len(shapes)
}

// KindOf says what a tag promises; false if it is no tag of ours.
func KindOf(tag string) (Kind, bool) {
	for _, s := range shapes {
		if rest, ok := strings.CutPrefix(tag, s.prefix); ok && s.rest.MatchString(rest) {
			return s.kind, true
		}
	}
	return "", false
}

// What tags are made of: whole digests, the first 16 digits of digests and key
// ids, and numbers.
var (
	digestOnly      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	digestAndID     = regexp.MustCompile(`^[0-9a-f]{64}-[0-9a-f]{16}$`)
	digestAndTwoIDs = regexp.MustCompile(`^[0-9a-f]{64}-[0-9a-f]{16}-[0-9a-f]{16}$`)
	numberAndID     = regexp.MustCompile(`^[1-9][0-9]{0,15}-[0-9a-f]{16}$`)
)

func (k Kind) artifactType() string { return "application/vnd.clawfs." + string(k) + ".v1+json" }

// Claims are what a record says of itself. Anybody can write it: it is for
// people, and for choosing what to fetch.
type Claims struct {
	Model    string
	Version  string
	Sequence int64      // of the ledger or the list; the revision of a policy
	Signer   dsse.KeyID // publisher, minter or revoker; empty where the text names none
}

// Record is one signed text and what identifies it. Its signatures were not
// checked by anybody.
type Record struct {
	Kind     Kind
	ID       hashpipe.Digest // SHA-256 of the payload; of the last one of a chain
	SBA      hashpipe.Digest // the attestation that it is, or is about; zero: about none
	Claims   Claims
	Envelope []byte // as it was given
	Proof    []byte // of an SBA: its .tlog-proof; nil: none

	tag string
}

// Tag is where a record is kept: one place for each, which its content decides.
func (r Record) Tag() string { return r.tag }

// ErrKind is in the error of an envelope that holds no kind of record which
// this version knows.
var ErrKind = errors.New("no record of a known kind")

// maxChain bounds the envelopes of one capability.
const maxChain = 1 + capstore.MaxDelegations

type statement struct {
	Type          string `json:"_type"`
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	Predicate jsontext.Value `json:"predicate"`
}

// Identify says what an envelope is, by the predicate type of its payload, and
// which tag it belongs under. A capability may be several envelopes, one a line
// and the root first: it is about what the root is about, and identified by the
// last. An error has ErrKind, or is about the text's form.
func Identify(envelope []byte) (Record, error) {
	envelopes, err := parseAll(envelope)
	if err != nil {
		return Record{}, err
	}
	st, err := readStatement(envelopes[0])
	if err != nil {
		return Record{}, err
	}
	for _, s := range shapes {
		if !slices.Contains(s.types, st.PredicateType) {
			continue
		}
		if len(envelopes) > 1 && s.kind != Capability {
			return Record{}, fmt.Errorf("%d envelopes, and only a capability may have more than one", len(envelopes))
		}
		last := envelopes[len(envelopes)-1].UnverifiedPayload()
		r := Record{Kind: s.kind, ID: hashpipe.SumBytes(last).Claim(), Envelope: bytes.Clone(envelope)}
		rest, err := s.read(st, &r)
		if err != nil {
			return Record{}, fmt.Errorf("%s: %w", s.kind, err)
		}
		r.tag = s.prefix + rest
		return r, nil
	}
	return Record{}, fmt.Errorf("%w: predicateType %.200q", ErrKind, st.PredicateType)
}

func parseAll(text []byte) ([]dsse.Envelope, error) {
	e, err := dsse.Parse(text)
	if err == nil {
		return []dsse.Envelope{e}, nil
	}
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if len(text) > dsse.MaxEnvelope || len(lines) < 2 || len(lines) > maxChain {
		return nil, err
	}
	var all []dsse.Envelope
	for _, l := range lines {
		e, lineErr := dsse.Parse(l)
		if lineErr != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

func readStatement(e dsse.Envelope) (statement, error) {
	if e.UnverifiedPayloadType() == verifier.PolicyPayloadType {
		return statement{PredicateType: verifier.PolicyPayloadType, Predicate: e.UnverifiedPayload()}, nil
	}
	if got := e.UnverifiedPayloadType(); got != dsse.PayloadType {
		return statement{}, fmt.Errorf("%w: payloadType %.100q, expected %q", ErrKind, got, dsse.PayloadType)
	}
	var st statement
	if err := json.Unmarshal(e.UnverifiedPayload(), &st); err != nil {
		return statement{}, fmt.Errorf("%w: the payload is no statement: %w", ErrKind, err)
	}
	if st.Type != verifier.StatementType {
		return statement{}, fmt.Errorf("%w: _type %.100q, expected %q", ErrKind, st.Type, verifier.StatementType)
	}
	return st, nil
}

// reference is how a predicate names another text.
type reference struct {
	Digest struct {
		SHA256 hashpipe.Digest `json:"sha256"`
	} `json:"digest"`
}

type keyRef struct {
	KeyID dsse.KeyID `json:"keyid"`
}

func (k keyRef) check(what string) error {
	if !digestOnly.MatchString(string(k.KeyID)) {
		return fmt.Errorf("%s.keyid: expected 64 lower-case hex digits, got %.80q", what, string(k.KeyID))
	}
	return nil
}

func short(s string) string { return s[:16] }

func readSBA(st statement, r *Record) (string, error) {
	var p struct {
		Model     string `json:"model"`
		Version   string `json:"version"`
		Sequence  int64  `json:"sequence"`
		Publisher keyRef `json:"publisher"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return "", err
	}
	r.SBA = r.ID
	r.Claims = Claims{p.Model, p.Version, p.Sequence, p.Publisher.KeyID}
	return r.ID.String(), p.Publisher.check("publisher")
}

func readCapability(st statement, r *Record) (string, error) {
	var p struct {
		Model    string    `json:"model"`
		Version  string    `json:"version"`
		Sequence int64     `json:"sequence"`
		SBA      reference `json:"sba"`
		Minter   keyRef    `json:"minter"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return "", err
	}
	if err := p.Minter.check("minter"); err != nil {
		return "", err
	}
	r.SBA = p.SBA.Digest.SHA256
	r.Claims = Claims{p.Model, p.Version, p.Sequence, p.Minter.KeyID}
	if r.SBA.IsZero() {
		return "", errors.New("names no attestation (sba)")
	}
	return r.SBA.String() + "-" + short(string(p.Minter.KeyID)) + "-" + short(r.ID.String()), nil
}

// readProvenance finds the attestation where package record puts it: a
// byproduct of provenance, the subject of a failure.
func readProvenance(st statement, r *Record) (string, error) {
	var p struct {
		Model      string `json:"model"`
		Version    string `json:"version"`
		Sequence   int64  `json:"sequence"`
		RunDetails struct {
			Byproducts []struct {
				Name   string            `json:"name"`
				Digest map[string]string `json:"digest"`
			} `json:"byproducts"`
		} `json:"runDetails"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return "", err
	}
	r.Claims = Claims{Model: p.Model, Version: p.Version, Sequence: p.Sequence}
	sba := ""
	if st.PredicateType == record.FailureType {
		if len(st.Subject) == 1 {
			sba = st.Subject[0].Digest["sha256"]
		}
	} else {
		for _, b := range p.RunDetails.Byproducts {
			if b.Name == "attestation" {
				sba = b.Digest["sha256"]
			}
		}
	}
	var err error
	if r.SBA, err = hashpipe.ParseDigest(sba); err != nil {
		return "", fmt.Errorf("the attestation that it is about: %w", err)
	}
	return r.SBA.String() + "-" + short(r.ID.String()), nil
}

func readRevocation(st statement, r *Record) (string, error) {
	var p struct {
		Revoker keyRef `json:"revoker"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return "", err
	}
	r.Claims.Signer = p.Revoker.KeyID
	return r.ID.String(), p.Revoker.check("revoker")
}

func readList(st statement, r *Record) (string, error) {
	var p struct {
		Sequence int64 `json:"sequence"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return "", err
	}
	return numbered("sequence", p.Sequence, r)
}

func readPolicy(st statement, r *Record) (string, error) {
	var p struct {
		Revision int64 `json:"revision"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return "", err
	}
	return numbered("revision", p.Revision, r)
}

func numbered(what string, n int64, r *Record) (string, error) {
	if n < 1 || n >= 1<<53 {
		return "", fmt.Errorf("%s: expected 1 to 2^53-1, got %d", what, n)
	}
	r.Claims.Sequence = n
	return strconv.FormatInt(n, 10) + "-" + short(r.ID.String()), nil
}

// WithProof returns an SBA with the log proof that travels beside it. The proof
// has the form of one; whether it is one for this SBA is for a log policy to
// say.
func (r Record) WithProof(proof []byte) (Record, error) {
	if r.Kind != SBA {
		return Record{}, fmt.Errorf("a log proof beside a %s: only an SBA has one", r.Kind)
	}
	if _, err := tlog.ParseProof(proof); err != nil {
		return Record{}, err
	}
	r.Proof = bytes.Clone(proof)
	return r, nil
}
