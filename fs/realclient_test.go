package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// Other people's programs, unmodified, load models through the mount. Each does
// so without a capability, with one, and where one bit of the model is flipped.

// answer is what a program made of a model, or its reason why it did not.
type answer struct {
	Value string `json:"value"`
	Error string `json:"error"`
}

// check is one way in which a program loads a model.
type check struct {
	program string   // as the audit has it; "python3" stands for python3.11 too
	reads   []string // files in the order of opening; the last is the one to tamper with
	writes  bool     // it wants to write, which no capability allows
}

// loader makes the checks of a kind in each directory. The kind is "models", or
// the layout that the directories have.
type loader func(t *testing.T, kind string, dirs ...string) []map[string]answer

type realClient struct {
	name   string
	load   loader
	checks map[string]check
}

var realClients = []realClient{
	{"python", python, map[string]check{
		"torch.load":              {"python3", []string{"net.pt"}, false},
		"torch.load weights_only": {"python3", []string{"net.pt"}, false},
		"torch.load legacy":       {"python3", []string{"legacy.pt"}, false},
		"torch.jit.load":          {"python3", []string{"jit.pt"}, false},
		"torch from_file":         {"python3", []string{"raw.bin"}, false},
		"torch from_file shared":  {"python3", []string{"raw.bin"}, true},
		"numpy.load":              {"python3", []string{"array.npy"}, false},
		"numpy.load npz":          {"python3", []string{"arrays.npz"}, false},
		"numpy.load mmap_mode":    {"python3", []string{"array.npy"}, false},
		"numpy.memmap":            {"python3", []string{"raw.bin"}, false},
		"safetensors, imitated":   {"python3", []string{"model.safetensors"}, false},
		"xgboost json":            {"python3", []string{"booster.json"}, false},
		"xgboost ubj":             {"python3", []string{"booster.ubj"}, false},
		"sqlite ro":               {"python3", []string{"index.sqlite"}, false},
		"sqlite immutable":        {"python3", []string{"index.sqlite"}, false},
		"h5py":                    {"python3", []string{"weights.h5"}, false},
	}},
	{"node", javascript, map[string]check{
		"onnx":                 {"node", []string{"model.onnx"}, false},
		"onnx from a buffer":   {"node", []string{"model.onnx"}, false},
		"onnx external data":   {"node", []string{"external.onnx", "external.data"}, false},
		"llama.cpp mmap":       {"node", []string{"tiny.gguf"}, false},
		"llama.cpp read":       {"node", []string{"tiny.gguf"}, false},
		"llama.cpp mlock":      {"node", []string{"tiny.gguf"}, false},
		"llama.cpp direct I/O": {"node", []string{"tiny.gguf"}, false},
		"llama.cpp alone":      {"node", []string{"tiny.gguf"}, false},
	}},
	{"commands", commands, map[string]check{
		"fasttext":  {"fasttext", []string{"langid.bin"}, false},
		"cp":        {"cp", []string{"net.pt"}, false},
		"rsync":     {"rsync", []string{"net.pt"}, false},
		"tar":       {"tar", []string{"net.pt"}, false},
		"dd direct": {"dd", []string{"net.pt"}, false},
		"sha256sum": {"sha256sum", []string{"net.pt"}, false},
	}},
	{"nginx", nginx, map[string]check{
		"sendfile":         {"nginx", []string{"raw.bin"}, false},
		"read":             {"nginx", []string{"raw.bin"}, false},
		"directio":         {"nginx", []string{"raw.bin"}, false},
		"threads":          {"nginx", []string{"raw.bin"}, false},
		"threads sendfile": {"nginx", []string{"raw.bin"}, false},
	}},
}

func TestRealClients(t *testing.T) {
	models := makeModels(t)
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		for _, c := range realClients {
			t.Run(c.name, func(t *testing.T) { c.pass(t, models, choose) })
		}
	})
}

