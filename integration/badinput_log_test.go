package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

func sha256Of(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// setTime and replaceTime give a ledger or a list another issuedAt.
func setTime(ledger string, at time.Time) string {
	return replaceTime(ledger, at.UTC().Format(time.RFC3339))
}

func replaceTime(ledger, text string) string {
	before, rest, _ := strings.Cut(ledger, `"issuedAt":"`)
	_, after, _ := strings.Cut(rest, `"`)
	return before + `"issuedAt":"` + text + `"` + after
}

// otherCommit is one of a git repository with another history.
func (b *bench) otherCommit() string {
	b.t.Helper()
	dir := filepath.Dir(b.put("README", []byte("another recipe\n")))
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"},
		{"-c", "user.name=mallory", "-c", "user.email=mallory@example.com", "commit", "-q", "-m", "recipe"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			b.t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	out, err := exec.Command("git", "-C", dir, "rev-parse", "HEAD").Output()
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// leaf is the record of a ledger in the log.
func (b *bench) leaf(ledger, model string) tlog.Leaf {
	b.t.Helper()
	l, err := tlog.LeafOf(tlog.KindSBA, []byte(ledger), b.keys["acme"].Public(), model)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

// badLogProofs: of an attestation whose publisher has to log. The last rows come
// after the daemon has seen size 12 of the log, and after a fork.
func badLogProofs(b *bench) []badInput {
	const model = "logged/pairs"
	ledger := b.edited(`"acme/pairs"`, `"`+model+`"`)
	sba := b.signed(ledger, "acme")
	log := b.log
	log.Fill(b.t, 3)
	index := log.Add(b.t, b.leaf(ledger, model))
	other := log.Add(b.t, b.leaf(b.payload, "acme/pairs"))
	log.Fill(b.t, 4)
	forked := log.Clone()
	forked.Fill(b.t, 1)
	forked.Add(b.t, tlog.Leaf{})
	log.Fill(b.t, 11)
	forked.Fill(b.t, 9)
	alone := func(origin string, witnesses ...string) []byte {
		l := tlogtest.New(origin, witnesses...)
		l.Add(b.t, b.leaf(ledger, model))
		return l.Proof(b.t, 0, 1)
	}
	good := log.Proof(b.t, index, 9)
	stranger := tlogtest.New(log.Origin, "alice", "bob")
	stranger.Fill(b.t, 9)
	replaced := func(old, new string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			b.t.Fatalf("the proof has no %q:\n%s", old, good)
		}
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	grant := func(name string, code int, says string, proof, consistency []byte) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			file := b.put("row.sba", sba)
			for suffix, text := range map[string][]byte{verifier.ProofSuffix: proof, verifier.ConsistencySuffix: consistency} {
				if text != nil {
					b.write(file+suffix, string(text))
				}
			}
			return []string{"grant", file, "--wait", "-q"}
		}}
	}
	head, checkpoint, _ := bytes.Cut(good, []byte("\n\n"))
	lines := bytes.Split(head, []byte("\n"))
	swapped := bytes.Join(append([][]byte{lines[0], lines[1], lines[3], lines[2]}, lines[4:]...), []byte("\n"))
	return []badInput{
		grant("none", refused, "log prove", nil, nil),
		grant("empty", refused, "tlog-proof@v1", []byte{}, nil),
		grant("garbage", refused, "tlog-proof@v1", []byte("GGUF\x00\x1b[31m"), nil),
		grant("checkpoint alone", refused, "tlog-proof@v1", log.Checkpoint(b.t, 9), nil),
		grant("no path", refused, "hashes", append([]byte("c2sp.org/tlog-proof@v1\nindex 3\n\n"), checkpoint...), nil),
		grant("path without its last hash", refused, "hashes", append(append(bytes.Join(lines[:len(lines)-1], []byte("\n")), "\n\n"...), checkpoint...), nil),
		grant("path in another order", refused, "lead elsewhere", append(append(swapped, "\n\n"...), checkpoint...), nil),
		grant("another leaf", refused, "lead elsewhere", log.Proof(b.t, index-1, 9), nil),
		grant("another attestation's", refused, "lead elsewhere", log.Proof(b.t, other, 9), nil),
		grant("another root", refused, "lead elsewhere", append(append(bytes.Clone(head), "\n\n"...), stranger.Checkpoint(b.t, 9)...), nil),
		grant("index of another", refused, "lead elsewhere", replaced("index 3\n", "index 2\n"), nil),
		grant("index beyond the size", refused, "below 9", replaced("index 3\n", "index 9\n"), nil),
		grant("index below 0", refused, "index", replaced("index 3\n", "index -1\n"), nil),
		grant("index of 20 digits", refused, "index", replaced("index 3\n", "index 99999999999999999999\n"), nil),
		grant("index with a zero before it", refused, "index", replaced("index 3\n", "index 03\n"), nil),
		grant("next version of the format", refused, "tlog-proof@v1", replaced("@v1", "@v2"), nil),
		grant("CRLF", refused, "tlog-proof@v1", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), nil),
		grant("wrong origin", refused, "log.example/other", alone("log.example/other", "alice", "bob"), nil),
		grant("origin with a homoglyph", refused, `got "log.ex\u0430mple/models"`, alone("log.ex\u0430mple/models", "alice", "bob"), nil),
		grant("no signature of the log", badSigner, "log.example/models", without(good, "— log.example/models"), nil),
		grant("no witness", badSigner, "got ", alone(log.Origin), nil),
		grant("one witness of two", badSigner, "got alice", alone(log.Origin, "alice"), nil),
		grant("one witness twice", refused, "signs twice", alone(log.Origin, "alice", "alice"), nil),
		grant("witness that the policy does not name", badSigner, "got alice", alone(log.Origin, "alice", "mallory"), nil),
		grant("too long", refused, "longer than", make([]byte, tlog.MaxProof+1), nil),

		grant("in order", done, "", log.Proof(b.t, index, 12), nil),
		grant("older than what was seen", refused, "size 12 or later", good, nil),
		grant("older, with another's consistency", refused, "lead elsewhere", good, log.Consistency(b.t, 8, 12)),
		grant("older, with garbage", refused, "hash 1", good, []byte("x\n")),
		grant("older, and the same tree", done, "", good, log.Consistency(b.t, 9, 12)),
		grant("newer without consistency", refused, "size 12", log.Proof(b.t, index, 15), nil),
		grant("newer, of another tree", refused, "lead elsewhere", forked.Proof(b.t, index, 15), forked.Consistency(b.t, 12, 15)),
		grant("newer, and the same tree", done, "", log.Proof(b.t, index, 15), log.Consistency(b.t, 12, 15)),
		grant("two trees of one size", refused, "two", forked.Proof(b.t, index, 15), nil),
		grant("good one of a log that forked", refused, "two", log.Proof(b.t, index, 15), nil),
		{name: "checkpoints of the fork", code: refused, says: "FORKED", make: func(*bench) []string { return []string{"memory", "show", log.Origin} }},
		{name: "memory that is lost", code: failed, says: "is lost", make: func(b *bench) []string {
			dir := filepath.Join(b.state, "memory")
			if err := os.Rename(filepath.Join(dir, "logs"), filepath.Join(dir, "away")); err != nil {
				b.t.Fatal(err)
			}
			b.undo = append(b.undo, func() { os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "logs")) })
			return grant("", 0, "", log.Proof(b.t, index, 15), nil).make(b)
		}},
	}
}

