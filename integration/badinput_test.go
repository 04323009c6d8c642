package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

// badInput is one row of the table: what somebody hands to clawfs, and the one
// answer to it.
type badInput struct {
	name string
	// make puts the input in place and returns the command line.
	make func(*bench) []string
	code int
	says string // on standard error; of a verb that answers on standard output, there
}

// badGroups are all groups of the table, each with the rows that it holds. The
// rows of a group run in order, because some of them need what was seen before.
var badGroups = []struct {
	name string
	rows func(*bench) []badInput
}{
	{"keys", badKeys},
	{"signatures", badSignatures},
	{"envelopes", badEnvelopes},
	{"digests", badDigests},
	{"replays", badReplays},
	{"predicates", badPredicates},
	{"log proofs", badLogProofs},
	{"log policies", badLogPolicies},
	{"names", badNames},
	{"policies", badPolicies},
	{"signed policies", badSignedPolicies},
	{"registry", badRegistry},
	{"bundles", badBundles},
	{"delegations", badDelegations},
	{"revocations", badRevocations},
}

// TestBadInput hands every kind of bad input to the built program and its
// daemon. Each row ends with one exit code and one sentence, which -o json has as one
// document, and changes no capability. A row with exit code 0 is a control:
// nearly the same input, in order.
func TestBadInput(t *testing.T) {
	b := newBench(t)
	refusedIn := map[string]int{}
	controls, total := 0, 0
	for _, g := range badGroups {
		for _, row := range g.rows(b) {
			t.Run(g.name+"/"+row.name, func(t *testing.T) {
				outer := b.t
				b.t, b.undo = t, nil
				defer func() { b.t = outer }()
				b.try(row)
			})
			if row.code == done {
				controls++
			} else {
				refusedIn[g.name]++
				total++
			}
		}
	}
	var counts []string
	for _, g := range badGroups {
		if refusedIn[g.name] == 0 {
			t.Errorf("group %s refuses nothing: it tests nothing", g.name)
		}
		counts = append(counts, fmt.Sprintf("%s %d", g.name, refusedIn[g.name]))
	}
	t.Logf("refused: %s, total %d; controls in order: %d", strings.Join(counts, ", "), total, controls)
}

// maxRefusalLines is how many lines a person has to read of one refusal: the
// sentence, and a line for each record of a verb that takes several.
const maxRefusalLines = 4

// documentEvery is how many refusals there are to one that is asked for again, as a
// document.
const documentEvery = 3

// try runs a row, and some of them again with -o json.
func (b *bench) try(row badInput) {
	b.t.Helper()
	args := row.make(b)
	defer func() {
		for _, f := range slices.Backward(b.undo) {
			f()
		}
	}()
	before := b.caps()
	code, out, errs := b.run(args...)
	if code != row.code || !strings.Contains(out+errs, row.says) {
		b.t.Errorf("clawfs %s: exit %d, want %d and %q\n%s%s", strings.Join(args, " "), code, row.code, row.says, out, errs)
	}
	b.t.Logf("exit %d: %s", code, strings.TrimSpace(errs))
	b.sane(errs)
	if row.code == done {
		return
	}
	if errs == "" && out == "" {
		b.t.Errorf("clawfs %s: exit %d without a word", strings.Join(args, " "), code)
	}
	if n := strings.Count(errs, "\n"); n > maxRefusalLines {
		b.t.Errorf("%d lines on standard error, want at most %d:\n%s", n, maxRefusalLines, errs)
	}
	if b.rows++; b.rows%documentEvery == 0 {
		code, out, errs = b.run(append(slices.Clone(args), "-o", "json")...)
		if code != row.code {
			b.t.Errorf("clawfs %s -o json: exit %d, want %d\n%s%s", strings.Join(args, " "), code, row.code, out, errs)
		}
		b.sane(errs)
		b.wantDocument(row, out, errs)
	}
	if after := b.caps(); after != before {
		b.t.Errorf("the capabilities changed from\n%sto\n%s", before, after)
	}
}

// wantDocument wants one JSON document: the error, or the answer of a verb that
// answers with a refusal.
func (b *bench) wantDocument(row badInput, out, errs string) {
	b.t.Helper()
	if out != "" {
		if !json.Valid([]byte(out)) {
			b.t.Errorf("-o json wrote to standard output\n%s", out)
		}
		return
	}
	var doc struct {
		Error, Verdict, Diagnosis string
		Code                      int
	}
	dec := json.NewDecoder(strings.NewReader(errs))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil || dec.More() {
		b.t.Errorf("-o json wrote to standard error, %v:\n%s", err, errs)
	}
	if doc.Code != row.code || doc.Error == "" || !strings.Contains(errs, "{\n") {
		b.t.Errorf("error document %+v, want code %d and a sentence", doc, row.code)
	}
}