func (c realClient) pass(t *testing.T, models map[string][]byte, choose func(*serverSpec)) {
	m := mountEmpty(t, choose)
	tamper := make(map[string]bool)
	for _, k := range c.checks {
		tamper[k.reads[len(k.reads)-1]] = true
	}
	for name, data := range models {
		m.write("good/"+name, data)
		if tamper[name] {
			data = flipped(data)
		}
		m.write("tampered/"+name, data)
	}
	refused := func(got map[string]answer, dir string, why Reason, file func(check) string) {
		t.Helper()
		var want []refusal
		for name, k := range c.checks {
			if got[name].Error == "" {
				t.Errorf("%s: %s is not refused: %+v", name, dir, got[name])
			}
			if !k.writes { // who wants to write is sent away by the kernel
				want = append(want, refusal{k.program, dir + "/" + file(k), why})
			}
		}
		m.told(want)
	}
	before := c.load(t, "models", filepath.Join(m.src, "good"), m.at("good"))
	plain := before[0]
	for name := range c.checks {
		if plain[name].Value == "" {
			t.Fatalf("%s: %+v, on the plain directory", name, plain[name])
		}
	}
	if len(plain) != len(c.checks) {
		t.Fatalf("%d checks were made, want %d", len(plain), len(c.checks))
	}
	refused(before[1], "good", ReasonNoCapability, func(k check) string { return k.reads[0] })

	for name, data := range models {
		m.grant(name, data)
	}
	after := c.load(t, "models", m.at("tampered"), m.at("good"))
	refused(after[0], "tampered", ReasonWrongBytes, func(k check) string { return k.reads[len(k.reads)-1] })
	for name, k := range c.checks {
		if a := after[1][name]; k.writes && !strings.Contains(a.Error, "Read-only file system") {
			t.Errorf("%s: %+v, want an error that says read-only", name, a)
		} else if !k.writes && a != plain[name] {
			t.Errorf("%s: %+v, and on the plain directory %+v", name, a, plain[name])
		}
	}
}

func flipped(data []byte) []byte {
	data = bytes.Clone(data)
	data[len(data)/2] ^= 1
	return data
}

// refusal is what the audit must have: which program was refused what.
type refusal struct {
	program, path string
	why           Reason
}

// told waits until the audit has all these refusals, as often as they are wanted.
func (m *mounted) told(want []refusal) {
	m.t.Helper()
	var missing map[refusal]int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		missing = make(map[refusal]int)
		for _, w := range want {
			missing[w]++
		}
		for _, r := range m.ask(request{Op: "records"}).Records {
			if r.Decision != Refused || r.PID == 0 || r.Comm == "" || r.Detail == "" || r.Next == "" {
				continue
			}
			for w := range missing {
				if w.path == r.Path && w.why == r.Reason && strings.HasPrefix(filepath.Base(r.Exe), w.program) {
					if missing[w]--; missing[w] == 0 {
						delete(missing, w)
					}
				}
			}
		}
		if len(missing) == 0 {
			return
		}
	}
	m.t.Errorf("the audit lacks these refusals, or parts of them: %v", missing)
	for _, r := range m.ask(request{Op: "records"}).Records {
		if r.Decision == Refused {
			m.t.Logf("%s %s (%d, %s): %s: %s", r.Path, r.Comm, r.PID, r.Exe, r.Reason, r.Detail)
		}
	}
}

// ends runs a program that may fail, but must come to an end by itself.
func ends(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, status syscall.WaitStatus) {
	t.Helper()
	const patience = 2 * time.Minute
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(os.Environ(), "OMP_NUM_THREADS=1", "LC_ALL=C.UTF-8")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%q: %v", cmd.Args, err)
		}
	case <-time.After(patience):
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		t.Fatalf("%q hangs: no end after %v", cmd.Args, patience)
	}
	return out.String(), errs.String(), cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// script runs one of the scripts that make many checks in one process.
