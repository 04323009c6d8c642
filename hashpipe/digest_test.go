package hashpipe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

const (
	hexA = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // SHA-256 of "abc"
	zero = "0000000000000000000000000000000000000000000000000000000000000000"
)

// notDigests are the texts that neither parser takes.
var notDigests = map[string]string{
	"empty":            "",
	"one digit":        "b",
	"63 digits":        hexA[:63],
	"65 digits":        hexA + "0",
	"two digests":      hexA + hexA,
	"upper case":       strings.ToUpper(hexA),
	"one upper digit":  "B" + hexA[1:],
	"algorithm prefix": "sha256:" + hexA,
	"prefix in 64":     "sha256:" + hexA[7:],
	"0x":               "0x" + hexA[2:],
	"leading space":    " " + hexA[1:],
	"trailing newline": hexA[:63] + "\n",
	"newline after":    hexA + "\n",
	"NUL":              hexA[:63] + "\x00",
	"letter g":         hexA[:63] + "g",
	"slash":            hexA[:31] + "/" + hexA[32:],
	"colon":            hexA[:31] + ":" + hexA[32:],
	"backquote":        hexA[:31] + "`" + hexA[32:],
	"at sign":          hexA[:31] + "@" + hexA[32:],
	"fullwidth digit":  hexA[:61] + "０",
	"not UTF-8":        hexA[:63] + "\xff",
	"all zero":         zero,
	"none":             "none",
	"quoted":           `"` + hexA[2:] + `"`,
}

func TestParseRefuses(t *testing.T) {
	for name, s := range notDigests {
		if d, err := ParseDigest(s); err == nil || !d.IsZero() {
			t.Errorf("%s: ParseDigest(%q) = %v, %v, want zero and an error", name, s, d, err)
		}
		if d, err := ParseVerityDigest(s); err == nil || !d.IsZero() {
			t.Errorf("%s: ParseVerityDigest(%q) = %v, %v, want zero and an error", name, s, d, err)
		}
		var d Digest
		var v VerityDigest
		if err := d.UnmarshalText([]byte(s)); err == nil || !d.IsZero() {
			t.Errorf("%s: Digest.UnmarshalText(%q) = %v, %v, want zero and an error", name, s, d, err)
		}
		if err := v.UnmarshalText([]byte(s)); err == nil || !v.IsZero() {
			t.Errorf("%s: VerityDigest.UnmarshalText(%q) = %v, %v, want zero and an error", name, s, v, err)
		}
	}
}

// A bad text must not leave an earlier good value behind.
func TestUnmarshalForgets(t *testing.T) {
	d, v := parsed(t, hexA)
	if err := d.UnmarshalText([]byte("x")); err == nil || !d.IsZero() {
		t.Errorf("Digest after a bad text = %v, %v, want zero and an error", d, err)
	}
	if err := v.UnmarshalText([]byte("x")); err == nil || !v.IsZero() {
		t.Errorf("VerityDigest after a bad text = %v, %v, want zero and an error", v, err)
	}
}

func TestParseErrorIsBounded(t *testing.T) {
	_, err := ParseDigest(strings.Repeat("\n", 1<<20))
	if err == nil || len(err.Error()) > 512 {
		t.Errorf("ParseDigest of 1 MiB: error of %d bytes, want at most 512", len(fmt.Sprint(err)))
	}
}

func TestText(t *testing.T) {
	d, v := parsed(t, hexA)
	if d.String() != hexA || v.String() != hexA {
		t.Errorf("String() = %s and %s, want %s", d, v, hexA)
	}
	type doc struct {
		D Digest
		V VerityDigest
	}
	text, err := json.Marshal(doc{d, v})
	if want := `{"D":"` + hexA + `","V":"` + hexA + `"}`; err != nil || string(text) != want {
		t.Fatalf("json.Marshal = %s, %v, want %s", text, err, want)
	}
	var got doc
	if err := json.Unmarshal(text, &got); err != nil || got != (doc{d, v}) {
		t.Errorf("json.Unmarshal(%s) = %v, %v", text, got, err)
	}
	if text, err := json.Marshal(doc{V: v}); err == nil {
		t.Errorf("a zero Digest was written as %s, want an error", text)
	}
	if text, err := json.Marshal(doc{D: d}); err == nil {
		t.Errorf("a zero VerityDigest was written as %s, want an error", text)
	}
}