// without is a note without the line that begins so.
func without(note []byte, prefix string) []byte {
	var out []byte
	for line := range bytes.Lines(note) {
		if !bytes.HasPrefix(line, []byte(prefix)) {
			out = append(out, line...)
		}
	}
	return out
}

// badLogPolicies: who may speak for a log, and how many of them.
func badLogPolicies(b *bench) []badInput {
	good := b.log.Policy("")
	logLine, rest, _ := strings.Cut(good, "\n")
	alice, rest, _ := strings.Cut(rest, "\n")
	bob, _, _ := strings.Cut(rest, "\n")
	aliceKey := strings.Fields(alice)[2]
	policy := func(name, says string, lines ...string) []badInput {
		text := strings.Join(lines, "\n") + "\n"
		return []badInput{
			{name: name, code: failed, says: says, make: func(b *bench) []string {
				return []string{"log", "prove", b.sba, "--log", b.dir, "--log-policy", b.put("logs", []byte(text))}
			}},
			{name: name + ", in policy.json", code: refused, says: says, make: func(b *bench) []string {
				p := b.readPolicy(func(*verifier.Policy) {})
				p.Logs = "LOGS"
				return []string{"policy", "check", b.put("policy.json", bytes.Replace(jsonOf(b, p), []byte(`"LOGS"`), jsonOf(b, text), 1))}
			}},
		}
	}
	var rows []badInput
	for _, r := range [][]badInput{
		policy("threshold 0", "from 1 to 2", logLine, alice, bob, "group all 0 alice bob", "quorum all"),
		policy("threshold above the members", "from 1 to 2", logLine, alice, bob, "group all 3 alice bob", "quorum all"),
		policy("negative threshold", "from 1 to 2", logLine, alice, bob, "group all -1 alice bob", "quorum all"),
		policy("one member twice", "alice", logLine, alice, "group all 2 alice alice", "quorum all"),
		policy("one key under two names", "key", logLine, alice, "witness eve "+aliceKey, "group all all alice eve", "quorum all"),
		policy("one witness in two groups", "alice", logLine, alice, bob, "group one all alice bob", "group two any alice", "group all all one two", "quorum all"),
		policy("one name twice", "alice", logLine, alice, alice, "quorum alice"),
		policy("two quorum lines", "quorum", logLine, alice, bob, "quorum alice", "quorum bob"),
		policy("the same quorum line twice", "quorum", logLine, alice, "quorum alice", "quorum alice"),
		policy("no quorum line", "quorum", logLine, alice),
		policy("quorum of nobody", "on a line before this one", logLine, alice, "quorum eve"),
		policy("group of itself", "group", logLine, alice, "group all all all", "quorum all"),
		policy("no log", "log", alice, "quorum alice"),
		policy("one log twice", "log", logLine, logLine, "quorum none"),
		policy("log key for a witness", "type", logLine, "witness alice "+strings.Fields(logLine)[1], "quorum alice"),
		policy("witness key for a log", "type", "log "+aliceKey, "quorum none"),
		policy("key whose hash is another's", "key", "log "+strings.Replace(strings.Fields(logLine)[1], "+", "+0", 1), "quorum none"),
		policy("unknown word", "expected log, witness, group or quorum", logLine, "trust everybody", "quorum none"),
	} {
		rows = append(rows, r...)
	}
	return append(rows, badInput{name: "cut short", code: failed, says: "cut short", make: func(b *bench) []string {
		return []string{"log", "prove", b.sba, "--log", b.dir, "--log-policy", b.put("logs", []byte(strings.TrimSuffix(good, "\n")))}
	}})
}

