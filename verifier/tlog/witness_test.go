package tlog_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func TestParseLogsRefuses(t *testing.T) {
	w := newWorld(t)
	line := "log " + w.log.vkey() + "\n"
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "expected at least one log line"},
		{"comments alone", "# nothing\n\n", "expected at least one log line"},
		{"witnesses alone", "witness w1 " + w.w1.vkey() + "\nquorum w1\n", "expected at least one log line"},
		{"cut short", strings.TrimSuffix(line, "\n"), "cut short"},
		{"key alone", w.log.vkey() + "\n", "expected log, witness, group or quorum"},
		{"a witness's key", "log " + w.w1.vkey() + "\n", "expected a log's (type 0x01)"},
		{"twice", line + line, "the same one"},
		{"witnesses itself", line + "witness w1 " + w.log.named("w1").vkey() + "\n", "expected a witness's"},
		{"two quorums", line + "quorum none\nquorum none\n", "got a second one"},
		{"unknown quorum", line + "quorum w1\n", "expected the name of a witness"},
		{"too long", line + strings.Repeat("#", tlog.MaxPolicy), "at most 65536 bytes"},
	} {
		keys, err := tlog.ParseLogs([]byte(tt.text))
		failed(t, tt.name, err, tt.want)
		if len(keys) > 0 {
			t.Errorf("%s: keys beside the error", tt.name)
		}
	}
}

func TestParseLogs(t *testing.T) {
	w := newWorld(t)
	other := newSigner("other.example/log", typeLog)
	for _, text := range []string{
		"log " + w.log.vkey() + "\nlog " + other.vkey() + " https://other.example/\n",
		strings.Join(w.lines(), "\n") + "\nlog " + other.vkey() + "\n",
	} {
		keys, err := tlog.ParseLogs([]byte(text))
		if err != nil || len(keys) != 2 || keys[0].String() != w.log.vkey() || keys[1].String() != other.vkey() {
			t.Errorf("ParseLogs(%q) = %v, %v", text, keys, err)
		}
	}
}

func TestClaimedOrigin(t *testing.T) {
	w := newWorld(t)
	good := w.note(t, 8)
	if got, err := tlog.ClaimedOrigin([]byte(good)); err != nil || got != origin {
		t.Errorf("ClaimedOrigin = %q, %v", got, err)
	}
	_, err := tlog.ClaimedOrigin([]byte(w.text(t, 8)))
	refused(t, "no signature", err, tlog.ReasonMalformed, "expected an empty line")
	empty := signed(text(origin, 0, w.tree.root(t, 8)), w.log)
	_, err = tlog.ClaimedOrigin([]byte(empty))
	refused(t, "empty tree with a root", err, tlog.ReasonConsistency, "for an empty log")
	_, err = w.policy.Checkpoint([]byte(empty))
	refused(t, "empty tree with a root, asked of a policy", err, tlog.ReasonMalformed, "for an empty log")
}

func TestCheckSigned(t *testing.T) {
	w := newWorld(t)
	key := func(s signer) tlog.VerifierKey {
		k, err := tlog.ParseVerifierKey(s.vkey())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	n := []byte(w.note(t, 8))
	for _, s := range []signer{w.log, w.w1, w.w2} {
		if err := key(s).CheckSigned(n); err != nil {
			t.Errorf("CheckSigned by %s: %v", s.name, err)
		}
	}
	refused(t, "somebody else", key(w.w3).CheckSigned(n), tlog.ReasonSignature, "expected a signature by key witness3.example+")
	refused(t, "no key", tlog.VerifierKey{}.CheckSigned(n), tlog.ReasonSignature, "expected a signature by key")
	refused(t, "not a note", key(w.w1).CheckSigned([]byte("x")), tlog.ReasonMalformed, "checkpoint: ")
	refused(t, "another root", key(w.w1).CheckSigned([]byte(strings.Replace(string(n), "\n8\n", "\n9\n", 1))), tlog.ReasonSignature, "got none that verifies")
}

// The cosignature that is made is the one that a plain implementation makes, and
// libraries of others take it.
func TestCosign(t *testing.T) {
	w := newWorld(t)
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tlog.NewCosigner("witness9.example/w", key)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.TrimSuffix(w.text(t, 8), "\n") + "\nan extension\n"
	checkpoint, err := policy(t, "log "+w.log.vkey(), "quorum none").Checkpoint([]byte(signed(body, w.log, w.w1)))
	if err != nil {
		t.Fatal(err)
	}
	line, err := c.Cosign(checkpoint, time.Unix(now, 999))
	if err != nil {
		t.Fatal(err)
	}
	vkey := c.VerifierKey().String()
	p := policy(t, "log "+w.log.vkey(), "witness w9 "+vkey, "quorum w9")
	got, err := p.Checkpoint([]byte(signed(body, w.log) + string(line)))
	if err != nil {
		t.Fatal(err)
	}
	if cs := got.Cosignatures(); len(cs) != 1 || cs[0].Witness != "w9" || cs[0].Time.Unix() != now {
		t.Errorf("Cosignatures = %v", cs)
	}
	v, err := formatsnote.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open([]byte(signed(body, w.w1)+string(line)), note.VerifierList(v))
	if err != nil || len(n.Sigs) != 1 || n.Text != body {
		t.Fatalf("note.Open = %v, %v", n, err)
	}
	if at, err := formatsnote.CoSigV1Timestamp(n.Sigs[0]); err != nil || at.Unix() != now {
		t.Errorf("its time = %v, %v, want %d", at, err, now)
	}
}

func TestCosignRefuses(t *testing.T) {
	w := newWorld(t)
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := dsse.GenerateKey(dsse.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  dsse.PrivateKey
		want string
	}{
		{"", key, "it is empty"},
		{"a b", key, "expected no space"},
		{"a+b", key, "expected no space"},
		{strings.Repeat("a", 256), key, "at most 255 bytes"},
		{"w", p256, "expected algorithm ed25519"},
		{"w", dsse.PrivateKey{}, "expected algorithm ed25519"},
	} {
		c, err := tlog.NewCosigner(tt.name, tt.key)
		failed(t, fmt.Sprintf("NewCosigner(%q)", tt.name), err, tt.want)
		if !c.VerifierKey().IsZero() {
			t.Errorf("NewCosigner(%q): a key beside the error", tt.name)
		}
	}
	c, err := tlog.NewCosigner("w", key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tlog.Cosigner{}.Cosign(w.checkpoint(t, 8), time.Unix(now, 0))
	failed(t, "zero Cosigner", err, "there is no key")
	_, err = c.Cosign(tlog.Checkpoint{}, time.Unix(now, 0))
	failed(t, "zero Checkpoint", err, "there is no checkpoint")
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1, 0), time.Unix(253402300800, 0)} {
		_, err = c.Cosign(w.checkpoint(t, 8), at)
		failed(t, at.String(), err, "expected a time after 1970")
	}
}
