package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// scanner is somebody who signs statements about files, and logs them.
type scanner struct {
	t   *testing.T
	key dsse.PrivateKey
	log *signingLog
}

// bundle is a Sigstore bundle of a statement about a content, with its entry in
// the log.
func (s scanner) bundle(content string) string {
	s.t.Helper()
	statement := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"scanned\u001b[2J","digest":{"sha256":"%v"}}],"predicateType":"https://scanner.example/v1","predicate":{}}`,
		hashpipe.SumBytes([]byte(content)))
	envelope, err := dsse.Sign(dsse.PayloadType, statement, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	_, sig, _ := strings.Cut(string(envelope), `"sig":"`)
	sig, _, _ = strings.Cut(sig, `"`)
	pae := hashpipe.SumBytes(dsse.PAE(dsse.PayloadType, statement)).Bytes()
	b64 := base64.StdEncoding.EncodeToString
	record := fmt.Appendf(nil, `{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"SHA2_256","digest":"%s"},"signature":{"content":"%s","verifier":{"keyDetails":"PKIX_ECDSA_P256_SHA_256","publicKey":{"rawBytes":"%s"}}}}}}`,
		b64(pae[:]), sig, b64(s.key.Public().SPKI()))
	root := merkle.RecordHash(record)
	s.log.hashes = []merkle.Hash{root}
	entry := fmt.Sprintf(`{"logId":{"keyId":""},"kindVersion":{"kind":"hashedrekord","version":"0.0.2"},"inclusionProof":{"rootHash":"%v","treeSize":"1","checkpoint":{"envelope":%q}},"canonicalizedBody":"%s"}`,
		root, s.log.note(1), b64(record))
	return fmt.Sprintf(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":""},"tlogEntries":[%s]},"dsseEnvelope":%s}`, entry, envelope)
}

