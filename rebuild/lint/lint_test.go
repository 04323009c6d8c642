package lint

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/rebuild/lock"
	"github.com/openclaw/clawfs/verifier"
)

// ledger is one with nothing to say about it but what the stages bring.
func ledger(stages ...verifier.Stage) verifier.Statement {
	st := verifier.Statement{}
	st.Predicate.Version, st.Predicate.Sequence = "1.0", 1
	st.Predicate.IssuedAt = verifier.At(time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC))
	st.Predicate.Platform = verifier.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"}
	st.Predicate.BuildDefinition.ExternalParameters.Stages = stages
	return st
}

// train is a stage with a timeout.
func train(argv ...string) verifier.Stage {
	return verifier.Stage{Name: "train", Argv: argv, TimeoutSeconds: 600}
}

func rules(found []Finding) []string {
	var names []string
	for _, f := range found {
		names = append(names, f.Rule)
	}
	slices.Sort(names)
	return names
}

// pinned is an environment with which nothing is to be said about Python.
var pinned = map[string]string{
	"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1763600000", "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "LC_ALL": "C",
}

// TestCommands has the rules of one command line, in an environment that has
// nothing, and in one where all is pinned. Each line without a rule is a false
// alarm that does not happen.
func TestCommands(t *testing.T) {
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	words := strings.Fields
	for _, c := range []struct {
		argv   []string
		bare   string // rules with an empty environment
		pinned string
	}{
		// fastText and others that count threads themselves.
		{words("fasttext supervised -thread 1 -input /in/x -output /out/m"), "", ""},
		{words("fasttext supervised -input /in/x -output /out/m"), "threads", "threads"},
		{words("/usr/bin/fasttext skipgram -thread 4"), "threads", "threads"},
		{words("fasttext quantize -input /in/x -output /out/m"), "", ""},
		{words("xgboost train.conf"), "threads", "threads"},
		{words("xgboost train.conf nthread=1"), "", ""},
		{words("lightgbm config=train.conf num_threads=8"), "threads", "threads"},
		{words("spm_train --num_threads=16"), "threads", "threads"},
		{words("sh /in/source/train.sh -thread 1"), "", ""},
		{words("sh /in/source/train.sh -thread 2"), "threads", "threads"},
		// Python.
		{words("python3 /in/source/train.py"), "dispatch epoch hash-seed threads", ""},
		{words("/usr/bin/python3.11 -m train"), "dispatch epoch hash-seed threads", ""},
		{words("env PYTHONHASHSEED=0 nice -n 10 python3 train.py"), "dispatch epoch threads", ""},
		{sh("export OMP_NUM_THREADS=1; PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=1 ATEN_CPU_CAPABILITY=default python3 t.py"), "", ""},
		{words("pythonic-tool"), "", ""},
		{[]string{"python3", "-c", "import time; print(time.time())"}, "clock dispatch epoch hash-seed threads", "clock"},
		{[]string{"python3", "-c", "import uuid; print(uuid.uuid4())"}, "dispatch epoch hash-seed random threads", "random"},
		{[]string{"python3", "-c", "import time; time.sleep(1); print('date')"}, "dispatch epoch hash-seed threads", ""},
		{words("python3 -m zipfile -c /out/m.zip /out/m"), "archive dispatch epoch hash-seed threads", ""},
		{words("python3 -m pip install torch"), "dispatch epoch hash-seed network threads", "network"},
		{words("python3 -m pip install --no-index --find-links /in/dataset/wheels torch"), "dispatch epoch hash-seed threads", ""},
		// Archives.
		{words("zip -r /out/m.zip /out/m"), "archive", ""},
		{words("unzip /in/dataset/d/x.zip"), "", ""},
		{words("tar -cf /out/m.tar m"), "archive", "archive"},
		{words("tar czf /out/m.tgz m"), "archive", "archive"},
		{words("tar --create --file=/out/m.tar --sort=name m"), "archive", "archive"},
		{words("tar --sort=name --mtime=@0 --owner=0 -cf /out/m.tar m"), "", ""},
		{words("tar -xf /in/dataset/c.tar"), "", ""},
		{words("tar xzf /in/dataset/c/corpus.tgz -C /tmp"), "", ""},
		{words("gzip -9 /out/m"), "archive", "archive"},
		{words("gzip -9n /out/m"), "", ""},
		{words("gzip --no-name /out/m"), "", ""},
		{words("gzip -dc /in/x.gz"), "", ""},
		{words("zcat /in/x.gz"), "", ""},
		// The clock and dice.
		{words("date +%s"), "clock", "clock"},
		{words("date -u -d @1763600000 +%F"), "", ""},
		{words("date --date=@1763600000"), "", ""},
		{sh("echo built $(date) > /out/info"), "clock", "clock"},
		{sh("echo \"built `date`\" > /out/info"), "clock", "clock"},
		{sh("echo date; echo 'date' \"date\" # date\ncat update"), "", ""},
		{sh("echo $RANDOM > /out/seed"), "random", "random"},
		{sh("echo ${RANDOM}"), "random", "random"},
		{sh("echo $RANDOMIZED $SECONDS_MAX"), "", ""},
		{sh("echo $EPOCHSECONDS"), "clock", "clock"},
		{sh("t=$(mktemp -d) && cp /in/x $t"), "random", "random"},
		{words("uuidgen"), "random", "random"},
		{words("uuidgen --sha1 -n @url -N x"), "", ""},
		{words("head -c 16 /dev/urandom"), "random", "random"},
		{words("shuf /in/dataset/c/x"), "random", "random"},
		{words("shuf --random-source=/in/source/seed /in/dataset/c/x"), "", ""},
		{words("openssl rand -hex 8"), "random", "random"},
		{words("openssl dgst -sha256 x"), "", ""},
		// The language.
		{sh("cat /in/x | sort | uniq -c > /out/vocab"), "locale", ""},
		{sh("cat /in/x | LC_ALL=C sort > /out/vocab"), "", ""},
		{sh("cat /in/x | sort -R > /out/vocab"), "locale random", "random"},
		{sh("if test -f /in/x; then sort /in/x >/out/y; fi"), "locale", ""},
		// The network.
		{words("curl -sS https://data.example/x"), "network", "network"},
		{sh("cd /tmp && wget -q https://data.example/x && tar xf x"), "network", "network"},
		{words("git clone https://git.example/x"), "network", "network"},
		{words("git -c x=y log"), "", ""},
		{words("apt-get install -y jq"), "network", "network"},
		{words("apt-get -qq update"), "network", "network"},
		{words("pip install numpy"), "network", "network"},
		{words("pip install --no-index numpy"), "", ""},
		{words("npm ci"), "network", "network"},
		{words("npm ci --offline"), "", ""},
		{words("cargo build --release"), "", ""},
		{words("echo curl wget"), "", ""},
		// Wrappers and quotes.
		{words("timeout 60 curl https://x.example"), "network", "network"},
		{words("busybox sh -c date"), "clock", "clock"},
		{[]string{"bash", "-euo", "pipefail", "-c", "date"}, "clock", "clock"},
		{[]string{"bash", "-euc", "(cd /tmp; date)"}, "clock", "clock"},
		{sh(`tar -cf /out/x --mtime="@$(cat /in/epoch)" --sort=name .`), "", ""},
		{sh("tar -cf /out/x --mtime=`cat /in/epoch` --sort=name ."), "", ""},
		{words("tar --mtime=@0 -cf /out/m.tar m"), "archive", "archive"},
		{sh("cat <<E\nhello\nE\n"), "", ""},
		{sh(`echo "unfinished $(date`), "clock", "clock"},
		{[]string{"sh", "-c"}, "", ""},
		{[]string{""}, "", ""},
		{nil, "", ""},
	} {
		for _, e := range []struct {
			env  map[string]string
			want string
		}{{nil, c.bare}, {pinned, c.pinned}} {
			st := ledger(train(c.argv...))
			st.Predicate.BuildDefinition.ExternalParameters.Env = e.env
			found := Check(st, nil)
			if got := strings.Join(rules(found), " "); got != e.want {
				t.Errorf("%q with %d variables: %q, want %q; %v", c.argv, len(e.env), got, e.want, found)
			}
			for _, f := range found {
				if f.Where != "stage train" || f.Severity != Warning || f.Text == "" || f.Hint == "" {
					t.Errorf("%q: %+v", c.argv, f)
				}
			}
		}
	}
}

