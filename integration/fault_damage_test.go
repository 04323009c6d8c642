package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// parts are the directories of a state directory that hold what was granted,
// what was taken back, and what was seen.
var parts = []string{"store", "memory", "kept"}

// damage is one way in which parts of a state directory are not what the daemon
// left there.
type damage struct {
	where, what string // row and column of the table
	do          func(h *host)
	detail      string
	// unnoticed: no machine can notice it by what it has itself. The mounts that
	// run go on as they are.
	unnoticed bool
}

// Every file of the store, of the memory and of the journal, damaged in every
// way: nothing is granted that was not sent, no revocation is lost without a
// word, and the mount that was live goes on. The log has what was seen, as a
// table.
func TestFaultDamage(t *testing.T) {
	rng := dice(t)
	h := newHost(t, t.TempDir())
	h.mustStart()
	h.mountModels()
	older := h.save("older")
	victim := h.mustAdmit("victim.bin", "victim")
	for n := range 6 {
		h.mustAdmit(fmt.Sprintf("m%d.bin", n), fmt.Sprint(n))
	}
	h.restart() // so that some lie in tables, and some in the log of the memtable
	h.mustRevoke(victim)
	for n := range 6 {
		f := h.mustAdmit(fmt.Sprintf("n%d.bin", n), fmt.Sprint("n", n))
		if n%2 == 0 {
			h.mustRevoke(f)
		}
	}
	if _, err := h.send(h.newList()); err != nil {
		t.Fatal(err)
	}
	h.kill()
	states := []string{h.save("killed")}
	if *faultFlags.full {
		h.mustStart()
		h.endDaemon(syscall.SIGTERM)
		states = append(states, h.save("closed"))
	}
	foreign := h.twin().save("foreign")

	table := make(map[string]map[string]map[string]int)
	cases := 0
	for _, state := range states {
		list := append(h.fileDamages(rng, state, older, foreign), h.wholeDamages(state, older, foreign)...)
		for _, d := range list {
			h.put(state)
			d.do(h)
			seen := h.judge(d)
			row := table[d.where]
			if row == nil {
				row = make(map[string]map[string]int)
				table[d.where] = row
			}
			if row[d.what] == nil {
				row[d.what] = make(map[string]int)
			}
			row[d.what][seen]++
			cases++
		}
		h.put(state) // and with everything as it was, all is there again
		h.mustStart()
		h.wantAll("undamaged")
		h.kill()
	}
	t.Logf("%d cases; the table of what was seen:\n%s", cases, markdown(table))
}

// restart ends the daemon in order and starts another.
func (h *host) restart() {
	h.endDaemon(syscall.SIGTERM)
	h.mustStart()
}

// endDaemon sends the daemon a signal and waits until it has ended.
func (h *host) endDaemon(sig syscall.Signal) {
	h.t.Helper()
	syscall.Kill(h.pid, sig)
	<-h.ended
	h.pid = 0
}

func (h *host) newList() fact {
	n := int64(h.next())
	return fact{kind: "revocation-list", name: "list", envelope: h.list(n), sequence: n}
}

// save copies the parts as they are now, which may be while a daemon writes.
func (h *host) save(name string) string {
	h.t.Helper()
	to := filepath.Join(h.dir, "saved-"+name)
	if err := os.Mkdir(to, 0o700); err != nil {
		h.t.Fatal(err)
	}
	for _, p := range parts {
		h.copy(filepath.Join(h.state, p), filepath.Join(to, p))
	}
	return to
}

func (h *host) copy(from, to string) {
	h.t.Helper()
	if err := os.RemoveAll(to); err != nil {
		h.t.Fatal(err)
	}
	if _, err := os.Lstat(from); os.IsNotExist(err) {
		return
	}
	command(h.t, "cp", "-a", "--sparse=always", from, to)
}

// put makes the parts what they were when they were saved.
func (h *host) put(saved string) {
	h.t.Helper()
	for _, p := range parts {
		h.copy(filepath.Join(saved, p), filepath.Join(h.state, p))
	}
}