// badNames: names that look like another, or lead elsewhere.
func badNames(b *bench) []badInput {
	const composed, decomposed, cyrillic = "mod\u00e8le.bin", "mode\u0300le.bin", "p\u0430irs.bin"
	var rows []badInput
	for _, n := range []struct{ name, model string }{
		{"homoglyph in a model", "acme/p\u0430irs"}, {"NFC in a model", "acme/mod\u00e8le"}, {"NFD in a model", "acme/mode\u0300le"},
		{".. in a model", "acme/../pairs"}, {"// in a model", "acme//pairs"}, {"/ before a model", "/acme/pairs"}, {"/ behind a model", "acme/pairs/"},
		{"capital in a model", "acme/Pairs"}, {"blank behind a model", "acme/pairs "}, {"zero width in a model", "acme/pa\u200birs"},
		{"override in a model", "acme/\u202epairs"}, {"pattern as a model", "acme/*"}, {"model without a publisher", "pairs"}, {"line break in a model", `acme/pairs\n`},
	} {
		rows = append(rows, grants(n.name, refused, "model: expected", func(b *bench) []byte {
			return b.signed(b.edited(`"acme/pairs"`, `"`+n.model+`"`), "acme")
		}))
	}
	for _, n := range []struct{ name, output string }{
		{".. in an output", "../pairs.bin"}, {".. inside an output", "a/../pairs.bin"}, {"// in an output", "a//pairs.bin"}, {"/ before an output", "/pairs.bin"},
		{"/ behind an output", "pairs.bin/"}, {". as an output", "."}, {"backslash in an output", `a\\pairs.bin`}, {"line break in an output", `pairs.bin\n`},
		{"NUL in an output", `pairs\u0000.bin`}, {"no output", ""}, {"long output", strings.Repeat("a", 256)},
	} {
		rows = append(rows, grants(n.name, refused, "outputs: name", func(b *bench) []byte {
			return b.signed(b.edited(`"name":"pairs.bin"`, `"name":"`+n.output+`"`), "acme")
		}), grants(n.name+"'s path", refused, "outputs: path", func(b *bench) []byte {
			return b.signed(b.edited(`"path":"pairs.bin"`, `"path":"`+n.output+`"`), "acme")
		}))
	}
	rows = append(rows,
		grants("output twice", refused, "outputs", func(b *bench) []byte {
			return b.signed(b.edited(`{"name":"pairs.bin","path":"pairs.bin"}`, `{"name":"pairs.bin","path":"pairs.bin"},{"name":"pairs.bin","path":"other.bin"}`), "acme")
		}),
		grants("output below another", refused, "is a file and the directory of", func(b *bench) []byte {
			return b.signed(b.edited(`{"name":"pairs.bin","path":"pairs.bin"}`, `{"name":"pairs.bin","path":"pairs.bin"},{"name":"pairs.bin/x","path":"x"}`), "acme")
		}))
	for _, n := range []struct{ name, flag, value, says string }{
		{".. in a path", "--path", "team/../pairs.bin", "clean"}, {".. before a path", "--path-prefix", "../team", "clean"}, {"// in a path", "--path", "team//pairs.bin", "clean"}, {"/ before a path", "--path", "/pairs.bin", "relative to the root of the mount"},
		{"no path", "--path", "", "missing"}, {". as a prefix", "--path-prefix", ".", "clean"}, {"directory as a path", "--path", "team/", "--path-prefix"}, {"control byte in a path", "--path", "a\x1bb", "control byte"},
		{"relative mount", "--mount", "models", "absolute"}, {"nobody's user", "--uid", "65534", "no user id"}, {"negative user", "--uid", "-1", "no user id"},
		{"time that is over", "--not-after", "2020-01-01", "in the past"},
	} {
		rows = append(rows, badInput{name: n.name, code: usage, says: n.says, make: func(b *bench) []string { return []string{"grant", b.sba, n.flag, n.value} }})
	}
	open := func(name, file, says string) badInput {
		return badInput{name: name, code: refused, says: says, make: func(b *bench) []string {
			b.directory(filepath.Dir(file))
			b.write(filepath.Join(b.src, file), string(b.model))
			b.wantErrno(filepath.Join(b.mnt, file), 13)
			return []string{"why", filepath.Join(b.mnt, file)}
		}}
	}
	return append(rows,
		open("homoglyph at open", cyrillic, `"p\u0430irs.bin" is not "pairs.bin"`),
		open("capitals at open", "PAIRS.BIN", "pairs.bin"),
		open("blank at open", "pairs.bin ", "pairs.bin"),
		open("line break at open", "pairs.bin\n", "pairs.bin"),
		open("zero width at open", "pairs\u200b.bin", "pairs.bin"),
		open("bytes that are no UTF-8 at open", "pairs\xff.bin", "pairs.bin"),
		badInput{name: "NFC", code: done, make: func(b *bench) []string {
			b.write(filepath.Join(b.src, composed), "accent")
			b.must(done, "import", b.put("row.cap", b.capability(composed, "accent", nil)))
			return []string{"why", filepath.Join(b.mnt, composed)}
		}},
		badInput{name: "NFD at open", code: refused, says: `"mode\u0300le.bin" is not "mod\u00e8le.bin"`, make: func(b *bench) []string {
			b.write(filepath.Join(b.src, decomposed), "accent")
			b.wantErrno(filepath.Join(b.mnt, decomposed), 13)
			return []string{"why", filepath.Join(b.mnt, decomposed)}
		}},
		badInput{name: ".. and // at open, as the kernel resolves them", code: done, make: func(b *bench) []string {
			b.directory("sub")
			if got := b.read(b.mnt + "/sub/..//pairs.bin"); !bytes.Equal(got, b.model) {
				b.t.Errorf("%d bytes, want the model", len(got))
			}
			return []string{"why", b.mnt + "/sub/..//pairs.bin"}
		}},
		badInput{name: "outside of every mount", code: refused, says: "not on a clawfs mount", make: func(b *bench) []string {
			return []string{"why", b.mnt + "/../downloads/pairs.bin"}
		}},
		badInput{name: "link that leaves the mount", code: refused, says: "link", make: func(b *bench) []string {
			os.Symlink("../downloads/pairs.bin", filepath.Join(b.src, "leaves.bin"))
			b.wantErrno(filepath.Join(b.mnt, "leaves.bin"), 13)
			return []string{"why", filepath.Join(b.mnt, "leaves.bin")}
		}},
	)
}

