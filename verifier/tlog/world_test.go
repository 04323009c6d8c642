package tlog_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	typeLog     = 1
	typeWitness = 4
	now         = 1764230400
)

// signer is a log or a witness with a key of its own, made from its name. It
// signs without any code of the package.
type signer struct {
	name string
	kind byte
	key  ed25519.PrivateKey
}

func newSigner(name string, kind byte) signer {
	seed := sha256.Sum256([]byte("test key of " + name))
	return signer{name, kind, ed25519.NewKeyFromSeed(seed[:])}
}

func (s signer) public(t testing.TB) dsse.PublicKey {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	k, err := dsse.PublicKeyFromSPKI(der)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (s signer) material() []byte {
	return append([]byte{s.kind}, s.key.Public().(ed25519.PublicKey)...)
}

func (s signer) id() []byte {
	sum := sha256.Sum256([]byte(s.name + "\n" + string(s.material())))
	return sum[:4]
}

func (s signer) vkey() string {
	return fmt.Sprintf("%s+%x+%s", s.name, s.id(), base64.StdEncoding.EncodeToString(s.material()))
}

func (s signer) line(sig []byte) string {
	return "— " + s.name + " " + base64.StdEncoding.EncodeToString(append(s.id(), sig...)) + "\n"
}

// sign returns the signature line under text. Witnesses sign at the time now.
func (s signer) sign(text string) string {
	if s.kind == typeLog {
		return s.line(ed25519.Sign(s.key, []byte(text)))
	}
	return s.cosign(text, now)
}

func (s signer) cosign(text string, at uint64) string {
	sig := ed25519.Sign(s.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text))
	return s.line(append(binary.BigEndian.AppendUint64(nil, at), sig...))
}

// named is the same key under another name.
func (s signer) named(name string) signer { s.name = name; return s }

// tree is a log's tree, with the storage of golang.org/x/mod/sumdb/tlog.
type tree struct{ hashes []tlog.Hash }

func (tr *tree) reader() merkle.HashReader {
	return merkle.HashReaderFunc(func(indexes []int64) ([]merkle.Hash, error) {
		var out []merkle.Hash
		for _, i := range indexes {
			if i >= int64(len(tr.hashes)) {
				return nil, errors.New("no such hash")
			}
			out = append(out, tr.hashes[i])
		}
		return out, nil
	})
}

func newTree(t testing.TB, leaves ...tlog.Leaf) *tree {
	t.Helper()
	tr := new(tree)
	for i, l := range leaves {
		more, err := merkle.StoredHashes(int64(i), l.Encode(), tr.reader())
		if err != nil {
			t.Fatal(err)
		}
		tr.hashes = append(tr.hashes, more...)
	}
	return tr
}

func (tr *tree) root(t testing.TB, size int64) tlog.Hash {
	t.Helper()
	h, err := merkle.TreeHash(size, tr.reader())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (tr *tree) path(t testing.TB, size, index int64) []tlog.Hash {
	t.Helper()
	p, err := merkle.ProveRecord(size, index, tr.reader())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (tr *tree) consistency(t testing.TB, older, newer int64) tlog.Consistency {
	t.Helper()
	p, err := merkle.ProveTree(newer, older, tr.reader())
	if err != nil {
		t.Fatal(err)
	}
	return tlog.Consistency(p)
}

func text(origin string, size int64, root tlog.Hash) string {
	return fmt.Sprintf("%s\n%d\n%v\n", origin, size, root)
}

func signed(text string, by ...signer) string {
	out := text + "\n"
	for _, s := range by {
		out += s.sign(text)
	}
	return out
}

func policy(t testing.TB, lines ...string) tlog.Policy {
	t.Helper()
	p, err := tlog.ParsePolicy([]byte(strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// world is a log of 13 leaves, three witnesses, and a policy that wants two.
type world struct {
	log        signer
	w1, w2, w3 signer
	leaves     []tlog.Leaf
	tree       *tree
	policy     tlog.Policy
}

const origin = "log.example/models"

func newWorld(t testing.TB) world {
	t.Helper()
	w := world{
		log: newSigner(origin, typeLog),
		w1:  newSigner("witness1.example", typeWitness),
		w2:  newSigner("witness2.example", typeWitness),
		w3:  newSigner("witness3.example", typeWitness),
	}
	w.leaves = leaves(t, 13, "acme/langid")
	w.tree = newTree(t, w.leaves...)
	w.policy = policy(t, w.lines()...)
	return w
}

func (w world) lines() []string {
	return []string{
		"log " + w.log.vkey(),
		"witness w1 " + w.w1.vkey(), "witness w2 " + w.w2.vkey(), "witness w3 " + w.w3.vkey(),
		"group two 2 w1 w2 w3", "quorum two",
	}
}

func (w world) text(t testing.TB, size int64) string { return text(origin, size, w.tree.root(t, size)) }

// note is a checkpoint as it should be: signed by the log and two witnesses.
func (w world) note(t testing.TB, size int64) string {
	return signed(w.text(t, size), w.log, w.w1, w.w2)
}

func (w world) proof(t testing.TB, size, index int64) tlog.Proof {
	return tlog.Proof{Index: index, Path: w.tree.path(t, size, index), Checkpoint: []byte(w.note(t, size))}
}

func (w world) checkpoint(t testing.TB, size int64) tlog.Checkpoint {
	t.Helper()
	c, err := w.policy.Checkpoint([]byte(w.note(t, size)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var publisher = newSigner("publisher", 0)

func leaves(t testing.TB, n int, model string) []tlog.Leaf {
	t.Helper()
	var all []tlog.Leaf
	for i := range n {
		l, err := tlog.LeafOf(tlog.KindSBA, fmt.Appendf(nil, "payload %d", i), publisher.public(t), model)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func encode(t testing.TB, p tlog.Proof) []byte {
	t.Helper()
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func known(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refused fails the test unless err is a Refusal of that reason whose sentence
// holds want.
func refused(t testing.TB, name string, err error, reason tlog.Reason, want string) {
	t.Helper()
	var r *tlog.Refusal
	if !errors.As(err, &r) || r.Reason != reason || !strings.Contains(r.Detail, want) {
		t.Errorf("%s: got %v, want a Refusal for %q with %q", name, err, reason, want)
	}
}

// failed fails the test unless err holds want and is not a Refusal.
func failed(t testing.TB, name string, err error, want string) {
	t.Helper()
	var r *tlog.Refusal
	if err == nil || errors.As(err, &r) || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want an error with %q that is no Refusal", name, err, want)
	}
}

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
