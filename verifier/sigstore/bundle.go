package sigstore

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	mediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	// maxDepth bounds how deep the JSON of a bundle nests. The format needs eight
	// levels.
	maxDepth = 16
	// maxTokens bounds the JSON tokens of a bundle, and maxStatementTokens those of
	// a statement, whose predicate may be long.
	maxTokens          = 10_000
	maxStatementTokens = 500_000
	maxStatementDepth  = 64
	maxEntries         = 8
	maxSubjects        = 10_000
)

// raw are bytes that JSON carries in base64 of one spelling.
type raw []byte

func (r *raw) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || base64.StdEncoding.EncodeToString(b) != string(text) {
		return fmt.Errorf("expected padded standard base64, got %q", clip(string(text)))
	}
	*r = b
	return nil
}

// decimal is an integer from 0 that JSON carries as a string.
type decimal int64

func (d *decimal) UnmarshalText(text []byte) error {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != string(text) {
		return fmt.Errorf("expected a decimal without sign and leading zero, got %q", clip(string(text)))
	}
	*d = decimal(n)
	return nil
}

type bundle struct {
	MediaType            string               `json:"mediaType"`
	VerificationMaterial verificationMaterial `json:"verificationMaterial"`
	MessageSignature     *messageSignature    `json:"messageSignature"`
	DSSEEnvelope         jsontext.Value       `json:"dsseEnvelope"`
}

type verificationMaterial struct {
	PublicKey                 *publicKey     `json:"publicKey"`
	Certificate               jsontext.Value `json:"certificate"`
	X509CertificateChain      jsontext.Value `json:"x509CertificateChain"`
	TlogEntries               []entry        `json:"tlogEntries"`
	TimestampVerificationData jsontext.Value `json:"timestampVerificationData"` // not looked at
}

type publicKey struct {
	Hint string `json:"hint"`
}

type messageSignature struct {
	MessageDigest hashOutput `json:"messageDigest"`
	Signature     raw        `json:"signature"`
}

type hashOutput struct {
	Algorithm string `json:"algorithm"`
	Digest    raw    `json:"digest"`
}

// sha256 returns the digest if it is one of SHA-256.
func (h hashOutput) sha256() (hashpipe.Digest, error) {
	if h.Algorithm != "SHA2_256" {
		return hashpipe.Digest{}, fmt.Errorf("expected algorithm SHA2_256, got %q", clip(h.Algorithm))
	}
	return hashpipe.ParseDigest(hex.EncodeToString(h.Digest))
}

// parseBundle reads the form of a bundle. The error is a *Refusal.
func parseBundle(text []byte) (bundle, error) {
	var b bundle
	if len(text) > MaxBundle {
		return b, refuse(ReasonMalformed, "expected a bundle of at most %d bytes, got %d", MaxBundle, len(text))
	}
	if err := scan(text, maxTokens, maxDepth, false); err != nil {
		return b, refuse(ReasonMalformed, "reading a bundle: %v", err)
	}
	if err := json.Unmarshal(text, &b, json.RejectUnknownMembers(true)); err != nil {
		return b, refuse(ReasonMalformed, "reading a bundle: %v", dsse.JSONError(err))
	}
	m := b.VerificationMaterial
	switch {
	case b.MediaType != mediaType:
		return b, refuse(ReasonMalformed, "expected the mediaType %s, got %q", mediaType, clip(b.MediaType))
	case m.Certificate != nil || m.X509CertificateChain != nil:
		return b, keyless()
	case m.PublicKey == nil:
		return b, refuse(ReasonMalformed, "expected verificationMaterial with a publicKey, got neither a key nor a certificate")
	case b.MessageSignature != nil && b.DSSEEnvelope != nil:
		return b, refuse(ReasonMalformed, "expected a dsseEnvelope or a messageSignature, got both")
	case b.MessageSignature == nil && b.DSSEEnvelope == nil:
		return b, refuse(ReasonMalformed, "expected a dsseEnvelope or a messageSignature, got neither")
	case len(m.TlogEntries) > maxEntries:
		return b, refuse(ReasonMalformed, "expected at most %d log entries, got %d", maxEntries, len(m.TlogEntries))
	}
	return b, nil
}

func keyless() error {
	return refuse(ReasonKeyless, "it is signed under a certificate (keyless), which clawfs does not verify: that is left to a separate helper program; next: sign with a key of your own (cosign sign-blob --key, attest-blob --key)")
}

// envelopeSignature returns the bytes of the one signature of an envelope that
// dsse.Parse has read.
func envelopeSignature(envelope []byte) ([]byte, error) {
	var e struct {
		PayloadType string `json:"payloadType"`
		Payload     string `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   raw    `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(envelope, &e, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("envelope: %w", dsse.JSONError(err))
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("expected one signature in the envelope of a bundle, got %d", len(e.Signatures))
	}
	return e.Signatures[0].Sig, nil
}

// parseStatement reads what is needed of an in-toto statement: the subjects with
// a SHA-256, and what kind of statement it is. It was signed, and members that it
// does not know are those of a format that grows.
func parseStatement(payload []byte) (subjects []Subject, predicateType string, err error) {
	if err := scan(payload, maxStatementTokens, maxStatementDepth, true); err != nil {
		return nil, "", err
	}
	var s struct {
		Type    string `json:"_type"`
		Subject []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(payload, &s); err != nil {
		return nil, "", dsse.JSONError(err)
	}
	switch {
	case s.Type != "https://in-toto.io/Statement/v1" && s.Type != "https://in-toto.io/Statement/v0.1":
		return nil, "", fmt.Errorf("expected _type https://in-toto.io/Statement/v1 or v0.1, got %q", clip(s.Type))
	case s.PredicateType == "":
		return nil, "", errors.New("expected a predicateType, got none")
	case len(s.Subject) == 0 || len(s.Subject) > maxSubjects:
		return nil, "", fmt.Errorf("expected 1 to %d subjects, got %d", maxSubjects, len(s.Subject))
	}
	for i, one := range s.Subject {
		if len(one.Digest) == 0 {
			return nil, "", fmt.Errorf("subject %d has no digest", i+1)
		}
		text, ok := one.Digest["sha256"]
		if !ok {
			continue
		}
		d, err := hashpipe.ParseDigest(text)
		if err != nil {
			return nil, "", fmt.Errorf("subject %d: %w", i+1, err)
		}
		subjects = append(subjects, Subject{one.Name, d})
	}
	if len(subjects) == 0 {
		return nil, "", fmt.Errorf("expected a subject with a sha256, got %d without", len(s.Subject))
	}
	return subjects, s.PredicateType, nil
}

// scan reads the tokens of one JSON text before anything is decoded: UTF-8, no
// duplicate member, nothing after the value, bounded. A decoder leaves the zero
// value for null, which in an optional member would pass.
func scan(text []byte, tokens, depth int, null bool) error {
	if len(text) == 0 {
		return errors.New("it is empty")
	}
	dec := jsontext.NewDecoder(bytes.NewReader(text))
	for n := 0; ; n++ {
		if n > tokens {
			return fmt.Errorf("more than %d JSON tokens", tokens)
		}
		token, err := dec.ReadToken()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if dec.StackDepth() > depth {
			return fmt.Errorf("nested more than %d levels deep", depth)
		}
		if token.Kind() == 'n' && !null {
			return fmt.Errorf("at %q: null is not a value here", dec.StackPointer())
		}
	}
}