// debian lists packages of an image.
func debian(names ...string) (have []lock.Package) {
	for _, n := range names {
		have = append(have, lock.Package{Ecosystem: lock.Deb, Name: n, Version: "1"})
	}
	return have
}

func TestInstalled(t *testing.T) {
	base := map[string]string{"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1763600000"}
	with := func(pairs ...string) map[string]string {
		env := map[string]string{}
		for k, v := range base {
			env[k] = v
		}
		for _, p := range pairs {
			k, v, _ := strings.Cut(p, "=")
			env[k] = v
		}
		return env
	}
	for _, c := range []struct {
		name string
		argv string
		env  map[string]string
		have []lock.Package
		want string // rules
		hint string // in a hint
	}{
		{"nobody looked", "python3 x.py", base, nil, "dispatch threads", "OPENBLAS_CORETYPE=Nehalem"},
		{"nothing there", "python3 x.py", base, []lock.Package{}, "", ""},
		{"no numbers", "python3 x.py", base, debian("python3", "libc6", "zip"), "", ""},
		{"Debian's torch", "python3 x.py", base, debian("python3-torch", "python3-numpy", "libdnnl2"), "dispatch threads", "set ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41, or"},
		{"Debian's torch, pinned", "python3 x.py", with("OMP_NUM_THREADS=1", "ATEN_CPU_CAPABILITY=default", "DNNL_MAX_CPU_ISA=SSE41"), debian("python3-torch", "python3-numpy", "libdnnl2", "libblas3"), "", ""},
		{"and OpenBLAS", "python3 x.py", with("OMP_NUM_THREADS=1", "ATEN_CPU_CAPABILITY=default", "DNNL_MAX_CPU_ISA=SSE41"), debian("python3-torch", "libdnnl2", "libopenblas0-pthread"), "dispatch", "OPENBLAS_CORETYPE=Nehalem"},
		{"Debian's numpy with the reference BLAS", "python3 x.py", with("OMP_NUM_THREADS=1"), debian("python3-numpy", "libblas3"), "", ""},
		{"numpy of PyPI", "python3 x.py", with("OMP_NUM_THREADS=1"), []lock.Package{{Ecosystem: lock.PyPI, Name: "numpy", Version: "2.0"}}, "dispatch", "OPENBLAS_CORETYPE=Nehalem"},
		{"a script that nobody reads", "sh /in/source/train.sh", base, debian("python3-torch"), "dispatch threads", "OMP_NUM_THREADS=1"},
		{"a program of the source", "/in/source/train", base, debian("libopenblas0"), "dispatch threads", "OPENBLAS_CORETYPE"},
		{"no part of the stage", "cp /in/dataset/d/x /out/x", base, debian("python3-torch", "libopenblas0"), "", ""},
		{"four threads", "python3 x.py", with("OMP_NUM_THREADS=4"), debian("python3-numpy"), "threads", "use 1"},
	} {
		st := ledger(train(strings.Fields(c.argv)...))
		st.Predicate.BuildDefinition.ExternalParameters.Env = c.env
		found := Check(st, c.have)
		if got := strings.Join(rules(found), " "); got != c.want || !strings.Contains(fmt.Sprint(found), c.hint) {
			t.Errorf("%s: %q, want %q with %q in it: %v", c.name, got, c.want, c.hint, found)
		}
		// One kind of processor promises nothing to the others.
		st.Predicate.Platform.CPUDispatch = verifier.ExactDispatch
		if got := rules(Check(st, c.have)); slices.Contains(got, RuleDispatch) {
			t.Errorf("%s, exact dispatch: %q", c.name, got)
		}
	}
	st := ledger(train("python3", "x.py"))
	st.Predicate.BuildDefinition.ExternalParameters.Env = pinned
	st.Predicate.Platform.Accelerator = "cuda"
	if found := Check(st, nil); len(found) != 1 || !strings.Contains(found[0].Hint, "CUBLAS_WORKSPACE_CONFIG") {
		t.Errorf("an accelerator: %v", found)
	}
}