// twin is another machine of the same fleet: the same keys and policy, and other
// facts, among them grants of what was taken back here.
func (h *host) twin() *host {
	h.t.Helper()
	dir := h.t.TempDir()
	w := &world{t: h.t, dir: dir, state: filepath.Join(dir, "state"), src: filepath.Join(dir, "downloads"), mnt: filepath.Join(dir, "models")}
	w.must(done, "init")
	for _, name := range []string{"mint.key", "mint.pub", "revoke.key", "policy.json"} {
		if err := os.WriteFile(filepath.Join(w.state, name), w.read(filepath.Join(h.state, name)), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	other := hostOf(w)
	other.mustStart()
	h.mu.Lock()
	sent := slices.Collect(maps.Values(h.facts))
	h.mu.Unlock()
	for _, f := range sent {
		if f.kind == "capability" {
			if _, err := other.send(*f); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	other.restart()
	other.mustRevoke(other.mustAdmit("theirs.bin", "theirs"))
	other.kill()
	return other
}

// fileDamages are those of one file. In the short form there are some of them.
func (h *host) fileDamages(rng *rand.Rand, state, older, foreign string) (list []damage) {
	h.t.Helper()
	for _, p := range parts {
		err := filepath.WalkDir(filepath.Join(state, p), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(state, path)
			if err != nil {
				return err
			}
			all := h.damagesOf(rng, name, path, older, foreign)
			if !*faultFlags.full {
				rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				all = all[:min(len(all), 2)]
			}
			list = append(list, all...)
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			h.t.Fatal(err)
		}
	}
	if len(list) < 10 {
		h.t.Errorf("only %d files to damage", len(list))
	}
	return list
}

var digits = regexp.MustCompile(`\.?[0-9]+`)

func (h *host) damagesOf(rng *rand.Rand, name, path, older, foreign string) (list []damage) {
	h.t.Helper()
	content := h.read(path)
	used := len(bytes.TrimRight(content, "\x00")) // Badger's files end in zeros
	where := digits.ReplaceAllString(name, "*")
	add := func(what, detail string, change func(b []byte) []byte) {
		list = append(list, damage{where: where, what: what, detail: detail, do: func(h *host) {
			h.t.Helper()
			b := change(bytes.Clone(content))
			at := filepath.Join(h.state, name)
			if err := os.Remove(at); err != nil {
				h.t.Fatal(err)
			}
			if b == nil {
				return
			}
			if err := os.WriteFile(at, b, 0o600); err != nil {
				h.t.Fatal(err)
			}
		}})
	}
	add("removed", name, func([]byte) []byte { return nil })
	if len(content) > 0 {
		add("emptied", name, func([]byte) []byte { return []byte{} })
	}
	if used > 0 {
		flips := 1
		if *faultFlags.full {
			flips = 8
		}
		for range flips {
			at, bit := rng.IntN(used), rng.IntN(8)
			add("flipped", fmt.Sprintf("%s, bit %d of byte %d of %d", name, bit, at, used), func(b []byte) []byte { b[at] ^= 1 << bit; return b })
		}
		at := rng.IntN(used)
		add("zeros", fmt.Sprintf("%s, 64 bytes at %d of %d", name, at, used), func(b []byte) []byte { clear(b[at:min(at+64, len(b))]); return b })
		cut := rng.IntN(used)
		add("truncated", fmt.Sprintf("%s to %d of %d", name, cut, used), func(b []byte) []byte { return b[:cut] })
	}
	for what, from := range map[string]string{"older": older, "of another": foreign} {
		other, err := os.ReadFile(filepath.Join(from, name))
		if err == nil && !bytes.Equal(other, content) {
			add(what, name, func([]byte) []byte { return other })
		}
	}
	return list
}

// wholeDamages are those of directories, and of rows.
func (h *host) wholeDamages(state, older, foreign string) (list []damage) {
	h.t.Helper()
	add := func(where, what string, unnoticed bool, do func(h *host)) {
		list = append(list, damage{where: where, what: what, do: do, unnoticed: unnoticed})
	}
	for _, set := range [][]string{{"store"}, {"memory"}, {"kept"}, {"store", "kept"}, {"store", "memory"}, parts} {
		where := strings.Join(set, "+") + "/"
		for what, from := range map[string]string{"removed": "", "older": older, "of another": foreign} {
			// Who puts all of it back leaves nothing that could tell.
			add(where, what, len(set) == len(parts), func(h *host) {
				h.t.Helper()
				for _, p := range set {
					h.copy(filepath.Join(from, p), filepath.Join(h.state, p))
				}
			})
		}
	}
	return append(list, h.rowDamages(state)...)
}

// rowDamages are those of somebody who can write the database.
func (h *host) rowDamages(state string) (list []damage) {
	h.t.Helper()
	h.put(state)
	rows := make(map[string][]string) // kind to keys
	for line := range strings.Lines(forge(h.t, h.world, "-list")) {
		var key string
		if _, err := fmt.Sscanf(line, "%q", &key); err != nil {
			h.t.Fatalf("forger -list printed %q: %v", line, err)
		}
		kind, _, _ := strings.Cut(key, "/")
		rows[kind] = append(rows[kind], key)
	}
	value := func(key string) string {
		text := forge(h.t, h.world, "-get", key)
		path := filepath.Join(h.t.TempDir(), "value")
		h.write(path, text)
		return path
	}
	add := func(what string, pairs ...string) {
		list = append(list, damage{where: "rows of the database", what: what, detail: strings.Join(pairs, " "), do: func(h *host) { forge(h.t, h.world, pairs...) }})
	}
	for _, kind := range []string{"cap", "rev", "log"} {
		k := rows[kind]
		if len(k) < 2 {
			h.t.Errorf("%d rows of kind %s, want two or more to swap; there are %v", len(k), kind, slices.Collect(maps.Keys(rows)))
			continue
		}
		add("two "+kind+" swapped", k[0]+"="+value(k[1]), k[1]+"="+value(k[0]))
	}
	if len(rows["rev"]) > 0 && len(rows["cap"]) > 0 {
		add("a revocation replaced by a grant", rows["rev"][0]+"="+value(rows["cap"][0]))
		text := h.read(value(rows["cap"][0]))
		path := filepath.Join(h.t.TempDir(), "longer")
		h.write(path, string(longer(h.t, text)))
		add("the end of a grant put off", rows["cap"][0]+"="+path)
	}
	return list
}

// longer is a row whose capability ends ten years later. Whatever stands around
// the envelope stays.
func longer(t *testing.T, row []byte) []byte {
	t.Helper()
	start := bytes.Index(row, []byte(`{"payload`))
	if start < 0 {
		t.Fatalf("no envelope in the row %.80q", row)
	}
	dec := json.NewDecoder(bytes.NewReader(row[start:]))
	var w wire
	if err := dec.Decode(&w); err != nil {
		t.Fatal(err)
	}
	end := start + int(dec.InputOffset())
	payload := string(unbase64(w.Payload))
	at := strings.Index(payload, `"notAfter":"20`) + len(`"notAfter":"20`)
	payload = payload[:at] + string(payload[at]+1) + payload[at+1:]
	w.Payload = base64.StdEncoding.EncodeToString([]byte(payload))
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(row[:start], text, row[end:])
}

// What is seen of a daemon over damaged files.
const (
	seesAll     = "all there"   // up, and nothing is missing
	seesTold    = "told"        // up, and something is missing or was passed over, and it says so
	seesDenies  = "denies"      // up, grants nothing new, and says so
	seesRefuses = "refuses"     // does not start, in words
	seesCrash   = "crashes"     // does not start, with the inside of a program
	seesOlder   = "not noticed" // up, with the facts of another day
)

// judge starts a daemon over what is there, and says what was seen.
func (h *host) judge(d damage) (seen string) {
	h.t.Helper()
	what := d.where + " " + d.what
	defer func() {
		h.wantServes(h.mnt)
		h.kill()
		h.killAll("daemon")
		h.t.Logf("%-12s %s (%s)", seen, what, d.detail)
	}()
	if _, err := h.start(); err != nil {
		said := string(h.read(h.said))
		if strings.Contains(said, "goroutine ") || strings.Contains(said, "runtime error") || !strings.Contains(said, "clawfs: ") {
			h.t.Logf("%s: %s", what, h.lastWords())
			return seesCrash
		}
		if !strings.Contains(said, h.state) {
			h.t.Errorf("%s: the refusal does not name a path: %s", what, said)
		}
		return seesRefuses
	}
	if s := h.trouble(); s != nil {
		d.detail += "; " + s.Error
		h.wantDenies()
		return seesDenies + ", " + s.Cause
	}
	f := h.compare()
	var status struct {
		Warnings []string
		Rejected []struct{ Key, Reason string }
	}
	if err := h.get("/v1/status", &status); err != nil {
		h.t.Fatal(err)
	}
	told := len(status.Warnings)+len(status.Rejected) > 0
	probe, err := h.admit(h.fresh("probe")+".bin", "probe")
	delete(h.facts, probe.id()) // it goes with the damaged files
	denies := err != nil
	if denies {
		h.inWords(err)
	}
	// What a new mount would be told.
	if len(f.never) > 0 && d.what != "of another" {
		h.t.Errorf("%s: granted and never sent: %q", what, f.never)
	}
	if len(f.revived) > 0 && !d.unnoticed {
		h.t.Errorf("%s: revoked, and live again: %q", what, f.revived)
	}
	var lostRevocations []string
	for _, l := range f.lost {
		if !strings.HasPrefix(l, "capability") {
			lostRevocations = append(lostRevocations, l)
		}
	}
	if len(lostRevocations) > 0 && !denies && !d.unnoticed {
		h.t.Errorf("%s: lost %q, and it grants on", what, lostRevocations)
	}
	if len(f.lost) > 0 && !told && !d.unnoticed {
		h.t.Errorf("%s: lost %q, and says nothing", what, f.lost)
	}
	switch {
	case d.unnoticed && len(f.lost) > 0 && !denies && !told:
		return seesOlder
	case denies:
		h.t.Errorf("%s: has its store and grants nothing: %v", what, err)
		return seesDenies
	case len(f.lost) > 0 || told:
		return seesTold
	}
	return seesAll
}

// markdown is the table, as it stands in docs/operations.md.
func markdown(table map[string]map[string]map[string]int) string {
	var b strings.Builder
	for _, where := range slices.Sorted(maps.Keys(table)) {
		for _, what := range slices.Sorted(maps.Keys(table[where])) {
			var parts []string
			for _, seen := range slices.Sorted(maps.Keys(table[where][what])) {
				parts = append(parts, fmt.Sprintf("%s (%d)", seen, table[where][what][seen]))
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", where, what, strings.Join(parts, ", "))
		}
	}
	return b.String()
}
