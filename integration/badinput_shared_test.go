package integration

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// jsonOf is any value as JSON, unchecked.
func jsonOf(b *bench, v any) []byte {
	b.t.Helper()
	if p, ok := v.(*verifier.Policy); ok {
		// A policy's own encoding refuses what these rows need, so the good text is edited.
		text := b.read(filepath.Join(b.state, "policy.json"))
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			b.t.Fatal(err)
		}
		m["logs"] = p.Logs
		v = m
	}
	text, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// badPolicies: a new policy.json that is broken. The daemon keeps what it has, and
// what is granted goes on opening.
func badPolicies(b *bench) []badInput {
	good := string(b.read(filepath.Join(b.state, "policy.json")))
	replaced := func(old, new string) string {
		if !strings.Contains(good, old) {
			b.t.Fatalf("the policy has no %q:\n%s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	var rows []badInput
	for _, p := range []struct{ name, text, says string }{
		{"empty", "", "empty"},
		{"garbage", "GGUF\x00\x1b[31m", "policy: "},
		{"cut", good[:len(good)/2], "policy: "},
		{"null", "null", "policy: "},
		{"no object", "[]", "policy: "},
		{"empty object", "{}", "version"},
		{"of another version", replaced(`"version": 1`, `"version": 2`), "version"},
		{"version twice", replaced(`"version": 1`, `"version": 1, "version": 1`), "duplicate"},
		{"unknown member", replaced(`"version": 1`, `"version": 1, "trustAll": true`), "unknown"},
		{"threshold 0", replaced(`"threshold": 2`, `"threshold": 0`), "threshold"},
		{"threshold above the keys", replaced(`"threshold": 2`, `"threshold": 3`), "threshold"},
		{"one key twice in a rule", replaced(string(jsonOf(b, pemOf(b, "b"))), string(jsonOf(b, pemOf(b, "a")))), "twice"},
		{"one model in two rules", replaced(`"two/*"`, `"acme/*"`), "twice"},
		{"one name twice", replaced(`"name": "two"`, `"name": "acme"`), "twice"},
		{"publisher of everything", replaced(`"two/*"`, `"*"`), "models"},
		{"homoglyph in a pattern", replaced(`"two/*"`, `"tw\u043e/*"`), `got "tw\u043e/*"`},
		{".. in a pattern", replaced(`"two/*"`, `"../*"`), "models"},
		{"publisher's key as a mint's", replaced(string(jsonOf(b, pemOf(b, "mint"))), string(jsonOf(b, pemOf(b, "acme")))), "also a publisher's"},
		{"no keys", strings.Replace(good, string(jsonOf(b, pemOf(b, "mint"))), "", 1), "keys"},
		{"trailing bytes", good + "{}", "policy: "},
	} {
		rows = append(rows,
			badInput{name: p.name, code: refused, says: p.says, make: func(b *bench) []string {
				return []string{"policy", "check", b.put("policy.json", []byte(p.text))}
			}},
			badInput{name: p.name + ", in place", code: failed, says: p.says, make: func(b *bench) []string {
				b.replacePolicy(p.text)
				if got := b.read(filepath.Join(b.mnt, "pairs.bin")); len(got) != len(b.model) {
					b.t.Error("what is granted does not open any more")
				}
				if out := b.must(done, "status"); !strings.Contains(out, "policy.json") {
					b.t.Errorf("status does not warn of the broken policy:\n%s", out)
				}
				return []string{"grant", b.sba}
			}})
	}
	return append(rows,
		badInput{name: "missing", code: failed, says: "policy.json", make: func(b *bench) []string {
			b.replacePolicy("")
			if err := os.Remove(filepath.Join(b.state, "policy.json")); err != nil {
				b.t.Fatal(err)
			}
			if out := b.must(done, "status"); !strings.Contains(out, "policy.json") {
				b.t.Errorf("status does not warn of the missing policy:\n%s", out)
			}
			return []string{"grant", b.sba}
		}},
		badInput{name: "put back", code: done, make: func(b *bench) []string { return []string{"policy", "check"} }})
}

func pemOf(b *bench, key string) string {
	b.t.Helper()
	text, err := b.keys[key].Public().MarshalText()
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// badSignedPolicies: in a state directory of its own, which has no daemon.
func badSignedPolicies(b *bench) []badInput {
	state := b.path("fleet")
	run := func(args ...string) []string { return append([]string{"--state", state}, args...) }
	must := func(args ...string) { b.t.Helper(); b.must(done, run(args...)...) }
	must("init")
	must("publisher", "trust", b.key+".pub", "--name", "acme", "--models", "acme/*")
	p := func(name string) string { return b.path("policy-" + name) }
	must("policy", "edit", "--root", b.path("ann.pub"), "--root", b.path("bob.pub"), "--root", b.path("mallory.pub"), "--threshold", "2", "--out", p("1.json"))
	must("policy", "sign", p("1.json"), "--key", b.path("ann"), "--out", p("1half.dsse"))
	must("policy", "sign", p("1.json"), "--key", b.path("ann"), "--key", b.path("bob"), "--out", p("1.dsse"))
	install := func(name, says string, code int, text func() []byte, more ...string) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			return run(append([]string{"policy", "install", b.put("row.dsse", text())}, more...)...)
		}}
	}
	first := string(b.read(p("1.dsse")))
	payload := string(payloadOf(b.t, []byte(first)))
	const policyType = "application/vnd.clawfs.policy+json"
	file := func(name string) func() []byte { return func() []byte { return b.read(p(name)) } }
	by := func(keys ...string) func() []byte {
		return func() []byte { return b.signedAs(policyType, payload, keys...) }
	}
	rows := []badInput{
		install("unsigned, the first", "policy", refused, func() []byte { return b.read(p("1.json")) }, "--first"),
		install("half signed, the first", "expected 2 of 3 keys, got 1", badSigner, file("1half.dsse"), "--first"),
		install("half signed, by one twice", "expected 2 of 3 keys, got 1", badSigner, by("ann", "ann"), "--first"),
		install("half signed, and by the mint", "expected 2 of 3 keys, got 1", badSigner, by("ann", "mint"), "--first"),
		install("signed by strangers", "not signed by", badSigner, by("acme", "lead"), "--first"),
		install("changed after it was signed", "not signed by", badSigner, func() []byte {
			return swapPayload(b, first, strings.Replace(payload, "acme/*", "evil/*", 1))
		}, "--first"),
		install("without --first", "has no root", refused, file("1.dsse")),
		install("of another payloadType", "payloadType", refused, func() []byte {
			return b.signedAs(dsse.PayloadType, payload, "ann", "bob")
		}, "--first"),
		install("in order", "", done, file("1.dsse"), "--first"),
	}
	later := func(name string) func() []byte {
		return func() []byte {
			if _, err := os.Stat(p("2.json")); err != nil {
				must("policy", "edit", "--out", p("2.json"))
				must("policy", "sign", p("2.json"), "--key", b.path("ann"), "--out", p("2half.dsse"))
				must("policy", "sign", p("2.json"), "--key", b.path("bob"), "--key", b.path("mallory"), "--out", p("2.dsse"))
				must("policy", "edit", p("2.json"), "--root", b.path("mallory.pub"), "--threshold", "1", "--out", p("3.json"))
				must("policy", "sign", p("3.json"), "--key", b.path("mallory"), "--out", p("3.dsse"))
			}
			return b.read(p(name))
		}
	}
	return append(rows,
		install("unsigned, the next", "policy", refused, later("2.json")),
		install("half signed, the next", "expected 2 of 3 keys, got 1", badSigner, later("2half.dsse")),
		install("the one after the next, by its own root alone", "expected 2 of 3 keys, got 1", badSigner, later("3.dsse")),
		badInput{name: "edited by hand", code: failed, says: "edited by hand", make: func(b *bench) []string {
			path := filepath.Join(state, "policy.json")
			good := string(b.read(path))
			b.write(path, strings.Replace(good, "acme/*", "evil/*", 1))
			b.undo = append(b.undo, func() { b.write(path, good) })
			return run("policy", "check")
		}},
		badInput{name: "changed without the root", code: refused, says: "the policy is signed", make: func(b *bench) []string {
			return run("publisher", "trust", b.path("a.pub"), "--name", "a", "--models", "a/*")
		}},
		install("in order, the next", "", done, later("2.dsse")),
		install("half signed, by another root", "expected 2 of 3 keys, got 1", badSigner, later("3.dsse")),
		install("older than the one here", "not newer than the one here", refused, file("1.dsse")),
		install("older, as the first", "leave out --first", refused, file("1.dsse"), "--first"),
		badInput{name: "older, put there by hand", code: failed, says: "put back", make: func(b *bench) []string {
			for name, text := range map[string]string{"policy.json": b.must(done, run("policy", "show", p("1.dsse"), "--text")...), "policy.dsse": first} {
				path := filepath.Join(state, name)
				good := string(b.read(path))
				b.write(path, text)
				b.undo = append(b.undo, func() { b.write(path, good) })
			}
			return run("policy", "check")
		}},
	)
}

// swapPayload is an envelope with another payload under its signatures.
func swapPayload(b *bench, envelope, payload string) []byte {
	b.t.Helper()
	var w wire
	if err := json.Unmarshal([]byte(envelope), &w); err != nil {
		b.t.Fatal(err)
	}
	w.Payload = base64Of(payload)
	return jsonOf(b, w)
}

// badRegistry: a place that alters, reorders or withholds.
func badRegistry(b *bench) []badInput {
	honest := b.path("place")
	envelopes := map[string][]byte{
		"good.sba": b.good, "x.cap": b.capability("pulled.bin", "pulled", nil), "y.cap": b.capability("second.bin", "second", nil),
		"x.rev": b.revocation("revoker"), "x.list": b.list(1, "revoker"),
	}
	for _, name := range []string{"good.sba", "x.cap", "y.cap", "x.rev", "x.list"} {
		b.must(done, "push", honest, b.put(name, envelopes[name]))
	}
	// All but one capability is known before, so that each row asks for that one.
	b.must(done, "import", b.put("y.cap", envelopes["y.cap"]))
	b.must(done, "revocations", "import", b.put("x.rev", envelopes["x.rev"]), b.put("x.list", envelopes["x.list"]))
	index := string(b.read(filepath.Join(honest, "index.json")))
	var tags []string
	for _, t := range strings.Split(index, `"org.opencontainers.image.ref.name":"`)[1:] {
		tag, _, _ := strings.Cut(t, `"`)
		tags = append(tags, tag)
	}
	tag := func(prefix string, n int) string {
		b.t.Helper()
		for _, t := range tags {
			if strings.HasPrefix(t, prefix) {
				if n == 0 {
					return t
				}
				n--
			}
		}
		b.t.Fatalf("the place has no %s among %q", prefix, tags)
		return ""
	}
	// unknown is the tag of the capability that nobody has handed over.
	unknown := tag("cap-"+sha256Of("ledger of pulled.bin"), 0)
	blob := func(place, name string) string {
		return filepath.Join(place, "blobs/sha256", sha256Of(string(envelopes[name])))
	}
	swap := func(one, two string) func(b *bench, place string) {
		return func(b *bench, place string) {
			b.write(filepath.Join(place, "index.json"), strings.NewReplacer(one, two, two, one).Replace(index))
		}
	}
	pull := func(name, says string, code int, change func(b *bench, place string)) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			place := filepath.Dir(b.put("x", nil)) + "/place"
			if err := os.CopyFS(place, os.DirFS(honest)); err != nil {
				b.t.Fatal(err)
			}
			change(b, place)
			return []string{"pull", place, "--admit"}
		}}
	}
	shared := b.path("pulled")
	one := func(list []byte, keep func(i int, manifest any) bool) string {
		var m map[string]any
		if err := json.Unmarshal(list, &m); err != nil {
			b.t.Fatal(err)
		}
		manifests := m["manifests"].([]any)
		var kept []any
		for i, x := range manifests {
			if keep(i, x) {
				kept = append(kept, x)
			}
		}
		m["manifests"] = kept
		return string(jsonOf(b, m))
	}
	return []badInput{
		pull("capability altered", "serves something else", refused, func(b *bench, place string) {
			b.write(blob(place, "x.cap"), string(envelopes["x.cap"])+" ")
		}),
		pull("revocation altered", "serves something else", refused, func(b *bench, place string) {
			b.write(blob(place, "x.rev"), string(envelopes["x.rev"])+" ")
		}),
		pull("revocation dropped", "does not serve it", refused, func(b *bench, place string) { os.Remove(blob(place, "x.rev")) }),
		pull("list dropped", "does not serve it", refused, func(b *bench, place string) { os.Remove(blob(place, "x.list")) }),
		pull("capability and revocation swapped", "artifactType", refused, swap(unknown, tag("rev-", 0))),
		pull("capabilities under each other's tags", "the record of cap-", refused, swap(tag("cap-", 0), tag("cap-", 1))),
		pull("attestation under another's tag", "the record of sba-", refused, func(b *bench, place string) {
			without := strings.Replace(index, unknown, "latest", 1)
			b.write(filepath.Join(place, "index.json"), strings.Replace(without, tag("sba-", 0), "sba-"+strings.Repeat("ab", 32), 1))
		}),
		pull("capability under a revocation's tag alone", "rev-", refused, func(b *bench, place string) {
			b.write(filepath.Join(place, "index.json"), strings.Replace(index, unknown, "rev-"+strings.Repeat("ab", 32), 1))
		}),
		pull("index that is garbage", "index", failed, func(b *bench, place string) { b.write(filepath.Join(place, "index.json"), "\x1b[31m{") }),
		pull("no index", "layout", failed, func(b *bench, place string) { os.Remove(filepath.Join(place, "index.json")) }),
		pull("no layout", "layout", failed, func(b *bench, place string) { os.RemoveAll(place) }),
		{name: "as it is", code: done, make: func(b *bench) []string { return []string{"pull", honest, "--out", shared, "--admit"} }},
		{name: "revocation withheld", code: refused, says: "WITHHELD", make: func(b *bench) []string {
			path := filepath.Join(honest, "index.json")
			b.write(path, strings.Replace(index, tag("rev-", 0), "latest", 1))
			b.undo = append(b.undo, func() { b.write(path, index) })
			return []string{"pull", honest, "--out", shared, "--admit"}
		}},
		{name: "everything withheld", code: refused, says: "WITHHELD", make: func(b *bench) []string {
			path := filepath.Join(honest, "index.json")
			b.write(path, one([]byte(index), func(int, any) bool { return false }))
			b.undo = append(b.undo, func() { b.write(path, index) })
			return []string{"pull", honest, "--out", shared, "--admit"}
		}},
		{name: "another place in the same directory", code: usage, says: "holds what came from", make: func(b *bench) []string {
			return []string{"pull", b.path("elsewhere"), "--out", shared}
		}},
		{name: "saved capability that was written over", code: refused, says: "not what its name says", make: func(b *bench) []string {
			path := filepath.Join(shared, unknown+".dsse")
			b.write(path, string(envelopes["y.cap"]))
			b.undo = append(b.undo, func() { b.write(path, string(envelopes["x.cap"])) })
			return []string{"pull", honest, "--out", shared, "--model", "acme/none"}
		}},
		{name: "other signatures under a tag that is there", code: refused, says: "--replace", make: func(b *bench) []string {
			return []string{"push", honest, b.put("row", b.signed(string(payloadOf(b.t, envelopes["x.cap"])), "mint", "mallory"))}
		}},
		{name: "record that nobody signed", code: refused, says: "want a signed record", make: func(b *bench) []string {
			return []string{"push", honest, b.put("row", []byte(b.payload))}
		}},
		{name: "tag in the place's name", code: usage, says: "without a tag", make: func(b *bench) []string {
			return []string{"push", "oci://registry.example/acme/trust:latest", b.sba}
		}},
	}
}