// sane wants words, and not the inside of a program that broke, or a terminal
// sequence of somebody's file.
func (b *bench) sane(errs string) {
	b.t.Helper()
	for _, word := range []string{"panic", "goroutine ", "runtime error", ".go:", "%!", "<nil>", "into Go "} {
		if strings.Contains(errs, word) {
			b.t.Errorf("standard error has %q:\n%s", word, errs)
		}
	}
	if strings.ContainsFunc(errs, func(r rune) bool { return r < 0x20 && r != '\n' && r != '\t' }) {
		b.t.Errorf("standard error has control bytes: %q", errs)
	}
	if len(errs) > 4096 {
		b.t.Errorf("%d bytes on standard error: %.300s…", len(errs), errs)
	}
}

// caps is the list of capabilities, as its one document.
func (b *bench) caps() string {
	b.t.Helper()
	code, out, errs := b.run("caps", "-o", "json")
	if code != done {
		b.t.Fatalf("caps: exit %d\n%s", code, errs)
	}
	return out
}

// bench is one world with a granted model, and everybody's keys. Its policy
// names, beside acme, the publishers two (both keys of a threshold of two), late
// (one key that is over, one that has not begun) and logged (acme's key and a
// log), a second mint and a second revoker.
type bench struct {
	*world
	keys    map[string]dsse.PrivateKey
	payload string // of the SBA that is granted
	good    []byte // its envelope
	model   []byte // what it builds
	log     *tlogtest.Log
	undo    []func() // of the row that runs
	files   int      // directories of rows
	rows    int      // refusals so far
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{world: newWorld(t), keys: map[string]dsse.PrivateKey{}, log: tlogtest.New("log.example/models", "alice", "bob")}
	b.keys["acme"] = b.readKey(b.key)
	b.keys["localmint"] = b.readKey(filepath.Join(b.state, "mint.key"))
	b.keys["localrevoker"] = b.readKey(filepath.Join(b.state, "revoke.key"))
	for _, name := range []string{"a", "b", "mallory", "old", "soon", "mint", "revoker", "lead", "team", "ann", "bob", "gone"} {
		algorithm := "ed25519"
		if name == "b" {
			algorithm = "ecdsa-p256"
		}
		b.must(done, "keygen", "--out", b.path(name), "--algorithm", algorithm)
		b.keys[name] = b.readKey(b.path(name))
	}
	b.sba = b.ledger("pairs", 1)
	b.model = b.published("pairs")
	b.good = b.read(b.sba)
	b.payload = string(payloadOf(t, b.good))
	b.trust()
	b.must(done, "publisher", "trust", b.path("a.pub"), b.path("b.pub"), "--name", "two", "--models", "two/*", "--threshold", "2")
	b.must(done, "publisher", "trust", b.path("old.pub"), b.path("soon.pub"), "--name", "late", "--models", "late/*")
	b.must(done, "publisher", "trust", b.path("gone.pub"), "--name", "gone", "--models", "gone/*")
	b.must(done, "publisher", "trust", b.key+".pub", "--name", "logged", "--models", "logged/*", "--minimum-sequence", "logged/pairs=1")
	b.must(done, "publisher", "trust", b.key+".pub", "--name", "pinned", "--models", "pinned/*", "--minimum-sequence", "pinned/pairs=5", "--image", "sha256:"+strings.Repeat("ab", 32))
	b.policy(func(p *verifier.Policy) {
		for i, r := range p.Publishers {
			switch r.Name {
			case "late":
				p.Publishers[i].Windows = map[dsse.KeyID]verifier.Window{
					b.keys["old"].Public().ID():  {NotAfter: verifier.At(time.Now().Add(-time.Hour))},
					b.keys["soon"].Public().ID(): {NotBefore: verifier.At(time.Now().Add(24 * time.Hour))},
				}
			case "logged":
				p.Publishers[i].Log = verifier.LogRequired
			}
		}
		p.Logs = b.log.Policy("")
		p.Mints = append(p.Mints, verifier.Operator{Operator: "other", Keys: []dsse.PublicKey{b.keys["mint"].Public()}})
		p.Revokers = append(p.Revokers, verifier.Operator{Operator: "other", Keys: []dsse.PublicKey{b.keys["revoker"].Public()}})
	})
	b.write(filepath.Join(b.src, "pairs.bin"), string(b.model))
	b.mount()
	b.must(done, "grant", b.sba, "--wait", "-q")
	return b
}

