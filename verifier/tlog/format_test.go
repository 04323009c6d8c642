package tlog_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/log"
	formatsnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"

	"github.com/openclaw/clawfs/verifier/tlog"
)

// sparePad sets a padding bit of the base64 before want.
func sparePad(t testing.TB, s string) string {
	t.Helper()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	i := strings.LastIndexFunc(s, func(r rune) bool { return r != '=' && r != '\n' })
	return s[:i] + string(alphabet[strings.IndexByte(alphabet, s[i])|1]) + s[i+1:]
}

func TestParseProofRefuses(t *testing.T) {
	good := string(known(t, "11.tlog-proof"))
	note := string(known(t, "11.checkpoint"))
	hash := strings.Split(good, "\n")[2]
	sub := func(old, new string) string {
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%q is not in the proof", old)
		}
		return s
	}
	many := strings.Repeat(hash+"\n", 65)
	tests := []struct{ name, text, want string }{
		{"empty", "", "expected the line"},
		{"a checkpoint alone", note, "expected the line"},
		{"another version", sub("@v1", "@v2"), "expected the line"},
		{"carriage return", sub("@v1\n", "@v1\r\n"), "expected the line"},
		{"byte order mark", "\ufeff" + good, "expected the line"},
		{"empty line first", "\n" + good, "expected the line"},
		{"extra data", sub("index", "extra AAAA\nindex"), "expected no extra line, because nothing authenticates it"},
		{"extra data after the index", sub("index 0\n", "index 0\nextra AAAA\n"), "hash 1: expected 44 bytes of base64"},
		{"no index", sub("index 0\n", ""), `expected a line "index <number>" second`},
		{"index twice", sub("index 0\n", "index 0\nindex 0\n"), "hash 1"},
		{"index of two digits", sub("index 0", "index 00"), `got "00"`},
		{"index with a sign", sub("index 0", "index +0"), `got "+0"`},
		{"index below 0", sub("index 0", "index -1"), `got "-1"`},
		{"index in hex", sub("index 0", "index 0x0"), `got "0x0"`},
		{"index 2^53", sub("index 0", "index 9007199254740992"), "expected a decimal from 0 to 2^53-1"},
		{"index 2^64", sub("index 0", "index 18446744073709551616"), "expected a decimal from 0 to 2^53-1"},
		{"no index number", sub("index 0", "index "), `got ""`},
		{"space after the index", sub("index 0\n", "index 0 \n"), `got "0 "`},
		{"hash with padding bits", sub(hash, sparePad(t, hash)), "hash 1: expected padded standard base64"},
		{"hash without padding", sub(hash, strings.TrimSuffix(hash, "=")), "hash 1: expected 44 bytes"},
		{"hash of 33 bytes", sub(hash, strings.Repeat("A", 44)), "hash 1: expected base64 of 32 bytes, got 33"},
		{"hash in the url alphabet", sub(hash, strings.Repeat("_", 43)+"="), "hash 1: expected padded"},
		{"hash with a space", sub(hash, hash[:43]+" "), "hash 1: expected padded"},
		{"hash with a carriage return", sub(hash+"\n", hash+"\r\n"), "hash 1: expected 44 bytes"},
		{"65 hashes", sub(hash+"\n", many), "expected at most 64 hashes"},
		{"no empty line", sub("\n\n", "\n"), "hash 5"},
		{"two empty lines", sub("\n\n", "\n\n\n"), "expected no empty line in the text"},
		{"no checkpoint", strings.TrimSuffix(good, note), "expected an empty line and signatures"},
		{"hashes alone", sub("\n\n"+note, "\n"), "expected an empty line and a checkpoint"},
		{"empty line after the checkpoint", good + "\n", "expected no empty line in the text"},
		{"text after the checkpoint", good + "x\n", "signature 4"},
		{"another proof after it", good + good, "expected no empty line in the text"},
		{"too long", good + strings.Repeat(" ", tlog.MaxProof), "log proof: expected at most 134016 bytes"},
	}
	for _, tt := range tests {
		p, err := tlog.ParseProof([]byte(tt.text))
		refused(t, tt.name, err, tlog.ReasonMalformed, tt.want)
		if p.Checkpoint != nil {
			t.Errorf("%s: ParseProof returned a proof beside its refusal", tt.name)
		}
	}
	mine := []byte(good)
	p, err := tlog.ParseProof(mine)
	if err != nil {
		t.Fatal(err)
	}
	clear(mine)
	if string(p.Checkpoint) != note {
		t.Error("a caller that writes into its text writes into the proof")
	}
	for _, p := range []tlog.Proof{
		{},
		{Index: -1, Checkpoint: []byte(note)},
		{Path: make([]tlog.Hash, 65), Checkpoint: []byte(note)},
		{Checkpoint: []byte(note + "\n")},
	} {
		if b, err := p.Encode(); err == nil {
			t.Errorf("Encode(%v) = %q", p, b)
		}
	}
}

