package kept

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func archive(t *testing.T, records ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	a, err := NewArchive(&b, "one", time.Date(2026, 11, 27, 9, 0, 0, 1, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := a.Add("capability", []byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readArchive(b []byte) (all []string, err error) {
	_, err = ReadArchive(bytes.NewReader(b), func(r Record) error { all = append(all, string(r.Envelope)); return nil })
	return all, err
}

// Whatever is cut off, changed or added is noticed, and what can be read comes out.
func TestArchive(t *testing.T) {
	whole := archive(t, "a", "b", "c")
	all, err := readArchive(whole)
	if err != nil || strings.Join(all, "") != "abc" {
		t.Fatalf("%q, %v", all, err)
	}
	first := bytes.IndexByte(whole, '\n') + 1
	for size := range whole {
		all, err := readArchive(whole[:size])
		if want := ErrCut; size < first && !errors.Is(err, ErrNoArchive) || size >= first && !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if !strings.HasPrefix("abc", strings.Join(all, "")) {
			t.Errorf("%d bytes: %q", size, all)
		}
	}
	for at := range whole {
		bad := bytes.Clone(whole)
		bad[at] ^= 1
		if _, err := readArchive(bad); !errors.Is(err, ErrCut) && !errors.Is(err, ErrNoArchive) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	for name, parts := range map[string][][]byte{
		"a line left out":   {lines[0], lines[1], lines[3], lines[4]},
		"lines exchanged":   {lines[0], lines[2], lines[1], lines[3], lines[4]},
		"a line twice":      {lines[0], lines[1], lines[1], lines[2], lines[3], lines[4]},
		"two archives":      {whole, whole},
		"something behind":  {whole, []byte("x")},
		"a long line":       {lines[0], bytes.Repeat([]byte("x"), 2*maxLine), []byte("\n"), lines[1], lines[2], lines[3], lines[4]},
		"without the first": {lines[1], lines[2], lines[3], lines[4]},
	} {
		if _, err := readArchive(bytes.Join(parts, nil)); !errors.Is(err, ErrCut) && !errors.Is(err, ErrNoArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop := errors.New("stop")
	if _, err := ReadArchive(bytes.NewReader(whole), func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of each: %v", err)
	}
	var b bytes.Buffer
	a, err := NewArchive(&b, "one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if a.Add("capability", nil) == nil || a.Add("no kind", []byte("x")) == nil || a.Add("job", make([]byte, MaxEnvelope+1)) == nil {
		t.Error("a record that no reader takes was written")
	}
	if _, err := NewArchive(&b, "a\nb", time.Now()); err == nil {
		t.Error("a store's id of two lines was written")
	}
}
