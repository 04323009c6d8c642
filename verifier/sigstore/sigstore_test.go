package sigstore_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/sigstore"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	intoto   = "application/vnd.in-toto+json"
	provType = "https://slsa.dev/provenance/v1"
	rekor    = "rekor.example"
	leaves   = 13
	place    = 5 // of the record
)

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func digest(t testing.TB, b []byte) hashpipe.Digest {
	t.Helper()
	return hashpipe.SumBytes(b).Claim()
}

// pae is the encoding of DSSE, without code of clawfs.
func pae(payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(intoto), intoto, len(payload), payload)
}

func spki(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func public(t testing.TB, key any) dsse.PublicKey {
	t.Helper()
	k, err := dsse.PublicKeyFromSPKI(spki(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// world is a signer with a key of P-256, a file, and a log of 13 records, one of
// which is of the signer's signature.
type world struct {
	t         testing.TB
	key       *ecdsa.PrivateKey
	log       ed25519.PrivateKey
	file      []byte
	statement []byte
	sig       []byte // over the statement's PAE
	fileSig   []byte // over the file
	hashes    []merkle.Hash
}

func newWorld(t testing.TB) *world {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	seed := sha256.Sum256([]byte("test key of a log"))
	w := &world{t: t, key: key, log: ed25519.NewKeyFromSeed(seed[:]), file: []byte("weights")}
	w.statement = fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"other.bin","digest":{"sha256":"%x"}},{"name":"m.bin","digest":{"sha256":"%x","sha512":"ab"}},{"name":"source","digest":{"gitCommit":"ab"}}],"predicateType":"%s","predicate":{"anything":null}}`,
		sum([]byte("other")), sum(w.file), provType)
	w.sig = w.sign(pae(w.statement))
	w.fileSig = w.sign(w.file)
	return w
}

func (w *world) sign(message []byte) []byte {
	sig, err := ecdsa.SignASN1(rand.Reader, w.key, sum(message))
	if err != nil {
		w.t.Fatal(err)
	}
	return sig
}

func (w *world) ReadHashes(indexes []int64) (out []merkle.Hash, err error) {
	for _, i := range indexes {
		if i >= int64(len(w.hashes)) {
			return nil, errors.New("no such hash")
		}
		out = append(out, w.hashes[i])
	}
	return out, nil
}

// grow makes the tree with that record at its place.
func (w *world) grow(record string, at int64) {
	w.hashes = nil
	for i := range int64(leaves) {
		data := fmt.Appendf(nil, "record %d", i)
		if i == at {
			data = []byte(record)
		}
		more, err := merkle.StoredHashes(i, data, w)
		if err != nil {
			w.t.Fatal(err)
		}
		w.hashes = append(w.hashes, more...)
	}
}

func (w *world) root(size int64) merkle.Hash {
	root, err := merkle.TreeHash(size, w)
	if err != nil {
		w.t.Fatal(err)
	}
	return root
}

func (w *world) logID() []byte {
	return sum([]byte(rekor + "\n\x01" + string(w.log.Public().(ed25519.PublicKey))))
}

func (w *world) vkey() string {
	return fmt.Sprintf("%s+%x+%s", rekor, w.logID()[:4], b64([]byte("\x01"+string(w.log.Public().(ed25519.PublicKey)))))
}

func (w *world) checkpoint(size int64) string {
	text := fmt.Sprintf("%s\n%d\n%v\n", rekor, size, w.root(size))
	return text + "\n— " + rekor + " " + b64(append(w.logID()[:4:4], ed25519.Sign(w.log, []byte(text))...)) + "\n"
}

func (w *world) policy() tlog.Policy {
	p, err := tlog.ParsePolicy([]byte("log " + w.vkey() + "\nquorum none\n"))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// record is what Rekor v2 keeps of a signature.
func (w *world) record(digest, sig []byte) string {
	return fmt.Sprintf(`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"SHA2_256","digest":"%s"},"signature":{"content":"%s","verifier":{"keyDetails":"PKIX_ECDSA_P256_SHA_256","publicKey":{"rawBytes":"%s"}}}}}}`,
		b64(digest), b64(sig), b64(spki(w.t, w.key.Public())))
}

// entry logs a record and returns the entry of it.
func (w *world) entry(record string, at int64) string {
	w.grow(record, at)
	path, err := merkle.ProveRecord(leaves, at, w)
	if err != nil {
		w.t.Fatal(err)
	}
	var hashes []string
	for _, h := range path {
		hashes = append(hashes, `"`+h.String()+`"`)
	}
	index := fmt.Sprintf(`"logIndex":"%d",`, at)
	if at == 0 { // as protobuf has it
		index = ""
	}
	root := w.root(leaves)
	return fmt.Sprintf(`{%s"logId":{"keyId":"%s"},"kindVersion":{"kind":"hashedrekord","version":"0.0.2"},"inclusionProof":{%s"rootHash":"%s","treeSize":"%d","hashes":[%s],"checkpoint":{"envelope":%q}},"canonicalizedBody":"%s"}`,
		index, b64(w.logID()), index, b64(root[:]), leaves, strings.Join(hashes, ","), w.checkpoint(leaves), b64([]byte(record)))
}

func bundle(material, content string) string {
	return `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{` + material + `},` + content + `}`
}

const hint = `"publicKey":{"hint":"h1"}`

func envelope(payload []byte, sigs ...string) string {
	return fmt.Sprintf(`"dsseEnvelope":{"payload":"%s","payloadType":"%s","signatures":[%s]}`, b64(payload), intoto, strings.Join(sigs, ","))
}

func sigJSON(sig []byte) string { return fmt.Sprintf(`{"sig":"%s"}`, b64(sig)) }

// logged is a bundle as it should be: a statement with its log entry.
func (w *world) logged() string {
	return bundle(hint+`,"tlogEntries":[`+w.entry(w.record(sum(pae(w.statement)), w.sig), place)+`]`, envelope(w.statement, sigJSON(w.sig)))
}

// message is a bare signature of the file.
func (w *world) message(material string) string {
	return bundle(material, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"%s"},"signature":"%s"}`, b64(sum(w.file)), b64(w.fileSig)))
}

