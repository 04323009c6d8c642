package capstore

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	statementType = "https://in-toto.io/Statement/v1"
	// CapabilityType is the predicate type of a capability.
	CapabilityType = "https://github.com/openclaw/clawfs/capability/v1"
	// LevelRebuilt: one operator rebuilt the recipe twice and got equal bytes.
	LevelRebuilt = "rebuilt"

	maxSubjects  = 1000
	maxName      = 4095 // bytes of one output name, as in clawfs-tree/v1
	maxComponent = 255  // bytes of one component of it
	maxDelegate  = 64
	maxBases     = 256
)

// Statement is the payload of a capability: an in-toto Statement v1 whose
// subjects are the outputs of one rebuild. Its fields are the wire format;
// only a mint makes one, and a Statement proves nothing by itself.
type Statement struct {
	Type          string         `json:"_type"`
	Subject       []SubjectEntry `json:"subject"`
	PredicateType string         `json:"predicateType"`
	Predicate     Predicate      `json:"predicate"`
}

// SubjectEntry is one output: its name in the recipe and its SHA-256.
type SubjectEntry struct {
	Name   string    `json:"name"`
	Digest DigestSet `json:"digest"`
}

// DigestSet is in-toto's set of digests; here it holds the SHA-256 and nothing else.
type DigestSet struct {
	SHA256 hashpipe.Digest `json:"sha256"`
}

// Predicate is what the mint says of the subjects.
type Predicate struct {
	Claim    hashpipe.Digest `json:"claim"` // Claim of the subjects, recomputed by every reader
	Model    string          `json:"model"`
	Version  string          `json:"version"`
	Sequence int64           `json:"sequence"` // the ledger's, monotone per model
	SBA      Reference       `json:"sba"`
	// Environment is the manifest of the image in which the build ran.
	Environment Reference  `json:"environment"`
	Parent      *Reference `json:"parent,omitzero"` // of a delegated capability: the one that it narrows
	Publisher   Publisher  `json:"publisher"`
	Minter      Minter     `json:"minter"`
	Platform    Platform   `json:"platform"`
	// Bases are the claims of the models that the build started from, sorted.
	Bases     []hashpipe.Digest `json:"bases,omitzero"`
	Outputs   []OutputEntry     `json:"outputs"` // one for each subject, in the same order
	NotBefore time.Time         `json:"notBefore"`
	NotAfter  time.Time         `json:"notAfter"` // first instant at which it is no longer valid
	Restrict  *Restrict         `json:"restrict,omitzero"`
	Delegate  []dsse.KeyID      `json:"delegate,omitzero"`
	Level     string            `json:"level"`
}

// Reference names a statement by the SHA-256 of its payload.
type Reference struct {
	Digest DigestSet `json:"digest"`
}

// Publisher is the key that signed the attestation. The key is carried so that
// the capability is complete in itself; it must hash to the key id.
type Publisher struct {
	KeyID     dsse.KeyID     `json:"keyid"`
	PublicKey dsse.PublicKey `json:"publicKey"`
}

// Minter is the key that signs the capability. The public key is carried by a
// delegated capability alone: that of a mint is pinned by whoever reads it.
type Minter struct {
	KeyID     dsse.KeyID     `json:"keyid"`
	PublicKey dsse.PublicKey `json:"publicKey,omitzero"`
}

// Platform is the class of machine within which the bytes are promised equal.
type Platform struct {
	OS          string   `json:"os"`
	Arch        string   `json:"arch"`
	CPUFeatures []string `json:"cpuFeatures,omitzero"`
	CPUDispatch string   `json:"cpuDispatch,omitzero"` // "exact": no other features for dispatch
	Accelerator string   `json:"accelerator"`
}

// OutputEntry is what the subject's digest set has no room for.
type OutputEntry struct {
	Name     string                `json:"name"`
	Size     int64                 `json:"size"` // bytes
	FSVerity hashpipe.VerityDigest `json:"fsverity"`
}

// Subject is one output as the rest of the program wants it.
type Subject struct {
	Name   string
	Digest hashpipe.Digest
	Verity hashpipe.VerityDigest
	Size   int64 // bytes
}

// NewStatement lays out a capability over subjects, in any order: it sorts
// them, computes the claim and copies the constants of the format. The caller
// fills in the rest of the predicate.
func NewStatement(subjects []Subject, p Predicate) Statement {
	sorted := slices.Clone(subjects)
	slices.SortFunc(sorted, func(a, b Subject) int { return strings.Compare(a.Name, b.Name) })
	st := Statement{Type: statementType, PredicateType: CapabilityType, Predicate: p}
	st.Predicate.Outputs = nil
	for _, s := range sorted {
		st.Subject = append(st.Subject, SubjectEntry{Name: s.Name, Digest: DigestSet{SHA256: s.Digest}})
		st.Predicate.Outputs = append(st.Predicate.Outputs, OutputEntry{Name: s.Name, Size: s.Size, FSVerity: s.Verity})
	}
	st.Predicate.Claim = Claim(p.SBA.Digest.SHA256, p.Publisher.KeyID, sorted)
	st.Predicate.Level = LevelRebuilt
	return st
}

