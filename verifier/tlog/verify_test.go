package tlog_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// The checkpoint of a proof is replaced; leaf and path stay right.
func TestVerifyRefusesCheckpoint(t *testing.T) {
	w := newWorld(t)
	const size, index = 11, 4
	right := w.text(t, size)
	other := newSigner("other.example/log", typeLog)
	stranger := newSigner(origin, typeLog)
	stranger.key = newSigner("stranger", typeLog).key
	asOrigin := newSigner("named as the log", typeWitness).named(origin)
	twoLogs := policy(t, append([]string{"log " + other.vkey()}, w.lines()...)...)
	confusing := policy(t, "log "+w.log.vkey(), "witness a "+asOrigin.vkey(), "witness b "+w.w1.vkey(), "group q 2 a b", "quorum q")
	all := policy(t, append(w.lines()[:4], "group q all w1 w2 w3", "quorum q")...)
	only3 := policy(t, append(w.lines()[:4], "quorum w3")...)

	raw := ed25519.Sign(w.w2.key, []byte(right))
	untimed := w.w2.line(append(make([]byte, 8), raw...))
	late := w.w2.cosign(right, 253402300800)
	fresh := w.w2.cosign(right, now+1)
	mixed := w.w2.line(slices.Concat([]byte{0, 0, 0, 0, 0x69, 0x28, 5, 1}, ed25519.Sign(w.w2.key, []byte("cosignature/v1\ntime 1764230400\n"+right))))
	wrong := text(origin, size, w.tree.root(t, size-1))
	ten := w.text(t, size-1)

	tests := []struct {
		name   string
		policy tlog.Policy
		note   string
		reason tlog.Reason
		want   string
	}{
		{"log that the policy does not name", w.policy, signed(text(other.name, size, w.tree.root(t, size)), other, w.w1, w.w2), tlog.ReasonOrigin, `expected a log of the policy (log.example/models), got "other.example/log"`},
		{"name of a log with a Cyrillic o", w.policy, signed(text("lоg.example/models", size, w.tree.root(t, size)), w.log, w.w1, w.w2), tlog.ReasonOrigin, `got "l\u043eg.example/models"`},
		{"name of a log and a space", w.policy, signed(text(origin+" ", size, w.tree.root(t, size)), w.log, w.w1, w.w2), tlog.ReasonOrigin, "expected a log of the policy"},
		{"name of a log in capitals", w.policy, signed(text("LOG.example/models", size, w.tree.root(t, size)), w.log, w.w1, w.w2), tlog.ReasonOrigin, "expected a log of the policy"},
		{"another log of the policy signs for this one", twoLogs, signed(right, other, w.w1, w.w2), tlog.ReasonSignature, "expected a signature by the log's own key, got other.example/log+"},
		{"this log signs for another one of the policy", twoLogs, signed(text(other.name, size, w.tree.root(t, size)), w.log, w.w1, w.w2), tlog.ReasonSignature, "expected a signature by the log's own key"},
		{"unknown key under the log's name", w.policy, signed(right, stranger, w.w1, w.w2), tlog.ReasonSignature, "expected a signature by the log's own key"},
		{"witnesses only", w.policy, signed(right, w.w1, w.w2, w.w3), tlog.ReasonSignature, "expected a signature by the log's own key, got witness1.example+"},
		{"nobody of the policy", w.policy, signed(right, newSigner("x.example", typeWitness)), tlog.ReasonSignature, "got x.example+"},
		{"witness that has the log's name", confusing, signed(right, asOrigin, w.w1), tlog.ReasonSignature, "expected a signature by the log's own key"},
		{"log's signature of another text", w.policy, right + "\n" + w.log.sign(ten) + w.w1.sign(right) + w.w2.sign(right), tlog.ReasonSignature, "expected a signature by key log.example/models+"},
		{"cosignature of another text", w.policy, right + "\n" + w.log.sign(right) + w.w1.sign(right) + w.w2.sign(ten), tlog.ReasonSignature, "expected a signature by key witness2.example+"},
		{"bad cosignature beyond the quorum", w.policy, signed(right, w.log, w.w1, w.w2) + w.w3.sign(ten), tlog.ReasonSignature, "expected a signature by key witness3.example+"},
		{"cosignature without its time in the message", w.policy, signed(right, w.log, w.w1) + untimed, tlog.ReasonSignature, "witness2.example"},
		{"cosignature with another time than signed", w.policy, signed(right, w.log, w.w1) + mixed, tlog.ReasonSignature, "witness2.example"},
		{"cosignature of the year 10000", w.policy, signed(right, w.log, w.w1) + late, tlog.ReasonSignature, "witness2.example"},
		{"cosignature of seven bytes", w.policy, signed(right, w.log, w.w1) + w.w2.line(make([]byte, 7)), tlog.ReasonSignature, "witness2.example"},
		{"no cosignature", w.policy, signed(right, w.log), tlog.ReasonQuorum, "expected cosignatures of group two (2 of w1, w2, w3), got none"},
		{"one cosignature of two", w.policy, signed(right, w.log, w.w2), tlog.ReasonQuorum, "expected cosignatures of group two (2 of w1, w2, w3), got w2"},
		{"one and one of a stranger", w.policy, signed(right, w.log, w.w2, newSigner("x.example", typeWitness)), tlog.ReasonQuorum, "got w2"},
		{"one and a stranger under a witness's name", w.policy, signed(right, w.log, w.w2, newSigner("x.example", typeWitness).named("witness1.example")), tlog.ReasonQuorum, "got w2"},
		{"one and its key under another name", w.policy, signed(right, w.log, w.w2, w.w2.named("witness1.example")), tlog.ReasonQuorum, "got w2"},
		{"two where all are wanted", all, signed(right, w.log, w.w2, w.w3), tlog.ReasonQuorum, "expected cosignatures of group q (3 of w1, w2, w3), got w2, w3"},
		{"the others where one is wanted", only3, signed(right, w.log, w.w1, w.w2), tlog.ReasonQuorum, "expected cosignatures of witness w3, got w1, w2"},
		{"one witness twice", w.policy, signed(right, w.log, w.w1, w.w2, w.w2), tlog.ReasonMalformed, "key witness2.example+"},
		{"one witness twice, at two times", w.policy, signed(right, w.log, w.w2) + fresh, tlog.ReasonMalformed, "signs twice"},
		{"the log twice", w.policy, signed(right, w.log, w.w1, w.w2, w.log), tlog.ReasonMalformed, "signs twice"},
		{"another root, signed by all", w.policy, signed(wrong, w.log, w.w1, w.w2), tlog.ReasonInclusion, "expected a path from leaf"},
		{"the tree before, signed by all", w.policy, signed(ten, w.log, w.w1, w.w2), tlog.ReasonInclusion, "log.example/models at size 10, got 4 hashes"},
		{"a tree that ends before the leaf", w.policy, w.note(t, 4), tlog.ReasonInclusion, "expected an index below 4, the size of log log.example/models, got 4"},
		{"an empty log", w.policy, w.note(t, 0), tlog.ReasonInclusion, "expected an index below 0"},
	}
	for _, tt := range tests {
		p := w.proof(t, size, index)
		p.Checkpoint = []byte(tt.note)
		var data []byte
		if tt.reason == tlog.ReasonMalformed { // Encode would refuse it too
			data = bytes.Replace(encode(t, w.proof(t, size, index)), []byte(w.note(t, size)), []byte(tt.note), 1)
		} else {
			data = encode(t, p)
		}
		c, err := tlog.Verify(tt.policy, data, w.leaves[index])
		refused(t, tt.name, err, tt.reason, tt.want)
		if !c.IsZero() {
			t.Errorf("%s: Verify returned a checkpoint beside its refusal", tt.name)
		}
	}
}

