package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

const (
	envelope  = `{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AAAA"}]}`
	proofLine = `{"payloadType":"text/vnd.clawfs.tlog-proof","payload":"cHJvb2Y=","signatures":[]}`
	chainLine = `{"payloadType":"application/vnd.clawfs.chain.v1+jsonl","payload":"e30Ke30=","signatures":[]}`
)

func read(text string) (items []Item, err error) {
	err = Read(strings.NewReader(text), func(it Item) error { items = append(items, it); return nil })
	return items, err
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Item
	}{
		{"one", envelope + "\n", []Item{{1, []byte(envelope), nil}}},
		{"no newline at the end", envelope, []Item{{1, []byte(envelope), nil}}},
		{"with a proof", envelope + "\n" + proofLine + "\n" + envelope + "\n", []Item{{1, []byte(envelope), []byte("proof")}, {3, []byte(envelope), nil}}},
		{"a chain", chainLine + "\n" + envelope, []Item{{1, []byte("{}\n{}"), nil}, {2, []byte(envelope), nil}}},
		{"line ends of Windows", envelope + "\r\n", []Item{{1, []byte(envelope + "\r"), nil}}},
	} {
		got, err := read(tt.text)
		if err != nil || !slices.EqualFunc(got, tt.want, func(a, b Item) bool {
			return a.Line == b.Line && bytes.Equal(a.Envelope, b.Envelope) && bytes.Equal(a.Proof, b.Proof)
		}) {
			t.Errorf("%s: Read = %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	long := func(n int) string {
		return `{"payloadType":"x","payload":"` + strings.Repeat("A", n-len(`{"payloadType":"x","payload":""}`)) + `"}`
	}
	if _, err := read(long(MaxLine) + "\n" + envelope); err != nil {
		t.Errorf("a line of %d bytes: %v", MaxLine, err)
	}
	for _, tt := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"nothing", "", 0, "empty"},
		{"an empty line", envelope + "\n\n" + envelope, 2, "empty"},
		{"white space", envelope + "\n \t\n", 2, "empty"},
		{"garbage", envelope + "\nGGUF\x00\n", 2, "expected an envelope"},
		{"cut", envelope[:50], 1, "expected an envelope"},
		{"two in one line", envelope + envelope, 1, "expected an envelope"},
		{"a list", "[]", 1, "expected an envelope"},
		{"no type", `{"payload":""}`, 1, "without a payloadType"},
		{"one byte too long", envelope + "\n" + long(MaxLine+1), 2, "more than 4194304 bytes"},
		{"too long and without end", strings.Repeat("x", MaxLine+2), 1, "more than 4194304 bytes"},
		{"a proof first", proofLine + "\n" + envelope, 1, "directly after"},
		{"two proofs", envelope + "\n" + proofLine + "\n" + proofLine, 3, "directly after"},
		{"a signed proof", envelope + "\n" + strings.Replace(proofLine, "[]", `[{"sig":"AAAA"}]`, 1), 2, "empty list"},
		{"a proof without signatures", envelope + "\n" + strings.Replace(proofLine, `,"signatures":[]`, "", 1), 2, "empty list"},
		{"a proof with more", envelope + "\n" + strings.Replace(proofLine, "{", `{"x":1,`, 1), 2, "unknown"},
		{"a proof twice", envelope + "\n" + strings.Replace(proofLine, "{", `{"payload":"AAAA",`, 1), 2, "duplicate"},
		{"a proof that is no base64", envelope + "\n" + strings.Replace(proofLine, "cHJvb2Y=", "cHJvb2Y", 1), 2, "base64"},
		{"an empty proof", envelope + "\n" + strings.Replace(proofLine, "cHJvb2Y=", "", 1), 2, "payload"},
		{"a chain of one", strings.Replace(chainLine, "e30Ke30=", "e30=", 1), 1, "a line of its own"},
	} {
		_, err := read(tt.text)
		var f *FormatError
		if !errors.As(err, &f) || f.Line != tt.line || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Read: %v; want line %d and %q", tt.name, err, tt.line, tt.want)
		}
	}
}

// repeated is a stream that is never in memory at once.
type repeated struct {
	line string
	left int
	rest string
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.rest == "" {
		if r.left == 0 {
			return 0, io.EOF
		}
		r.left--
		r.rest = r.line
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func TestReadBounds(t *testing.T) {
	for _, tt := range []struct {
		line  string
		lines int
		want  string
	}{
		{envelope + "\n", MaxLines, ""},
		{envelope + "\n", MaxLines + 1, "more than 100000 lines"},
		{`{"payloadType":"x","payload":"` + strings.Repeat("A", 1<<20) + "\"}\n", 256, "more than 268435456 bytes"},
	} {
		n := 0
		err := Read(&repeated{line: tt.line, left: tt.lines}, func(Item) error { n++; return nil })
		if tt.want == "" && (err != nil || n != tt.lines) {
			t.Errorf("%d lines: %d records, %v", tt.lines, n, err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%d lines: %v, want an error with %q", tt.lines, err, tt.want)
		}
	}
	broken := errors.New("the disk is gone")
	if err := Read(io.MultiReader(strings.NewReader(envelope), failing{broken}), func(Item) error { return nil }); !errors.Is(err, broken) {
		t.Errorf("Read of a broken file: %v, want %v", err, broken)
	}
	stop := fmt.Errorf("enough")
	if err := Read(strings.NewReader(envelope), func(Item) error { return stop }); err != stop {
		t.Errorf("Read = %v, want the error of each", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestAppend(t *testing.T) {
	spaced := "{\n  \"payloadType\": \"x\",\n  \"payload\": \"e30=\"\n}\n"
	b, err := Append(nil, Item{Envelope: []byte(spaced), Proof: []byte("proof")})
	if want := `{"payloadType":"x","payload":"e30="}` + "\n" + proofLine + "\n"; err != nil || string(b) != want {
		t.Errorf("Append = %q, %v; want %q", b, err, want)
	}
	if b, err = Append(nil, Item{Envelope: []byte("{}\n{}")}); err != nil || string(b) != chainLine+"\n" {
		t.Errorf("Append of a chain = %q, %v; want %q", b, err, chainLine)
	}
	for name, it := range map[string]Item{
		"nothing":     {},
		"too long":    {Envelope: []byte(`{"payload":"` + strings.Repeat("A", MaxLine) + `"}`)},
		"empty proof": {Envelope: []byte("{}"), Proof: []byte{}},
	} {
		if _, err := Append(nil, it); err == nil {
			t.Errorf("%s was appended", name)
		}
	}
}

// What is read can be written, and reads the same.
func FuzzRead(f *testing.F) {
	for _, s := range []string{envelope, envelope + "\n" + proofLine + "\n" + envelope + "\n", chainLine, "{}", "\n", envelope + "\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		items, err := read(string(text))
		if err != nil {
			return
		}
		var b []byte
		for _, it := range items {
			if b, err = Append(b, it); err != nil {
				t.Fatalf("Append of what was read: %v", err)
			}
		}
		again, err := read(string(b))
		if err != nil || len(again) != len(items) {
			t.Fatalf("read %d records, wrote %q, read %d, %v", len(items), b, len(again), err)
		}
		var c []byte
		for _, it := range again {
			if c, err = Append(c, it); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(b, c) {
			t.Fatalf("%q became %q", b, c)
		}
	})
}
