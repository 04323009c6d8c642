package integration

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
)

// by is the granted ledger for another model and publisher key.
func (b *bench) by(model, key string) string {
	return b.edited(`"acme/pairs"`, `"`+model+`"`, b.id("acme"), b.id(key))
}

// badKeys: the right key in the wrong role, or at the wrong time.
func badKeys(b *bench) []badInput {
	rows := []badInput{
		grants("ledger by a stranger", badSigner, "not signed by", func(b *bench) []byte { return b.signed(b.by("acme/pairs", "mallory"), "mallory") }),
		grants("ledger by the mint", badSigner, "not signed by", func(b *bench) []byte {
			return b.signed(b.by("acme/pairs", "localmint"), "localmint")
		}),
		grants("ledger by the revoker", badSigner, "not signed by", func(b *bench) []byte {
			return b.signed(b.by("acme/pairs", "localrevoker"), "localrevoker")
		}),
		grants("ledger by another model's publisher", badSigner, "who alone speaks for acme/pairs", func(b *bench) []byte {
			return b.signed(b.by("acme/pairs", "a"), "a", "b")
		}),
		grants("ledger of a model that nobody speaks for", badSigner, "names no publisher for this model", func(b *bench) []byte {
			return b.signed(b.by("nobody/pairs", "acme"), "acme")
		}),
		grants("ledger that names another key than it is signed by", badSigner, "the ledger names the publisher key", func(b *bench) []byte {
			return b.signed(b.by("acme/pairs", "mallory"), "acme")
		}),
		grants("key that is over", badSigner, "is valid until", func(b *bench) []byte { return b.signed(b.by("late/pairs", "old"), "old") }),
		grants("key that has not begun", badSigner, "is valid from", func(b *bench) []byte { return b.signed(b.by("late/pairs", "soon"), "soon") }),
		grants("ledger from the future", refused, "one of the clocks is wrong", func(b *bench) []byte {
			return b.signed(setTime(b.payload, time.Now().Add(time.Hour)), "acme")
		}),
		{name: "publisher key that was revoked", code: refused, says: "revoked", make: func(b *bench) []string {
			b.must(done, "revoke", "--kind", "publisher", b.id("gone"), "--reason", "key stolen")
			return []string{"grant", b.put("row.sba", b.signed(b.by("gone/pairs", "gone"), "gone")), "--wait", "-q"}
		}},
		{name: "attestation that was revoked", code: refused, says: "revoked", make: func(b *bench) []string {
			text := b.edited(`"acme/pairs"`, `"acme/withdrawn"`)
			b.must(done, "revoke", "--kind", "sba", sha256Of(text), "--reason", "wrong corpus")
			return []string{"grant", b.put("row.sba", b.signed(text, "acme")), "--wait", "-q"}
		}},
		{name: "public key in place of the private one", code: failed, says: "is a public key", make: func(b *bench) []string {
			return []string{"ledger", "sign", b.path("pairs.json"), "--key", b.key + ".pub", "--out", b.path("never.sba")}
		}},
		{name: "private key that others can read", code: failed, says: "lets others in", make: func(b *bench) []string {
			key := b.put("open", b.read(b.key))
			if err := os.Chmod(key, 0o644); err != nil {
				b.t.Fatal(err)
			}
			return []string{"ledger", "sign", b.path("pairs.json"), "--key", key, "--out", b.path("never.sba")}
		}},
		{name: "signed by another than the ledger's publisher", code: badSigner, says: "the ledger names publisher key", make: func(b *bench) []string {
			return []string{"ledger", "sign", b.path("pairs.json"), "--key", b.path("mallory"), "--out", b.path("never.sba")}
		}},
		{name: "one key under two names for a threshold of two", code: failed, says: "twice", make: func(b *bench) []string {
			same := b.put("same.pub", b.read(b.path("mallory.pub")))
			return []string{"publisher", "trust", b.path("mallory.pub"), same, "--name", "twin", "--models", "twin/*", "--threshold", "2"}
		}},
		{name: "publisher's key of small order", code: badSigner, says: "small order", make: func(b *bench) []string {
			// The identity of the group: under it one fixed signature fits every message.
			der := append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00, 1}, make([]byte, 31)...)
			key := "-----BEGIN PUBLIC KEY-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END PUBLIC KEY-----\n"
			return []string{"publisher", "trust", b.put("weak.pub", []byte(key)), "--name", "weak", "--models", "weak/*"}
		}},
	}
	for _, key := range []string{"acme", "localrevoker", "mallory"} {
		rows = append(rows, badInput{name: "capability by " + key, code: badSigner, says: "is not pinned in the policy", make: func(b *bench) []string {
			return []string{"import", b.put("row.cap", b.capabilityBy(key, "x.bin", "x", nil))}
		}})
	}
	rows = append(rows, badInput{name: "capability that names a mint and is signed by another", code: badSigner, says: "not signed by", make: func(b *bench) []string {
		payload := payloadOf(b.t, b.capability("x.bin", "x", nil))
		return []string{"import", b.put("row.cap", b.signed(string(payload), "mallory"))}
	}})
	return rows
}