func TestZeroMatchesNothing(t *testing.T) {
	d, v := parsed(t, hexA)
	sum := SumBytes([]byte("abc"))
	if !sum.Is(d) || sum.Claim() != d {
		t.Fatalf("SumBytes(abc) = %v, want %v", sum, d)
	}
	var m Measurement
	var nilTree *Tree
	for what, match := range map[string]bool{
		"zero Sum is zero Digest":               Sum{}.Is(Digest{}),
		"zero Sum is a Digest":                  Sum{}.Is(d),
		"a Sum is zero Digest":                  sum.Is(Digest{}),
		"zero Tree is zero VerityDigest":        new(Tree).Is(VerityDigest{}),
		"zero Tree is a VerityDigest":           new(Tree).Is(v),
		"nil Tree is zero VerityDigest":         nilTree.Is(VerityDigest{}),
		"nil Tree is a VerityDigest":            nilTree.Is(v),
		"a Tree is zero VerityDigest":           measured(t, nil).Tree().Is(VerityDigest{}),
		"zero Measurement's Sum is zero Digest": m.Sum().Is(Digest{}),
		"zero Measurement's Tree is zero":       m.Tree().Is(VerityDigest{}),
		"zero Enforced is zero VerityDigest":    Enforced{}.Is(VerityDigest{}),
		"zero Enforced is a VerityDigest":       Enforced{}.Is(v),
		"an Enforced is zero VerityDigest":      Enforced{v.verity}.Is(VerityDigest{}),
	} {
		if match {
			t.Errorf("%s: true, want false", what)
		}
	}
	if !(Sum{}).Claim().IsZero() || !nilTree.Claim().IsZero() || !new(Tree).Claim().IsZero() {
		t.Error("the claim of a zero measurement is not zero")
	}
	if m.Size() != 0 || nilTree.Units() != 0 {
		t.Errorf("zero Measurement has size %d, nil Tree %d units", m.Size(), nilTree.Units())
	}
	for _, err := range []error{nilTree.VerifyUnit(0, nil), new(Tree).VerifyUnit(0, nil), new(Tree).VerifyUnit(0, []byte("abc"))} {
		if err == nil {
			t.Error("a zero Tree verified a unit")
		}
	}
}

// No conversion may turn one meaning of 32 bytes into another.
func TestTypesDoNotConvert(t *testing.T) {
	types := []reflect.Type{
		reflect.TypeFor[Digest](), reflect.TypeFor[VerityDigest](), reflect.TypeFor[Sum](), reflect.TypeFor[Enforced](), reflect.TypeFor[[32]byte](),
	}
	for _, from := range types {
		for _, to := range types {
			if from != to && from.ConvertibleTo(to) {
				t.Errorf("%v converts to %v", from, to)
			}
		}
	}
}

// Nothing decodes into a measurement.
func TestMeasurementsDoNotDecode(t *testing.T) {
	for _, v := range []any{new(Sum), new(Tree), new(Measurement), new(Enforced)} {
		switch v.(type) {
		case interface{ UnmarshalText([]byte) error },
			interface{ UnmarshalJSON([]byte) error },
			interface{ UnmarshalBinary([]byte) error },
			interface{ GobDecode([]byte) error }:
			t.Errorf("%T decodes", v)
		}
		typ := reflect.TypeOf(v).Elem()
		for i := range typ.NumField() {
			if typ.Field(i).IsExported() {
				t.Errorf("%v.%s is exported", typ, typ.Field(i).Name)
			}
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(hexA)
	for _, s := range notDigests {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		v, verr := ParseVerityDigest(s)
		if (err == nil) != (verr == nil) {
			t.Fatalf("ParseDigest(%q): %v, ParseVerityDigest: %v", s, err, verr)
		}
		if err != nil {
			if !d.IsZero() || !v.IsZero() {
				t.Fatalf("%q: error and a value", s)
			}
			return
		}
		if d.String() != s || v.String() != s || d.IsZero() || v.IsZero() {
			t.Fatalf("ParseDigest(%q) prints %q, ParseVerityDigest %q", s, d, v)
		}
	})
}

func parsed(t *testing.T, s string) (Digest, VerityDigest) {
	t.Helper()
	d, err := ParseDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParseVerityDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d, v
}

// Go lets anybody write a whole struct through a pointer, unexported fields
// included. Whoever writes through one that this package handed out changes
// neither the measurement nor a reader that was made with it.
func TestMeasurementsAreNotOverwritten(t *testing.T) {
	one, two := content(UnitSize+1), content(UnitSize+2)
	m, other := measured(t, one), measured(t, two)
	tree := m.Tree()
	r := NewCheckedReader(bytes.NewReader(two), tree)
	*tree = *other.Tree()
	*m.Tree() = *other.Tree()
	agrees(t, m, one)
	if n, err := r.ReadAt(make([]byte, 2), UnitSize); n != 1 || err != io.EOF {
		t.Errorf("the reader gave %d bytes, %v, where the content it was made for has one", n, err)
	}
}