// badDelegations: a capability that was handed on, with something wrong between.
func badDelegations(b *bench) []badInput {
	root := b.put("root.cap", b.capability("handed.bin", "handed", func(p *capstore.Predicate) {
		p.Delegate = append(p.Delegate, b.keys["lead"].Public().ID())
	}))
	lead, team := b.path("lead.cap"), b.path("team.cap")
	b.must(done, "delegate", root, "--key", b.path("lead"), "--to", b.path("team.pub"), "--path-prefix", "team", "--out", lead)
	b.must(done, "delegate", lead, "--key", b.path("team"), "--to", b.path("ann.pub"), "--uid", "0", "--out", team)
	chain := func() []string { return strings.SplitAfter(strings.TrimSuffix(string(b.read(team)), "\n"), "\n") }
	other := b.capability("handed.bin", "other", func(p *capstore.Predicate) { p.Delegate = append(p.Delegate, b.keys["lead"].Public().ID()) })
	imports := func(name, says string, code int, change func(l []string) []string) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			l := chain()
			l[len(l)-1] += "\n"
			return []string{"import", b.put("row.cap", []byte(strings.Join(change(l), "")))}
		}}
	}
	hands := func(name, says string, code int, args ...string) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			return append([]string{"delegate"}, append(args, "--out", filepath.Join(filepath.Dir(b.put("x", nil)), "never.cap"))...)
		}}
	}
	deep := team
	for range 2 {
		next := b.path("deep" + filepath.Base(deep))
		b.must(done, "delegate", deep, "--key", b.path("ann"), "--to", b.path("ann.pub"), "--out", next)
		deep = next
	}
	return []badInput{
		imports("link left out", "stands before it", refused, func(l []string) []string { return []string{l[0], l[2]} }),
		imports("root left out", "has to stand before it", refused, func(l []string) []string { return l[1:] }),
		imports("last link alone", "has to stand before it", refused, func(l []string) []string { return l[2:] }),
		imports("other order", "stands before it", refused, func(l []string) []string { return []string{l[0], l[2], l[1]} }),
		imports("link twice", "stands before it", refused, func(l []string) []string { return []string{l[0], l[1], l[1], l[2]} }),
		imports("root of another file", "stands before it", refused, func(l []string) []string { return []string{string(other), "\n", l[1]} }),
		imports("root by a stranger", "not signed by", badSigner, func(l []string) []string {
			return append([]string{string(b.signed(string(payloadOf(b.t, []byte(l[0]))), "mallory")), "\n"}, l[1:]...)
		}),
		imports("link by a stranger", "not signed by", badSigner, func(l []string) []string {
			return []string{l[0], string(b.signed(string(payloadOf(b.t, []byte(l[1]))), "mallory")), "\n"}
		}),
		imports("link that a stranger signed under its own name", "may not derive", badSigner, func(l []string) []string {
			text := string(payloadOf(b.t, []byte(l[1])))
			pem, err := b.keys["mallory"].Public().MarshalText()
			if err != nil {
				b.t.Fatal(err)
			}
			mine, err := b.keys["lead"].Public().MarshalText()
			if err != nil {
				b.t.Fatal(err)
			}
			inJSON := func(t []byte) string { return strings.Trim(string(jsonOf(b, string(t))), `"`) }
			at := strings.Index(text, `"minter":`)
			text = text[:at] + strings.Replace(strings.Replace(text[at:], b.id("lead"), b.id("mallory"), 1), inJSON(mine), inJSON(pem), 1)
			return []string{l[0], string(b.signed(text, "mallory")), "\n"}
		}),
		imports("link that names other bytes", "result", refused, func(l []string) []string {
			text := string(payloadOf(b.t, []byte(l[1])))
			return []string{l[0], string(b.signed(strings.Replace(text, `"1.0.0"`, `"9.9.9"`, 1), "lead")), "\n"}
		}),
		imports("garbage between", "envelope", refused, func(l []string) []string { return []string{l[0], "GGUF\n", l[2]} }),
		imports("empty line between", "envelope", refused, func(l []string) []string { return []string{l[0], "\n", l[1]} }),
		imports("six links", "more than 4", refused, func(l []string) []string { return append(l, l[1], l[1], l[1], l[1]) }),
		hands("by a key that it does not name", "does not name the key", refused, root, "--key", b.path("mallory")),
		hands("by the mint itself", "does not name the key", refused, root, "--key", b.path("mint")),
		hands("of a link, by the key of the link before", "does not name the key", refused, lead, "--key", b.path("lead")),
		hands("a fifth time", "handed on 4 times", refused, deep, "--key", b.path("ann")),
		hands("to a key id in capitals", "neither a key id", usage, root, "--key", b.path("lead"), "--to", strings.ToUpper(b.id("team"))),
		hands("by a public key", "is a public key", failed, root, "--key", b.path("lead.pub")),
		hands("of an attestation", "capability", refused, b.sba, "--key", b.path("lead")),
		imports("in order", "", done, func(l []string) []string { return l }),
	}
}