// badSignatures: several signatures, in every order.
func badSignatures(b *bench) []badInput {
	var rows []badInput
	ledger := b.by("two/pairs", "a")
	for _, order := range []string{"a b", "b a", "a b mallory", "a mallory b", "mallory a b", "mallory b a", "b mallory a", "b a mallory", "a a b", "a b b a"} {
		rows = append(rows, badInput{name: order, code: done, make: func(b *bench) []string {
			return []string{"grant", b.put("row.sba", b.signed(ledger, strings.Fields(order)...)), "--wait", "-q"}
		}})
	}
	for _, order := range []string{"a", "b", "a a", "a mallory", "mallory a", "a a a mallory", "b mallory", "mallory b", "a acme", "acme a", "mallory a acme"} {
		rows = append(rows, grants(order, badSigner, "not signed by", func(b *bench) []byte { return b.signed(ledger, strings.Fields(order)...) }))
	}
	for _, order := range []string{"a B", "B a", "A b", "b A", "A B"} {
		rows = append(rows, grants(strings.NewReplacer("A", "a-broken", "B", "b-broken").Replace(order), badSigner, "not signed by", func(b *bench) []byte {
			text := string(b.signed(ledger, strings.Fields(strings.ToLower(order))...))
			parts := strings.Split(text, `"sig":"`)
			for i, k := range strings.Fields(order) {
				if k != strings.ToLower(k) {
					parts[i+1] = flip(parts[i+1])
				}
			}
			return []byte(strings.Join(parts, `"sig":"`))
		}))
	}
	return append(rows,
		grants("both, over another ledger each", badSigner, "not signed by", func(b *bench) []byte {
			mine := string(b.signed(ledger, "a"))
			other := string(b.signed(strings.Replace(ledger, `"1.0.1"`, `"1.0.2"`, 1), "b"))
			_, sig, _ := strings.Cut(other, `"signatures":[`)
			return []byte(strings.TrimSuffix(strings.TrimSpace(mine), "]}") + "," + sig)
		}),
		grants("17 signatures", refused, "more than 16 signatures", func(b *bench) []byte {
			return b.rewired(func(w *wire) {
				for range 16 {
					w.Signatures = append(w.Signatures, wireSig{Sig: "AAAA"})
				}
			})
		}),
		grants("15 of nobody before the one", done, "", func(b *bench) []byte {
			return b.rewired(func(w *wire) {
				for range 15 {
					w.Signatures = append([]wireSig{{Sig: "AAAA"}}, w.Signatures...)
				}
			})
		}),
		grants("one that is not base64 before the good one", done, "", func(b *bench) []byte {
			return b.rewired(func(w *wire) { w.Signatures = append([]wireSig{{Sig: "%"}}, w.Signatures...) })
		}),
		grants("the good one under another's key id", done, "", func(b *bench) []byte {
			return b.rewired(func(w *wire) { w.Signatures[0].KeyID = b.id("mallory") })
		}),
		grants("another's under the good key id", badSigner, "not signed by", func(b *bench) []byte {
			return b.rewired(func(w *wire) {
				w.Signatures = []wireSig{{KeyID: b.id("acme"), Sig: base64.StdEncoding.EncodeToString(make([]byte, 64))}}
			})
		}),
	)
}

// flip changes the third byte of base64 text.
func flip(s string) string {
	c := byte('A')
	if s[4] == c {
		c = 'B'
	}
	return s[:4] + string(c) + s[5:]
}

