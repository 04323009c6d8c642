package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// A backup that is made while the daemon works has what it acknowledged, and no
// private key; a restore goes back to its grants and keeps what was revoked since.
func TestBackupAndRestore(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.admit(map[string]string{"b.bin": "b"})
	for _, name := range []string{"a", "b", "later"} {
		r.file(name+".bin", name)
	}
	r.ok("mount", r.src, r.mnt)
	file := filepath.Join(t.TempDir(), "backup.jsonl")
	var done backedUp
	r.document(&done, "store", "backup", file)
	if done.Records[capstore.RecordCapability] != 2 || len(done.Files) == 0 {
		t.Errorf("store backup: %+v", done)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() != done.Bytes {
		t.Errorf("backup: %v, %v, want mode 0600 and %d bytes", info, err, done.Bytes)
	}
	for _, key := range []string{r.state.MintKey(), r.state.RevokeKey(), filepath.Join(r.state.Memory(), capstore.KeyName)} {
		secret, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(secret) {
			if line = bytes.TrimSpace(line); len(line) > 40 && !bytes.HasPrefix(line, []byte("sha256 ")) && bytes.Contains(text, line) {
				t.Errorf("%s is in the backup", key)
			}
		}
	}
	r.refused(codeUsage, []string{"store", "backup", file}, "is there already")
	piped := r.run("store", "backup", "-")
	if piped.code != 0 || !strings.HasPrefix(piped.stdout, `{"format":"clawfs-backup/v1"`) || !strings.Contains(piped.stderr, "no private key") {
		t.Errorf("backup to standard output: exit code %d, %.200q, %q", piped.code, piped.stdout, piped.stderr)
	}

	digest := func(s string) string { return hashpipe.SumBytes([]byte(s)).String() }
	r.ok("revoke", "--kind", "file", digest("a"), "--reason", "after the backup")
	r.refused(codeRefused, []string{"store", "restore", file}, "has the store open", "kill ")
	r.refused(codeRefused, []string{"store", "compact"}, "a daemon runs")
	r.stopDaemon(syscall.SIGTERM)
	r.admit(map[string]string{"later.bin": "later"})

	// Whatever is no whole backup changes nothing.
	before := r.ok("store", "verify", "-o", "json")
	bad := filepath.Join(t.TempDir(), "bad.jsonl")
	for name, b := range map[string][]byte{"cut": text[:len(text)-30], "changed": bytes.Replace(text, []byte(`"n":2`), []byte(`"n":3`), 1), "empty": nil, "another file": []byte("{}\n")} {
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r.refused(codeRefused, []string{"store", "restore", bad}, "nothing was changed")
		if name == "cut" {
			r.refused(codeRefused, []string{"store", "rebuild", "--from", bad}, "was cut or changed")
		}
	}
	if now := r.ok("store", "verify", "-o", "json"); now != before {
		t.Errorf("a refused restore changed the store: %s, then %s", before, now)
	}

	var made remade
	r.document(&made, "store", "restore", file)
	if made.Records[capstore.RecordCapability] != 2 || made.Records[capstore.RecordRevocation] != 1 || made.Daemon != "none runs" || len(made.Missing) > 0 {
		t.Errorf("store restore: %+v", made)
	}
	r.startDaemon()
	r.eventually("the mount has the restored store", func() bool { return r.opens("b.bin", "b") })
	r.eventually("no file opens that the backup does not have", func() bool { return !r.opens("a.bin", "a") })
	if s := r.status(); s.Revocations != 1 || len(s.Rejected) > 0 {
		t.Errorf("after the restore: %+v", s)
	}
	r.stopDaemon(syscall.SIGTERM)

	// The later grant is still in the journal.
	r.document(&made, "store", "rebuild", "--from", "kept")
	if made.Records[capstore.RecordCapability] != 3 || made.Records[capstore.RecordRevocation] != 1 {
		t.Errorf("store rebuild: %+v", made)
	}
	r.startDaemon()
	r.eventually("the later grant is back", func() bool { return r.opens("later.bin", "later") })
	if r.opens("a.bin", "a") {
		t.Error("a revocation is lost")
	}
}

// Every source is checked by the policy, and none of them has to be there.
func TestRebuildFrom(t *testing.T) {
	r, other := newRig(t), newRig(t)
	mine, foreign := r.capability(r.measured(map[string]string{"a.bin": "a"})), other.capability(other.measured(map[string]string{"b.bin": "b"}))
	one := filepath.Join(t.TempDir(), "one.cap")
	if err := os.WriteFile(one, mine, 0o600); err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(t.TempDir(), "both.jsonl")
	if err := os.WriteFile(both, bytes.Join([][]byte{mine, foreign, mine, nil}, []byte("\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	var made remade
	r.document(&made, "store", "rebuild", "--from", one, "--from", both)
	if made.Records[capstore.RecordCapability] != 1 || len(made.Sources) != 2 || made.Sources[0].Added != 1 || made.Sources[1].Known != 2 || made.Sources[1].Refused != 1 || !strings.Contains(made.Sources[1].Refusals[0], "not signed by a trusted mint") {
		t.Errorf("of a capability and a bundle: %+v, %+v, %+v", made, *made.Sources[0], *made.Sources[1])
	}
	r.startDaemon()
	trust := filepath.Join(t.TempDir(), "trust")
	r.ok("push", trust, one)
	r.stopDaemon(syscall.SIGTERM)
	r.document(&made, "store", "rebuild", "--from", trust)
	if made.Records[capstore.RecordCapability] != 1 {
		t.Errorf("of a layout directory: %+v, %+v", made, made.Sources[0])
	}
	r.refused(codeUsage, []string{"store", "rebuild", "--from", filepath.Join(r.src, "nothing")}, "want kept, store, log")
	foreignFile := filepath.Join(t.TempDir(), "foreign.cap")
	if err := os.WriteFile(foreignFile, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	r.refused(codeRefused, []string{"store", "rebuild", "--from", foreignFile}, "nothing was changed")
	r.startDaemon()
	if s := r.status(); s.Capabilities.Live != 1 {
		t.Errorf("after a rebuild of nothing: %+v", s)
	}
}

// Lists that a later one repeats are left out, and capabilities that are over only
// if that is asked for; a revocation never is.
func TestCompact(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	gone := r.admit(map[string]string{"gone.bin": "gone"})
	over := r.measured(map[string]string{"over.bin": "over"})
	r.admitText(r.capabilityFor(over, func(p *capstore.Predicate) {
		p.NotBefore, p.NotAfter = time.Now().Add(-2*time.Hour).UTC().Truncate(time.Second), time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	}))
	r.startDaemon()
	r.ok("revoke", "--kind", "capability", gone.ID().String(), "--reason", "no good")
	for range 3 {
		r.ok("revocations", "issue")
	}
	r.stopDaemon(syscall.SIGTERM)
	var c compacted
	r.document(&c, "store", "compact")
	if c.Dropped[capstore.RecordList] != 2 || c.Records[capstore.RecordList] != 1 || c.Records[capstore.RecordCapability] != 3 || c.Records[capstore.RecordRevocation] != 1 || c.After <= 0 {
		t.Errorf("store compact: %+v, %+v", c, c.remade)
	}
	r.document(&c, "store", "compact", "--drop-ended")
	if c.Dropped[capstore.RecordCapability] != 2 || c.Records[capstore.RecordCapability] != 1 || c.Records[capstore.RecordRevocation] != 1 {
		t.Errorf("store compact --drop-ended: %+v, %+v", c, c.remade)
	}
	var v verified
	r.document(&v, "store", "verify")
	if v.Found != 0 || v.By != "this process" {
		t.Errorf("store verify: %+v", v)
	}
	r.startDaemon()
	if s := r.status(); s.Capabilities.Live != 1 || s.Revocations != 1 {
		t.Errorf("after compact: %+v", s)
	}
	r.stopDaemon(syscall.SIGTERM)
	var made remade
	r.document(&made, "store", "rebuild")
	if made.Records[capstore.RecordCapability] != 3 || made.Records[capstore.RecordRevocation] != 1 || made.Records[capstore.RecordList] != 3 {
		t.Errorf("the journal has not all: %+v", made)
	}
	// A store with findings is not compacted.
	remove(t, filepath.Join(r.state.Memory(), capstore.HeadName))
	r.refused(codeRefused, []string{"store", "compact"}, "findings", "nothing was changed")
}

// A list that this machine has seen and no source has is told.
func TestRebuildMissesAList(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.startDaemon()
	r.ok("revocations", "issue")
	r.stopDaemon(syscall.SIGTERM)
	for _, dir := range []string{r.state.Kept(), r.state.Store()} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	one := filepath.Join(t.TempDir(), "one.cap")
	if err := os.WriteFile(one, r.capability(r.measured(map[string]string{"a.bin": "a"})), 0o600); err != nil {
		t.Fatal(err)
	}
	got := r.run("store", "rebuild", "--from", one)
	if got.code != codeRefused || !strings.Contains(got.stdout, "MISSING") || !strings.Contains(got.stdout, "this machine has seen 1") {
		t.Errorf("exit code %d, %s%s", got.code, got.stdout, got.stderr)
	}
	r.startStricken()
	if s := r.troubled(); s.Cause != causeOlder {
		t.Errorf("%+v, want cause %s", s, causeOlder)
	}
	// The newest list comes from whoever has it, and the daemon goes on.
	text, err := config.ReadSecret(r.state.RevokeKey())
	if err != nil {
		t.Fatal(err)
	}
	key, err := dsse.ParsePrivateKey(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	st, err := capstore.NewList(2, time.Now(), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := capstore.SignList(st, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "list.rev")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		t.Fatal(err)
	}
	r.ok("revocations", "import", file)
	r.eventually("the store is open", func() bool { return r.run("status").code == 0 })
}

// A machine on which nothing was granted yet has nothing to lose with its store; one
// that had something does not get an empty store for it.
func TestRebuildOfAStoreThatHadNothing(t *testing.T) {
	for _, had := range []bool{false, true} {
		r := newRig(t)
		if had {
			r.admit(map[string]string{"a.bin": "a"})
			if err := os.RemoveAll(r.state.Kept()); err != nil {
				t.Fatal(err)
			}
		}
		r.startDaemon()
		r.stopDaemon(syscall.SIGTERM)
		if had {
			if err := os.RemoveAll(r.state.Kept()); err != nil {
				t.Fatal(err)
			}
		}
		manifest := filepath.Join(r.state.Store(), "db", "MANIFEST")
		if err := os.WriteFile(manifest, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.refused(codeRefused, []string{"store", "verify"})
		if had {
			r.refused(codeRefused, []string{"store", "rebuild"}, "nothing was changed")
			continue
		}
		r.ok("store", "rebuild")
		r.ok("store", "verify")
		r.startDaemon()
	}
}

// A journal with a line that nobody can read is no loss beside a whole store. Beside
// a store that cannot be read whole it may be one, and that is said.
func TestRebuildOfATornJournal(t *testing.T) {
	for _, whole := range []bool{true, false} {
		t.Run(map[bool]string{true: "whole store", false: "damaged store"}[whole], func(t *testing.T) {
			r := newRig(t)
			for _, name := range []string{"a.bin", "b.bin", "c.bin"} {
				r.admit(map[string]string{name: name})
			}
			files, err := filepath.Glob(filepath.Join(r.state.Kept(), "*.jsonl"))
			if err != nil || len(files) == 0 {
				t.Fatalf("%v, %v, want the journal", files, err)
			}
			text, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitAfter(string(text), "\n")
			lines[2] = "x" + lines[2][1:]
			if err := os.WriteFile(files[0], []byte(strings.Join(lines, "")), 0o600); err != nil {
				t.Fatal(err)
			}
			if whole {
				if text := r.ok("store", "rebuild"); strings.Contains(text, "MISSING") || !strings.Contains(text, ": 3 capabilities") {
					t.Errorf("want nothing missing and 3 capabilities:\n%s", text)
				}
				return
			}
			if err := os.WriteFile(filepath.Join(r.state.Store(), "db", "MANIFEST"), []byte("damaged"), 0o600); err != nil {
				t.Fatal(err)
			}
			got := r.run("store", "rebuild")
			if got.code != codeRefused || !strings.Contains(got.stdout, "MISSING  what could not be read of the journal, and what could not be read of the store") || !strings.Contains(got.stdout, "--from BACKUP") || !strings.Contains(got.stdout, ": 2 capabilities") {
				t.Errorf("exit code %d, want %d, 2 capabilities, and that one may be missing:\n%s%s", got.code, codeRefused, got.stdout, got.stderr)
			}
		})
	}
}

// A crash left the swap of a store that has something for one that had nothing half
// done. It is finished before it is asked what the store that is replaced had.
func TestRebuildAfterACrashInASwap(t *testing.T) {
	r := newRig(t)
	r.startDaemon()
	r.stopDaemon(syscall.SIGTERM)
	memory, next := r.state.Memory(), filepath.Join(r.state.Memory(), "store.new")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	of := map[string]string{r.state.Store(): r.state.Store() + ".new"}
	for _, name := range []string{capstore.KeyName, capstore.HeadName} {
		of[filepath.Join(memory, name)] = filepath.Join(next, name)
	}
	aside := t.TempDir()
	copied := func(from, to string) {
		if got := r.exec("cp", "-a", from, to); got.code != 0 {
			t.Fatal(got.stderr)
		}
	}
	for path := range of {
		copied(path, filepath.Join(aside, filepath.Base(path)))
	}
	r.admit(map[string]string{"a.bin": "a"})
	must(os.RemoveAll(r.state.Kept()))
	must(os.WriteFile(filepath.Join(r.state.Store(), "db", "MANIFEST"), []byte("damaged"), 0o600))
	must(os.Mkdir(next, 0o700))
	for path, made := range of {
		must(os.Rename(path, made))
		copied(filepath.Join(aside, filepath.Base(path)), path)
	}
	must(os.WriteFile(filepath.Join(memory, "store-swap"), nil, 0o600)) // damaged, too
	r.refused(codeRefused, []string{"store", "rebuild"}, "nothing was changed")
}
