package translog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// The examples of C2SP tlog-tiles, and those of its edges.
func TestTilePath(t *testing.T) {
	for _, tt := range []struct {
		level int
		index int64
		width int
		want  string
	}{
		{0, 0, 256, "tile/0/000"},
		{0, 1234067, 256, "tile/0/x001/x234/067"},
		{1, 999, 255, "tile/1/999.p/255"},
		{3, 1000, 1, "tile/3/x001/000.p/1"},
		{-1, 1234067, 256, "tile/entries/x001/x234/067"},
		{-1, 0, 8, "tile/entries/000.p/8"},
	} {
		if got := tilePath(merkle.Tile{H: tileHeight, L: tt.level, N: tt.index, W: tt.width}); got != tt.want {
			t.Errorf("tilePath(level %d, index %d, width %d) = %q, want %q", tt.level, tt.index, tt.width, got, tt.want)
		}
	}
}

func TestSplitBundleRefuses(t *testing.T) {
	for _, tt := range []struct {
		data string
		n    int
	}{
		{"", 1}, {"\x00", 1}, {"\x00\x01", 1}, {"\x00\x02a", 1}, {"\x00\x01a", 2}, {"\x00\x01a\x00", 2}, {"\xff\xffa", 1},
	} {
		if got, err := SplitBundle([]byte(tt.data), tt.n); err == nil {
			t.Errorf("SplitBundle(%q, %d) = %q, want an error", tt.data, tt.n, got)
		}
	}
	if got, err := SplitBundle([]byte("\x00\x01a\x00\x00\x00\x02bcrest"), 3); err != nil || fmt.Sprintf("%q", got) != `["a" "" "bc"]` {
		t.Errorf("SplitBundle = %q, %v", got, err)
	}
}

func FuzzSplitBundle(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00\x00\x02bc"), 3)
	f.Add([]byte("\xff\xff"), 256)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		if n < 0 || n > tileWidth {
			return
		}
		records, err := SplitBundle(data, n)
		if err != nil {
			return
		}
		var again []byte
		for _, r := range records {
			again = append(append(again, byte(len(r)>>8), byte(len(r))), r...)
		}
		if len(records) != n || !bytes.HasPrefix(data, again) {
			t.Errorf("SplitBundle(%q, %d) = %q", data, n, records)
		}
	})
}

func TestClaimedLeafRefuses(t *testing.T) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	ledger := `{"predicateType":"https://github.com/openclaw/clawfs/build-ledger/v1","predicate":{"model":"acme/langid","publisher":{"keyid":"` + string(key.Public().ID()) + `"}}}`
	leaf := func(payload string) (tlog.Leaf, error) {
		t.Helper()
		text, err := dsse.Sign(dsse.PayloadType, []byte(payload), key)
		if err != nil {
			t.Fatal(err)
		}
		e, err := dsse.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return ClaimedLeaf(e)
	}
	if got, err := leaf(ledger); err != nil || got.Signer() != key.Public().ID() || got.Model() != "acme/langid" {
		t.Fatalf("ClaimedLeaf = %+v, %v", got, err)
	}
	for _, tt := range []struct{ name, from, to, want string }{
		{"no JSON", ledger, "weights", "in-toto statement"},
		{"two values", ledger, ledger + ledger, "in-toto statement"},
		{"a name twice", `"predicate":`, `"predicate":{},"predicate":`, "in-toto statement"},
		{"another predicate", "build-ledger/v1", "build-ledger/v2", "predicateType"},
		{"no predicate type", "predicateType", "predicatetype", "predicateType"},
		{"no model", `"model":"acme/langid",`, "", "needs a model"},
		{"a model with a newline", "acme/langid", `acme\nlangid`, "model"},
		{"no key", "keyid", "key", "signer"},
		{"the signer of another kind", `"publisher"`, `"minter"`, "signer"},
	} {
		payload := strings.Replace(ledger, tt.from, tt.to, 1)
		if got, err := leaf(payload); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: ClaimedLeaf = %+v, %v, want an error with %q", tt.name, got, err, tt.want)
		}
	}
}
