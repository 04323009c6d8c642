package tlog_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/witness"

	"github.com/openclaw/clawfs/verifier/tlog"
)

// Rows with lenient are defects of the policy parser of transparency-dev/formats
// v0.1.1: it takes them.
func TestParsePolicyRefuses(t *testing.T) {
	w := newWorld(t)
	log := "log " + w.log.vkey() + "\n"
	w1 := "witness w1 " + w.w1.vkey() + " https://w1.example\n"
	w2 := "witness w2 " + w.w2.vkey() + " https://w2.example\n"
	w3 := "witness w3 " + w.w3.vkey() + " https://w3.example\n"
	all := log + w1 + w2 + w3
	alias := "witness alias " + w.w1.named("alias.example").vkey() + " https://alias.example\n"
	one, two := collision(t)
	tests := []struct {
		name, text, want string
		lenient          bool
	}{
		{"empty", "", "expected at least one log line, got none", false},
		{"comment only", "# nothing\n", "expected at least one log line", false},
		{"threshold 0", all + "group g 0 w1 w2\nquorum g\n", `expected all, any or a number from 1 to 2 (its members), got "0"`, true},
		{"duplicate member", all + "group g 2 w1 w1\nquorum g\n", `line 5: group "g": "w1" is a member already, and would count twice`, true},
		{"one key under two names", log + w1 + alias + "group g 2 w1 alias\nquorum g\n", "the key of witness1.example is the same one, so the two are one party", true},
		{"two quorum lines", all + "quorum w1\nquorum none\n", "line 6: expected one quorum line, got a second one", true},
		{"the same quorum line twice", all + "quorum w1\nquorum w1\n", "expected one quorum line, got a second one", true},
		{"no quorum line", all, "expected one quorum line, got none", false},
		{"witness with a log's type of key", log + "witness w1 " + newSigner("witness1.example", typeLog).vkey() + " https://w1.example\nquorum w1\n", "expected a witness's (type 0x04), got type 0x01", true},
		{"member of two groups", all + "group a any w1 w2\ngroup b any w2 w3\ngroup g all a b\nquorum g\n", `group "b": "w2" is a member already`, true},
		{"member beside its group", all + "group a any w1 w2\ngroup g all a w1\nquorum g\n", `group "g": "w1" is a member already`, true},

		{"threshold above the members", all + "group g 3 w1 w2\nquorum g\n", "expected all, any or a number from 1 to 2", false},
		{"threshold -1", all + "group g -1 w1 w2\nquorum g\n", `got "-1"`, false},
		{"threshold +1", all + "group g +1 w1 w2\nquorum g\n", `got "+1"`, false},
		{"threshold 01", all + "group g 01 w1 w2\nquorum g\n", `got "01"`, true},
		{"threshold 1.0", all + "group g 1.0 w1 w2\nquorum g\n", `got "1.0"`, false},
		{"threshold of twenty digits", all + "group g 18446744073709551617 w1 w2\nquorum g\n", `got "18446744073709551617"`, false},
		{"threshold ALL", all + "group g ALL w1 w2\nquorum g\n", `got "ALL"`, false},
		{"group without members", all + "group g any\nquorum g\n", "got 2 words after group", false},
		{"group without a threshold", all + "group g w1\nquorum g\n", "got 2 words after group", false},
		{"unknown member", all + "group g any w4\nquorum g\n", `expected the name of a witness or group on a line before this one, got "w4"`, false},
		{"unknown quorum", all + "quorum w4\n", `on a line before this one, got "w4"`, false},
		{"member by its key's name", all + "group g any witness1.example\nquorum g\n", `got "witness1.example"`, false},
		{"name in capitals", all + "quorum W1\n", `got "W1"`, false},
		{"name with a Kelvin sign", log + "witness K " + w.w1.vkey() + "\nquorum \u212a\n", "on a line before this one", false},
		{"group of itself", all + "group g any g\nquorum g\n", `got "g"`, false},
		{"groups of each other", all + "group a any w1 b\ngroup b any w2 a\nquorum a\n", `got "b"`, false},
		{"group before its members", log + "group g any w1\n" + w1 + "quorum g\n", `line 2: group "g"`, false},
		{"quorum before its group", all + "quorum g\ngroup g any w1\n", `line 5: expected the name of a witness or group on a line before`, true},
		{"member none", all + "group g any w1 none\nquorum g\n", `"none" cannot be a member`, false},
		{"witness called none", log + "witness none " + w.w1.vkey() + " https://w1.example\nquorum none\n", `the name "none" is taken`, false},
		{"group called none", all + "group none any w1\nquorum none\n", `the name "none" is taken`, false},
		{"witness defined twice", log + w1 + "witness w1 " + w.w2.vkey() + " https://w2.example\nquorum w1\n", `the name "w1" is defined already`, false},
		{"group with a witness's name", all + "group w1 any w2\nquorum w1\n", `the name "w1" is defined already`, false},
		{"witness line twice", log + w1 + w1 + "quorum w1\n", "is the same one", false},
		{"log line twice", log + log + w1 + "quorum w1\n", "is the same one", true},
		{"log's key under another name", log + "log " + w.log.named("other.example").vkey() + "\n" + w1 + "quorum w1\n", "is the same one", true},
		{"log that witnesses itself", log + "witness w " + selfWitness(w.log).vkey() + " https://w.example\nquorum w\n", "the key of log.example/models is the same one", true},
		{"log with a witness's type of key", "log " + w.w2.vkey() + "\n" + w1 + "quorum w1\n", "expected a log's (type 0x01), got type 0x04", true},
		{"two keys of one name and id", "log " + one + "\nlog " + two + "\n" + w1 + "quorum w1\n", "another key has this name and the id", true},
		{"no log", w1 + "quorum w1\n", "expected at least one log line, got none", true},
		{"log without a key", "log\n" + w1 + "quorum w1\n", "got 0 words after log", true},
		{"log of four words", "log " + w.log.vkey() + " https://log.example more\n" + w1 + "quorum w1\n", "got 3 words after log", true},
		{"log with a name like a witness", "log l " + w.log.vkey() + "\n" + w1 + "quorum w1\n", "verifier key", true},
		{"witness without a key", log + "witness w1\nquorum w1\n", "got 1 words after witness", false},
		{"witness of five words", log + "witness w1 " + w.w1.vkey() + " https://w1.example more\nquorum w1\n", "got 4 words after witness", false},
		{"quorum of nothing", all + "quorum\n", "got 0 words after quorum", false},
		{"quorum of two", all + "quorum w1 w2\n", "got 2 words after quorum", false},
		{"unknown word", all + "threshold 1\nquorum w1\n", `line 5: expected log, witness, group or quorum, got "threshold"`, false},
		{"word in capitals", all + "Quorum w1\n", `got "Quorum"`, false},
		{"cut short in a name", strings.TrimSuffix(all+"quorum w1\n", "\n"), "is the policy cut short?", true},
		{"carriage returns", strings.ReplaceAll(all+"quorum w1\n", "\n", "\r\n"), `expected no control character but tab and newline, got '\r'`, true},
		{"NUL", all + "quorum w1\x00\n", "expected no control character", false},
		{"delete", all + "#\x7f\nquorum w1\n", "expected no control character", true},
		{"no-break space between words", all + "quorum\u00a0w1\n", "expected log, witness, group or quorum", true},
		{"65 logs", manyLogs(65) + w1 + "quorum w1\n", "expected at most 64 logs", true},
		{"65 witnesses", log + manyWitnesses(65) + "quorum w1\n", "expected at most 64 witnesses", true},
		{"65 groups", log + w1 + chain(65) + "quorum w1\n", "expected at most 64 groups", true},
		{"too long", all + "quorum w1\n" + strings.Repeat("#\n", tlog.MaxPolicy/2), "expected at most 65536 bytes", true},
	}
	for _, tt := range tests {
		p, err := tlog.ParsePolicy([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), "log policy: ") || !strings.Contains(err.Error(), tt.want) || !p.IsZero() {
			t.Errorf("%s: ParsePolicy = %s, %v, want an error with %q", tt.name, p.Encode(), err, tt.want)
		}
		if _, err := witness.ParsePolicy([]byte(tt.text)); (err == nil) != tt.lenient {
			t.Errorf("%s: the library says %v, want that it takes it: %v", tt.name, err, tt.lenient)
		}
	}
}