// badRevocations: by whoever may not take back, or older than what is known.
func badRevocations(b *bench) []badInput {
	first, second := b.path("first.revocations"), b.path("second.revocations")
	b.must(done, "revocations", "issue", "--out", first)
	b.must(done, "revocations", "issue", "--out", second)
	imports := func(name, says string, code int, text func() []byte) badInput {
		return badInput{name: name, code: code, says: says, make: func(b *bench) []string {
			return []string{"revocations", "import", b.put("row", text())}
		}}
	}
	rows := []badInput{
		imports("list by another revoker, older than the one in force", "not newer than the one in force", refused, func() []byte { return b.list(1, "revoker") }),
		imports("list of the same number", "not newer than the one in force", refused, func() []byte { return b.list(3, "revoker") }),
		imports("older list that is known", "", done, func() []byte { return b.read(first) }),
		imports("list with a changed entry", "not signed by", badSigner, func() []byte {
			return []byte(strings.Replace(string(b.read(second)), `"sig":"`, `"sig":"AAAA`, 1))
		}),
		imports("list by nobody", "envelope", refused, func() []byte {
			before, _, _ := strings.Cut(string(b.read(second)), `"signatures"`)
			return []byte(before + `"signatures":[]}`)
		}),
		imports("list of sequence 0", "sequence", refused, func() []byte {
			return b.signed(strings.Replace(string(payloadOf(b.t, b.list(7, "revoker"))), `"sequence":7`, `"sequence":0`, 1), "revoker")
		}),
		imports("list whose digest is another's", "subject", refused, func() []byte {
			return b.signed(strings.Replace(string(payloadOf(b.t, b.list(7, "revoker"))), `"sequence":7`, `"sequence":8`, 1), "revoker")
		}),
		imports("list from the future", "one of the clocks is wrong", refused, func() []byte {
			return b.signed(setTime(string(payloadOf(b.t, b.list(9, "revoker"))), time.Now().Add(30*time.Minute)), "revoker")
		}),
		{name: "list issued by the mint", code: badSigner, says: "is no revoker of the policy", make: func(b *bench) []string {
			return []string{"revocations", "issue", "--key", filepath.Join(b.state, "mint.key")}
		}},
		{name: "revoke by the mint", code: badSigner, says: "is no revoker of the policy", make: func(b *bench) []string {
			return []string{"revoke", "--kind", "file", strings.Repeat("cd", 32), "--reason", "x", "--key", filepath.Join(b.state, "mint.key")}
		}},
		{name: "revoke without a reason", code: usage, says: "reason", make: func(b *bench) []string { return []string{"revoke", "--kind", "file", strings.Repeat("cd", 32)} }},
		{name: "revoke of a digest in capitals and short", code: refused, says: "names 0 things", make: func(b *bench) []string {
			return []string{"revoke", "--kind", "file", strings.Repeat("CD", 31), "--reason", "x"}
		}},
		{name: "revoke of what is not there", code: refused, says: "names 0", make: func(b *bench) []string {
			return []string{"revoke", "cdcdcdcd", "--reason", "x"}
		}},
	}
	for _, key := range []string{"mint", "localmint", "acme", "mallory"} {
		rows = append(rows,
			imports("revocation by "+key, "not signed by a trusted revoker", badSigner, func() []byte { return b.revocation(key) }),
			imports("list by "+key, "not signed by a trusted revoker", badSigner, func() []byte { return b.list(9, key) }))
	}
	return append(rows,
		badInput{name: "granted model after all of this", code: done, make: func(b *bench) []string {
			if got := b.read(filepath.Join(b.mnt, "pairs.bin")); !bytes.Equal(got, b.model) {
				b.t.Error("the granted model does not read as it was built")
			}
			return []string{"why", filepath.Join(b.mnt, "pairs.bin")}
		}},
		badInput{name: "granted model that is taken back", code: refused, says: "withdrawn", make: func(b *bench) []string {
			b.must(done, "revoke", "--kind", "file", sha256Of(string(b.model)), "--reason", "withdrawn")
			b.wantErrno(filepath.Join(b.mnt, "pairs.bin"), 13)
			return []string{"why", filepath.Join(b.mnt, "pairs.bin")}
		}})
}