func (w *world) question() sigstore.Question {
	return sigstore.Question{Key: public(w.t, w.key.Public()), Logs: w.policy(), File: digest(w.t, w.file)}
}

func TestVerify(t *testing.T) {
	w := newWorld(t)
	e, err := sigstore.Verify([]byte(w.logged()), w.question())
	if err != nil {
		t.Fatal(err)
	}
	want := []sigstore.Subject{{Name: "other.bin", SHA256: digest(t, []byte("other"))}, {Name: "m.bin", SHA256: digest(t, w.file)}}
	if e.IsZero() || e.Signer != public(t, w.key.Public()) || !slices.Equal(e.Digests, want) || e.PredicateType != provType || e.Log != rekor || e.Index != place || e.Size != leaves || e.Unchecked != 0 {
		t.Errorf("Verify = %+v", e)
	}

	// Index 0 is left out by protobuf; timestamps and an old time are not looked at.
	text := bundle(hint+`,"tlogEntries":[`+strings.Replace(w.entry(w.record(sum(pae(w.statement)), w.sig), 0), `{"logId"`, `{"integratedTime":"5","logId"`, 1)+`],"timestampVerificationData":{"rfc3161Timestamps":[{"signedTimestamp":"AAAA"}]}`,
		envelope(w.statement, fmt.Sprintf(`{"keyid":"h1","sig":"%s"}`, b64(w.sig))))
	if e, err := sigstore.Verify([]byte(text), w.question()); err != nil || e.Index != 0 || e.Log != rekor {
		t.Errorf("at index 0: %+v, %v", e, err)
	}

	// A bare signature, logged.
	text = w.message(hint + `,"tlogEntries":[` + w.entry(w.record(sum(w.file), w.fileSig), place) + `]`)
	if e, err := sigstore.Verify([]byte(text), w.question()); err != nil || e.Log != rekor || e.PredicateType != "" || !slices.Equal(e.Digests, []sigstore.Subject{{SHA256: digest(t, w.file)}}) {
		t.Errorf("a bare signature: %+v, %v", e, err)
	}

	// Without logs the entry is counted and not looked at.
	q := w.question()
	q.Logs = tlog.Policy{}
	if e, err := sigstore.Verify([]byte(w.logged()), q); err != nil || e.Log != "" || e.Unchecked != 1 {
		t.Errorf("without logs: %+v, %v", e, err)
	}
	if e, err := sigstore.Verify([]byte(w.message(hint)), q); err != nil || e.Log != "" || e.Unchecked != 0 {
		t.Errorf("without logs and entry: %+v, %v", e, err)
	}
	// Without a file a statement can still be read.
	q.File = hashpipe.Digest{}
	if e, err := sigstore.Verify([]byte(w.logged()), q); err != nil || len(e.Digests) != 2 {
		t.Errorf("without file: %+v, %v", e, err)
	}
	// Ed25519 signs statements.
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	q.Key = public(t, private.Public())
	old := []byte(strings.Replace(string(w.statement), "Statement/v1", "Statement/v0.1", 1))
	if e, err := sigstore.Verify([]byte(bundle(hint, envelope(old, sigJSON(ed25519.Sign(private, pae(old)))))), q); err != nil || e.Signer != q.Key {
		t.Errorf("Ed25519: %+v, %v", e, err)
	}
}

