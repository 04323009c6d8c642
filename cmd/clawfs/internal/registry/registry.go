// Package registry keeps trust records as OCI artifacts: in a registry, or in an
// OCI image layout directory. The weights never travel here.
//
// Each record has one tag, which its content decides (docs/capability.md has
// the table), so that pushes by many at the same time cannot lose each other,
// and so that a place which serves another record under a tag is found out.
// An artifact has
//
//	artifactType  application/vnd.clawfs.<kind>.v1+json
//	config        OCI's empty one
//	layer 0       application/vnd.dsse.envelope.v1+json
//	layer 1       text/vnd.clawfs.tlog-proof, of an SBA that has a proof
//	created       1970-01-01T00:00:00Z
//
// Nothing here checks a signature, and nothing here concludes from what a place
// does not list: a revocation that is not listed may exist.
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// MaxProof bounds a log proof in bytes.
const MaxProof = tlog.MaxProof

const (
	envelopeType = "application/vnd.dsse.envelope.v1+json"
	proofType    = "text/vnd.clawfs.tlog-proof"
)

// Place is a repository of a registry, or a layout directory. Safe for
// concurrent use.
type Place struct{ repo *oci.Repository }

// Open names a place, as oci.OpenRepository does; it reaches for nothing.
func Open(location string, o oci.Options) (*Place, error) {
	repo, err := oci.OpenRepository(location, o)
	if err != nil {
		return nil, err
	}
	return &Place{repo}, nil
}

// String is the place's location.
func (p *Place) String() string { return p.repo.String() }

// LieError is a place that serves something else than a tag promises. Asking it
// again does not help.
type LieError struct {
	Place, Tag string
	Err        error
}

func (e *LieError) Error() string {
	return fmt.Sprintf("%s serves something else under the tag %s: %v", e.Place, e.Tag, e.Err)
}
func (e *LieError) Unwrap() error { return e.Err }

// Tags returns the tags of records that the place lists now, sorted. Tags of
// other things, such as images, are left out.
func (p *Place) Tags(ctx context.Context) ([]string, error) {
	all, err := p.repo.Tags(ctx)
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, tag := range all {
		if _, ok := KindOf(tag); ok {
			ours = append(ours, tag)
		}
	}
	return ours, nil
}

// Fetch brings the record of a tag. Types and sizes are judged before a blob is
// asked for, blobs are measured, and the content must compute to the tag. A
// *LieError says that the place serves something else; errors with
// oci.ErrUnreachable may pass; oci.ErrAbsent: there is no such tag, or its blob
// is gone.
func (p *Place) Fetch(ctx context.Context, tag string) (Record, error) {
	r, err := p.fetch(ctx, tag)
	if err != nil && errors.Is(err, oci.ErrOtherBytes) {
		err = &LieError{p.String(), tag, err}
	}
	return r, err
}

func (p *Place) fetch(ctx context.Context, tag string) (Record, error) {
	kind, ok := KindOf(tag)
	if !ok {
		return Record{}, fmt.Errorf("%.140q is no tag of a record", tag)
	}
	m, err := p.repo.Manifest(ctx, tag)
	if err != nil {
		return Record{}, err
	}
	lie := func(err error) (Record, error) { return Record{}, &LieError{p.String(), tag, err} }
	if m.Type != kind.artifactType() {
		return lie(fmt.Errorf("artifactType %.100q, expected %s", m.Type, kind.artifactType()))
	}
	if n := len(m.Layers); n < 1 || n > 2 || n == 2 && kind != SBA {
		return lie(fmt.Errorf("%d layers", n))
	}
	for i, l := range m.Layers {
		mediaType, most := envelopeType, int64(dsse.MaxEnvelope)
		if i == 1 {
			mediaType, most = proofType, int64(MaxProof)
		}
		if l.MediaType != mediaType || l.Size < 1 || l.Size > most {
			return lie(fmt.Errorf("layer %d has type %.100q and %d bytes, expected %s and at most %d", i, l.MediaType, l.Size, mediaType, most))
		}
	}
	envelope, err := p.repo.Layer(ctx, m.Layers[0])
	if err != nil {
		return Record{}, err
	}
	r, err := Identify(envelope)
	if err != nil {
		return lie(err)
	}
	if r.Tag() != tag {
		return lie(fmt.Errorf("the record of %s", r.Tag()))
	}
	if len(m.Layers) == 1 {
		return r, nil
	}
	proof, err := p.repo.Layer(ctx, m.Layers[1])
	if err != nil {
		return Record{}, err
	}
	if r, err = r.WithProof(proof); err != nil {
		return lie(err)
	}
	return r, nil
}

// Outcome is what a push changed.
type Outcome string

const (
	Pushed     Outcome = "pushed"      // it was not there
	Present    Outcome = "present"     // the same bytes were there
	ProofAdded Outcome = "proof-added" // the SBA was there without its proof
	Replaced   Outcome = "replaced"
)

// ConflictError is a tag that holds something else and was left as it is.
type ConflictError struct{ Place, Tag, Have string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s has %s under the tag %s already; nothing was changed", e.Place, e.Have, e.Tag)
}

// Push puts a record under its tag. What is there with other bytes (the same
// statement with other signatures, another proof, or something that is no such
// record) is a *ConflictError, unless replace is set. An SBA that is there with
// a proof keeps it when it is pushed without one.
//
// Two who push different bytes under one tag at the same moment are not kept
// apart: registries have no such operation, and the later one stays.
func (p *Place) Push(ctx context.Context, r Record, replace bool) (Outcome, error) {
	if r.Tag() == "" {
		return "", errors.New("pushing a record that nobody identified")
	}
	outcome, err := p.compare(ctx, &r)
	if err != nil || outcome == Present {
		return outcome, err
	}
	if outcome == "" {
		if !replace {
			return "", &ConflictError{p.String(), r.Tag(), "other bytes"}
		}
		outcome = Replaced
	}
	a := oci.Artifact{Type: r.Kind.artifactType(), Layers: []oci.Blob{{MediaType: envelopeType, Text: r.Envelope}}}
	if r.Proof != nil {
		a.Layers = append(a.Layers, oci.Blob{MediaType: proofType, Text: r.Proof})
	}
	if r.Kind != SBA && !r.SBA.IsZero() {
		a.Subject = "sba-" + r.SBA.String()
	}
	if _, err := p.repo.Push(ctx, r.Tag(), a); err != nil {
		return "", err
	}
	return outcome, nil
}

// compare says what a push of r would be; "" if it would replace something. It
// gives r the proof that is there already.
func (p *Place) compare(ctx context.Context, r *Record) (Outcome, error) {
	have, err := p.Fetch(ctx, r.Tag())
	var lie *LieError
	switch {
	case errors.Is(err, oci.ErrAbsent):
		return Pushed, nil
	case errors.As(err, &lie):
		return "", nil
	case err != nil:
		return "", err
	}
	if r.Proof == nil {
		r.Proof = have.Proof
	}
	switch {
	case !bytes.Equal(have.Envelope, r.Envelope):
		return "", nil
	case bytes.Equal(have.Proof, r.Proof):
		return Present, nil
	case have.Proof == nil:
		return ProofAdded, nil
	}
	return "", nil
}