// Evidence is shown beside the verdict, and moves neither it nor the exit code.
func TestWhyEvidence(t *testing.T) {
	r := newRig(t)
	good, bad, unknown := filepath.Join(r.mnt, "m.bin"), filepath.Join(r.mnt, "bad", "m.bin"), filepath.Join(r.mnt, "unknown.bin")
	r.admit(map[string]string{"m.bin": "weights"})
	if err := os.Mkdir(filepath.Join(r.src, "bad"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.file("m.bin", "weights")
	r.file("bad/m.bin", "WEIGHTS")
	r.file("unknown.bin", "unknown")
	r.ok("mount", r.src, r.mnt)
	r.eventually("the file opens", func() bool { return r.run("why", good).code == codeDone })

	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := dsse.GenerateKey(dsse.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	other, err := dsse.GenerateKey(dsse.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	s := scanner{t, key, newSigningLog(t)}
	vkey := strings.TrimSuffix(strings.TrimPrefix(s.log.line(), "log "), "\n")
	text := s.bundle("weights")
	pub, otherPub := write("key.pub", string(key.Public().PEM())), write("other.pub", string(other.Public().PEM()))
	about := write("good.json", text)
	vkeyFile, policyFile := write("vkey", vkey+"\n"), write("policy", s.log.line()+"quorum none\n")
	keyless := write("keyless.json", strings.Replace(text, `"publicKey":{"hint":""}`, `"certificate":{"rawBytes":""}`, 1))
	unlogged := write("unlogged.json", text[:strings.Index(text, `,"tlogEntries"`)]+text[strings.Index(text, `},"dsseEnvelope"`):])
	aboutBad := write("bad.json", s.bundle("WEIGHTS"))
	aboutUnknown := write("unknown.json", s.bundle("unknown"))

	signer := "key " + string(key.Public().ID())
	tests := []struct {
		name, path string
		args       []string
		want       []string
	}{
		{"signed", good, []string{about, pub}, []string{signer + " signed a statement (https://scanner.example/v1) about this content; it opens nothing by itself", `scanned\u001b[2J`, "log entries  not looked at (1 in the bundle)"}},
		{"logged, by key", good, []string{about, pub, vkey}, []string{signer, "log          " + logName + ", index 0 of 1"}},
		{"logged, by key in a file", good, []string{about, pub, vkeyFile}, []string{logName + ", index 0 of 1"}},
		{"logged, by policy", good, []string{about, pub, policyFile}, []string{logName + ", index 0 of 1"}},
		{"not logged", good, []string{unlogged, pub, vkey}, []string{"refused: expected one log entry, got 0; it opens nothing by itself"}},
		{"another key", good, []string{about, otherPub}, []string{"refused: expected an in-toto statement signed by key " + string(other.Public().ID())}},
		{"another file", good, []string{aboutBad, pub}, []string{"refused: expected a statement about sha256"}},
		{"keyless", good, []string{keyless, pub}, []string{"refused: it is signed under a certificate (keyless)", "separate helper program"}},
		{"not a bundle", good, []string{pub, pub}, []string{"refused: reading a bundle"}},
		{"of a refused file", bad, []string{aboutBad, pub, vkey}, []string{signer, logName + ", index 0 of 1", "it opens nothing by itself"}},
		{"of an unknown file", unknown, []string{aboutUnknown, pub, vkey}, []string{signer, "it opens nothing by itself"}},
	}
	for _, tt := range tests {
		plain := r.run("why", tt.path)
		args := []string{"why", tt.path, "--evidence", tt.args[0], "--evidence-key", tt.args[1]}
		if len(tt.args) == 3 {
			args = append(args, "--evidence-log", tt.args[2])
		}
		got := r.run(args...)
		if got.code != plain.code || !strings.HasPrefix(got.stdout, plain.stdout) || len(got.stdout) == len(plain.stdout) {
			t.Errorf("%s: exit code %d\n%s\nwithout evidence %d\n%s", tt.name, got.code, got.stdout, plain.code, plain.stdout)
		}
		for _, want := range tt.want {
			if !strings.Contains(got.stdout, want) {
				t.Errorf("%s: no %q in\n%s", tt.name, want, got.stdout)
			}
		}
	}
	if code := r.run("why", bad).code; code != codeRefused {
		t.Errorf("why of a bad file: exit code %d", code)
	}

	var doc whyAnswer
	r.document(&doc, "why", good, "--evidence", about, "--evidence-key", pub, "--evidence-log", vkey)
	if e := doc.Evidence; !doc.Allowed || e == nil || !e.Verified || !e.Compared || e.Signer != key.Public().ID() || len(e.Subjects) != 1 || e.Log == nil || *e.Log != (logPlace{logName, 0, 1}) {
		t.Errorf("document = %+v", doc)
	}
	doc = whyAnswer{}
	r.document(&doc, "why", good, "--evidence", keyless, "--evidence-key", pub)
	if e := doc.Evidence; !doc.Allowed || e == nil || e.Verified || !strings.Contains(e.Refused, "keyless") {
		t.Errorf("document = %+v", doc)
	}
	if got := r.ok("why", good, "-o", "json"); strings.Contains(got, "evidence") {
		t.Errorf("evidence that nobody asked for: %s", got)
	}

	// What is wrong with the command line is said before anything is looked at.
	r.refused(codeUsage, []string{"why", good, "--evidence", about}, "--evidence and --evidence-key belong together")
	r.refused(codeUsage, []string{"why", good, "--evidence-key", pub}, "--evidence and --evidence-key belong together")
	r.refused(codeUsage, []string{"why", good, "--evidence", ""}, "got an empty path")
	r.refused(codeUsage, []string{"why", good, "--evidence-log", vkey}, "--evidence-log needs --evidence too")
	r.refused(codeError, []string{"why", good, "--evidence", filepath.Join(dir, "nosuch"), "--evidence-key", pub}, "no such file")
	r.refused(codeSignature, []string{"why", good, "--evidence", about, "--evidence-key", about}, "public key")
	for value, want := range map[string]string{
		"nosuch":                   "expected a verifier key or a file",
		vkey[:len(vkey)-4]:         "expected 32 bytes of Ed25519",
		about:                      "is the policy cut short?",
		write("nolog", "\n"):       "expected at least one log line",
		write("noq", s.log.line()): "expected one quorum line",
	} {
		r.refused(codeError, []string{"why", good, "--evidence", about, "--evidence-key", pub, "--evidence-log", value}, want)
	}
}