// Some of these are refused because note.Open lets them through, which a row
// with lenient says of it.
func TestCheckpointRefusesForm(t *testing.T) {
	w := newWorld(t)
	text := w.text(t, 11)
	good := signed(text, w.log, w.w1, w.w2)
	root := strings.Split(text, "\n")[2]
	re := func(text string) string { return signed(text, w.log, w.w1, w.w2) }
	logLine := w.log.sign(text)
	tests := []struct {
		name, note, want string
		lenient          bool
	}{
		{"empty", "", "expected an empty line and signatures", false},
		{"text alone", text, "expected an empty line and signatures", false},
		{"no signatures", text + "\n", "expected a signature after the empty line", false},
		{"two lines", re("log.example/models\n11\n"), "expected lines of origin, size and root", true},
		{"empty line in the text", re(text + "\nextension\n"), "expected no empty line in the text", true},
		{"empty line first", re("\n" + text), "expected no empty line in the text", true},
		{"empty origin", re("\n" + strings.Join(strings.Split(text, "\n")[1:], "\n")), "expected no empty line", true},
		{"size of 011", re(strings.Replace(text, "\n11\n", "\n011\n", 1)), `size: expected a decimal from 0 to 2^53-1 without sign and leading zero, got "011"`, true},
		{"size of +11", re(strings.Replace(text, "\n11\n", "\n+11\n", 1)), `got "+11"`, true},
		{"size of -1", re(strings.Replace(text, "\n11\n", "\n-1\n", 1)), `got "-1"`, true},
		{"size of 1e1", re(strings.Replace(text, "\n11\n", "\n1e1\n", 1)), `got "1e1"`, true},
		{"size with a space", re(strings.Replace(text, "\n11\n", "\n11 \n", 1)), `got "11 "`, true},
		{"size in other digits", re(strings.Replace(text, "\n11\n", "\n١١\n", 1)), "size: expected a decimal", true},
		{"size 2^53", re(strings.Replace(text, "\n11\n", "\n9007199254740992\n", 1)), `got "9007199254740992"`, true},
		// With this size golang.org/x/mod/sumdb/tlog.CheckRecord does not return.
		{"size 2^63-1", re(strings.Replace(text, "\n11\n", "\n9223372036854775807\n", 1)), `got "9223372036854775807"`, true},
		{"root with padding bits", re(strings.Replace(text, root, sparePad(t, root), 1)), "root: expected padded standard base64", true},
		{"root of 31 bytes", re(strings.Replace(text, root, base64.StdEncoding.EncodeToString(make([]byte, 31)), 1)), "root: expected base64 of 32 bytes, got 31", true},
		{"root in hex", re(strings.Replace(text, root, strings.Repeat("ab", 32), 1)), "root: expected 44 bytes of base64, got 64", true},
		{"empty log with a root", re(strings.Replace(text, "\n11\n", "\n0\n", 1)), "root: expected 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU= for an empty log", true},
		{"text of 4097 bytes", re(text + strings.Repeat("x", 4096-len(text)) + "\n"), "expected a text of at most 4096 bytes, got 4097", true},
		{"carriage returns", strings.ReplaceAll(good, "\n", "\r\n"), "expected no control character but newlines", false},
		{"tab", re(text + "a\tb\n"), "expected no control character but newlines", false},
		{"not UTF-8", re(text + "\xff\n"), "it is not UTF-8", false},
		{"no newline at the end", strings.TrimSuffix(good, "\n"), "and a newline", false},
		{"another dash", strings.Replace(good, "— ", "– ", 1), `expected "— <key name> <base64>"`, false},
		{"no name", strings.Replace(good, "— log.example/models ", "— ", 1), `expected "— <key name> <base64>"`, false},
		{"two spaces", strings.Replace(good, "— log", "—  log", 1), "key name: it is empty", false},
		{"plus in a name", strings.Replace(good, "— log", "— +log", 1), "key name", false},
		{"space after a signature", strings.Replace(good, logLine, strings.TrimSuffix(logLine, "\n")+" \n", 1), "expected padded standard base64", false},
		{"signature with padding bits", strings.Replace(good, logLine, sparePad(t, logLine), 1), "expected padded standard base64", true},
		{"signature of no bytes", good + "— x.example AAAAAA==\n", "expected a key id and a signature, got 4 bytes", false},
		{"a key that signs twice", good + w.w1.cosign(text, now+1), "signs twice", true},
		{"a key that signs twice, of which the second is bad", good + w.w1.line(make([]byte, 72)), "signs twice", true},
		{"65 signatures", good + sixtyTwo(text), "expected at most 64 signatures", true},
		{"too long", good + "— x.example " + strings.Repeat("AAAA", tlog.MaxCheckpoint/4) + "\n", "expected at most 131072 bytes", true},
	}
	for _, tt := range tests {
		c, err := w.policy.Checkpoint([]byte(tt.note))
		refused(t, tt.name, err, tlog.ReasonMalformed, tt.want)
		if !c.IsZero() {
			t.Errorf("%s: a checkpoint beside the refusal", tt.name)
		}
		_, err = note.Open([]byte(tt.note), note.VerifierList(verifiers(t, w.log, w.w1, w.w2)...))
		if (err == nil) != tt.lenient {
			t.Errorf("%s: note.Open = %v, want that it opens: %v", tt.name, err, tt.lenient)
		}
	}
}