// badEnvelopes: variants of base64 and of JSON.
func badEnvelopes(b *bench) []badInput {
	std := func(change func(b *bench, w *wire)) func(b *bench) []byte {
		return func(b *bench) []byte { return b.rewired(func(w *wire) { change(b, w) }) }
	}
	text := func(change func(string) string) func(b *bench) []byte {
		return func(b *bench) []byte { return []byte(change(strings.TrimSpace(string(b.good)))) }
	}
	return []badInput{
		grants("url-safe alphabet", done, "", std(func(b *bench, w *wire) {
			w.Payload = base64.URLEncoding.EncodeToString(unbase64(w.Payload))
			w.Signatures[0].Sig = base64.URLEncoding.EncodeToString(unbase64(w.Signatures[0].Sig))
		})),
		grants("both alphabets", refused, "payload: ", std(func(b *bench, w *wire) { w.Payload = "+_" + w.Payload[2:] })),
		grants("payload without padding", refused, "payload: ", std(func(b *bench, w *wire) {
			payload := unbase64(w.Payload)
			for len(payload)%3 == 0 {
				payload = append(payload, ' ')
			}
			w.Payload = base64.RawStdEncoding.EncodeToString(payload)
		})),
		grants("payload with a line break", refused, "payload: ", std(func(b *bench, w *wire) { w.Payload = w.Payload[:64] + "\n" + w.Payload[64:] })),
		grants("payload with CRLF at its end", refused, "payload: ", std(func(b *bench, w *wire) { w.Payload += "\r\n" })),
		grants("payload with a blank", refused, "payload: ", std(func(b *bench, w *wire) { w.Payload = w.Payload[:64] + " " + w.Payload[64:] })),
		grants("payload with padding inside", refused, "payload: ", std(func(b *bench, w *wire) { w.Payload = "AA==" + w.Payload })),
		grants("payload with bits behind its end", refused, "payload: ", std(func(b *bench, w *wire) { w.Payload = w.Payload[:len(w.Payload)/4*4-4] + "AAB=" })),
		grants("payload encoded twice", badSigner, "not signed by", std(func(b *bench, w *wire) {
			w.Payload = base64.StdEncoding.EncodeToString([]byte(w.Payload))
		})),
		grants("payload in hex", refused, "payload: ", std(func(b *bench, w *wire) {
			payload := unbase64(w.Payload)
			if len(payload)%2 == 0 { // of an even number of bytes it is base64, too
				payload = append(payload, ' ')
			}
			w.Payload = fmt.Sprintf("%x", payload)
		})),
		grants("signature without padding", badSigner, "not signed by", std(func(b *bench, w *wire) {
			w.Signatures[0].Sig = strings.TrimRight(w.Signatures[0].Sig, "=")
		})),
		grants("signature with a line break", badSigner, "not signed by", std(func(b *bench, w *wire) { w.Signatures[0].Sig += "\n" })),
		grants("signature cut", badSigner, "not signed by", std(func(b *bench, w *wire) { w.Signatures[0].Sig = w.Signatures[0].Sig[:84] })),
		grants("signature longer", badSigner, "not signed by", std(func(b *bench, w *wire) {
			w.Signatures[0].Sig = base64.StdEncoding.EncodeToString(append(unbase64(w.Signatures[0].Sig), 0))
		})),
		grants("payload with one bit changed", badSigner, "not signed by", std(func(b *bench, w *wire) {
			payload := unbase64(w.Payload)
			payload[len(payload)/2] ^= 1
			w.Payload = base64.StdEncoding.EncodeToString(payload)
		})),
		grants("another payloadType", refused, "payloadType", std(func(b *bench, w *wire) { w.PayloadType = "application/json" })),
		grants("payloadType in capitals", refused, "payloadType", std(func(b *bench, w *wire) { w.PayloadType = strings.ToUpper(w.PayloadType) })),
		grants("no payloadType", refused, "payloadType is missing", std(func(b *bench, w *wire) { w.PayloadType = "" })),
		grants("no payload", refused, "payload is missing", std(func(b *bench, w *wire) { w.Payload = "" })),
		grants("no signature", refused, "signatures is missing", std(func(b *bench, w *wire) { w.Signatures = []wireSig{} })),
		grants("signatures that are no list", refused, "signatures is not a list", std(func(b *bench, w *wire) { w.Signatures = nil })),
		grants("empty signature", refused, "has no sig", std(func(b *bench, w *wire) { w.Signatures[0].Sig = "" })),
		grants("payload given twice", refused, "duplicate", text(func(s string) string {
			return strings.Replace(s, `{"payloadType"`, `{"payload":"e30=","payloadType"`, 1)
		})),
		grants("payload under another case", refused, "unknown", text(func(s string) string { return strings.Replace(s, `"payload":`, `"Payload":`, 1) })),
		grants("further member", refused, "unknown", text(func(s string) string { return strings.Replace(s, "{", `{"cert":"x",`, 1) })),
		grants("two envelopes", refused, "envelope: ", text(func(s string) string { return s + s })),
		grants("bytes behind it", refused, "envelope: ", text(func(s string) string { return s + "\x00" })),
		grants("byte order mark", refused, "envelope: ", text(func(s string) string { return "\ufeff" + s })),
		grants("list of envelopes", refused, "envelope: ", text(func(s string) string { return "[" + s + "]" })),
		grants("UTF-16", refused, "envelope: ", text(func(s string) string { return strings.ReplaceAll(s, "", "\x00") })),
		grants("terminal sequences", refused, "envelope: ", text(func(s string) string { return "\x1b[31m\x07" + s })),
		grants("nested a million deep", refused, "envelope: ", text(func(string) string { return `{"payload":` + strings.Repeat("[", 1<<20) })),
		grants("empty file", refused, "SBA", text(func(string) string { return "" })),
		grants("model file", refused, "not a model file", func(b *bench) []byte { return b.model }),
		grants("longer than an envelope may be", refused, "longer than", text(func(s string) string { return s + strings.Repeat(" ", 4<<20) })),
		grants("ledger that nobody signed", refused, "nobody has signed", func(b *bench) []byte { return []byte(b.payload) }),
		grants("payload with a member twice", refused, "duplicate", func(b *bench) []byte {
			return b.signed(b.edited(`"sequence":1`, `"sequence":1,"sequence":2`), "acme")
		}),
		grants("payload with null", refused, "null", func(b *bench) []byte { return b.signed(b.edited(`"sequence":1`, `"sequence":null`), "acme") }),
		grants("payload with a number beyond 2^53", refused, "sequence", func(b *bench) []byte {
			return b.signed(b.edited(`"sequence":1`, `"sequence":9007199254740993`), "acme")
		}),
		grants("payload with bytes behind it", refused, "after top-level value", func(b *bench) []byte { return b.signed(b.payload+"{}", "acme") }),
		grants("time with an offset", refused, "issuedAt", func(b *bench) []byte {
			return b.signed(replaceTime(b.payload, "2026-11-20T10:00:00+01:00"), "acme")
		}),
	}
}

