package capstore

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

// What body made is read, and nothing that differs from it in form.
func TestReadBodyRefuses(t *testing.T) {
	d := func(s string) hashpipe.Digest { return digestOf(s) }
	capability := fact{kind: RecordCapability, id: d("id"), at: 1764000000, envelope: d("envelope"), entry: entry{
		signer: d("signer"), claim: 1, sba: 2, outputs: []outputTags{{3, 4, 5, 6}}, bases: []tag{7}, paths: []tag{8, 9},
	}}
	revocation := fact{kind: RecordRevocation, id: d("id"), envelope: d("envelope"), entry: entry{signer: d("signer"), target: target{KindFile, d("target")}}}
	list := fact{kind: RecordList, id: d("id"), envelope: d("envelope"), entry: entry{signer: d("signer")}}
	for _, f := range []fact{capability, revocation, list} {
		body := f.body()
		got, err := readBody(body)
		if err != nil || !bytes.Equal(got.body(), body) {
			t.Fatalf("%s: %v, %+v", f.kind, err, got)
		}
		for n := range body {
			if _, err := readBody(body[:n]); err == nil {
				t.Errorf("%s: %d of %d bytes were read", f.kind, n, len(body))
			}
		}
		if _, err := readBody(append(bytes.Clone(body), 0)); err == nil || !strings.Contains(err.Error(), "are not a fact about one "+f.kind) {
			t.Errorf("%s: a byte too many: %v", f.kind, err)
		}
		late := bytes.Clone(body)
		binary.BigEndian.PutUint64(late[1:], 1<<63)
		for name, bad := range map[string][]byte{
			"time beyond the end": late,
			"no id":               blank(body, 9),
			"no envelope":         blank(body, 9+32),
			"no signer":           blank(body, 9+64),
		} {
			if _, err := readBody(bad); err == nil || !strings.Contains(err.Error(), "a digest or the time is missing") {
				t.Errorf("%s: %s: %v", f.kind, name, err)
			}
		}
	}
	empty := capability
	empty.outputs = nil
	nothing := revocation
	nothing.target.digest = hashpipe.Digest{}
	for want, f := range map[string]fact{"without outputs": empty, "of nothing": nothing} {
		if _, err := readBody(f.body()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// blank is body with a digest of zeros at an offset.
func blank(body []byte, at int) []byte {
	out := bytes.Clone(body)
	clear(out[at:][:32])
	return out
}

// A store begins with its first fact. Of one that nobody can read it is not known.
func TestBegun(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	if !Begun(filepath.Join(t.TempDir(), "none")) {
		t.Error("a memory that is not there knows that nothing was ever granted")
	}
	s := openStore(t, dir, w.trust())
	if Begun(memoryOf(dir)) {
		t.Error("an empty store has begun")
	}
	if _, err := s.Admit(w.capability(t, "a", "m/a")); err != nil {
		t.Fatal(err)
	}
	if !Begun(memoryOf(dir)) {
		t.Error("a store with a capability has not begun")
	}
}

// Within finds what lies in a directory, or has its name, and not what only begins so.
func TestWithin(t *testing.T) {
	w := newWorld(t)
	v, err := NewView(w.trust())
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"m/a", "m", "mm/a", "n/m/a", "m/b/c"}
	for i, name := range names {
		if _, err := v.Admit(w.capability(t, string(rune('a'+i)), name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]string{
		"m": {"m", "m/a", "m/b/c"}, "m/b": {"m/b/c"}, "m/a": {"m/a"}, "mm": {"mm/a"}, "m/": nil, "x": nil, "": names,
	} {
		var got []string
		for _, c := range v.Within(name) {
			got = append(got, c.Subjects()[0].Name)
		}
		slices.Sort(got)
		want = slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) {
			t.Errorf("Within(%q) = %q, want %q", name, got, want)
		}
	}
}