// Payload checks the statement and returns its only encoding: members in the
// order of the format, no white space. Every reader refuses any other.
func (st Statement) Payload() ([]byte, error) {
	if err := st.check(); err != nil {
		return nil, fmt.Errorf("capability: %w", err)
	}
	b, err := json.Marshal(&st, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding capability: %w", err)
	}
	return b, nil
}

// parseStatement reads a verified payload. It accepts exactly what Payload prints.
func parseStatement(payload []byte) (Statement, error) {
	if err := checkType(payload, CapabilityType); err != nil {
		return Statement{}, fmt.Errorf("capability: %w", err)
	}
	var st Statement
	if err := json.Unmarshal(payload, &st, json.RejectUnknownMembers(true)); err != nil {
		return Statement{}, fmt.Errorf("capability: %w", dsse.JSONError(err))
	}
	again, err := st.Payload()
	if err != nil {
		return Statement{}, err
	}
	if !bytes.Equal(again, payload) {
		return Statement{}, fmt.Errorf("capability: not in its canonical encoding: %s", firstDifference(payload, again))
	}
	return st, nil
}

func (st Statement) check() error {
	p := st.Predicate
	if st.Type != statementType {
		return fmt.Errorf("_type is %q, want %q", st.Type, statementType)
	}
	if st.PredicateType != CapabilityType {
		return fmt.Errorf("predicateType is %q, want %q", st.PredicateType, CapabilityType)
	}
	if err := st.checkSubjects(); err != nil {
		return err
	}
	if err := checkModel(p.Model); err != nil {
		return err
	}
	if err := checkText("version", p.Version, 128); err != nil {
		return err
	}
	if p.Sequence < 1 || p.Sequence > maxInteger {
		return fmt.Errorf("sequence %d is outside 1 to %d", p.Sequence, int64(maxInteger))
	}
	if p.SBA.Digest.SHA256.IsZero() {
		return fmt.Errorf("sba digest is missing")
	}
	if p.Environment.Digest.SHA256.IsZero() {
		return fmt.Errorf("environment digest is missing")
	}
	if err := p.checkParent(); err != nil {
		return err
	}
	if err := p.Restrict.check(); err != nil {
		return fmt.Errorf("restrict: %w", err)
	}
	if p.Publisher.PublicKey.IsZero() {
		return fmt.Errorf("publisher.publicKey is missing")
	}
	if id := p.Publisher.PublicKey.ID(); id != p.Publisher.KeyID {
		return fmt.Errorf("publisher.publicKey hashes to %s, and publisher.keyid is %q", id, p.Publisher.KeyID)
	}
	if err := checkKeyID("minter.keyid", p.Minter.KeyID); err != nil {
		return err
	}
	if err := p.Platform.check(); err != nil {
		return err
	}
	if err := checkTime("notBefore", p.NotBefore); err != nil {
		return err
	}
	if err := checkTime("notAfter", p.NotAfter); err != nil {
		return err
	}
	if !p.NotBefore.Before(p.NotAfter) {
		return fmt.Errorf("notBefore %s is not before notAfter %s", p.NotBefore.Format(time.RFC3339), p.NotAfter.Format(time.RFC3339))
	}
	if err := checkBases(p.Bases); err != nil {
		return err
	}
	if err := checkDelegate(p.Delegate); err != nil {
		return err
	}
	if p.Level != LevelRebuilt {
		return fmt.Errorf("level is %q, want %q", p.Level, LevelRebuilt)
	}
	want := Claim(p.SBA.Digest.SHA256, p.Publisher.KeyID, st.subjects())
	if p.Claim != want {
		return fmt.Errorf("claim is %s, and these subjects make %s", p.Claim, want)
	}
	return nil
}

func (st Statement) checkSubjects() error {
	outputs := st.Predicate.Outputs
	switch {
	case len(st.Subject) == 0:
		return fmt.Errorf("subject is empty")
	case len(st.Subject) > maxSubjects:
		return fmt.Errorf("%d subjects: at most %d", len(st.Subject), maxSubjects)
	case len(outputs) != len(st.Subject):
		return fmt.Errorf("%d subjects and %d outputs: want one output for each subject", len(st.Subject), len(outputs))
	}
	for i, s := range st.Subject {
		if err := checkName("subject name", s.Name); err != nil {
			return err
		}
		// Strictly rising: unique, and one order for one set.
		if i > 0 && st.Subject[i-1].Name >= s.Name {
			return fmt.Errorf("subject %q follows %q: names are unique and sorted bytewise", s.Name, st.Subject[i-1].Name)
		}
		if s.Digest.SHA256.IsZero() {
			return fmt.Errorf("subject %q has no sha256", s.Name)
		}
		o := outputs[i]
		if o.Name != s.Name {
			return fmt.Errorf("output %d is %q, want %q as in subject", i, o.Name, s.Name)
		}
		if o.Size < 0 || o.Size > maxInteger {
			return fmt.Errorf("output %q: size %d is outside 0 to %d", o.Name, o.Size, int64(maxInteger))
		}
		if o.FSVerity.IsZero() {
			return fmt.Errorf("output %q has no fsverity digest", o.Name)
		}
	}
	return nil
}