func selfWitness(s signer) signer { s.kind = typeWitness; return s.named("w.example") }

// collision returns two verifier keys of one name and id. Points of the curve
// they need not be.
func collision(t testing.TB) (a, b string) {
	t.Helper()
	const name = "log.example/collision"
	seen := make(map[[4]byte]uint64)
	for i := uint64(2); i < 1<<20; i++ {
		key := binary.BigEndian.AppendUint64(make([]byte, 24), i)
		sum := sha256.Sum256(append([]byte(name+"\n\x01"), key...))
		id := [4]byte(sum[:])
		if other, ok := seen[id]; ok {
			text := func(i uint64) string {
				return fmt.Sprintf("%s+%x+%s", name, id, base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64([]byte{1, 24: 0}, i)))
			}
			return text(other), text(i)
		}
		seen[id] = i
	}
	t.Fatal("no two of a million keys have one id")
	return "", ""
}

func manyLogs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "log %s\n", newSigner(fmt.Sprintf("log%d.example", i), typeLog).vkey())
	}
	return b.String()
}

func manyWitnesses(n int) string {
	var b strings.Builder
	for i := range n {
		s := newSigner(fmt.Sprintf("w%d.example", i), typeWitness)
		fmt.Fprintf(&b, "witness w%d %s https://%s\n", i, s.vkey(), s.name)
	}
	return b.String()
}