// badBundles: the file for where no network reaches.
func badBundles(b *bench) []badInput {
	proved := b.put("proved.sba", b.good)
	log := b.log.Clone()
	at := log.Add(b.t, b.leaf(b.payload, "acme/pairs"))
	b.write(proved+verifier.ProofSuffix, string(log.Proof(b.t, at, log.Size())))
	file := b.path("whole.intoto.jsonl")
	b.must(done, "bundle", "export", "--out", file, proved,
		b.put("x.cap", b.capability("bundled.bin", "bundled", nil)), b.put("x.rev", b.revocation("revoker")))
	lines := strings.SplitAfter(strings.TrimSuffix(string(b.read(file)), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	if len(lines) != 4 {
		b.t.Fatalf("%d lines in the bundle, want an attestation, its proof, a capability and a revocation", len(lines))
	}
	which := func(word string) string {
		for _, l := range lines {
			if strings.Contains(l, word) || !strings.Contains(l, "tlog-proof") && strings.Contains(string(payloadOf(b.t, []byte(l))), word) {
				return l
			}
		}
		b.t.Fatalf("no line with %q", word)
		return ""
	}
	sba, proof, capability, revocation := which("build-ledger/v1"), which("tlog-proof"), which("capability/v1"), which("revocation/v1")
	imports := func(name, says string, code int, lines ...string) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			return []string{"bundle", "import", b.put("row.jsonl", []byte(strings.Join(lines, "")))}
		}}
	}
	dry := func(name string, lines ...string) badInput {
		r := imports(name, "", done, lines...)
		args := r.make
		r.make = func(b *bench) []string { return append(args(b), "--dry-run") }
		return r
	}
	const whole = "nothing was taken"
	broken := func(line string) string {
		before, after, _ := strings.Cut(line, `"sig":"`)
		return before + `"sig":"` + flip(after)
	}
	return []badInput{
		dry("whole", lines...),
		dry("every record doubled", sba, proof, sba, proof, capability, capability),
		dry("revocation removed", sba, proof, capability),
		dry("proof removed", sba, capability),
		imports("empty", whole, refused),
		imports("attestation removed, its proof not", whole, refused, revocation, proof, capability),
		imports("proof doubled", whole, refused, sba, proof, proof),
		imports("proof before its attestation", whole, refused, proof, sba),
		imports("proof behind another record", whole, refused, sba, capability, proof),
		imports("garbage among the lines", whole, refused, revocation, "GGUF\x00\x1b[31m\n", capability),
		imports("empty line", whole, refused, revocation, "\n", capability),
		imports("last line cut", whole, refused, revocation, capability[:100]),
		imports("two records on one line", whole, refused, revocation, strings.TrimSuffix(capability, "\n")+capability),
		imports("line of 5 MiB", whole, refused, revocation, strings.Repeat("A", 5<<20)+"\n"),
		imports("model", whole, refused, string(b.model)),
		imports("ledger that nobody signed", whole, refused, b.payload),
		imports("forged attestation", "line 1: refused sba-", refused, broken(sba)),
		imports("forged capability", "line 1: refused cap-", refused, broken(capability)),
		imports("forged revocation, and a capability behind it", "line 1: refused rev-", refused, broken(revocation)),
		imports("attestation by a stranger", "line 1: refused sba-", refused, string(b.signed(b.by("acme/pairs", "mallory"), "mallory"))),
		imports("unknown kind of record", "line 1: refused", refused, string(b.signed(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.com/x"}`, "acme"))),
		imports("attestation with another's proof", "line 1: refused sba-", refused, string(b.signed(b.edited(`"sequence":1`, `"sequence":3`), "acme"))+"\n", proof),
	}
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