// badDigests: the digest of something, and nearly.
func badDigests(b *bench) []badInput {
	image := strings.TrimPrefix(built.digest, "sha256:")
	ledger := func(name, says string, oldnew ...string) badInput {
		return grants(name, refused, says, func(b *bench) []byte { return b.signed(b.edited(oldnew...), "acme") })
	}
	return []badInput{
		ledger("in capitals", "digest", image, strings.ToUpper(image)),
		ledger("a digit short", "digest", image, image[1:]),
		ledger("a digit more", "digest", image, image+"0"),
		ledger("with its algorithm before it", "digest", `"`+image, `"sha256:`+image),
		ledger("in base64", "digest", image, base64.StdEncoding.EncodeToString([]byte(image)[:32])),
		ledger("of zeros", "digest", image, strings.Repeat("0", 64)),
		ledger("empty", "digest", image, ""),
		ledger("of SHA-512", "unknown", `"sha256":"`+image+`"`, `"sha512":"`+image+image+`"`),
		ledger("of SHA-1", "unknown", `"sha256":"`+image+`"`, `"sha1":"`+image[:40]+`"`),
		ledger("under SHA256", "unknown", `"sha256":"`+image, `"SHA256":"`+image),
		ledger("MD5 beside it", "unknown", `"sha256":"`+image+`"`, `"sha256":"`+image+`","md5":"`+image[:32]+`"`),
		ledger("twice, and different", "duplicate", `"sha256":"`+image+`"`, `"sha256":"`+image+`","sha256":"`+strings.Repeat("ab", 32)+`"`),
		ledger("of no algorithm", "digest", `{"sha256":"`+image+`"}`, `{}`),
		ledger("of an output", "unknown", `"path":"pairs.bin"`, `"path":"pairs.bin","digest":{"sha256":"`+image+`"}`),
		{name: "commit in capitals", code: refused, says: "gitCommit", make: func(b *bench) []string {
			commit := b.commit()
			return []string{"grant", b.put("row.sba", b.signed(b.edited(commit, strings.ToUpper(commit)), "acme"))}
		}},
		{name: "commit of the subject and of the source differ", code: refused, says: "expected the subject's gitCommit", make: func(b *bench) []string {
			commit := b.commit()
			text := strings.Replace(b.payload, commit, strings.Repeat("ab", 20), 1)
			return []string{"grant", b.put("row.sba", b.signed(text, "acme"))}
		}},
		{name: "SHA-1 commit without its tree", code: refused, says: "clawfsTree1", make: func(b *bench) []string {
			return []string{"grant", b.put("row.sba", b.signed(b.edited(`,"clawfsTree1":"`+b.tree("source")+`"`, ""), "acme"))}
		}},
		{name: "commit and tree of the source disagree", code: refused, says: "FETCH_FAILED", make: func(b *bench) []string {
			return []string{"grant", b.put("row.sba", b.signed(b.edited(b.tree("source"), strings.Repeat("ab", 32)), "acme")), "--wait", "-q"}
		}},
		{name: "dataset of another root", code: refused, says: "FETCH_FAILED", make: func(b *bench) []string {
			return []string{"grant", b.put("row.sba", b.signed(b.edited(b.tree("dataset:corpus"), strings.Repeat("cd", 32)), "acme")), "--wait", "-q"}
		}},
		{name: "a hash alone", code: refused, says: "a hash cannot be granted", make: func(b *bench) []string { return []string{"grant", sha256Of(string(b.model))} }},
	}
}