func TestLedger(t *testing.T) {
	dependency := func(uri string, mirrors ...string) func(*verifier.Statement) {
		return func(st *verifier.Statement) {
			st.Predicate.BuildDefinition.ResolvedDependencies = []verifier.Dependency{{Name: "environment", URI: uri, Annotations: &verifier.Annotations{Mirrors: mirrors}}}
		}
	}
	env := func(name, value string) func(*verifier.Statement) {
		return func(st *verifier.Statement) {
			st.Predicate.BuildDefinition.ExternalParameters.Env = map[string]string{name: value}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*verifier.Statement)
		want   string // rules
		text   string // in a finding
	}{
		{"nothing", func(*verifier.Statement) {}, "", ""},
		{"latest", func(st *verifier.Statement) { st.Predicate.Version = "Latest" }, RuleVersion, `"Latest"`},
		{"sequence", func(st *verifier.Statement) { st.Predicate.Sequence = 1 << 52 }, RuleSequence, "above 4503599627370496"},
		{"seconds as sequence", func(st *verifier.Statement) { st.Predicate.Sequence = 1763600000 }, "", ""},
		{"no timeout", func(st *verifier.Statement) {
			st.Predicate.BuildDefinition.ExternalParameters.Stages[0].TimeoutSeconds = 0
		}, RuleTimeout, "stage train"},
		{"two stages", func(st *verifier.Statement) {
			p := &st.Predicate.BuildDefinition.ExternalParameters
			p.Stages = append(p.Stages, verifier.Stage{Name: "pack", Argv: []string{"cp"}, TimeoutSeconds: 1})
		}, RuleArtifacts, "of 2 stages these declare no artifacts, so nobody can say which stage differs first: train"},
		{"two stages with artifacts", func(st *verifier.Statement) {
			p := &st.Predicate.BuildDefinition.ExternalParameters
			p.Stages[0].Artifacts = []string{"w"}
			p.Stages = append(p.Stages, verifier.Stage{Name: "pack", Argv: []string{"cp"}, TimeoutSeconds: 1})
		}, "", ""},
		{"epoch of words", env("SOURCE_DATE_EPOCH", "today"), RuleEpoch, `"today"`},
		{"epoch below zero", env("SOURCE_DATE_EPOCH", "-1"), RuleEpoch, "-1"},
		{"epoch of the future", env("SOURCE_DATE_EPOCH", "1800000000"), RuleEpoch, "later than the ledger"},
		{"threads", env("OPENBLAS_NUM_THREADS", "8"), RuleThreads, "OPENBLAS_NUM_THREADS=8"},
		{"plain http", dependency("http://data.example/x"), RuleInsecureURI, "dependency environment"},
		{"git protocol", dependency("git://git.example/x"), RuleInsecureURI, ""},
		{"a mirror", dependency("https://a.example/x", "http://b.example/x"), RuleInsecureURI, "b.example"},
		{"image by tag", dependency("oci://registry.example/ml/base:latest"), RuleMutableURI, `the tag "latest"`},
		{"image by release tag", dependency("oci://registry.example/ml/base:1.2"), RuleMutableURI, `the tag "1.2"`},
		{"image by digest", dependency("oci://registry.example:5000/ml/base:1.2@sha256:" + strings.Repeat("a", 64)), "", ""},
		{"image", dependency("oci://registry.example:5000/ml/base"), "", ""},
		{"a branch", dependency("https://hub.example/acme/base/resolve/main/w.bin"), RuleMutableURI, `"main"`},
		{"a branch of git", dependency("git+https://git.example/x?ref=master"), RuleMutableURI, `"master"`},
		{"a release", dependency("https://hub.example/acme/domain/v1.2/latest.bin"), "", ""},
		{"a local place", dependency("file:/home/acme/main"), "", ""},
		{"ssh", dependency("git+ssh://git@git.example/acme/recipe"), "", ""},
	} {
		st := ledger(train("cp", "/in/x", "/out/x"))
		c.change(&st)
		found := Check(st, nil)
		if got := strings.Join(rules(found), " "); got != c.want || !strings.Contains(fmt.Sprint(found), c.text) {
			t.Errorf("%s: %q, want %q with %q in it: %v", c.name, got, c.want, c.text, found)
		}
	}
}

