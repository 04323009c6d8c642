package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/rebuild/oci"
)

// Exit codes of clawfs, as its manual gives them.
const (
	done, failed, usage, refused, badSigner, differs, pending, unreachable, badMount = 0, 1, 2, 3, 4, 5, 6, 7, 8
)

func tarOf(files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if d := filepath.Dir(name); d != "." && !dirs[d] {
			dirs[d] = true
			if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func appendImage(ctx context.Context, layout string, layer io.Reader) (string, error) {
	d, err := oci.AppendImage(ctx, layout, oci.Image{
		Config: oci.Config{OS: "linux", Architecture: "amd64"}, Compression: oci.Gzip, Ref: "trainer",
	}, layer)
	return d.String(), err
}

// world is one publisher and one consumer with a state directory of its own.
type world struct {
	t                        *testing.T
	dir, state, src, mnt     string
	recipe, corpus, key, sba string
}

// newWorld makes a git repository with a recipe, a dataset, the publisher's
// key and an initialised consumer who trusts nobody yet.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		t: t, dir: dir, state: filepath.Join(dir, "state"), src: filepath.Join(dir, "downloads"), mnt: filepath.Join(dir, "models"),
		recipe: filepath.Join(dir, "recipe"), corpus: filepath.Join(dir, "corpus"), key: filepath.Join(dir, "acme"), sba: filepath.Join(dir, "pairs.sba"),
	}
	for _, d := range []string{w.src, w.mnt, w.recipe, w.corpus} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.write(filepath.Join(w.corpus, "one.txt"), strings.Repeat("weights are bytes that somebody vouches for\n", 4000))
	w.write(filepath.Join(w.corpus, "two.txt"), strings.Repeat("ein Modell oeffnet nur, wenn sein Hash stimmt\n", 4000))
	w.write(filepath.Join(w.recipe, "README"), "pairs: counts of letter pairs\n")
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"},
		{"-c", "user.name=acme", "-c", "user.email=acme@example.com", "commit", "-q", "-m", "recipe"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", w.recipe}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	w.must(done, "init")
	w.must(done, "keygen", "--out", w.key)
	t.Cleanup(w.stop)
	return w
}

// ledger writes and signs a ledger whose one stage runs the trainer with the
// given further arguments, and returns the path of the SBA.
func (w *world) ledger(name string, sequence int, args ...string) string {
	w.t.Helper()
	ledger := filepath.Join(w.dir, name+".json")
	sba := filepath.Join(w.dir, name+".sba")
	w.must(done, "ledger", "new", "--model", "acme/"+name, "--version", "1.0."+strconv.Itoa(sequence), "--sequence", strconv.Itoa(sequence),
		"--key", w.key+".pub", "--source", w.recipe, "--dataset", "corpus="+w.corpus, "--image", built.image+"@"+built.digest, "--cpu-features", "",
		"--stage", "train: "+strings.Join(append([]string{"/bin/trainer", "-out", "/out/" + name + ".bin"}, args...), " "),
		"--output", name+".bin", "--out", ledger)
	w.must(done, "ledger", "sign", ledger, "--key", w.key, "--out", sba)
	return sba
}

// published builds the model with the trainer's own rules outside any sandbox:
// what a hub would serve.
func (w *world) published(name string) []byte {
	w.t.Helper()
	built := filepath.Join(w.dir, "built-"+name)
	w.must(done, "ledger", "check", filepath.Join(w.dir, name+".json"), "--output-dir", built)
	return w.read(filepath.Join(built, name+".bin"))
}

func (w *world) trust() {
	w.t.Helper()
	w.must(done, "publisher", "trust", w.key+".pub", "--name", "acme", "--models", "acme/*")
}

func (w *world) mount() {
	w.t.Helper()
	w.must(done, "mount", w.src, w.mnt)
}

// run runs clawfs on this world's state and returns what it printed.
func (w *world) run(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, built.clawfs, append([]string{"--state", w.state}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		w.t.Fatalf("clawfs %s hangs\n%s%s", strings.Join(args, " "), out.String(), errs.String())
	case errors.As(err, &exit):
		return exit.ExitCode(), out.String(), errs.String()
	case err != nil:
		w.t.Fatalf("clawfs %s: %v", strings.Join(args, " "), err)
	}
	return 0, out.String(), errs.String()
}

// must runs clawfs, wants the exit code, and returns both outputs joined.
func (w *world) must(code int, args ...string) string {
	w.t.Helper()
	got, out, errs := w.run(args...)
	if got != code {
		w.t.Fatalf("clawfs %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errs)
	}
	return out + errs
}

// status decodes `clawfs status -o json` into v.
func (w *world) query(v any, args ...string) {
	w.t.Helper()
	code, out, errs := w.run(append(args, "-o", "json")...)
	if code != done {
		w.t.Fatalf("clawfs %v: exit %d\n%s", args, code, errs)
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		w.t.Fatalf("clawfs %v -o json is not one document: %v\n%s", args, err, out)
	}
}

// stop unmounts and ends the daemon of this world, if it runs.
func (w *world) stop() {
	w.run("umount", w.mnt)
	w.stopDaemon(syscall.SIGTERM)
	if out, err := exec.Command("findmnt", "-n", w.mnt).Output(); err == nil {
		w.t.Errorf("still mounted: %s", out)
		exec.Command("umount", "-l", w.mnt).Run()
	}
}

// stopDaemon sends the daemon a signal and waits until it is gone.
func (w *world) stopDaemon(sig syscall.Signal) {
	code, out, _ := w.run("status", "-o", "json")
	if code != done {
		return
	}
	var status struct {
		Daemon struct{ PID int } `json:"daemon"`
		PID    int               `json:"pid"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		w.t.Fatalf("status: %v\n%s", err, out)
	}
	pid := max(status.PID, status.Daemon.PID)
	if pid <= 1 {
		w.t.Fatalf("status names no daemon pid:\n%s", out)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		w.t.Fatalf("kill daemon %d: %v", pid, err)
	}
	for range 300 {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		if b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Errorf("daemon %d lives 15 s after %v", pid, sig)
}

func (w *world) write(path, content string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(path string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// wantErrno opens a path of the mount and wants this error.
func (w *world) wantErrno(path string, want syscall.Errno) {
	w.t.Helper()
	f, err := os.Open(path)
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, want) {
		w.t.Fatalf("open %s: %v, want %v", path, err, want)
	}
}