// path is a place in the world's directory.
func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// put writes a file of the row and returns its path.
func (b *bench) put(name string, text []byte) string {
	b.t.Helper()
	b.files++
	dir := b.path(fmt.Sprintf("row%d", b.files))
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

func (b *bench) readKey(path string) dsse.PrivateKey {
	b.t.Helper()
	key, err := dsse.ParsePrivateKey(b.read(path), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return key
}

// readPolicy is the world's policy with a change. It is not checked.
func (b *bench) readPolicy(change func(*verifier.Policy)) *verifier.Policy {
	b.t.Helper()
	p, err := verifier.ParsePolicy(b.read(filepath.Join(b.state, "policy.json")))
	if err != nil {
		b.t.Fatal(err)
	}
	change(p)
	return p
}

func (b *bench) policy(change func(*verifier.Policy)) {
	b.t.Helper()
	text, err := b.readPolicy(change).Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(filepath.Join(b.state, "policy.json"), string(text))
}

// replacePolicy puts other text where the policy is, until the row has ended.
func (b *bench) replacePolicy(text string) {
	b.t.Helper()
	path := filepath.Join(b.state, "policy.json")
	good := string(b.read(path))
	b.write(path, text)
	b.undo = append(b.undo, func() { b.write(path, good) })
}

func payloadOf(t *testing.T, envelope []byte) []byte {
	t.Helper()
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return e.UnverifiedPayload()
}

// id is the key id of one of the keys.
func (b *bench) id(name string) string { return string(b.keys[name].Public().ID()) }

// edited is the payload of the granted SBA with texts replaced, each of which it
// must hold.
func (b *bench) edited(oldnew ...string) string {
	b.t.Helper()
	text := b.payload
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			b.t.Fatalf("the ledger has no %q:\n%s", oldnew[i], text)
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	return text
}

// signed is the envelope of a payload by these keys, in this order.
func (b *bench) signed(payload string, keys ...string) []byte {
	b.t.Helper()
	return b.signedAs(dsse.PayloadType, payload, keys...)
}

// signedAs is signed for a payload of another type. dsse.Sign takes each key once,
// so the signatures are made one by one.
func (b *bench) signedAs(payloadType, payload string, keys ...string) []byte {
	b.t.Helper()
	var all wire
	for _, k := range keys {
		text, err := dsse.Sign(payloadType, []byte(payload), b.keys[k])
		if err != nil {
			b.t.Fatal(err)
		}
		var one wire
		if err := json.Unmarshal(text, &one); err != nil {
			b.t.Fatal(err)
		}
		all.PayloadType, all.Payload, all.Signatures = one.PayloadType, one.Payload, append(all.Signatures, one.Signatures...)
	}
	text, err := json.Marshal(all)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// grants is a row that wants a grant of an envelope.
func grants(name string, code int, says string, envelope func(b *bench) []byte) badInput {
	return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
		return []string{"grant", b.put("row.sba", envelope(b))}
	}}
}

// wire is an envelope with its fields in reach.
type wire struct {
	PayloadType string    `json:"payloadType"`
	Payload     string    `json:"payload"`
	Signatures  []wireSig `json:"signatures"`
}

type wireSig struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   string `json:"sig"`
}

// rewired is the granted SBA's envelope with a change.
func (b *bench) rewired(change func(*wire)) []byte {
	b.t.Helper()
	var w wire
	if err := json.Unmarshal(b.good, &w); err != nil {
		b.t.Fatal(err)
	}
	change(&w)
	text, err := json.Marshal(w)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

func unbase64(s string) []byte {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// capability is one that the second mint signed over a file, with a change.
func (b *bench) capability(name, content string, change func(*capstore.Predicate)) []byte {
	b.t.Helper()
	return b.capabilityBy("mint", name, content, change)
}

func (b *bench) capabilityBy(signer, name, content string, change func(*capstore.Predicate)) []byte {
	b.t.Helper()
	m, err := hashpipe.Measure(b.t.Context(), strings.NewReader(content), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	publisher, now := b.keys["acme"].Public(), time.Now().UTC().Truncate(time.Second)
	p := capstore.Predicate{
		Model: "acme/other", Version: "1.0.0", Sequence: 1,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("ledger of " + name)).Claim()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("an image")).Claim()}},
		Publisher:   capstore.Publisher{KeyID: publisher.ID(), PublicKey: publisher},
		Minter:      capstore.Minter{KeyID: b.keys[signer].Public().ID()},
		Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		NotBefore:   now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
	}
	if change != nil {
		change(&p)
	}
	payload, err := capstore.NewStatement([]capstore.Subject{{Name: name, Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()}}, p).Payload()
	if err != nil {
		b.t.Fatal(err)
	}
	return b.signed(string(payload), signer)
}

// revocation is one of a file that nobody has.
func (b *bench) revocation(signer string) []byte {
	b.t.Helper()
	st, err := capstore.NewRevocation(capstore.KindFile, strings.Repeat("ab", 32), "withdrawn", time.Now())
	if err != nil {
		b.t.Fatal(err)
	}
	text, err := capstore.SignRevocation(st, b.keys[signer])
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// list is a revocation list of nothing.
func (b *bench) list(sequence int64, signer string) []byte {
	b.t.Helper()
	st, err := capstore.NewList(sequence, time.Now(), time.Now().Add(time.Hour), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	text, err := capstore.SignList(st, b.keys[signer])
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}