func (p Platform) check() error {
	for _, f := range []struct{ what, text string }{{"platform.os", p.OS}, {"platform.arch", p.Arch}, {"platform.accelerator", p.Accelerator}} {
		if err := checkText(f.what, f.text, 64); err != nil {
			return err
		}
	}
	if p.CPUFeatures != nil && len(p.CPUFeatures) == 0 {
		return fmt.Errorf("platform.cpuFeatures is empty: leave it out")
	}
	if len(p.CPUFeatures) > 256 {
		return fmt.Errorf("platform.cpuFeatures has %d entries: at most 256", len(p.CPUFeatures))
	}
	if p.CPUDispatch != "" && (p.CPUDispatch != "exact" || len(p.CPUFeatures) == 0) {
		return fmt.Errorf("platform.cpuDispatch is %q: want \"exact\" beside cpuFeatures, or nothing", p.CPUDispatch)
	}
	for i, f := range p.CPUFeatures {
		if err := checkText("platform.cpuFeatures", f, 64); err != nil {
			return err
		}
		if slices.Contains(p.CPUFeatures[:i], f) {
			return fmt.Errorf("platform.cpuFeatures has %q twice", f)
		}
	}
	return nil
}

func checkBases(claims []hashpipe.Digest) error {
	if claims != nil && len(claims) == 0 {
		return fmt.Errorf("bases is empty: leave it out")
	}
	if len(claims) > maxBases {
		return fmt.Errorf("bases has %d entries: at most %d", len(claims), maxBases)
	}
	for i, c := range claims {
		if c.IsZero() {
			return fmt.Errorf("bases: entry %d is empty", i)
		}
		if i > 0 && claims[i-1].String() >= c.String() {
			return fmt.Errorf("bases: %s follows %s: claims are unique and sorted", c, claims[i-1])
		}
	}
	return nil
}

func checkDelegate(ids []dsse.KeyID) error {
	if ids != nil && len(ids) == 0 {
		return fmt.Errorf("delegate is empty: leave it out")
	}
	if len(ids) > maxDelegate {
		return fmt.Errorf("delegate has %d entries: at most %d", len(ids), maxDelegate)
	}
	for i, id := range ids {
		if err := checkKeyID("delegate", id); err != nil {
			return err
		}
		if i > 0 && ids[i-1] >= id {
			return fmt.Errorf("delegate %s follows %s: key ids are unique and sorted", id, ids[i-1])
		}
	}
	return nil
}

// checkTime wants whole seconds of UTC, so that one instant has one spelling.
func checkTime(what string, t time.Time) error {
	switch {
	case t.IsZero():
		return fmt.Errorf("%s is missing", what)
	case t.Location() != time.UTC:
		return fmt.Errorf("%s %s is not in UTC, written Z", what, t.Format("2006-01-02T15:04:05-07:00"))
	case t.Nanosecond() != 0:
		return fmt.Errorf("%s %s is not a whole second", what, t.Format(time.RFC3339Nano))
	case t.Year() < 1970 || t.Year() > 9999:
		return fmt.Errorf("%s: year %d is outside 1970 to 9999", what, t.Year())
	}
	return nil
}

func (st Statement) subjects() []Subject {
	out := make([]Subject, len(st.Subject))
	for i, s := range st.Subject {
		o := st.Predicate.Outputs[i]
		out[i] = Subject{Name: s.Name, Digest: s.Digest.SHA256, Verity: o.FSVerity, Size: o.Size}
	}
	return out
}

// Claim is the identity of a result, apart from who rebuilt it and when: two
// honest rebuilders of one attestation get the same. It is the SHA-256 over the
// netstrings (decimal length, ":", bytes, ",") of "clawfs-claim/v1", the SBA
// digest in hex, the publisher's key id, and for each subject, sorted bytewise
// by name, its name and its SHA-256 in hex.
func Claim(sba hashpipe.Digest, publisher dsse.KeyID, subjects []Subject) hashpipe.Digest {
	sorted := slices.Clone(subjects)
	slices.SortFunc(sorted, func(a, b Subject) int { return strings.Compare(a.Name, b.Name) })
	b := netstring(nil, "clawfs-claim/v1")
	b = netstring(b, sba.String())
	b = netstring(b, string(publisher))
	for _, s := range sorted {
		b = netstring(b, s.Name)
		b = netstring(b, s.Digest.String())
	}
	return hashpipe.SumBytes(b).Claim()
}

func netstring(b []byte, s string) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	b = append(b, ':')
	b = append(b, s...)
	return append(b, ',')
}

// firstDifference tells a person where two encodings part.
func firstDifference(got, want []byte) string {
	n := 0
	for n < len(got) && n < len(want) && got[n] == want[n] {
		n++
	}
	near := func(b []byte) []byte { return b[min(n, len(b)):min(n+32, len(b))] }
	return fmt.Sprintf("at byte %d got %q, want %q", n, near(got), near(want))
}
