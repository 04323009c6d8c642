package rebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// world is what the tests share: a real runc and an image of one program.
var world = sync.OnceValues(func() (w struct {
	runtime *sandbox.Runtime
	dir     string
	layout  string
	image   hashpipe.Digest
}, err error) {
	if os.Geteuid() != 0 {
		return w, errors.New("the sandbox needs root: run the tests with sudo")
	}
	runc, err := filepath.Abs("../bin/runc")
	if err != nil {
		return w, err
	}
	if _, err := os.Stat(runc); err != nil {
		build := exec.Command("go", "build", "-tags", "seccomp", "-trimpath", "-o", runc, "github.com/opencontainers/runc")
		build.Dir = "../tools"
		if out, err := build.CombinedOutput(); err != nil {
			return w, fmt.Errorf("building runc: %w\n%s\napt-get install gcc pkg-config libseccomp-dev", err, out)
		}
	}
	if w.runtime, err = sandbox.Find(runc); err != nil {
		return w, err
	}
	if w.dir, err = os.MkdirTemp("", "clawfs-rebuild-test-"); err != nil {
		return w, err
	}
	worldDir = w.dir
	program := filepath.Join(w.dir, "payload")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/payload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return w, fmt.Errorf("building the payload: %w\n%s", err, out)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return w, err
	}
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	for _, e := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"bin/", 0o755, nil}, {"bin/payload", 0o755, binary}, {"etc/", 0o755, nil}, {"etc/motd", 0o644, []byte("welcome to the image\n")},
		{"work/", 0o755, nil}, {"work/README", 0o644, []byte("the image has a /work of its own\n")},
	} {
		kind := byte(tar.TypeReg)
		if strings.HasSuffix(e.name, "/") {
			kind = tar.TypeDir
		}
		err := archive.WriteHeader(&tar.Header{Typeflag: kind, Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: time.Unix(0, 0)})
		if err == nil {
			_, err = archive.Write(e.data)
		}
		if err != nil {
			return w, err
		}
	}
	if err := archive.Close(); err != nil {
		return w, err
	}
	w.layout = filepath.Join(w.dir, "layout")
	w.image, err = oci.AppendImage(context.Background(), w.layout, oci.Image{
		Config: oci.Config{OS: "linux", Architecture: HostPlatform().Arch, Env: []string{"PATH=/bin"}},
	}, &layer)
	return w, err
})

// worldDir is removed by TestMain; empty if no test needed the world.
var worldDir string

func removeWorld() {
	if worldDir != "" {
		os.RemoveAll(worldDir)
	}
}

// site is one publisher's inputs, on disk.
type site struct {
	parties
	t       *testing.T
	runtime *sandbox.Runtime
	st      verifier.Statement // a ledger that reproduces
	loc     capstore.Locations
}

const lockText = "numpy==1.24.2 --hash=sha256:00\n"

