package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/openclaw/clawfs"

// allowed is the import graph: for each package of the module, the packages of
// the module that it may import. A package that is not listed is an error, so
// a new package must be given its place here.
var allowed = map[string][]string{
	"hashpipe":         {},
	"hashpipe/cas":     {"hashpipe"},
	"hashpipe/durable": {},

	"verifier/dsse":          {"hashpipe"},
	"verifier/tree":          {"hashpipe"},
	"verifier/tlog":          {"hashpipe", "verifier/dsse"},
	"verifier/pattern":       {},
	"verifier":               {"hashpipe", "verifier/dsse", "verifier/tree", "verifier/tlog", "verifier/pattern"},
	"verifier/sigstore":      {"hashpipe", "verifier/dsse", "verifier/tlog"},
	"verifier/tlog/tiles":    {"verifier/tlog"},
	"verifier/tlog/tlogtest": {"verifier/tlog", "verifier/tlog/tiles"},

	"capstore/kept": {"hashpipe", "hashpipe/durable"},
	"capstore":      {"hashpipe", "hashpipe/durable", "verifier/dsse", "verifier/pattern", "capstore/kept"},

	"rebuild/sandbox":                {"hashpipe", "hashpipe/durable"},
	"rebuild/oci":                    {"hashpipe", "hashpipe/cas", "verifier/tree"},
	"rebuild/compare":                {"hashpipe"},
	"rebuild/lint":                   {"verifier", "rebuild/lock", "rebuild/compare"},
	"rebuild/record":                 {"hashpipe", "verifier", "verifier/dsse", "capstore"},
	"rebuild/internal/mint":          {"hashpipe", "verifier", "verifier/dsse", "capstore", "rebuild/sandbox", "rebuild/record"},
	"rebuild/fetch":                  {"hashpipe", "verifier/tree"},
	"rebuild/lock":                   {"hashpipe"},
	"rebuild/sandbox/sandboxtest":    {},
	"rebuild/oci/ocitest":            {},
	"rebuild/engine/slurm":           {"rebuild/sandbox"},
	"rebuild/engine/slurm/slurmtest": {},
	"rebuild": {
		"hashpipe", "hashpipe/cas", "hashpipe/durable", "verifier", "verifier/dsse", "verifier/tree", "capstore",
		"rebuild/sandbox", "rebuild/oci", "rebuild/fetch", "rebuild/lock", "rebuild/compare", "rebuild/record", "rebuild/internal/mint",
	},

	"fs": {"hashpipe", "hashpipe/cas", "verifier/dsse", "capstore"},

	"cmd/clawfs": {
		"hashpipe", "hashpipe/cas", "hashpipe/durable", "verifier", "verifier/dsse", "verifier/tree", "verifier/pattern", "verifier/tlog", "verifier/tlog/tiles", "verifier/sigstore", "capstore", "capstore/kept",
		"rebuild", "rebuild/sandbox", "rebuild/engine/slurm", "rebuild/oci", "rebuild/fetch", "rebuild/lock", "rebuild/lint", "rebuild/compare", "rebuild/record", "fs",
		"cmd/clawfs/internal/bundle", "cmd/clawfs/internal/config", "cmd/clawfs/internal/control", "cmd/clawfs/internal/registry", "cmd/clawfs/internal/memory", "cmd/clawfs/internal/metrics",
		"cmd/clawfs/internal/signer", "cmd/clawfs/internal/witness", "cmd/clawfs/internal/translog", "cmd/clawfs/internal/translog/logserver",
	},
	"cmd/clawfs/internal/bundle":             {},
	"cmd/clawfs/internal/config":             {"hashpipe", "hashpipe/durable", "verifier", "verifier/dsse", "capstore"},
	"cmd/clawfs/internal/control":            {"hashpipe", "verifier/dsse", "capstore"},
	"cmd/clawfs/internal/registry":           {"hashpipe", "verifier", "verifier/dsse", "verifier/tlog", "capstore", "rebuild/oci", "rebuild/record"},
	"cmd/clawfs/internal/signer":             {"verifier/dsse"},
	"cmd/clawfs/internal/witness":            {"hashpipe", "hashpipe/durable", "verifier/dsse", "verifier/tlog", "cmd/clawfs/internal/config", "cmd/clawfs/internal/control"},
	"cmd/clawfs/internal/translog":           {"hashpipe", "verifier", "verifier/dsse", "verifier/tlog", "capstore"},
	"cmd/clawfs/internal/translog/logserver": {"hashpipe", "hashpipe/durable", "verifier", "verifier/dsse", "verifier/tlog", "capstore", "cmd/clawfs/internal/config", "cmd/clawfs/internal/control", "cmd/clawfs/internal/translog"},
	"cmd/clawfs/internal/metrics":            {"cmd/clawfs/internal/control"},
	"cmd/clawfs/internal/memory":             {"hashpipe", "hashpipe/durable", "verifier/tlog", "cmd/clawfs/internal/config"},

	"integration":      {},
	"integration/soak": {},
}