// A log policy with witnesses asks for their cosignatures here too.
func TestWitnessesCount(t *testing.T) {
	w := newWorld(t)
	seed := sha256.Sum256([]byte("test key of a witness"))
	key := ed25519.NewKeyFromSeed(seed[:])
	k, err := tlog.WitnessKey("w1", public(t, key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	q := w.question()
	if q.Logs, err = tlog.ParsePolicy([]byte("log " + w.vkey() + "\nwitness w1 " + k.String() + "\nquorum w1\n")); err != nil {
		t.Fatal(err)
	}
	_, err = sigstore.Verify([]byte(w.logged()), q)
	refused(t, "without its witness", err, sigstore.ReasonLog, "expected cosignatures of witness w1, got none")
}

func refused(t testing.TB, name string, err error, reason sigstore.Reason, want string) {
	t.Helper()
	var r *sigstore.Refusal
	if !errors.As(err, &r) || r.Reason != reason || !strings.Contains(r.Detail, want) {
		t.Errorf("%s: got %v, want a Refusal for %q with %q", name, err, reason, want)
	}
}

func TestVerifyRefuses(t *testing.T) {
	w := newWorld(t)
	good := w.logged()
	sub := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in the bundle", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	entry := good[strings.Index(good, `"tlogEntries":[`)+len(`"tlogEntries":[`) : strings.Index(good, `]},"dsse`)]
	withEntry := func(old, new string) string {
		t.Helper()
		if !strings.Contains(entry, old) {
			t.Fatalf("no %q in the entry", old)
		}
		return strings.Replace(good, entry, strings.ReplaceAll(entry, old, new), 1)
	}
	record := w.record(sum(pae(w.statement)), w.sig)
	// logs holds another record truly, with a proof that fits.
	logs := func(record string) string { return strings.Replace(good, entry, w.entry(record, place), 1) }
	editRecord := func(old, new string) string {
		t.Helper()
		if !strings.Contains(record, old) {
			t.Fatalf("no %q in the record", old)
		}
		return logs(strings.Replace(record, old, new, 1))
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	again := w.sign(pae(w.statement)) // another good signature of the same statement
	statement := func(old, new string) string {
		t.Helper()
		if !strings.Contains(string(w.statement), old) {
			t.Fatalf("no %q in the statement", old)
		}
		s := []byte(strings.Replace(string(w.statement), old, new, 1))
		return bundle(hint, envelope(s, sigJSON(w.sign(pae(s)))))
	}
	fileHex, otherHex := fmt.Sprintf("%x", sum(w.file)), fmt.Sprintf("%x", sum([]byte("other")))
	certificate := `"certificate":{"rawBytes":"AAAA"}`
	hash0 := entry[strings.Index(entry, `"hashes":["`)+len(`"hashes":["`):][:44]
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name, text string
		reason     sigstore.Reason
		want       string
	}{
		{"empty", "", sigstore.ReasonMalformed, "it is empty"},
		{"not JSON", "x", sigstore.ReasonMalformed, "reading a bundle"},
		{"a list", "[]", sigstore.ReasonMalformed, "reading a bundle"},
		{"two bundles", good + good, sigstore.ReasonMalformed, "reading a bundle"},
		{"cut short", good[:len(good)-1], sigstore.ReasonMalformed, "reading a bundle"},
		{"not UTF-8", sub("h1", "\xff"), sigstore.ReasonMalformed, "reading a bundle"},
		{"unknown member", sub(`"mediaType"`, `"more":1,"mediaType"`), sigstore.ReasonMalformed, "more"},
		{"unknown member of an entry", sub(`"logId"`, `"more":1,"logId"`), sigstore.ReasonMalformed, "more"},
		{"member in capitals", sub(`"mediaType"`, `"MediaType"`), sigstore.ReasonMalformed, "MediaType"},
		{"member of protobuf's other spelling", sub(`"mediaType"`, `"media_type"`), sigstore.ReasonMalformed, "media_type"},
		{"duplicate member", sub(`"mediaType":`, `"mediaType":"x","mediaType":`), sigstore.ReasonMalformed, "duplicate"},
		{"duplicate envelope", good[:len(good)-1] + "," + envelope(w.statement, sigJSON(w.sig)) + "}", sigstore.ReasonMalformed, "duplicate"},
		{"duplicate member deep down", sub(`"treeSize":"13"`, `"treeSize":"13","treeSize":"13"`), sigstore.ReasonMalformed, "duplicate"},
		{"null", sub(`"tlogEntries":[`, `"timestampVerificationData":null,"tlogEntries":[`), sigstore.ReasonMalformed, "null is not a value"},
		{"too deep", sub(`"tlogEntries":[`, `"timestampVerificationData":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,"tlogEntries":[`), sigstore.ReasonMalformed, "levels deep"},
		{"too many tokens", sub(`"tlogEntries":[`, `"timestampVerificationData":[`+strings.Repeat("1,", 20_000)+`1],"tlogEntries":[`), sigstore.ReasonMalformed, "JSON tokens"},
		{"too large", strings.Repeat(" ", sigstore.MaxBundle) + good, sigstore.ReasonMalformed, "at most 6291456 bytes"},
		{"no media type", sub(`"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",`, ""), sigstore.ReasonMalformed, "expected the mediaType"},
		{"media type of version 0.1", sub("bundle.v0.3+json", "bundle+json;version=0.1"), sigstore.ReasonMalformed, "expected the mediaType"},
		{"media type of version 0.3 in its old spelling", sub("bundle.v0.3+json", "bundle+json;version=0.3"), sigstore.ReasonMalformed, "expected the mediaType"},
		{"media type of version 0.4", sub("v0.3", "v0.4"), sigstore.ReasonMalformed, "expected the mediaType"},

		{"certificate", sub(hint, certificate), sigstore.ReasonKeyless, "that is left to a separate helper program"},
		{"certificate beside the key", sub(hint, hint+","+certificate), sigstore.ReasonKeyless, "separate helper program"},
		{"chain of certificates", sub(hint, `"x509CertificateChain":{"certificates":[{"rawBytes":"AAAA"}]}`), sigstore.ReasonKeyless, "separate helper program"},
		{"neither key nor certificate", sub(hint+",", ""), sigstore.ReasonMalformed, "neither a key nor a certificate"},
		{"no material", `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",` + envelope(w.statement, sigJSON(w.sig)) + `}`, sigstore.ReasonMalformed, "neither a key nor a certificate"},

		{"no content", bundle(hint, `"dsseEnvelope":{}`), sigstore.ReasonMalformed, "payloadType is missing"},
		{"neither content", `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{` + hint + `}}`, sigstore.ReasonMalformed, "got neither"},
		{"both contents", sub(`"dsseEnvelope"`, `"messageSignature":{"signature":"AAAA"},"dsseEnvelope"`), sigstore.ReasonMalformed, "got both"},
		{"two signatures", bundle(hint, envelope(w.statement, sigJSON(w.sig), sigJSON(again))), sigstore.ReasonMalformed, "expected one signature in the envelope of a bundle, got 2"},
		{"two signatures, one of another key", bundle(hint, envelope(w.statement, sigJSON([]byte("x")), sigJSON(w.sig))), sigstore.ReasonMalformed, "expected one signature"},
		{"no signature", bundle(hint, envelope(w.statement)), sigstore.ReasonMalformed, "signatures is missing or empty"},
		{"signature in url-safe base64", strings.Replace(good, b64(w.sig), strings.NewReplacer("+", "-", "/", "_").Replace(b64(w.sig))+"\\n", 1), sigstore.ReasonSignature, "not base64"},
		{"unknown member of the envelope", sub(`"payloadType"`, `"more":1,"payloadType"`), sigstore.ReasonMalformed, "more"},
		{"another hint at the signature", bundle(hint, envelope(w.statement, fmt.Sprintf(`{"keyid":"h2","sig":"%s"}`, b64(w.sig)))), sigstore.ReasonMalformed, `expected one hint at the key in a bundle, got "h1" and "h2"`},
		{"signature of something else", bundle(hint, envelope(w.statement, sigJSON(w.fileSig))), sigstore.ReasonSignature, "expected an in-toto statement signed by key"},
		{"signature of the payload without its type", bundle(hint, envelope(w.statement, sigJSON(w.sign(w.statement)))), sigstore.ReasonSignature, "signed by key"},
		{"another payload", strings.Replace(good, b64(w.statement), b64([]byte(strings.Replace(string(w.statement), "m.bin", "n.bin", 1))), 1), sigstore.ReasonSignature, "signed by key"},
		{"another payload type", sub(intoto, "text/plain"), sigstore.ReasonSignature, "expected payloadType"},

		{"not a statement", func() string { s := []byte("weights"); return bundle(hint, envelope(s, sigJSON(w.sign(pae(s))))) }(), sigstore.ReasonMalformed, "statement: "},
		{"statement of another type", statement("Statement/v1", "Statement/v2"), sigstore.ReasonMalformed, "expected _type"},
		{"statement without predicate type", statement(`"predicateType":"`+provType+`",`, ""), sigstore.ReasonMalformed, "expected a predicateType"},
		{"duplicate member in the statement", statement(`"predicateType"`, `"_type":"x","predicateType"`), sigstore.ReasonMalformed, "duplicate"},
		{"duplicate member in the predicate", statement(`{"anything":null}`, `{"a":1,"a":2}`), sigstore.ReasonMalformed, "duplicate"},
		{"statement without subject", statement(`"subject":`, `"subjects":`), sigstore.ReasonMalformed, "expected 1 to 10000 subjects, got 0"},
		{"subject without digest", statement(`{"gitCommit":"ab"}`, `{}`), sigstore.ReasonMalformed, "subject 3 has no digest"},
		{"subject with half a digest", statement(fileHex, fileHex[:62]), sigstore.ReasonMalformed, "subject 2"},
		{"subject in capitals", statement(otherHex, strings.ToUpper(otherHex)), sigstore.ReasonMalformed, "subject 1"},
		{"statement about a commit", func() string {
			s := []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"s","digest":{"gitCommit":"ab"}}],"predicateType":"x"}`)
			return bundle(hint, envelope(s, sigJSON(w.sign(pae(s)))))
		}(), sigstore.ReasonMalformed, "expected a subject with a sha256"},
		{"statement about other files", statement(fileHex, fmt.Sprintf("%x", sum([]byte("third")))), sigstore.ReasonSubject, "expected a statement about sha256 " + fileHex + ", got one about " + otherHex + " (other.bin) and 1 more"},

		{"bare signature of another file", w.message(hint)[:0] + bundle(hint, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"%s"},"signature":"%s"}`, b64(sum([]byte("other"))), b64(w.sign([]byte("other"))))), sigstore.ReasonSubject, "expected a signature of sha256 " + fileHex + ", got one of " + otherHex},
		{"bare signature of another file under this one's digest", bundle(hint, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"%s"},"signature":"%s"}`, b64(sum(w.file)), b64(w.sign([]byte("other"))))), sigstore.ReasonSignature, "does not verify"},
		{"bare signature without digest", bundle(hint, fmt.Sprintf(`"messageSignature":{"signature":"%s"}`, b64(w.fileSig))), sigstore.ReasonMalformed, "messageDigest: expected algorithm SHA2_256"},
		{"bare signature of SHA-512", bundle(hint, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_512","digest":"%s"},"signature":"%s"}`, b64(sum(w.file)), b64(w.fileSig))), sigstore.ReasonMalformed, "expected algorithm SHA2_256"},
		{"bare signature of half a digest", bundle(hint, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"%s"},"signature":"%s"}`, b64(sum(w.file)[:16]), b64(w.fileSig))), sigstore.ReasonMalformed, "expected 64 lower-case hex digits"},
		{"bare signature that is empty", bundle(hint, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"%s"}}`, b64(sum(w.file)))), sigstore.ReasonSignature, "does not verify"},

		{"no entry", bundle(hint, envelope(w.statement, sigJSON(w.sig))), sigstore.ReasonLog, "expected one log entry, got 0"},
		{"two entries", strings.Replace(good, entry, entry+","+entry, 1), sigstore.ReasonLog, "expected one log entry, got 2"},
		{"nine entries", strings.Replace(good, entry, entry+strings.Repeat(","+entry, 8), 1), sigstore.ReasonMalformed, "at most 8 log entries"},
		{"empty entry", strings.Replace(good, entry, "{}", 1), sigstore.ReasonLog, "expected a log entry hashedrekord 0.0.2"},
		{"entry of Rekor v1", withEntry(`"version":"0.0.2"`, `"version":"0.0.1"`), sigstore.ReasonLog, `got "hashedrekord" "0.0.1"`},
		{"entry of another kind", withEntry(`"kind":"hashedrekord"`, `"kind":"dsse"`), sigstore.ReasonLog, `got "dsse"`},
		{"promise alone", strings.Replace(good, entry, entry[:strings.Index(entry, `"inclusionProof"`)]+`"inclusionPromise":{"signedEntryTimestamp":"AAAA"},"canonicalizedBody":"`+b64([]byte(record))+`"}`, 1), sigstore.ReasonLog, "got the log's promise alone"},
		{"promise beside the proof", withEntry(`"inclusionProof"`, `"inclusionPromise":{"signedEntryTimestamp":"AAAA"},"inclusionProof"`), sigstore.ReasonLog, "expected no inclusion promise"},
		{"no proof", strings.Replace(good, entry, entry[:strings.Index(entry, `"inclusionProof"`)]+`"canonicalizedBody":"`+b64([]byte(record))+`"}`, 1), sigstore.ReasonLog, "expected an inclusion proof, got none"},
		{"no record", strings.Replace(good, `,"canonicalizedBody":"`+b64([]byte(record))+`"`, "", 1), sigstore.ReasonLog, "record of the log: it is empty"},
		{"another index", withEntry(`"logIndex":"5"`, `"logIndex":"6"`), sigstore.ReasonLog, "lead elsewhere"},
		{"two indexes", strings.Replace(good, `"logIndex":"5"`, `"logIndex":"6"`, 1), sigstore.ReasonLog, "expected one index of the log entry, got 6 and 5"},
		{"index beyond the tree", withEntry(`"logIndex":"5"`, `"logIndex":"13"`), sigstore.ReasonLog, "expected an index below 13"},
		{"index below zero", withEntry(`"logIndex":"5"`, `"logIndex":"-5"`), sigstore.ReasonMalformed, "expected a decimal"},
		{"index as a number", withEntry(`"logIndex":"5"`, `"logIndex":5`), sigstore.ReasonMalformed, "logIndex"},
		{"index with a zero before it", withEntry(`"logIndex":"5"`, `"logIndex":"05"`), sigstore.ReasonMalformed, "expected a decimal"},
		{"no hashes", withEntry(`"hashes":[`, `"hashes":[],"hashes2":[`), sigstore.ReasonMalformed, "hashes2"},
		{"one hash less", withEntry(`"hashes":["`+hash0+`",`, `"hashes":[`), sigstore.ReasonLog, "lead elsewhere"},
		{"one hash more", withEntry(`"hashes":["`+hash0+`",`, `"hashes":["`+hash0+`","`+hash0+`",`), sigstore.ReasonLog, "lead elsewhere"},
		{"short hash", withEntry(hash0, "AAAA"), sigstore.ReasonLog, "hash 1 of the inclusion proof: expected 32 bytes, got 3"},
		{"hash that is no base64", withEntry(hash0, "!"), sigstore.ReasonMalformed, "expected padded standard base64"},
		{"hash with trailing bits", withEntry(hash0, "AB=="), sigstore.ReasonMalformed, "expected padded standard base64"},
		{"proof for another size", withEntry(`"treeSize":"13"`, `"treeSize":"12"`), sigstore.ReasonLog, "got an inclusion proof for size 12"},
		{"proof for another root", withEntry(`"rootHash":"`, `"rootHash":"AAAA","logIndex2":"`), sigstore.ReasonMalformed, "logIndex2"},
		{"no checkpoint", strings.Replace(good, entry, entry[:strings.Index(entry, `,"checkpoint"`)]+`},"canonicalizedBody":"`+b64([]byte(record))+`"}`, 1), sigstore.ReasonLog, "checkpoint: "},

		{"entry of another record", strings.Replace(good, b64([]byte(record)), b64([]byte(record+" ")), 1), sigstore.ReasonLog, "lead elsewhere"},
		{"record of another signature", logs(w.record(sum(pae(w.statement)), again)), sigstore.ReasonLog, "expected the signature of the bundle"},
		{"record of another statement", logs(w.record(sum([]byte("x")), w.sig)), sigstore.ReasonLog, "expected one of the signed bytes"},
		{"record of the payload", logs(w.record(sum(w.statement), w.sig)), sigstore.ReasonLog, "expected one of the signed bytes"},
		{"record of another key", editRecord(b64(spki(t, w.key.Public())), b64(spki(t, other.Public()))), sigstore.ReasonLog, "got another one"},
		{"record of a certificate", editRecord(`"publicKey":{"rawBytes":"`+b64(spki(t, w.key.Public()))+`"}`, `"x509Certificate":{"rawBytes":"AAAA"}`), sigstore.ReasonKeyless, "separate helper program"},
		{"record of another algorithm", editRecord("PKIX_ECDSA_P256_SHA_256", "PKIX_ECDSA_P384_SHA_384"), sigstore.ReasonLog, "expected a key PKIX_ECDSA_P256_SHA_256"},
		{"record of another hash", editRecord("SHA2_256", "SHA2_512"), sigstore.ReasonLog, "expected algorithm SHA2_256"},
		{"record of another version", editRecord(`"apiVersion":"0.0.2"`, `"apiVersion":"0.0.1"`), sigstore.ReasonLog, "record of the log: expected hashedrekord 0.0.2"},
		{"record with a duplicate member", editRecord(`"kind":`, `"kind":"x","kind":`), sigstore.ReasonLog, "duplicate"},
		{"record with an unknown member", editRecord(`"kind":`, `"more":1,"kind":`), sigstore.ReasonLog, "more"},
		{"record with null", editRecord(`"PKIX_ECDSA_P256_SHA_256"`, `null`), sigstore.ReasonLog, "null is not a value"},
		{"record that is no JSON", logs("weights"), sigstore.ReasonLog, "record of the log: "},
	}
	// A checkpoint of another tree, truly signed, and one of another log.
	w.grow(record, place)
	cp := w.checkpoint(leaves)
	w.grow("another record", place)
	forged := fmt.Sprintf("%q", w.checkpoint(leaves))
	foreign := *w
	seed := sha256.Sum256([]byte("another key"))
	foreign.log = ed25519.NewKeyFromSeed(seed[:])
	foreign.grow(record, place)
	type test = struct {
		name, text string
		reason     sigstore.Reason
		want       string
	}
	tests = append(tests,
		test{"checkpoint of another root", withEntry(fmt.Sprintf("%q", cp), forged), sigstore.ReasonLog, "root"},
		test{"checkpoint of another log's key", withEntry(fmt.Sprintf("%q", cp), fmt.Sprintf("%q", foreign.checkpoint(leaves))), sigstore.ReasonLog, "expected a signature by the log's own key"},
		test{"checkpoint of an unknown log", withEntry(fmt.Sprintf("%q", cp), fmt.Sprintf("%q", strings.ReplaceAll(cp, rekor, "other.example"))), sigstore.ReasonLog, "expected a log of the policy"},
		test{"checkpoint that was changed", withEntry(fmt.Sprintf("%q", cp), fmt.Sprintf("%q", strings.Replace(cp, "\n13\n", "\n14\n", 1))), sigstore.ReasonLog, "does not verify"},
	)
	for _, tt := range tests {
		e, err := sigstore.Verify([]byte(tt.text), w.question())
		if strings.HasPrefix(tt.name, "statement") || strings.HasPrefix(tt.name, "bare") || strings.HasPrefix(tt.name, "subject") {
			q := w.question()
			q.Logs = tlog.Policy{}
			e, err = sigstore.Verify([]byte(tt.text), q)
		}
		refused(t, tt.name, err, tt.reason, tt.want)
		if !e.IsZero() {
			t.Errorf("%s: evidence beside the error", tt.name)
		}
	}
	t.Logf("%d bundles refused", len(tests))

	q := w.question()
	q.Key = public(t, other.Public())
	_, err = sigstore.Verify([]byte(good), q)
	refused(t, "another key", err, sigstore.ReasonSignature, "signed by key")
	q.Key = dsse.PublicKey{}
	if _, err := sigstore.Verify([]byte(good), q); err == nil || !strings.Contains(err.Error(), "there is no key") {
		t.Errorf("no key: %v", err)
	}
	q = w.question()
	q.File = hashpipe.Digest{}
	_, err = sigstore.Verify([]byte(w.message(hint)), q)
	refused(t, "bare signature without a file", err, sigstore.ReasonSubject, "whose SHA-256 was measured")
	q = w.question()
	q.Key = public(t, ed.Public())
	_, err = sigstore.Verify([]byte(w.message(hint)), q)
	refused(t, "bare signature under Ed25519", err, sigstore.ReasonSignature, "sign a statement about the file")
	edBundle := strings.Replace(good, b64(w.sig), b64(ed25519.Sign(ed, pae(w.statement))), 1)
	_, err = sigstore.Verify([]byte(edBundle), q)
	refused(t, "entry of Ed25519", err, sigstore.ReasonLog, "Rekor v2 holds no signatures of ed25519")
}