// chain is n groups, each of which is the only member of the next.
func chain(n int) string {
	var b strings.Builder
	last := "w1"
	for i := range n {
		fmt.Fprintf(&b, "group g%d all %s\n", i, last)
		last = fmt.Sprintf("g%d", i)
	}
	return b.String()
}

func TestParsePolicy(t *testing.T) {
	w := newWorld(t)
	text := "\n# The log.\n \tlog\t" + w.log.vkey() + "  https://log.example/ \n" +
		"  # quorum none\n" +
		"witness any " + w.w1.vkey() + "\nwitness 7 " + w.w2.vkey() + " https://w2.example\nwitness é+ü " + w.w3.vkey() + "\n" +
		"group all any any 7\n\t\ngroup quorum all all é+ü\nquorum quorum\n" +
		"log " + newSigner("later.example", typeLog).vkey() + "\n"
	p, err := tlog.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := "log " + w.log.vkey() + " https://log.example/\nlog " + newSigner("later.example", typeLog).vkey() + "\n" +
		"witness any " + w.w1.vkey() + "\nwitness 7 " + w.w2.vkey() + " https://w2.example\nwitness é+ü " + w.w3.vkey() + "\n" +
		"group all 1 any 7\ngroup quorum 2 all é+ü\nquorum quorum\n"
	if string(p.Encode()) != want {
		t.Errorf("Encode = %s, want %s", p.Encode(), want)
	}
	none := "log " + w.log.vkey() + "\nquorum none\n"
	if p, err := tlog.ParsePolicy([]byte(none)); err != nil || string(p.Encode()) != none {
		t.Errorf("ParsePolicy(%q) = %q, %v", none, p.Encode(), err)
	}
	// What an implementation should take at least, and what ours takes at most.
	big := manyLogs(64) + manyWitnesses(64) + chain(64) + "quorum g63\n"
	if p, err := tlog.ParsePolicy([]byte(big)); err != nil || string(p.Encode()) != strings.ReplaceAll(big, " all ", " 1 ") {
		t.Errorf("a policy of 64 logs, witnesses and groups = %s, %v", p.Encode(), err)
	}
}

// Every subset of six witnesses is held against the rule written in Go.
func TestQuorum(t *testing.T) {
	log := newSigner(origin, typeLog)
	lines := []string{"log " + log.vkey()}
	var ws []signer
	for i := range 6 {
		ws = append(ws, newSigner(fmt.Sprintf("w%d.example", i), typeWitness))
		lines = append(lines, fmt.Sprintf("witness w%d %s", i, ws[i].vkey()))
	}
	tests := []struct {
		lines []string
		want  func(x uint) bool
	}{
		{[]string{"quorum none"}, func(x uint) bool { return true }},
		{[]string{"quorum w4"}, func(x uint) bool { return x&0b010000 != 0 }},
		{[]string{"group g any w0 w1 w2 w3 w4 w5", "quorum g"}, func(x uint) bool { return x != 0 }},
		{[]string{"group g all w0 w1 w2 w3 w4 w5", "quorum g"}, func(x uint) bool { return x == 0b111111 }},
		{[]string{"group g 4 w0 w1 w2 w3 w4 w5", "quorum g"}, func(x uint) bool { return bits.OnesCount(x) >= 4 }},
		{[]string{"group x 2 w0 w1 w2", "group y any w3 w4 w5", "group g all x y", "quorum g"},
			func(x uint) bool { return bits.OnesCount(x&0b000111) >= 2 && x&0b111000 != 0 }},
		{[]string{"group x all w0 w1", "group y all w2 w3", "group z all w4 w5", "group g 2 x y z", "quorum g"},
			func(x uint) bool {
				n := 0
				for _, m := range []uint{0b11, 0b1100, 0b110000} {
					if x&m == m {
						n++
					}
				}
				return n >= 2
			}},
		{[]string{"group x any w0 w1", "group g 2 x w2 w3", "quorum x"}, func(x uint) bool { return x&0b11 != 0 }},
	}
	for _, tt := range tests {
		p := policy(t, append(append([]string(nil), lines...), tt.lines...)...)
		body := text(origin, 1, tlog.Hash{})
		cosigned := make([]string, len(ws))
		for i, s := range ws {
			cosigned[i] = s.sign(body)
		}
		for x := range uint(1 << 6) {
			note := signed(body, log)
			for i := range ws {
				if x&(1<<i) != 0 {
					note += cosigned[i]
				}
			}
			_, err := p.Checkpoint([]byte(note))
			if (err == nil) != tt.want(x) {
				t.Errorf("%q with %06b: %v, want accepted %v", tt.lines, x, err, tt.want(x))
			}
			if err != nil {
				refused(t, tt.lines[len(tt.lines)-1], err, tlog.ReasonQuorum, "expected cosignatures of ")
			}
		}
	}
}