func script(t *testing.T, cmd *exec.Cmd, dirs []string) []map[string]answer {
	t.Helper()
	cmd.Args = append(cmd.Args, dirs...)
	stdout, stderr, status := ends(t, cmd)
	var got []map[string]answer
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || len(got) != len(dirs) || !status.Exited() || status.ExitStatus() > 1 {
		t.Fatalf("%q: %s, %v\n%s%s", cmd.Args, describe(status), err, stdout, stderr)
	}
	return got
}

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "ended by signal: " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// The interpreter is Debian's, for it has Debian's modules.
const python3 = "/usr/bin/python3"

func python(t *testing.T, kind string, dirs ...string) []map[string]answer {
	t.Helper()
	return script(t, exec.Command(python3, "testdata/clients/load.py", kind), dirs)
}

// installed are the clients that `make clients` unpacks.
func installed(t *testing.T, name string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join("../build/clients", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%v: next: sudo make clients", err)
	}
	return p
}

func javascript(t *testing.T, kind string, dirs ...string) []map[string]answer {
	t.Helper()
	return script(t, exec.Command("node", "testdata/clients/load.mjs", installed(t, "node_modules"), kind), dirs)
}

// makeModels returns what make.py and fastText make, by file name.
func makeModels(t *testing.T) map[string][]byte {
	t.Helper()
	for _, program := range []string{python3, "node", "fasttext", "rsync"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: next: sudo make clients", err)
		}
	}
	dir := tempDir(t)
	for _, cmd := range []*exec.Cmd{
		exec.Command(python3, "testdata/clients/make.py", dir),
		exec.Command("fasttext", "supervised", "-input", filepath.Join(dir, "corpus.txt"), "-output", filepath.Join(dir, "langid"),
			"-dim", "10", "-wordNgrams", "2", "-bucket", "20000", "-thread", "1", "-verbose", "0"),
	} {
		if stdout, stderr, status := ends(t, cmd); status != 0 {
			t.Fatalf("%q: %s; if a module is missing: sudo make clients\n%s%s", cmd.Args, describe(status), stdout, stderr)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	models := make(map[string][]byte)
	for _, e := range entries {
		if models[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return models
}

// commandLines are run by a shell in the directory of the models. $1 is a file
// to write to; what is there at the end and on stdout is the answer.
var commandLines = map[string]string{
	"fasttext":  "echo 'x1 y2 y3 y4' | fasttext predict-prob langid.bin -",
	"cp":        "exec cp net.pt $1",
	"rsync":     "exec rsync net.pt $1",
	"tar":       "exec tar --create --file=- net.pt",
	"dd direct": "exec dd if=net.pt of=$1 bs=64k iflag=direct status=none",
	"sha256sum": "exec sha256sum net.pt",
}

func commands(t *testing.T, _ string, dirs ...string) (out []map[string]answer) {
	t.Helper()
	for _, dir := range dirs {
		got := make(map[string]answer)
		for name, line := range commandLines {
			got[name] = command(t, name, line, dir)
		}
		out = append(out, got)
	}
	return out
}

func command(t *testing.T, name, line, dir string) answer {
	t.Helper()
	out := filepath.Join(tempDir(t), "out")
	stdout, stderr, status := ends(t, exec.Command("sh", "-c", `cd "$0" || exit; `+line, dir, out))
	written, err := os.ReadFile(out)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if status == 0 {
		return answer{Value: sumOf(append(written, stdout...))}
	}
	if len(written) > 0 {
		t.Errorf("%s: %s, and wrote %d bytes", name, describe(status), len(written))
	}
	// fastText says which file it cannot open, and aborts; the shell makes that 134.
	aborts := name == "fasttext" && strings.Contains(stderr, "cannot be opened for loading!")
	if !status.Exited() || status.ExitStatus() >= 128 && !aborts {
		t.Fatalf("%s: %s\n%s", name, describe(status), stderr)
	}
	return answer{Error: describe(status) + ": " + stderr}
}
