package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The main job: refused, granted, read; a tampered copy, another name and a
// revoked capability are refused.
func TestMainJob(t *testing.T) {
	w := newWorld(t)
	sba := w.ledger("pairs", 1)
	model := w.published("pairs")
	file := filepath.Join(w.mnt, "pairs.bin")
	w.write(filepath.Join(w.src, "pairs.bin"), string(model))
	w.mount()
	w.wantErrno(file, syscall.EACCES)
	out, err := exec.Command("cat", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("cat: %v %q, want Permission denied", err, out)
	}

	// Nobody is trusted yet.
	if out := w.must(badSigner, "grant", sba, "--wait"); !strings.Contains(out, "publisher trust") {
		t.Errorf("grant by an unknown publisher says %q, want the next command `clawfs publisher trust`", out)
	}
	w.trust()
	w.must(done, "grant", sba, "--wait")
	if got := w.read(file); !bytes.Equal(got, model) {
		t.Errorf("%s through the mount has %d bytes, want the %d rebuilt ones", file, len(got), len(model))
	}

	tampered := bytes.Clone(model)
	tampered[len(tampered)/2] ^= 1
	if err := os.Mkdir(filepath.Join(w.src, "tampered"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.write(filepath.Join(w.src, "tampered/pairs.bin"), string(tampered))
	w.wantErrno(filepath.Join(w.mnt, "tampered/pairs.bin"), syscall.EACCES)
	w.write(filepath.Join(w.src, "other.bin"), string(model))
	w.wantErrno(filepath.Join(w.mnt, "other.bin"), syscall.EACCES)

	var why struct {
		Allowed              bool
		Reason, Detail, Next string
		SHA256               string `json:"sha256"`
		Path                 string
	}
	code, doc, errs := w.run("why", filepath.Join(w.mnt, "tampered/pairs.bin"), "-o", "json")
	if err := json.Unmarshal([]byte(doc), &why); err != nil || code != refused {
		t.Fatalf("why: exit %d, want %d; %v\n%s%s", code, refused, err, doc, errs)
	}
	if why.Allowed || why.Reason == "" || why.Detail == "" || why.Next == "" {
		t.Errorf("why = %+v, want a refusal with reason, detail and the next command", why)
	}
	w.must(done, "why", file)

	var caps []struct{ ID, State string }
	w.query(&caps, "caps")
	if len(caps) != 1 || caps[0].State != "live" {
		t.Fatalf("caps = %+v, want one live capability", caps)
	}
	w.must(done, "revoke", caps[0].ID, "--reason", "trained on the wrong corpus")
	w.wantErrno(file, syscall.EACCES)
	if out := w.must(refused, "why", file); !strings.Contains(out, "trained on the wrong corpus") {
		t.Errorf("why after revoke says %q, want the reason of the revocation", out)
	}
	// A revoked result is not minted again.
	if code, out, errs := w.run("grant", sba, "--wait"); code != refused {
		t.Errorf("grant of a revoked claim's SBA: exit %d, want %d\n%s%s", code, refused, out, errs)
	}
	w.must(done, "umount", w.mnt)
}

// grant takes an attestation. It can never take a hash, and what it refuses
// leaves the queue as it was.
func TestGrantRefuses(t *testing.T) {
	w := newWorld(t)
	w.trust()
	w.mount()
	sba := w.ledger("pairs", 1)
	envelope := w.read(sba)
	hash := filepath.Join(w.dir, "hash.sba")
	w.write(hash, strings.Repeat("ab", 32)+"\n")
	cut := filepath.Join(w.dir, "cut.sba")
	w.write(cut, string(envelope[:len(envelope)/2]))
	flipped := filepath.Join(w.dir, "flipped.sba")
	w.write(flipped, strings.Replace(string(envelope), `"sig":"`, `"sig":"AAAA`, 1))
	for _, tt := range []struct {
		arg  string
		code int
		says string
	}{
		{strings.Repeat("ab", 32), refused, "hash"},
		{"sha256:" + strings.Repeat("ab", 32), refused, "hash"},
		{hash, refused, "hash"},
		{cut, refused, cut},
		{flipped, badSigner, "not signed by"},
		{filepath.Join(w.dir, "absent.sba"), failed, "no such file"},
		{filepath.Join(w.dir, "pairs.json"), refused, "Signed Build Attestation"},
		{"/dev/zero", refused, "longer than"},
	} {
		code, out, errs := w.run("grant", tt.arg, "--wait")
		if code != tt.code || !strings.Contains(errs, tt.says) {
			t.Errorf("grant %.20s…: exit %d, want %d; says %q, want %q in it (stdout %q)", tt.arg, code, tt.code, errs, tt.says, out)
		}
	}
	var jobs []struct{ ID string }
	w.query(&jobs, "jobs")
	if len(jobs) != 0 {
		t.Errorf("queue after refused grants holds %+v, want nothing", jobs)
	}
}

// validate gives four different answers to four different files.
func TestValidate(t *testing.T) {
	w := newWorld(t)
	sba := w.ledger("pairs", 1)
	model := w.published("pairs")
	right := filepath.Join(w.src, "pairs.bin")
	w.write(right, string(model))
	wrong := filepath.Join(w.dir, "pairs.bin")
	w.write(wrong, string(model[1:])+"x")
	stamped := w.ledger("stamped", 1, "-stamp")
	stampedFile := filepath.Join(w.src, "stamped.bin")
	w.write(stampedFile, string(model))
	other := filepath.Join(w.dir, "mallory")
	w.must(done, "keygen", "--out", other)
	copied := w.ledger("copied", 1, "-copy", "/in/dataset/corpus/one.txt")
	copiedFile := filepath.Join(w.src, "copied.bin")
	w.write(copiedFile, string(w.read(filepath.Join(w.corpus, "one.txt"))))
	seen := map[string]string{}
	for _, tt := range []struct {
		name, file, sba, key string
		code                 int
		says                 string
	}{
		{"right file", right, sba, w.key, done, ""},
		{"wrong file", wrong, sba, w.key, differs, "pairs.bin"},
		{"wrong signature", right, sba, other, badSigner, ""},
		{"nondeterministic", stampedFile, stamped, w.key, differs, "stamped.bin"},
		{"copied input", copiedFile, copied, w.key, refused, "copied.bin"},
	} {
		code, out, errs := w.run("validate", tt.file, "--sba", tt.sba, "--publisher-key", tt.key+".pub")
		if code != tt.code || !strings.Contains(out+errs, tt.says) {
			t.Errorf("validate %s: exit %d, want %d\n%s%s", tt.name, code, tt.code, out, errs)
		}
		if twin, ok := seen[errs]; ok && errs != "" {
			t.Errorf("validate says the same of %q and %q: %s", tt.name, twin, errs)
		}
		seen[errs] = tt.name
		t.Logf("%s: exit %d: %s", tt.name, code, errs)
	}
}

// A build that does not reproduce and a build that copies mint nothing.
func TestGrantOfWhatDoesNotReproduce(t *testing.T) {
	w := newWorld(t)
	w.trust()
	w.mount()
	for _, tt := range []struct {
		name, arg, verdict string
		code               int
	}{
		{"stamped", "-stamp", "NONDETERMINISTIC", differs},
		{"copied", "-copy=/in/dataset/corpus/one.txt", "COPIED_INPUT", refused},
		{"absent", "-out=/out/elsewhere", "OUTPUT_MISSING", refused},
		{"crash", "-no-such-flag", "BUILD_FAILED", refused},
	} {
		sba := w.ledger(tt.name, 1, tt.arg)
		code, out, errs := w.run("grant", sba, "--wait")
		if code != tt.code || !strings.Contains(out+errs, tt.verdict) {
			t.Errorf("grant %s: exit %d, want %d and %s\n%s%s", tt.name, code, tt.code, tt.verdict, out, errs)
		}
	}
	var caps []struct{ ID string }
	w.query(&caps, "caps")
	if len(caps) != 0 {
		t.Errorf("caps = %+v, want none", caps)
	}
}
