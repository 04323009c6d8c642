package tlog_test

import (
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func TestLeafOfRefuses(t *testing.T) {
	key := publisher.public(t)
	for _, tt := range []struct {
		kind    tlog.Kind
		payload string
		key     dsse.PublicKey
		model   string
		want    string
	}{
		{tlog.KindSBA, "", key, "acme/langid", "the payload is empty"},
		{tlog.KindSBA, "x", dsse.PublicKey{}, "acme/langid", "there is no signer"},
		{"", "x", key, "acme/langid", `expected kind sba, capability, revocation, policy or store-head, got ""`},
		{"SBA", "x", key, "acme/langid", `got "SBA"`},
		{"sba\nmodel evil", "x", key, "acme/langid", "expected kind"},
		{tlog.KindSBA, "x", key, "", "a leaf of kind sba needs a model"},
		{tlog.KindCapability, "x", key, "", "a leaf of kind capability needs a model"},
		{tlog.KindRevocation, "x", key, "acme/langid", "a leaf of kind revocation has no model"},
		{tlog.KindPolicy, "x", key, "acme/langid", "a leaf of kind policy has no model"},
		{tlog.KindStoreHead, "x", key, "acme/langid", "a leaf of kind store-head has no model"},
		{tlog.KindSBA, "x", key, "acme/langid\n", `got "\n" at byte 11`},
		{tlog.KindSBA, "x", key, "acme/Langid", "expected a-z"},
		{tlog.KindSBA, "x", key, "acme/lаngid", "expected a-z"},
		{tlog.KindSBA, "x", key, "acme langid", "expected a-z"},
		{tlog.KindSBA, "x", key, strings.Repeat("a", 485), "expected at most 484 bytes, got 485"},
	} {
		l, err := tlog.LeafOf(tt.kind, []byte(tt.payload), tt.key, tt.model)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !l.IsZero() {
			t.Errorf("LeafOf(%q, %q, %q) = %v, %v, want an error with %q", tt.kind, tt.payload, tt.model, l, err, tt.want)
		}
	}
}

func TestLeaf(t *testing.T) {
	key := publisher.public(t)
	for _, kind := range []tlog.Kind{tlog.KindSBA, tlog.KindCapability, tlog.KindRevocation, tlog.KindPolicy, tlog.KindStoreHead} {
		model := ""
		if kind == tlog.KindSBA || kind == tlog.KindCapability {
			model = strings.Repeat("a", 484)
		}
		l, err := tlog.LeafOf(kind, []byte("payload"), key, model)
		if err != nil {
			t.Fatal(err)
		}
		if l.Kind() != kind || l.Model() != model || l.Signer() != key.ID() || l.Payload() != hashpipe.SumBytes([]byte("payload")).Claim() ||
			l.PAE() != hashpipe.SumBytes(dsse.PAE(dsse.PayloadType, []byte("payload"))).Claim() || l.PAE() == l.Payload() {
			t.Errorf("LeafOf(%s) = %+v", kind, l)
		}
		if back, err := tlog.ParseLeaf(l.Encode()); err != nil || back != l {
			t.Errorf("ParseLeaf(%s) = %+v, %v", l.Encode(), back, err)
		}
		if len(l.Encode()) > tlog.MaxLeaf {
			t.Errorf("the longest leaf has %d bytes, more than MaxLeaf", len(l.Encode()))
		}
	}
}

func TestParseLeafRefuses(t *testing.T) {
	good := string(known(t, "leaf"))
	lines := strings.SplitAfter(good, "\n")
	sub := func(old, new string) string {
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%q is not in the leaf", old)
		}
		return s
	}
	payload := strings.Fields(lines[2])[1]
	tests := []struct{ name, text, want string }{
		{"empty", "", "clawfs-leaf/v1"},
		{"another version", sub("/v1", "/v2"), "clawfs-leaf/v1"},
		{"header only", lines[0], `expected a line "kind"`},
		{"unknown kind", sub("kind sba", "kind model"), `got "model"`},
		{"no value", sub("kind sba", "kind"), `expected a line "kind" with a value`},
		{"two spaces", sub("kind sba", "kind  sba"), `got " sba"`},
		{"space at the end", sub("kind sba", "kind sba "), `got "sba "`},
		{"carriage return", sub("kind sba", "kind sba\r"), `got "sba\r"`},
		{"lines swapped", lines[0] + lines[1] + lines[3] + lines[2] + lines[4] + lines[5], `expected a line "payload"`},
		{"line twice", lines[0] + lines[1] + lines[1] + lines[2] + lines[3] + lines[4] + lines[5], `expected a line "payload"`},
		{"line missing", lines[0] + lines[1] + lines[2] + lines[4] + lines[5], `expected a line "pae"`},
		{"digest in capitals", sub(payload, strings.ToUpper(payload)), "payload: SHA-256 digest"},
		{"digest with a prefix", sub(payload, "sha256:"+payload), "payload: SHA-256 digest"},
		{"digest cut short", sub(payload, payload[1:]), "payload: SHA-256 digest"},
		{"digest of zeros", sub(payload, strings.Repeat("0", 64)), "payload: SHA-256 digest"},
		{"no model", strings.Join(lines[:5], ""), "a leaf of kind sba needs a model"},
		{"empty model", sub("acme/langid", ""), "model: it is empty"},
		{"model of a revocation", sub("kind sba", "kind revocation"), "has no model"},
		{"empty model of a revocation", strings.Replace(sub("kind sba", "kind revocation"), "acme/langid", "", 1), "model: it is empty"},
		{"line after the last", good + "extra x\n", "expected nothing after the last line"},
		{"empty line after the last", good + "\n", "expected nothing after the last line"},
		{"no newline at the end", strings.TrimSuffix(good, "\n"), `expected a line "model"`},
		{"too long", good + strings.Repeat(" ", tlog.MaxLeaf), "expected at most 1024 bytes"},
	}
	for _, tt := range tests {
		if l, err := tlog.ParseLeaf([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: ParseLeaf = %+v, %v, want an error with %q", tt.name, l, err, tt.want)
		}
	}
}