// TestExamples checks the stages of the examples, as their demo.sh gives them
// to ledger new.
func TestExamples(t *testing.T) {
	stage := regexp.MustCompile(`--stage '([a-z]+): ([^']+)'`)
	variable := regexp.MustCompile(`--env ([A-Z_]+)=(\w+)`)
	text, err := os.ReadFile("../../examples/steps.sh")
	if err != nil {
		t.Fatal(err)
	}
	// What steps.sh pins for all who use it.
	pinned := regexp.MustCompile(`([A-Z_]+)=(\w+)`)
	_, repeat, _ := strings.Cut(string(text), "for variable in ")
	repeat, _, found := strings.Cut(repeat, "; do")
	if !found || !pinned.MatchString(repeat) {
		t.Fatal("examples/steps.sh pins nothing")
	}
	torch := debian("python3-torch", "python3-numpy", "libdnnl2", "libblas3")
	for _, c := range []struct {
		example string
		have    []lock.Package
		want    []string // rules of each stage beside timeout and epoch
	}{
		{"langid", nil, []string{"", RuleThreads}}, // the second is the one that shall not repeat
		{"langid", []lock.Package{{Ecosystem: lock.Deb, Name: "fasttext", Version: "1"}}, []string{"", RuleThreads}},
		{"torch", nil, []string{""}},
		{"torch", torch, []string{""}},
	} {
		text, err := os.ReadFile("../../examples/" + c.example + "/demo.sh")
		if err != nil {
			t.Fatal(err)
		}
		env := map[string]string{}
		for _, m := range variable.FindAllStringSubmatch(string(text), -1) {
			env[m[1]] = m[2]
		}
		if strings.Contains(string(text), "${repeat[@]") {
			for _, m := range pinned.FindAllStringSubmatch(repeat, -1) {
				env[m[1]] = m[2]
			}
		}
		stages := stage.FindAllStringSubmatch(string(text), -1)
		if len(stages) < len(c.want) {
			t.Fatalf("examples/%s/demo.sh has %d stages, want %d", c.example, len(stages), len(c.want))
		}
		for i, want := range c.want {
			st := ledger(verifier.Stage{Name: stages[i][1], Argv: strings.Fields(stages[i][2])})
			st.Predicate.BuildDefinition.ExternalParameters.Env = env
			got := slices.DeleteFunc(rules(Check(st, c.have)), func(r string) bool { return r == RuleTimeout || r == RuleEpoch })
			if strings.Join(got, " ") != want {
				t.Errorf("examples/%s, stage %q: %q, want %q", c.example, stages[i][2], got, want)
			}
		}
	}
}

// Hostile ledgers: long, deep, with control characters.
func FuzzCheck(f *testing.F) {
	f.Add("sh", "-c", "echo $(date `mktemp` \"$(sort\" ')' | tar cf x")
	f.Add("env", "A=b", "\x1b[2J")
	f.Add("bash", "-c", strings.Repeat("$(", 10000))
	f.Fuzz(func(t *testing.T, a, b, script string) {
		st := ledger(verifier.Stage{Name: "x\x1b", Argv: []string{a, b, script}})
		st.Predicate.BuildDefinition.ResolvedDependencies = []verifier.Dependency{{Name: b, URI: "oci://" + script}, {Name: a, URI: script}}
		for _, f := range Check(st, []lock.Package{{Ecosystem: a, Name: b, Version: script}}) {
			if s := f.String(); strings.ContainsAny(s, "\n\x1b\x00") || len(s) > 2000 {
				t.Fatalf("%q", s)
			}
		}
	})
}