func sixtyTwo(text string) string {
	var b strings.Builder
	for i := range 62 {
		b.WriteString(newSigner(fmt.Sprintf("x%d.example", i), typeWitness).sign(text))
	}
	return b.String()
}

func verifiers(t testing.TB, signers ...signer) []note.Verifier {
	t.Helper()
	var all []note.Verifier
	for _, s := range signers {
		var v note.Verifier
		var err error
		if s.kind == typeLog {
			v, err = note.NewVerifier(s.vkey())
		} else {
			v, err = formatsnote.NewVerifierForCosignatureV1(s.vkey())
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// Go's note and transparency-dev's formats are other implementations of what
// this package reads: they accept ours, and we accept theirs.
func TestOracles(t *testing.T) {
	w := newWorld(t)
	ours := encode(t, w.proof(t, 11, 4))
	var theirs proof.TLogProof
	if err := theirs.Unmarshal(ours); err != nil {
		t.Fatalf("formats refuses our proof: %v", err)
	}
	if got := theirs.Marshal(); string(got) != string(ours) {
		t.Errorf("formats writes %q, we write %q", got, ours)
	}
	p, err := tlog.ParseProof(theirs.Marshal())
	if err != nil || uint64(p.Index) != theirs.Index || len(p.Path) != len(theirs.Hashes) || string(p.Checkpoint) != string(theirs.Checkpoint) {
		t.Errorf("ParseProof = %v, %v", p, err)
	}
	vs := verifiers(t, w.log, w.w1, w.w2)
	c, rest, n, err := log.ParseCheckpoint(theirs.Checkpoint, origin, vs[0], vs[1:]...)
	if err != nil || c.Size != 11 || len(rest) != 0 || len(n.Sigs) != 3 {
		t.Errorf("formats reads our checkpoint as %v, %q, %v, %v", c, rest, n, err)
	}

	// A checkpoint that only other code has made and signed.
	logSeed, witnessSeed := w.log.key.Seed(), w.w1.key.Seed()
	logSigner, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", w.log.name, w.log.id(), base64.StdEncoding.EncodeToString(slices.Concat([]byte{1}, logSeed))))
	if err != nil {
		t.Fatal(err)
	}
	witness, err := formatsnote.NewSignerForCosignatureV1(fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", w.w1.name, w.w1.id(), base64.StdEncoding.EncodeToString(slices.Concat([]byte{4}, witnessSeed))))
	if err != nil {
		t.Fatal(err)
	}
	root := w.tree.root(t, 13)
	signedNote, err := note.Sign(&note.Note{Text: string(log.Checkpoint{Origin: origin, Size: 13, Hash: root[:]}.Marshal())}, logSigner, witness)
	if err != nil {
		t.Fatal(err)
	}
	one := policy(t, "log "+w.log.vkey(), "witness w1 "+w.w1.vkey(), "quorum w1")
	got, err := one.Checkpoint(signedNote)
	if err != nil || string(got.Note()) != string(signedNote) {
		t.Errorf("Checkpoint of the libraries' note = %s, %v", got.Note(), err)
	}

	// Two texts for one proof.
	carriage := bytes.ReplaceAll(ours, []byte("\n"), []byte("\r\n"))
	if err := new(proof.TLogProof).Unmarshal(carriage); err != nil {
		t.Errorf("formats refuses carriage returns: %v", err)
	}
	_, err = tlog.ParseProof(carriage)
	refused(t, "carriage returns", err, tlog.ReasonMalformed, "expected the line")

	// The unauthenticated line that the format has and we do not take.
	theirs.ExtraData = []byte("extra")
	_, err = tlog.ParseProof(theirs.Marshal())
	refused(t, "extra data", err, tlog.ReasonMalformed, "extra")
}

func TestParseConsistencyRefuses(t *testing.T) {
	good := string(known(t, "11to13.consistency"))
	line, _, _ := strings.Cut(good, "\n")
	for _, tt := range []struct{ name, text, want string }{
		{"no newline at the end", strings.TrimSuffix(good, "\n"), "expected a newline after"},
		{"empty line", good + "\n", "expected 44 bytes of base64, got 0"},
		{"carriage return", line + "\r\n", "expected 44 bytes"},
		{"padding bits", sparePad(t, line) + "\n", "expected padded standard base64"},
		{"65 hashes", strings.Repeat(line+"\n", 65), "expected at most 64 hashes"},
		{"header", "old 11\n" + good, "hash 1"},
	} {
		c, err := tlog.ParseConsistency([]byte(tt.text))
		refused(t, tt.name, err, tlog.ReasonMalformed, tt.want)
		if c != nil {
			t.Errorf("%s: a proof beside the refusal", tt.name)
		}
	}
	if _, err := tlog.Consistency(make([]tlog.Hash, 65)).Encode(); err == nil {
		t.Error("65 hashes encode")
	}
	if c, err := tlog.ParseConsistency(nil); err != nil || len(c) != 0 {
		t.Errorf("ParseConsistency of nothing = %v, %v", c, err)
	}
	c, err := tlog.ParseConsistency([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := c.Encode(); err != nil || string(b) != good {
		t.Errorf("Encode = %q, %v, want %q", b, err, good)
	}
}