// The checkpoint is right; leaf, index or path are not.
func TestVerifyRefusesInclusion(t *testing.T) {
	w := newWorld(t)
	const size, index = 11, 4
	twin := func(kind tlog.Kind, payload string, key dsse.PublicKey, model string) tlog.Leaf {
		l, err := tlog.LeafOf(kind, []byte(payload), key, model)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if twin(tlog.KindSBA, "payload 4", publisher.public(t), "acme/langid") != w.leaves[index] {
		t.Fatal("the twins of this test are not those of the log's leaf")
	}
	p := w.proof(t, size, index)
	path := p.Path
	if len(path) != 4 {
		t.Fatalf("the path has %d hashes, this test expects 4", len(path))
	}
	reversed := slices.Clone(path)
	slices.Reverse(reversed)
	root := w.tree.root(t, size)
	tests := []struct {
		name  string
		leaf  tlog.Leaf
		index int64
		path  []tlog.Hash
	}{
		{"leaf of another payload", w.leaves[5], index, path},
		{"leaf of another kind", twin(tlog.KindCapability, "payload 4", publisher.public(t), "acme/langid"), index, path},
		{"leaf of another signer", twin(tlog.KindSBA, "payload 4", w.log.public(t), "acme/langid"), index, path},
		{"leaf of another model", twin(tlog.KindSBA, "payload 4", publisher.public(t), "acme/langid2"), index, path},
		{"index of its sibling", w.leaves[index], 5, path},
		{"index 0", w.leaves[index], 0, path},
		{"last index", w.leaves[index], size - 1, path},
		{"index of the size", w.leaves[index], size, path},
		{"largest index", w.leaves[index], 1<<53 - 1, path},
		{"no path", w.leaves[index], index, nil},
		{"path without its first", w.leaves[index], index, path[1:]},
		{"path without its last", w.leaves[index], index, path[:3]},
		{"path with one more", w.leaves[index], index, append(slices.Clone(path), tlog.Hash{})},
		{"path with the root after it", w.leaves[index], index, append(slices.Clone(path), root)},
		{"path upside down", w.leaves[index], index, reversed},
		{"path of another size", w.leaves[index], index, w.tree.path(t, 13, index)},
		{"path of another leaf", w.leaves[index], index, w.tree.path(t, size, 6)},
		{"64 hashes", w.leaves[index], index, make([]tlog.Hash, 64)},
	}
	for _, tt := range tests {
		c, err := tlog.Verify(w.policy, encode(t, tlog.Proof{Index: tt.index, Path: tt.path, Checkpoint: p.Checkpoint}), tt.leaf)
		refused(t, tt.name, err, tlog.ReasonInclusion, "log proof: expected ")
		if !c.IsZero() {
			t.Errorf("%s: Verify returned a checkpoint beside its refusal", tt.name)
		}
	}

	// A node of the tree is no leaf: RFC 6962 tells their hashes apart.
	var node bytes.Buffer
	node.WriteByte(1)
	a, b := w.leaves[4].Hash(), w.leaves[5].Hash()
	node.Write(a[:])
	node.Write(b[:])
	if l, err := tlog.ParseLeaf(node.Bytes()); err == nil {
		t.Errorf("ParseLeaf of an inner node = %v", l)
	}
}

func TestVerifyZeroValues(t *testing.T) {
	w := newWorld(t)
	good := encode(t, w.proof(t, 11, 4))
	_, err := tlog.Verify(tlog.Policy{}, good, w.leaves[4])
	failed(t, "zero policy", err, "there is no log policy")
	_, err = tlog.Verify(w.policy, good, tlog.Leaf{})
	failed(t, "zero leaf", err, "there is no leaf")
	_, err = tlog.Verify(w.policy, nil, w.leaves[4])
	refused(t, "no proof", err, tlog.ReasonMalformed, "c2sp.org/tlog-proof@v1")
	if !(tlog.Checkpoint{}).IsZero() || (tlog.VerifierKey{}).Verify(nil, nil) || (tlog.VerifierKey{}).String() != "" ||
		(tlog.Policy{}).Encode() != nil || (tlog.Leaf{}).Encode() != nil || (tlog.Memory{}).Encode() != nil {
		t.Error("a zero value is not empty")
	}
	// A tree whose only record is no bytes at all: the zero leaf is not that.
	empty := newTree(t, tlog.Leaf{})
	p := tlog.Proof{Checkpoint: []byte(signed(text(origin, 1, empty.root(t, 1)), w.log, w.w1, w.w2))}
	_, err = tlog.Verify(w.policy, encode(t, p), tlog.Leaf{})
	failed(t, "zero leaf in a log of an empty record", err, "there is no leaf")
}

func TestVerify(t *testing.T) {
	w := newWorld(t)
	for size := int64(1); size <= 13; size++ {
		for index := range size {
			c, err := tlog.Verify(w.policy, encode(t, w.proof(t, size, index)), w.leaves[index])
			if err != nil || c.Origin() != origin || c.Size() != size || c.Root() != w.tree.root(t, size) {
				t.Errorf("Verify(leaf %d of %d) = %v, %v", index, size, c, err)
			}
		}
	}
}

func TestCheckpointKeepsOnlyWhatItVerified(t *testing.T) {
	w := newWorld(t)
	right := w.text(t, 11)
	junk := newSigner("x.example", typeWitness)
	other := newSigner("an earlier key", typeLog).named(origin)
	note := right + "\n" + junk.sign("something else\n") + w.w3.cosign(right, now+7) + w.log.sign(right) + other.sign("something else\n") + w.w1.sign(right)
	c, err := w.policy.Checkpoint([]byte(note))
	if err != nil {
		t.Fatal(err)
	}
	if want := right + "\n" + w.w3.cosign(right, now+7) + w.log.sign(right) + w.w1.sign(right); string(c.Note()) != want {
		t.Errorf("Note = %s, want %s", c.Note(), want)
	}
	var got []string
	for _, s := range c.Cosignatures() {
		got = append(got, s.Witness+" "+s.Time.Format("2006-01-02T15:04:05Z07:00"))
	}
	if want := []string{"w1 2025-11-27T08:00:00Z", "w3 2025-11-27T08:00:07Z"}; !slices.Equal(got, want) {
		t.Errorf("Cosignatures = %q, want %q", got, want)
	}
	// Extension lines are signed, and kept as they are.
	extended := right + "an extension\n— not a signature\n"
	if c, err = w.policy.Checkpoint([]byte(signed(extended, w.log, w.w1, w.w2))); err != nil || string(c.Note()) != signed(extended, w.log, w.w1, w.w2) {
		t.Errorf("Checkpoint with extension lines = %s, %v", c.Note(), err)
	}
	// 64 signatures, of which 61 are unknown, are the most.
	many := signed(right, w.log, w.w1, w.w2)
	for i := range 61 {
		many += newSigner(fmt.Sprintf("x%d.example", i), typeWitness).sign(right)
	}
	if _, err = w.policy.Checkpoint([]byte(many)); err != nil {
		t.Errorf("Checkpoint with 64 signatures: %v", err)
	}
	_, err = w.policy.Checkpoint([]byte(many + junk.sign(right)))
	refused(t, "65 signatures", err, tlog.ReasonMalformed, "expected at most 64 signatures")
}

// A log of quorum none needs no witness, and still its own signature.
func TestQuorumNone(t *testing.T) {
	w := newWorld(t)
	p := policy(t, "log "+w.log.vkey(), "witness w1 "+w.w1.vkey(), "quorum none")
	c, err := p.Checkpoint([]byte(signed(w.text(t, 11), w.log)))
	if err != nil || c.Size() != 11 || len(c.Cosignatures()) != 0 {
		t.Errorf("Checkpoint = %v, %v", c, err)
	}
	_, err = p.Checkpoint([]byte(signed(w.text(t, 11), w.w1)))
	refused(t, "quorum none without the log", err, tlog.ReasonSignature, "expected a signature by the log's own key")
}

// No bit of a proof whose signatures are all needed is free.
func TestOneBit(t *testing.T) {
	p, err := tlog.ParsePolicy(known(t, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tlog.ParseLeaf(known(t, "leaf"))
	if err != nil {
		t.Fatal(err)
	}
	good := known(t, "11.tlog-proof")
	if _, err := tlog.Verify(p, good, l); err != nil {
		t.Fatal(err)
	}
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		if c, err := tlog.Verify(p, bad, l); err == nil || !c.IsZero() {
			t.Errorf("bit %d of byte %d changed and verified: %q", i%8, i/8, bad)
		}
	}
	for i := range good {
		if _, err := tlog.Verify(p, good[:i], l); err == nil {
			t.Errorf("the first %d of %d bytes verified", i, len(good))
		}
		if _, err := tlog.Verify(p, slices.Concat(good[:i], good[i:i+1], good[i:]), l); err == nil {
			t.Errorf("byte %d doubled and verified", i)
		}
	}
	leaf := known(t, "leaf")
	for i := range len(leaf) * 8 {
		bad := bytes.Clone(leaf)
		bad[i/8] ^= 1 << (i % 8)
		l, err := tlog.ParseLeaf(bad)
		if err != nil {
			continue
		}
		if _, err := tlog.Verify(p, good, l); err == nil {
			t.Errorf("bit %d of byte %d of the leaf changed and verified: %q", i%8, i/8, bad)
		}
	}
}