func newSite(t *testing.T) *site {
	t.Helper()
	w, err := world()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{parties: newParties(t), t: t, runtime: w.runtime}
	repo, commit := repository(t, "sha1", map[string]string{"train.txt": "how to train\n", "run.sh*": "#!/bin/sh\n", "latest": "-> train.txt"})
	data := t.TempDir()
	for name, text := range map[string]string{"a/one.txt": "eins\n", "two.txt": "zwei\n"} {
		os.MkdirAll(filepath.Dir(filepath.Join(data, name)), 0o755)
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lock := filepath.Join(t.TempDir(), "requirements.lock")
	if err := os.WriteFile(lock, []byte(lockText), 0o600); err != nil {
		t.Fatal(err)
	}
	s.loc = capstore.Locations{Source: repo, Datasets: map[string]string{"corpus": data}, Image: w.layout, Lockfile: lock}
	source, err := CheckOut(t.Context(), Source{Location: repo, Commit: commit}, t.TempDir(), filepath.Join(t.TempDir(), "s"), nil)
	if err != nil {
		t.Fatal(err)
	}
	corpus, err := tree.Walk(t.Context(), data, tree.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.st = s.statement("1.0.0", "payload", "train")
	s.st.Subject[0].Digest.GitCommit = commit
	s.st.Predicate.BuildDefinition.ExternalParameters.Env = map[string]string{"PYTHONHASHSEED": "0"}
	s.st.Predicate.BuildDefinition.ResolvedDependencies = []verifier.Dependency{
		{Name: verifier.SourceName, Digest: verifier.DigestSet{GitCommit: commit, ClawfsTree1: source.Digest}},
		{Name: verifier.EnvironmentName, Digest: verifier.DigestSet{SHA256: w.image}, MediaType: verifier.ImageMediaType},
		{Name: verifier.LockfileName, Digest: verifier.DigestSet{SHA256: digest(lockText)}},
		{Name: verifier.DatasetPrefix + "corpus", Digest: verifier.DigestSet{ClawfsTree1: corpus.Digest}, Annotations: &verifier.Annotations{Files: corpus.Files, Bytes: corpus.Bytes}},
	}
	return s
}

func (s *site) ledger() verifier.Ledger {
	s.t.Helper()
	payload, err := s.st.Payload()
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := verifier.ParseLedger(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// config gives each rebuild a scratch directory that has to be empty after it.
func (s *site) config(log io.Writer) Config {
	s.t.Helper()
	dir := s.t.TempDir()
	s.t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			s.t.Errorf("%d entries left in the scratch directory, %v", len(left), err)
		}
	})
	return Config{Executor: s.runtime, Dir: dir, Limits: SandboxLimits(s.policy.Builds.Limits), AllowedEnv: s.policy.Builds.Env, Log: log}
}

func (s *site) dependency(name string) *verifier.Dependency {
	deps := s.st.Predicate.BuildDefinition.ResolvedDependencies
	for i := range deps {
		if deps[i].Name == name {
			return &deps[i]
		}
	}
	s.t.Fatalf("no dependency %q", name)
	return nil
}

func (s *site) params() *verifier.ExternalParameters {
	return &s.st.Predicate.BuildDefinition.ExternalParameters
}

func TestReproduce(t *testing.T) {
	s := newSite(t)
	s.params().Stages = []verifier.Stage{
		{Name: "prepare", Argv: []string{"payload", "stage"}},
		{Name: "train", Argv: []string{"payload", "finish"}, TimeoutSeconds: 10},
	}
	c := s.config(nil)
	phases := make(map[Phase]int)
	c.Observer = func(e Event) { phases[e.Phase]++ }
	l := s.ledger()
	rep, err := Reproduce(t.Context(), c, l, s.loc)
	if err != nil {
		t.Fatal(err)
	}
	defer rep.Close()
	first, second := rep.Builds()
	outputs := rep.Outputs()
	if len(outputs) != 1 || outputs[0].Name() != "model.bin" || outputs[0].Recipe() != l.Digest() || first.Run == second.Run {
		t.Errorf("outputs %v of runs %s and %s", outputs, first.Run, second.Run)
	}
	f, err := outputs[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || !bytes.HasSuffix(b, []byte("finished\n")) {
		t.Errorf("the output ends in %.40q, %v", b[max(0, len(b)-40):], err)
	}
	for _, p := range []Phase{PhaseSource, PhaseDataset, PhaseImage, PhaseBuild} {
		if phases[p] == 0 {
			t.Errorf("no event of phase %s", p)
		}
	}
	if phases[PhaseBuild] < 4 {
		t.Errorf("%d events of the builds, want one for each stage of both", phases[PhaseBuild])
	}
}

func TestReproduceRefuses(t *testing.T) {
	other := "arm64"
	if HostPlatform().Arch == other {
		other = "amd64"
	}
	argv := func(argv ...string) func(*site) {
		return func(s *site) { s.params().Stages[0].Argv = append([]string{"payload"}, argv...) }
	}
	secret := "the weights\n"
	sum := hashpipe.SumBytes([]byte(secret))
	raw, err := hex.DecodeString(sum.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		change  func(*site)
		verdict capstore.Verdict
		want    string // in Detail
		says    string // in Diagnosis
	}{
		{"other architecture", func(s *site) { s.st.Predicate.Platform.Arch = other }, capstore.NotComparable, "linux/" + other, ""},
		{"other system", func(s *site) { s.st.Predicate.Platform.OS = "plan9" }, capstore.NotComparable, "plan9", ""},
		{"processor feature", func(s *site) { s.st.Predicate.Platform.CPUFeatures = []string{"avx9000"} }, capstore.NotComparable, "lacks avx9000", ""},
		{"accelerator", func(s *site) { s.st.Predicate.Platform.Accelerator = "cuda" }, capstore.NotComparable, `accelerator "cuda"`, ""},
		{"environment name", func(s *site) { s.params().Env["LD_PRELOAD"] = "/x" }, capstore.PolicyRefused, `the ledger sets the variable "LD_PRELOAD"`, ""},
		{"environment name of a stage", func(s *site) { s.params().Stages[0].Env = map[string]string{"PATH": "/x"} }, capstore.PolicyRefused, `stage "train" sets the variable "PATH"`, ""},
		{"too much time", func(s *site) { s.params().Stages[0].TimeoutSeconds = 3600 }, capstore.PolicyRefused, "asks for 1h0m0s", ""},
		{"no source", func(s *site) { s.loc.Source = "" }, capstore.FetchFailed, "--source", ""},
		{"no dataset", func(s *site) { s.loc.Datasets = nil }, capstore.FetchFailed, "--dataset corpus=WHERE", ""},
		{"no image", func(s *site) { s.loc.Image = "" }, capstore.FetchFailed, "--image WHERE", ""},
		{"no lockfile", func(s *site) { s.loc.Lockfile = "" }, capstore.FetchFailed, "--lockfile FILE", ""},
		{"image in a registry", func(s *site) { s.dependency("environment").URI = "oci://registry.example/x"; s.loc.Image = "" }, capstore.FetchFailed, "--image WHERE", ""},
		{"relative dataset", func(s *site) { s.loc.Datasets["corpus"] = "corpus" }, capstore.FetchFailed, "expected an absolute path", ""},
		{"missing dataset", func(s *site) { s.loc.Datasets["corpus"] += "-not" }, capstore.FetchFailed, "no such file", ""},
		{"missing image", func(s *site) { s.loc.Image += "-not" }, capstore.FetchFailed, "environment image", ""},
		{"missing lockfile", func(s *site) { s.loc.Lockfile += "-not" }, capstore.FetchFailed, "no such file", ""},
		{"source tree root", func(s *site) { s.dependency("source").Digest.ClawfsTree1 = digest("x") }, capstore.FetchFailed, "the ledger says " + digest("x").String(), ""},
		{"dataset root", func(s *site) { s.dependency("dataset:corpus").Digest.ClawfsTree1 = digest("x") }, capstore.FetchFailed, "expected tree root " + digest("x").String(), ""},
		{"dataset with a file more", func(s *site) { s.write(s.loc.Datasets["corpus"]+"/three", "") }, capstore.FetchFailed, "expected at most 2 files and 10 bytes", ""},
		{"dataset with a file less", func(s *site) { os.Remove(s.loc.Datasets["corpus"] + "/two.txt") }, capstore.FetchFailed, `dataset "corpus"`, ""},
		{"dataset of other bytes", func(s *site) { s.write(s.loc.Datasets["corpus"]+"/two.txt", "drei\n") }, capstore.FetchFailed, "expected tree root", ""},
		{"dataset with a symlink", func(s *site) { os.Symlink("two.txt", s.loc.Datasets["corpus"]+"/link") }, capstore.FetchFailed, "got a symlink", ""},
		{"wrong number of files", func(s *site) { s.dependency("dataset:corpus").Annotations.Files = 3 }, capstore.FetchFailed, "has 2 files of 10 bytes, not 3", ""},
		{"lockfile of other bytes", func(s *site) { s.write(s.loc.Lockfile, "x") }, capstore.FetchFailed, "lockfile", ""},
		{"lockfile is a directory", func(s *site) { s.loc.Lockfile = s.loc.Datasets["corpus"] }, capstore.FetchFailed, "expected a file, got a directory", ""},
		{"image digest", func(s *site) { s.dependency("environment").Digest.SHA256 = digest("x") }, capstore.FetchFailed, digest("x").String(), ""},
		{"exit status", argv("fail"), capstore.BuildFailed, "build 1 of 2: stage train", `about to fail \x1b[2J`},
		{"no such program", func(s *site) { s.params().Stages[0].Argv = []string{"python3"} }, capstore.BuildFailed, "stage train", ""},
		{"time", func(s *site) { argv("sleep")(s); s.params().Stages[0].TimeoutSeconds = 1 }, capstore.Timeout, "stage train", ""},
		{"too much output", argv("fill"), capstore.LimitExceeded, "stage train", ""},
		{"no output", argv("nothing"), capstore.OutputMissing, "model.bin", ""},
		{"output is a symlink", argv("link"), capstore.OutputMissing, "model.bin", ""},
		{"one of two outputs", func(s *site) {
			s.params().Outputs = append(s.params().Outputs, verifier.Output{Name: "vocab", Path: "vocab.txt"})
		}, capstore.OutputMissing, "vocab", ""},
		{"random", argv("random", "model.bin"), capstore.Nondeterministic, "1 of 1 outputs: model.bin", "\nvaried: hostname: build in the first build and rebuilder-2 in the second"},
		{"two random outputs", func(s *site) {
			argv("random", "model.bin", "b", "c", "-thread", "2")(s)
			s.params().Outputs = append(s.params().Outputs, verifier.Output{Name: "second", Path: "b"})
		}, capstore.Nondeterministic, "2 of 2 outputs: model.bin, second", `stage "train" runs on several threads (-thread 2)`},
		{"host name", argv("hostname"), capstore.Nondeterministic, "model.bin", "hint: the output holds the host name"},
		{"date", argv("date"), capstore.Nondeterministic, "model.bin", "hint: the output holds the time of its build"},
		{"endless log", argv("talk"), capstore.LimitExceeded, "stage train", ""},
		{"work directory", argv("workdir"), capstore.Nondeterministic, "model.bin", "hint: the output holds the working directory"},
		{"copy of a dataset file", argv("copy", "/in/dataset/corpus/a/one.txt"), capstore.CopiedInput, "/in/dataset/corpus/a/one.txt", ""},
		{"copy of a source file", argv("copy", "/in/source/train.txt"), capstore.CopiedInput, "/in/source/train.txt", ""},
		{"copy of the lockfile", argv("copy", "/in/lockfile"), capstore.CopiedInput, "/in/lockfile", ""},
		{"copy of an image file", argv("copy", "/etc/motd"), capstore.CopiedInput, "/etc/motd", ""},
		{"digest in the ledger", argv("write", secret, sum.String()), capstore.CopiedInput, "SHA-256 in hex", ""},
		{"digest in upper case", argv("write", secret, strings.ToUpper(sum.String())), capstore.CopiedInput, "SHA-256 in hex", ""},
		{"digest in base64", argv("write", secret, base64.StdEncoding.EncodeToString(raw)), capstore.CopiedInput, "SHA-256 in base64", ""},
		{"digest in base64url", argv("write", secret, "x="+base64.RawURLEncoding.EncodeToString(raw)), capstore.CopiedInput, "SHA-256 in base64", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			c.change(s)
			var log bytes.Buffer
			rep, err := Reproduce(t.Context(), s.config(&log), s.ledger(), s.loc)
			if err == nil {
				rep.Close()
				t.Fatal("reproduced")
			}
			var f *Failure
			if !errors.As(err, &f) {
				t.Fatalf("Reproduce = %v, want %s", err, c.verdict)
			}
			if f.Verdict != c.verdict || !strings.Contains(f.Detail, c.want) || !strings.Contains(f.Diagnosis, c.says) {
				t.Errorf("Reproduce = %s: %q\n%s\nwant %s: %q, %q", f.Verdict, f.Detail, f.Diagnosis, c.verdict, c.want, c.says)
			}
			for _, text := range []string{f.Detail, f.Diagnosis, log.String()} {
				if strings.ContainsAny(text, "\x1b\x07") {
					t.Errorf("a control character in %q", text)
				}
			}
		})
	}
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// TestReproduceStops: the end of the context is no answer.
func TestReproduceStops(t *testing.T) {
	s := newSite(t)
	s.params().Stages[0].Argv = []string{"payload", "sleep"}
	ctx, cancel := context.WithCancel(t.Context())
	c := s.config(nil)
	c.Observer = func(e Event) {
		if e.Phase == PhaseBuild {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
	}
	_, err := Reproduce(ctx, c, s.ledger(), s.loc)
	var f *Failure
	if !errors.Is(err, context.Canceled) || errors.As(err, &f) {
		t.Errorf("Reproduce = %v, want %v", err, context.Canceled)
	}
	for _, c := range []Config{{}, {Executor: s.runtime, Dir: "relative"}} {
		if _, err := Reproduce(t.Context(), c, s.ledger(), s.loc); err == nil || errors.As(err, &f) {
			t.Errorf("Reproduce with %+v = %v, want an error that is no answer", c, err)
		}
	}
}