// commit is the source's.
func (b *bench) commit() string { return between(b, b.payload, `"gitCommit":"`, `"`) }

// tree is the root of a dependency.
func (b *bench) tree(name string) string {
	_, rest, _ := strings.Cut(b.payload, `"resolvedDependencies"`)
	_, rest, _ = strings.Cut(rest, `"name":"`+name+`"`)
	return between(b, rest, `"clawfsTree1":"`, `"`)
}

func between(b *bench, text, before, after string) string {
	b.t.Helper()
	_, rest, ok := strings.Cut(text, before)
	s, _, ok2 := strings.Cut(rest, after)
	if !ok || !ok2 || s == "" {
		b.t.Fatalf("no text between %q and %q in\n%s", before, after, text)
	}
	return s
}

// badReplays: what is good for one model, version, path or repository.
func badReplays(b *bench) []badInput {
	renamed := func(envelope []byte, old, new string) func(b *bench) []byte {
		return func(b *bench) []byte {
			return b.rewired(func(w *wire) {
				w.Payload = base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(string(unbase64(w.Payload)), old, new)))
			})
		}
	}
	return []badInput{
		grants("for another model", badSigner, "not signed by", renamed(b.good, `"acme/pairs"`, `"acme/other"`)),
		grants("for another version", badSigner, "not signed by", renamed(b.good, `"version":"1.0.1"`, `"version":"9.9.9"`)),
		grants("for another output", badSigner, "not signed by", renamed(b.good, `pairs.bin`, `other.bin`)),
		grants("below the pinned sequence", refused, "this is an older ledger", func(b *bench) []byte {
			return b.signed(b.edited(`"acme/pairs"`, `"pinned/pairs"`, `"sequence":1`, `"sequence":4`, built.digest[7:], strings.Repeat("ab", 32)), "acme")
		}),
		grants("in another image than the policy allows", refused, "environment image", func(b *bench) []byte {
			return b.signed(b.edited(`"acme/pairs"`, `"pinned/pairs"`, `"sequence":1`, `"sequence":5`), "acme")
		}),
		grants("the signature under another ledger", badSigner, "not signed by", func(b *bench) []byte {
			return b.rewired(func(w *wire) {
				w.Payload = base64.StdEncoding.EncodeToString([]byte(b.edited(`"sequence":1`, `"sequence":2`)))
			})
		}),
		{name: "from another repository", code: refused, says: "FETCH_FAILED", make: func(b *bench) []string {
			// The commit of another history, which this repository does not have.
			text := b.edited(`"acme/pairs"`, `"acme/elsewhere"`, b.commit(), b.otherCommit())
			return []string{"grant", b.put("row.sba", b.signed(text, "acme")), "--source", b.recipe, "--wait", "-q"}
		}},
		{name: "under another path", code: refused, says: "pairs.bin", make: func(b *bench) []string {
			b.write(filepath.Join(b.src, "stand-in.bin"), string(b.model))
			return []string{"why", filepath.Join(b.mnt, "stand-in.bin")}
		}},
		{name: "capability of other bytes under its name", code: refused, says: "wrong-bytes", make: func(b *bench) []string {
			b.directory("tampered")
			b.write(filepath.Join(b.src, "tampered/pairs.bin"), string(b.model[1:])+"x")
			return []string{"why", filepath.Join(b.mnt, "tampered/pairs.bin")}
		}},
		{name: "capability that is over is kept, and opens nothing", code: done, says: "expired", make: func(b *bench) []string {
			return []string{"import", b.put("row.cap", b.capability("over.bin", "over", func(p *capstore.Predicate) {
				p.NotBefore, p.NotAfter = p.NotBefore.Add(-time.Hour), p.NotBefore.Add(-time.Minute)
			}))}
		}},
	}
}