// only names the packages that may import a third-party module or a package
// of the standard library which decides something.
var only = map[string][]string{
	"github.com/dgraph-io/badger/":           {"capstore"},
	"github.com/hanwen/go-fuse/":             {"fs"},
	"github.com/minio/sha256-simd":           {"hashpipe"},
	"github.com/spf13/":                      {"cmd/clawfs"},
	"github.com/prometheus/":                 {"cmd/clawfs", "cmd/clawfs/internal/metrics"},
	"flag":                                   {"cmd/clawfs"},
	"github.com/opencontainers/runtime-spec": {"rebuild/sandbox"},
	"golang.org/x/crypto/":                   {"verifier/dsse", "cmd/clawfs/internal/signer"},
	"oras.land/":                             {"rebuild/oci"},
	"github.com/google/":                     {}, // a registry in tests
	"golang.org/x/mod/":                      {"verifier/tlog", "verifier/tlog/tiles", "verifier/tlog/tlogtest", "cmd/clawfs/internal/translog", "cmd/clawfs/internal/translog/logserver"},
	"github.com/transparency-dev/tessera/":   {"cmd/clawfs/internal/translog/logserver"},
	"github.com/transparency-dev/formats/":   {}, // an oracle in tests
	"github.com/transparency-dev/merkle/":    {},
	"k8s.io/klog/":                           {"cmd/clawfs/internal/translog/logserver"},
	"crypto/ed25519":                         {"verifier/dsse", "verifier/tlog/tlogtest"},
	"crypto/ecdsa":                           {"verifier/dsse"},
	"encoding/json":                          {}, // last duplicate wins, case variants match: never
}

type listed struct {
	ImportPath string
	Imports    []string
}

// list returns what `go list` says of the patterns.
func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		all = append(all, p)
	}
}

// violations returns one sentence for each import that the law forbids.
func violations(packages []listed) []string {
	var bad []string
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		may, known := allowed[name]
		if !known {
			if strings.HasPrefix(name, "examples/") {
				continue
			}
			bad = append(bad, name+" has no place in the import graph")
			continue
		}
		for _, imp := range p.Imports {
			if in, ok := strings.CutPrefix(imp, module+"/"); ok && !slices.Contains(may, in) {
				bad = append(bad, name+" must not import "+in)
			}
			for prefix, users := range only {
				exact := !strings.HasSuffix(prefix, "/") && imp == prefix
				under := strings.HasPrefix(imp, strings.TrimSuffix(prefix, "/")+"/")
				if (exact || under) && !slices.Contains(users, name) {
					bad = append(bad, name+" must not import "+imp)
				}
			}
		}
	}
	return bad
}

func TestImportGraph(t *testing.T) {
	packages := list(t, "./...")
	if len(packages) < len(allowed) {
		t.Errorf("go list found %d packages, the law knows %d: a row has lost its package", len(packages), len(allowed))
	}
	for _, v := range violations(packages) {
		t.Error(v)
	}
}

// The law is worth something only if a broken graph fails it.
func TestImportGraphNoticesAForbiddenImport(t *testing.T) {
	for _, tt := range []struct{ from, imports, want string }{
		{"fs", module + "/rebuild", "fs must not import rebuild"},
		{"capstore", module + "/verifier", "capstore must not import verifier"},
		{"verifier", "github.com/dgraph-io/badger/v4", "verifier must not import github.com/dgraph-io/badger/v4"},
		{"fs", "encoding/json", "fs must not import encoding/json"},
		{"surprise", "fmt", "surprise has no place in the import graph"},
	} {
		got := violations([]listed{{ImportPath: module + "/" + tt.from, Imports: []string{tt.imports}}})
		if !slices.Contains(got, tt.want) {
			t.Errorf("violations(%s imports %s) = %q, want %q among them", tt.from, tt.imports, got, tt.want)
		}
	}
}

// One file of hashpipe chooses the SHA-256 implementation.
func TestOneFileImportsSHA256SIMD(t *testing.T) {
	out, err := exec.Command("grep", "-rl", "--include=*.go", `"github.com/minio/sha256-simd"`, "..").Output()
	if err != nil {
		t.Fatalf("grep: %v", err)
	}
	var users []string
	for f := range strings.Lines(string(out)) {
		if f = strings.TrimSpace(f); !strings.HasSuffix(f, "_test.go") {
			users = append(users, filepath.Base(f))
		}
	}
	if want := []string{"sha256.go"}; !slices.Equal(users, want) {
		t.Errorf("files that import sha256-simd = %v, want %v", users, want)
	}
}

// What a Launcher's machine answers is taken for a run of the recipe. Outputs
// would come from anywhere if anybody could bring a Launcher along: the engines
// are packages below rebuild/engine, and one file of the command picks one.
func TestOneFileMakesRemotes(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "grep", "-lE", `\bsandbox\.(Remote|Launcher|Exit|Job)\b`, "--", "*.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	var users []string
	for f := range strings.Lines(string(out)) {
		f = strings.TrimSpace(f)
		if !strings.HasSuffix(f, "_test.go") && !strings.HasPrefix(f, "rebuild/engine/") {
			users = append(users, f)
		}
	}
	if want := []string{"cmd/clawfs/executor.go"}; !slices.Equal(users, want) {
		t.Errorf("files outside rebuild/engine that know Remote or a Launcher = %v, want %v", users, want)
	}
}

// Nothing below cmd/clawfs reads the environment.
func TestEnvironmentIsReadByTheCommandOnly(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "grep", "-nE", `os\.(Getenv|LookupEnv|Environ|ExpandEnv)\b`, "--", "*.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v; the tests themselves read the environment, so it must find something", err)
	}
	for line := range strings.Lines(string(out)) {
		file, _, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(file, "cmd/clawfs/") && !strings.HasPrefix(file, "tools/") && !strings.HasSuffix(file, "_test.go") && !strings.Contains(file, "/testdata/") {
			t.Errorf("reads the environment: %s", line)
		}
	}
}