// Every change of one bit is noticed: refused, or a member that nobody signs and
// nobody looks at.
func TestOneBit(t *testing.T) {
	w := newWorld(t)
	good := []byte(w.logged())
	want, err := sigstore.Verify(good, w.question())
	if err != nil {
		t.Fatal(err)
	}
	q := w.question()
	passed := 0
	for i := range good {
		text := slices.Clone(good)
		text[i] ^= 1
		e, err := sigstore.Verify(text, q)
		if err != nil {
			continue
		}
		passed++
		if e.PredicateType != want.PredicateType || !slices.Equal(e.Digests, want.Digests) || e.Log != want.Log || e.Index != want.Index || e.Size != want.Size {
			t.Errorf("byte %d: %q reads as %+v", i, text[max(0, i-20):min(len(text), i+20)], e)
		}
	}
	// The hint at the key (2 bytes) and the id of the log (44) are not used.
	if passed > 46 {
		t.Errorf("%d changed bytes passed", passed)
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	f.Add([]byte(w.logged()))
	f.Add([]byte(w.message(hint)))
	q := w.question()
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := sigstore.Verify(text, q)
		var r *sigstore.Refusal
		if err != nil && (!errors.As(err, &r) || !e.IsZero()) {
			t.Errorf("Verify = %+v, %v", e, err)
		}
		if err == nil && e.Log != rekor {
			t.Errorf("Verify = %+v without the log", e)
		}
	})
}

// The bundles in testdata were signed by sigstore-go v1.3.0, with a managed key
// and without log: a statement about the file "test", and that file.
func TestKnown(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, err := dsse.ParsePublicKey(read("key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	q := sigstore.Question{Key: key, File: digest(t, []byte("test"))}
	for name, want := range map[string]sigstore.Subject{"statement": {Name: "m", SHA256: q.File}, "message": {SHA256: q.File}} {
		e, err := sigstore.Verify(read(name+".sigstore.json"), q)
		if err != nil || !slices.Equal(e.Digests, []sigstore.Subject{want}) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		q := q
		q.Key = public(t, newWorld(t).key.Public())
		_, err = sigstore.Verify(read(name+".sigstore.json"), q)
		refused(t, name+" under another key", err, sigstore.ReasonSignature, "key "+string(q.Key.ID()))
	}
}