// directory makes a directory of the source, if it is not there.
func (b *bench) directory(name string) {
	b.t.Helper()
	if err := os.MkdirAll(filepath.Join(b.src, name), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

// badPredicates: a statement that is signed by the right key and is another thing.
func badPredicates(b *bench) []badInput {
	const ledgerType = "https://github.com/openclaw/clawfs/build-ledger/v1"
	predicate := func(name, says string, oldnew ...string) badInput {
		return grants(name, refused, says, func(b *bench) []byte { return b.signed(b.edited(oldnew...), "acme") })
	}
	hand := func(name, says string, code int, envelope func(b *bench) []byte, verb ...string) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			return append(verb, b.put("row", envelope(b)))
		}}
	}
	sba := func(b *bench) []byte { return b.good }
	stranger := func(b *bench) []byte {
		return b.signed(`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"https://example.com/x","predicate":{}}`, "acme")
	}
	return []badInput{
		predicate("next version of the ledger", "predicateType", ledgerType, strings.Replace(ledgerType, "/v1", "/v2", 1)),
		predicate("SLSA provenance", "predicateType", ledgerType, "https://slsa.dev/provenance/v1"),
		predicate("with a slash behind it", "predicateType", ledgerType, ledgerType+"/"),
		predicate("older statement", "_type", "https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"),
		predicate("another buildType", "buildType", "buildtypes/stages/v1", "buildtypes/shell/v1"),
		predicate("unknown member of the predicate", "unknown", `"sequence":1`, `"sequence":1,"trusted":true`),
		predicate("no outputs", "outputs", `[{"name":"pairs.bin","path":"pairs.bin"}]`, `[]`),
		grants("something else by the publisher", refused, "predicateType", stranger),
		hand("something else to import", "predicateType", refused, stranger, "import"),
		hand("something else to revocations", "want a signed revocation", refused, stranger, "revocations", "import"),
		hand("something else to push", "predicateType", refused, stranger, "push", b.path("predicates")),
		hand("something else to bundle import", "predicateType", refused, stranger, "bundle", "import"),
		hand("something else to policy install", "policy", refused, stranger, "policy", "install", "--first"),
		hand("attestation to import", "capability", refused, sba, "import"),
		hand("attestation to revocations", "want a signed revocation", refused, sba, "revocations", "import"),
		hand("attestation to policy install", "policy", refused, sba, "policy", "install", "--first"),
		hand("capability to grant", "not signed by", badSigner, func(b *bench) []byte { return b.capability("x.bin", "x", nil) }, "grant"),
		hand("revocation to import", "capability", refused, func(b *bench) []byte { return b.revocation("revoker") }, "import"),
		hand("revocation to grant", "not signed by", badSigner, func(b *bench) []byte { return b.revocation("revoker") }, "grant"),
		hand("garbage to import", "envelope", refused, func(b *bench) []byte { return []byte("GGUF\x00\x1b[2J") }, "import"),
		hand("garbage to revocations", "envelope", refused, func(b *bench) []byte { return []byte("GGUF\x00\x1b[2J") }, "revocations", "import"),
		hand("capability that restricts by something unknown", "unknown", refused, func(b *bench) []byte {
			payload := string(payloadOf(b.t, b.capability("x.bin", "x", nil)))
			return b.signed(strings.Replace(payload, `"level"`, `"restrict":{"weekdays":[1]},"level"`, 1), "mint")
		}, "import"),
		hand("capability with an empty restriction", "paths", refused, func(b *bench) []byte {
			payload := string(payloadOf(b.t, b.capability("x.bin", "x", nil)))
			return b.signed(strings.Replace(payload, `"level"`, `"restrict":{"paths":[]},"level"`, 1), "mint")
		}, "import"),
	}
}
