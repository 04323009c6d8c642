package hashpipe

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// hexLen is the length of a written digest: 32 bytes in lower-case hex.
const hexLen = 64

// Digest is a claimed SHA-256 of a whole content. The zero Digest is no claim
// and matches nothing.
type Digest struct{ claim [32]byte }

// ParseDigest reads exactly 64 lower-case hex digits. Upper case, a prefix
// ("sha256:"), white space and the all-zero value are refused, so that one
// digest has one spelling.
func ParseDigest(s string) (Digest, error) {
	b, err := parse("SHA-256 digest", s)
	return Digest{b}, err
}

// IsZero reports whether d is no claim at all.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns 64 lower-case hex digits, or "none" for the zero Digest.
func (d Digest) String() string { return format(d.claim) }

// Bytes returns the claim as 32 bytes, for a binary format.
func (d Digest) Bytes() [32]byte { return d.claim }

// ClaimedDigest is the claim that 32 bytes of a binary format make; all zero is none.
func ClaimedDigest(b [32]byte) Digest { return Digest{b} }

// MarshalText returns the 64 hex digits; the zero Digest is an error, because
// nothing could read it back.
func (d Digest) MarshalText() ([]byte, error) { return marshal("SHA-256 digest", d.claim) }

// UnmarshalText accepts what ParseDigest accepts.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// VerityDigest is a claimed fs-verity v1 digest (SHA-256, 4096-byte blocks,
// no salt), as `fsverity digest` prints it after "sha256:". The zero value
// matches nothing.
type VerityDigest struct{ verity [32]byte }

// ParseVerityDigest reads exactly 64 lower-case hex digits, as ParseDigest.
func ParseVerityDigest(s string) (VerityDigest, error) {
	b, err := parse("fs-verity digest", s)
	return VerityDigest{b}, err
}

// IsZero reports whether d is no claim at all.
func (d VerityDigest) IsZero() bool { return d == VerityDigest{} }

// String returns 64 lower-case hex digits, or "none" for the zero value.
func (d VerityDigest) String() string { return format(d.verity) }

// MarshalText returns the 64 hex digits; the zero value is an error.
func (d VerityDigest) MarshalText() ([]byte, error) { return marshal("fs-verity digest", d.verity) }

// UnmarshalText accepts what ParseVerityDigest accepts.
func (d *VerityDigest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseVerityDigest(string(text))
	return err
}

// Sum is a measured SHA-256 of a whole content; only this package makes one,
// and nothing decodes into one. The zero Sum measured nothing and matches
// nothing.
type Sum struct{ measured [32]byte }

// Is reports whether the measured bytes are the claimed ones. It is false when
// either side is zero.
func (s Sum) Is(d Digest) bool { return !s.IsZero() && s.measured == d.claim }

// Claim writes the measurement down: whoever reads the result only knows that
// somebody said so. The zero Sum gives the zero Digest.
func (s Sum) Claim() Digest { return Digest{s.measured} }

// IsZero reports whether s measured nothing.
func (s Sum) IsZero() bool { return s == Sum{} }

// String returns 64 lower-case hex digits, or "none" for the zero Sum.
func (s Sum) String() string { return format(s.measured) }

// Bytes returns the 32 bytes of the hash, for tree nodes that hash hashes.
func (s Sum) Bytes() [32]byte { return s.measured }

func parse(what, s string) (b [32]byte, err error) {
	if len(s) != hexLen {
		return b, fmt.Errorf("%s %s: expected %d lower-case hex digits, got %d bytes", what, quote(s), hexLen, len(s))
	}
	for i := range hexLen {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return b, fmt.Errorf("%s %q: byte %d is %q, expected a lower-case hex digit", what, s, i, c)
		}
	}
	if _, err := hex.Decode(b[:], []byte(s)); err != nil {
		return [32]byte{}, err
	}
	if b == ([32]byte{}) {
		return b, fmt.Errorf("%s: all zero is no digest", what)
	}
	return b, nil
}

// quote keeps a hostile text of any length out of the logs.
func quote(s string) string {
	if len(s) > hexLen+16 {
		return fmt.Sprintf("%q…", s[:hexLen])
	}
	return fmt.Sprintf("%q", s)
}

func format(b [32]byte) string {
	if b == ([32]byte{}) {
		return "none"
	}
	return hex.EncodeToString(b[:])
}

var errZero = errors.New("zero value is no digest and cannot be written")

func marshal(what string, b [32]byte) ([]byte, error) {
	if b == ([32]byte{}) {
		return nil, fmt.Errorf("%s: %w", what, errZero)
	}
	return hex.AppendEncode(nil, b[:]), nil
}
