package capstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

// The hashes of the chain are those of the format, computed here by another way.
func TestHeadHashes(t *testing.T) {
	var k rowKey
	for i := range k.id {
		k.id[i] = byte(i + 1)
	}
	id := fmt.Sprintf("%x", k.id[:])
	h := firstHead(k)
	want := sha256.Sum256(fmt.Appendf(nil, "14:clawfs-head/v2,%d:%s,", len(id), id))
	if h.n != 0 || h.hash.String() != fmt.Sprintf("%x", want) {
		t.Errorf("hash(0) = %s of fact %d, want %x", h.hash, h.n, want)
	}
	for i := range uint64(3) {
		f := fact{kind: RecordList, at: int64(1000 + i), id: digestOf(fmt.Sprint("id", i)), envelope: digestOf("envelope"), entry: entry{signer: digestOf("signer")}}
		next, content := h.follow(f)
		body := f.body()
		want = sha256.Sum256(fmt.Appendf(nil, "14:clawfs-head/v2,32:%s,%d:%s,", want[:], len(body), body))
		if next.n != i+1 || next.at != f.at || next.hash.String() != fmt.Sprintf("%x", want) {
			t.Errorf("hash(%d) = %s at %d, want %x", next.n, next.hash, next.at, want)
		}
		if string(content) != string(body)+string(want[:]) {
			t.Errorf("row %d is %x, want the fact and its hash", next.n, content)
		}
		h = next
	}
}

func TestHeadIs(t *testing.T) {
	a, b := digestOf("a"), digestOf("b")
	for _, x := range []struct {
		one, two head
		want     bool
	}{
		{head{n: 1, hash: a}, head{n: 1, hash: a, at: 9}, true},
		{head{n: 1, hash: a}, head{n: 1, hash: b}, false},
		{head{n: 1, hash: a}, head{n: 2, hash: a}, false},
		{head{n: 1, hash: a}, head{n: 2, hash: b}, false},
		{head{n: 1, hash: a}, head{n: 1, hash: hashpipe.Digest{}}, false},
	} {
		if got := x.one.is(x.two); got != x.want {
			t.Errorf("%+v is %+v: %v, want %v", x.one, x.two, got, x.want)
		}
	}
}

// What was written is read back, and nothing else is.
func TestHeadReadsBack(t *testing.T) {
	memory := t.TempDir()
	var k rowKey
	k.id[0] = 7
	if _, _, found, err := readHead(memory); found || err != nil {
		t.Errorf("no head: found %v, %v", found, err)
	}
	for _, want := range []head{{n: 0, hash: digestOf("x")}, {n: 12, hash: digestOf("y"), at: 1795000000}, {n: math.MaxInt64, hash: digestOf("z"), at: math.MaxInt64}} {
		if err := writeHead(memory, k, want); err != nil {
			t.Fatal(err)
		}
		id, got, found, err := readHead(memory)
		if err != nil || !found || id != k.name() || got != want {
			t.Errorf("readHead = %s, %+v, %v, %v, want %+v", id, got, found, err, want)
		}
	}
	path := filepath.Join(memory, HeadName)
	for name, lines := range map[string][]string{
		"no number":      {k.name(), "x", digestOf("x").String(), "1"},
		"a negative":     {k.name(), "-1", digestOf("x").String(), "1"},
		"beyond 2^63":    {k.name(), "9223372036854775808", digestOf("x").String(), "1"},
		"no hash":        {k.name(), "1", "x", "1"},
		"no time":        {k.name(), "1", digestOf("x").String(), ""},
		"a line too few": {k.name(), "1", digestOf("x").String()},
	} {
		if err := writeLines(path, headFormat, lines...); err != nil {
			t.Fatal(err)
		}
		if id, h, found, err := readHead(memory); !errors.Is(err, ErrDamaged) || found || id != "" || h != (head{}) {
			t.Errorf("%s: readHead = %s, %+v, %v, %v, want %v", name, id, h, found, err, ErrDamaged)
		}
	}
}

func TestLines(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lines")
	if err := writeLines(path, "format/v1", "one", "", "three"); err != nil {
		t.Fatal(err)
	}
	if lines, found, err := readLines(path, "format/v1", 3); err != nil || !found || !slices.Equal(lines, []string{"one", "", "three"}) {
		t.Errorf("readLines = %q, %v, %v", lines, found, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(text string) string { return text + checksumLine([]byte(text)) }
	long := strings.Repeat("x", maxLines)
	for name, x := range map[string]struct {
		text, format string
		n            int
		want         string
	}{
		"fewer lines than expected": {string(good), "format/v1", 4, "expected format/v1 and 5 lines"},
		"more lines than expected":  {string(good), "format/v1", 2, "expected format/v1 and 3 lines"},
		"another format":            {string(good), "format/v2", 3, "expected format/v2"},
		"empty":                     {"", "format/v1", 3, "got 0 bytes"},
		"cut":                       {string(good[:len(good)-1]), "format/v1", 3, "expected format/v1"},
		"more after it":             {string(good) + "x", "format/v1", 3, "expected format/v1"},
		"too long":                  {sealed("format/v1\none\n" + long + "\nthree\n"), "format/v1", 3, "bytes that are not that"},
		"a line changed":            {strings.Replace(string(good), "one", "two", 1), "format/v1", 3, "checksum does not match"},
		"another checksum":          {strings.Replace(string(good), "sha256 ", "sha512 ", 1), "format/v1", 3, "checksum does not match"},
	} {
		if err := os.WriteFile(path, []byte(x.text), 0o600); err != nil {
			t.Fatal(err)
		}
		lines, found, err := readLines(path, x.format, x.n)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), x.want) || lines != nil || found {
			t.Errorf("%s: readLines = %q, %v, %v, want %q", name, lines, found, err, x.want)
		}
	}
	// Where the file cannot stand the writer says so.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeLines(path, "format/v1", "one"); err == nil || !strings.Contains(err.Error(), "writing "+path) {
		t.Errorf("over a directory: %v", err)
	}
	if err := writeLines(filepath.Join(dir, "none", "lines"), "format/v1"); err == nil {
		t.Error("a directory that is not there took a file")
	}
	if _, found, err := readLines(path, "format/v1", 1); err == nil || found {
		t.Errorf("a directory is read as lines: %v, %v", found, err)
	}
}
