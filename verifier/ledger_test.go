package verifier_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func ledgerKey(t testing.TB) dsse.PublicKey { return newKey(t, dsse.Ed25519).Public() }

func TestLedgerRoundTrip(t *testing.T) {
	want := statement(t, ledgerKey(t))
	data := payload(t, want)
	l, err := verifier.ParseLedger(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Statement(); !reflect.DeepEqual(got, want) {
		t.Errorf("Statement() = %+v, want %+v", got, want)
	}
	if got := payload(t, l.Statement()); !bytes.Equal(got, data) {
		t.Errorf("printed again: %s, want %s", got, data)
	}
	if !hashpipe.SumBytes(data).Is(l.Digest()) {
		t.Errorf("Digest() = %s, want the SHA-256 of the payload", l.Digest())
	}
	data[0] = 'X'
	if l.Payload()[0] != '{' {
		t.Error("writing into the parsed bytes changed the ledger")
	}
}

// TestLedgerText holds the format: a change of it is a new predicate type.
func TestLedgerText(t *testing.T) {
	const want = `{"_type":"https://in-toto.io/Statement/v1",` +
		`"subject":[{"name":"source","uri":"git+https://git.example/acme/langid","digest":{"gitCommit":"4b825dc642cb6eb9a060e54bf8d69288fbee4904"}}],` +
		`"predicateType":"https://github.com/openclaw/clawfs/build-ledger/v1",` +
		`"predicate":{"model":"acme/langid","version":"1.2.0","sequence":12,"publisher":{"keyid":"%s"},"issuedAt":"2026-11-23T11:00:00Z",` +
		`"buildDefinition":{"buildType":"https://github.com/openclaw/clawfs/buildtypes/stages/v1",` +
		`"externalParameters":{"env":{"PYTHONHASHSEED":"0","SOURCE_DATE_EPOCH":"1763600000"},` +
		`"stages":[{"name":"train","argv":["fasttext","supervised","-thread","1","-input","/in/dataset/corpus/train.txt","-output","/out/langid"],"workdir":"/in/source","timeoutSeconds":60}],` +
		`"outputs":[{"name":"langid.bin","path":"langid.bin"}]},` +
		`"resolvedDependencies":[{"name":"source","digest":{"gitCommit":"4b825dc642cb6eb9a060e54bf8d69288fbee4904","clawfsTree1":"baf99b9ff27559a791c8f1ec16eadd8d617b2cb74aae714064051c878a9f226e"}},` +
		`{"name":"environment","uri":"oci://registry.example/ml/base","digest":{"sha256":"6794a0f2bd0cbfa2d0f2d7ad0b2bd1b53b4d6c8db4d8e07f4f2d1a1a0c1d88fc"},"mediaType":"application/vnd.oci.image.manifest.v1+json"},` +
		`{"name":"lockfile","uri":"pkg:generic/requirements.lock","digest":{"sha256":"b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5"}},` +
		`{"name":"dataset:corpus","digest":{"clawfsTree1":"3aa5e4cda1e698aef4cc4bcc065cf0472484d9ec07350ae566347fdef8205948"},"annotations":{"files":"1000","bytes":"2890"}}]},` +
		`"platform":{"os":"linux","arch":"amd64","cpuFeatures":["avx2"],"accelerator":"none"}}}`
	k := ledgerKey(t)
	if got := string(payload(t, statement(t, k))); got != fmt.Sprintf(want, k.ID()) {
		t.Errorf("Payload() = %s\nwant %s", got, fmt.Sprintf(want, k.ID()))
	}
}

func TestLedgerAccessors(t *testing.T) {
	s := statement(t, ledgerKey(t))
	if got := s.Source().Digest.GitCommit; got != commit {
		t.Errorf("Source() has commit %s, want %s", got, commit)
	}
	if got := s.Environment().Digest.SHA256.String(); got != image {
		t.Errorf("Environment() has digest %s, want %s", got, image)
	}
	if lock, ok := s.Lockfile(); !ok || lock.URI != "pkg:generic/requirements.lock" {
		t.Errorf("Lockfile() = %v, %v", lock, ok)
	}
	if sets := s.Datasets(); len(sets) != 1 || sets["corpus"].Annotations.Files != 1000 {
		t.Errorf("Datasets() = %v, want corpus of 1000 files", sets)
	}
	stage := verifier.Stage{Env: map[string]string{"PYTHONHASHSEED": "1"}}
	if env := s.StageEnv(stage); env["PYTHONHASHSEED"] != "1" || env["SOURCE_DATE_EPOCH"] != "1763600000" {
		t.Errorf("StageEnv() = %v, want the stage's value over the build's", env)
	}
	if got := s.Predicate.BuildDefinition.ExternalParameters.Env["PYTHONHASHSEED"]; got != "0" {
		t.Errorf("StageEnv() wrote %q into the build's environment", got)
	}
	if _, ok := (verifier.Statement{}).Lockfile(); ok || len((verifier.Statement{}).Datasets()) != 0 {
		t.Error("the zero Statement has dependencies")
	}
}

// TestLedgerTextRefused changes the text of a good ledger: each of these is
// refused by the decoder.
func TestLedgerTextRefused(t *testing.T) {
	good := string(payload(t, statement(t, ledgerKey(t))))
	tests := []struct{ name, old, new, want string }{
		{"null", `"sequence":12`, `"sequence":null`, "null is not a value"},
		{"null in an optional field", `"uri":"git+https://git.example/acme/langid"`, `"uri":null`, `at "/subject/0/uri": null`},
		{"null digest", `"gitCommit":"` + commit + `"}}]`, `"gitCommit":"` + commit + `","sha256":null}}]`, "null is not a value"},
		{"unknown digest algorithm", `{"gitCommit":"` + commit + `"}`, `{"gitCommit":"` + commit + `","sha512":"00"}`, "sha512"},
		{"digest in upper case", `"sha256":"6794a0`, `"sha256":"6794A0`, "sha256"},
		{"digest cut short", `"sha256":"6794a0`, `"sha256":"6794`, "sha256"},
		{"digest of zeros", image, strings.Repeat("0", 64), "sha256"},
		{"sequence as a fraction", `"sequence":12`, `"sequence":12.0`, "sequence"},
		{"sequence with an exponent", `"sequence":12`, `"sequence":1e2`, "sequence"},
		{"sequence as a string", `"sequence":12`, `"sequence":"12"`, "sequence"},
		{"sequence beyond 2^63", `"sequence":12`, `"sequence":9223372036854775808`, "sequence"},
		{"sequence beyond 2^53", `"sequence":12`, `"sequence":9007199254740992`, "2^53"},
		{"files as a number", `"files":"1000"`, `"files":1000`, "files"},
		{"files with a leading zero", `"files":"1000"`, `"files":"01000"`, "files"},
		{"files with a sign", `"files":"1000"`, `"files":"+1000"`, "files"},
		{"files in hex", `"files":"1000"`, `"files":"0x10"`, "files"},
		{"bytes missing", `,"bytes":"2890"`, ``, "at least one file and one byte"},
		{"empty annotations", `{"files":"1000","bytes":"2890"}`, `{}`, "leave the object out"},
		{"empty mirrors", `{"files":"1000"`, `{"mirrors":[],"files":"1000"`, "mirrors is missing or empty"},
		{"empty limits", `{"name":"train",`, `{"name":"train","limits":{},`, "at least one limit"},
		{"empty artifacts", `{"name":"train",`, `{"name":"train","artifacts":[],`, "missing or empty"},
		{"time with an offset", `11:00:00Z`, `11:00:00+00:00`, "issuedAt"},
		{"time in lower case", `11:00:00Z`, `11:00:00z`, "issuedAt"},
		{"time with a fraction", `11:00:00Z`, `11:00:00.5Z`, "issuedAt"},
		{"time that is none", `2026-11-23T11`, `2026-13-23T11`, "issuedAt"},
		{"time before computers", `2026-11-23T11`, `0001-01-01T00`, "issuedAt"},
		{"issuedAt missing", `"issuedAt":"2026-11-23T11:00:00Z",`, ``, "issuedAt is missing"},
		{"stage with the network", `{"name":"train",`, `{"name":"train","network":"host",`, "network"},
		{"output with a size", `"path":"langid.bin"`, `"path":"langid.bin","size":3`, "size"},
		{"argv as a string", `["fasttext"`, `"fasttext",["x"`, "ledger:"},
		{"duplicate variable", `"PYTHONHASHSEED":"0"`, `"PYTHONHASHSEED":"0","PYTHONHASHSEED":"1"`, "duplicate"},
		{"duplicate by escape", `"model":"acme/langid"`, `"mod\u0065l":"acme/x","model":"acme/langid"`, "duplicate"},
		{"invalid UTF-8", `"-thread"`, "\"\xff\"", "UTF-8"},
		{"half a surrogate", `"-thread"`, `"\ud800"`, "surrogate"},
		{"byte order mark", `{"_type"`, "\ufeff" + `{"_type"`, "ledger:"},
		{"a comment", `{"_type"`, `/* */{"_type"`, "ledger:"},
		{"a second value", `{"_type"`, `{}{"_type"`, "ledger:"},
		{"an array around", `{"_type"`, `[{"_type"`, "ledger:"},
		{"33 levels", `"argv":["fasttext"`, `"argv":["fasttext",` + strings.Repeat("[", 33) + strings.Repeat("]", 33), "32 levels"},
	}
	for _, tt := range tests {
		if !strings.Contains(good, tt.old) {
			t.Fatalf("%s: %q is not in the ledger", tt.name, tt.old)
		}
		l, err := verifier.ParseLedger([]byte(strings.Replace(good, tt.old, tt.new, 1)))
		var r *verifier.Refusal
		if !errors.As(err, &r) || r.Reason != verifier.ReasonMalformed || !strings.Contains(err.Error(), tt.want) || !l.IsZero() {
			t.Errorf("%s: ParseLedger = %v, want a refusal with %q", tt.name, err, tt.want)
		}
	}
	many := `{"subject":[` + strings.Repeat(`{},`, 300_000) + `{}]}`
	if _, err := verifier.ParseLedger([]byte(many)); err == nil || !strings.Contains(err.Error(), "JSON tokens") {
		t.Errorf("300,000 subjects: %v, want a refusal by their number", err)
	}
	for _, text := range []string{"", "null", "{}", "[]", "0", `""`, " "} {
		if _, err := verifier.ParseLedger([]byte(text)); err == nil {
			t.Errorf("ParseLedger(%q) was accepted", text)
		}
	}
}

// TestLedgerRefused changes one thing of a good ledger, in Go's shape. Payload
// refuses to write what ParseLedger would refuse to read.
func TestLedgerRefused(t *testing.T) {
	type st = *verifier.Statement
	params := func(s st) *verifier.ExternalParameters {
		return &s.Predicate.BuildDefinition.ExternalParameters
	}
	dep := func(s st, i int) *verifier.Dependency {
		return &s.Predicate.BuildDefinition.ResolvedDependencies[i]
	}
	add := func(s st, name string, d verifier.DigestSet, a *verifier.Annotations) {
		deps := &s.Predicate.BuildDefinition.ResolvedDependencies
		*deps = append(*deps, verifier.Dependency{Name: name, Digest: d, Annotations: a})
	}
	const source, environment, lockfile, dataset = 0, 1, 2, 3
	sum := digest(t, image)
	sha256Commit := verifier.GitCommit(strings.Repeat("4b", 32))
	tests := []struct {
		name   string
		change func(s st)
		want   string
	}{
		{"another _type", func(s st) { s.Type = "https://in-toto.io/Statement/v0.1" }, "_type"},
		{"another predicateType", func(s st) { s.PredicateType = "https://slsa.dev/provenance/v1" }, "predicateType"},
		{"no subject", func(s st) { s.Subject = nil }, "got 0 subjects"},
		{"two subjects", func(s st) { s.Subject = append(s.Subject, s.Subject[0]) }, "got 2 subjects"},
		{"subject of another name", func(s st) { s.Subject[0].Name = "weights" }, "expected the name"},
		{"subject with a file's digest", func(s st) { s.Subject[0].Digest.SHA256 = sum }, "gitCommit alone"},
		{"subject without a digest", func(s st) { s.Subject[0].Digest.GitCommit = "" }, "gitCommit"},
		{"subject with a space in its URI", func(s st) { s.Subject[0].URI = "git+https://x y" }, "printable ASCII"},
		{"subject with an escape in its URI", func(s st) { s.Subject[0].URI = "git+https://x\x1b[2J" }, "printable ASCII"},

		{"model without a publisher", func(s st) { s.Predicate.Model = "langid" }, "publisher/name"},
		{"model in upper case", func(s st) { s.Predicate.Model = "Acme/langid" }, "publisher/name"},
		{"model that climbs", func(s st) { s.Predicate.Model = "acme/../other" }, "publisher/name"},
		{"model that is a pattern", func(s st) { s.Predicate.Model = "acme/*" }, "publisher/name"},
		{"model with a line break", func(s st) { s.Predicate.Model = "acme/langid\n" }, "publisher/name"},
		{"model with an empty part", func(s st) { s.Predicate.Model = "acme//langid" }, "publisher/name"},
		{"model too long", func(s st) { s.Predicate.Model = "acme/" + strings.Repeat("x", 97) }, "publisher/name"},
		{"no version", func(s st) { s.Predicate.Version = "" }, "version"},
		{"version with a space", func(s st) { s.Predicate.Version = "1 0" }, "version"},
		{"sequence 0", func(s st) { s.Predicate.Sequence = 0 }, "sequence"},
		{"sequence -1", func(s st) { s.Predicate.Sequence = -1 }, "sequence"},
		{"sequence 2^53", func(s st) { s.Predicate.Sequence = 1 << 53 }, "sequence"},
		{"no key id", func(s st) { s.Predicate.Publisher.KeyID = "" }, "keyid"},
		{"key id in upper case", func(s st) { s.Predicate.Publisher.KeyID = dsse.KeyID(strings.Repeat("AB", 32)) }, "keyid"},
		{"key id of 40 digits", func(s st) { s.Predicate.Publisher.KeyID = commit }, "keyid"},
		{"no time", func(s st) { s.Predicate.IssuedAt = verifier.Time{} }, "not set"},
		{"a time after 9999", func(s st) {
			s.Predicate.IssuedAt = verifier.At(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))
		}, "year"},

		{"no os", func(s st) { s.Predicate.Platform.OS = "" }, "platform: os"},
		{"no arch", func(s st) { s.Predicate.Platform.Arch = "" }, "platform: arch"},
		{"no accelerator", func(s st) { s.Predicate.Platform.Accelerator = "" }, "platform: accelerator"},
		{"empty features", func(s st) { s.Predicate.Platform.CPUFeatures = []string{} }, ""},
		{"a feature twice", func(s st) { s.Predicate.Platform.CPUFeatures = []string{"avx2", "avx2"} }, "twice"},
		{"a feature with a space", func(s st) { s.Predicate.Platform.CPUFeatures = []string{"avx 2"} }, "cpuFeatures"},

		{"another buildType", func(s st) { s.Predicate.BuildDefinition.BuildType = "x" }, "buildType"},
		{"no stages", func(s st) { params(s).Stages = nil }, "stages is missing or empty"},
		{"257 stages", func(s st) {
			params(s).Stages = nil
			for i := range 257 {
				params(s).Stages = append(params(s).Stages, verifier.Stage{Name: fmt.Sprint(i), Argv: []string{"x"}})
			}
		}, "at most 256"},
		{"stage without a name", func(s st) { params(s).Stages[0].Name = "" }, "stages: expected a name"},
		{"stage named ..", func(s st) { params(s).Stages[0].Name = ".." }, "stages: expected a name"},
		{"stage that is a path", func(s st) { params(s).Stages[0].Name = "a/b" }, "stages: expected a name"},
		{"a stage twice", func(s st) { params(s).Stages = append(params(s).Stages, params(s).Stages[0]) }, "twice"},
		{"no argv", func(s st) { params(s).Stages[0].Argv = nil }, "argv is missing or empty"},
		{"no program", func(s st) { params(s).Stages[0].Argv = []string{""} }, "program's name is empty"},
		{"argument with a NUL", func(s st) { params(s).Stages[0].Argv[1] = "a\x00b" }, "NUL"},
		{"argument too long", func(s st) { params(s).Stages[0].Argv[1] = strings.Repeat("x", 64<<10+1) }, "at most 65536 bytes"},
		{"relative workdir", func(s st) { params(s).Stages[0].WorkDir = "in/source" }, "workdir"},
		{"workdir that climbs", func(s st) { params(s).Stages[0].WorkDir = "/in/../etc" }, "workdir"},
		{"workdir with a line break", func(s st) { params(s).Stages[0].WorkDir = "/in\n" }, "workdir"},
		{"workdir with a DEL", func(s st) { params(s).Stages[0].WorkDir = "/in\x7f" }, "workdir"},
		{"4097 arguments", func(s st) { params(s).Stages[0].Argv = slices.Repeat([]string{"x"}, 4097) }, "argv: expected at most 4096"},
		{"negative timeout", func(s st) { params(s).Stages[0].TimeoutSeconds = -1 }, "timeoutSeconds"},
		{"timeout beyond time.Duration", func(s st) { params(s).Stages[0].TimeoutSeconds = 1 << 40 }, "timeoutSeconds"},
		{"variable with =", func(s st) { params(s).Env["A=B"] = "" }, "env: expected a name"},
		{"variable without a name", func(s st) { params(s).Env[""] = "" }, "env: expected a name"},
		{"variable that starts with a digit", func(s st) { params(s).Stages[0].Env = map[string]string{"1A": ""} }, "env: expected a name"},
		{"value with a NUL", func(s st) { params(s).Env["PYTHONHASHSEED"] = "\x00" }, "NUL"},

		{"no outputs", func(s st) { params(s).Outputs = nil }, "outputs is missing or empty"},
		{"output without a name", func(s st) { params(s).Outputs[0].Name = "" }, "outputs: name"},
		{"output without a path", func(s st) { params(s).Outputs[0].Path = "" }, "outputs: path"},
		{"absolute output", func(s st) { params(s).Outputs[0].Path = "/etc/passwd" }, "outputs: path"},
		{"output that climbs", func(s st) { params(s).Outputs[0].Path = "a/../../b" }, "outputs: path"},
		{"output that is not clean", func(s st) { params(s).Outputs[0].Path = "a//b" }, "outputs: path"},
		{"output name that climbs", func(s st) { params(s).Outputs[0].Name = "../b" }, "outputs: name"},
		{"output name with an escape", func(s st) { params(s).Outputs[0].Name = "a\x1b[2J" }, "control byte"},
		{"an output name twice", func(s st) {
			params(s).Outputs = append(params(s).Outputs, verifier.Output{Name: "langid.bin", Path: "other"})
		}, "twice"},
		{"an output path twice", func(s st) {
			params(s).Outputs = append(params(s).Outputs, verifier.Output{Name: "other", Path: "langid.bin"})
		}, "twice"},
		{"an output that is a directory", func(s st) {
			params(s).Outputs = append(params(s).Outputs, verifier.Output{Name: "other", Path: "langid.bin/x"})
		}, "is a file and the directory"},

		{"no dependencies", func(s st) { s.Predicate.BuildDefinition.ResolvedDependencies = nil }, "resolvedDependencies is missing or empty"},
		{"no source", func(s st) {
			*dep(s, source) = *dep(s, lockfile)
			*dep(s, lockfile) = *dep(s, dataset)
			dep(s, dataset).Name = "dataset:b"
		}, `"source" is missing`},
		{"no environment", func(s st) { dep(s, environment).Name = "dataset:image" }, "mediaType belongs"},
		{"a dependency twice", func(s st) { *dep(s, lockfile) = *dep(s, dataset) }, "twice"},
		{"an unknown dependency", func(s st) { dep(s, lockfile).Name = "weights" }, "expected source, environment, lockfile, or a name after dataset:"},
		{"another commit", func(s st) { dep(s, source).Digest.GitCommit = verifier.GitCommit(commit[:39] + "5") }, "expected the subject's gitCommit"},
		{"a commit in upper case", func(s st) { dep(s, source).Digest.GitCommit = "4B825DC642CB6EB9A060E54BF8D69288FBEE4904" }, "lower-case hex"},
		{"a commit cut short", func(s st) { dep(s, source).Digest.GitCommit = verifier.GitCommit(commit[:7]) }, "lower-case hex"},
		{"a commit of zeros", func(s st) { dep(s, source).Digest.GitCommit = verifier.GitCommit(strings.Repeat("0", 40)) }, "lower-case hex"},
		{"a SHA-1 commit without the tree", func(s st) { dep(s, source).Digest.ClawfsTree1 = hashpipe.Digest{} }, "needs the digest clawfsTree1"},
		{"a source with a sha256", func(s st) { dep(s, source).Digest.SHA256 = sum }, "gitCommit and clawfsTree1 and no other"},
		{"a source without a commit", func(s st) { dep(s, source).Digest.GitCommit = "" }, "gitCommit"},
		{"a source's size without its tree", func(s st) {
			s.Subject[0].Digest.GitCommit = sha256Commit
			dep(s, source).Digest = verifier.DigestSet{GitCommit: sha256Commit}
			dep(s, source).Annotations = &verifier.Annotations{Files: 1, Bytes: 1}
		}, "without the digest clawfsTree1"},
		{"an environment without a digest", func(s st) { dep(s, environment).Digest = verifier.DigestSet{} }, "sha256 alone"},
		{"an environment with a tree", func(s st) { dep(s, environment).Digest.ClawfsTree1 = sum }, "sha256 alone"},
		{"an environment that is an index", func(s st) { dep(s, environment).MediaType = "application/vnd.oci.image.index.v1+json" }, "mediaType: expected"},
		{"an environment without a media type", func(s st) { dep(s, environment).MediaType = "" }, "mediaType: expected"},
		{"an environment with a size", func(s st) { dep(s, environment).Annotations = &verifier.Annotations{Files: 1, Bytes: 1} }, "belong to trees only"},
		{"a lockfile with a commit", func(s st) { dep(s, lockfile).Digest.GitCommit = commit }, "sha256 alone"},
		{"a lockfile without a digest", func(s st) { dep(s, lockfile).Digest = verifier.DigestSet{} }, "sha256 alone"},
		{"a lockfile with a media type", func(s st) { dep(s, lockfile).MediaType = "text/plain" }, "mediaType belongs"},
		{"a dataset by file digest", func(s st) { dep(s, dataset).Digest = verifier.DigestSet{SHA256: sum} }, "clawfsTree1 alone"},
		{"a dataset with two digests", func(s st) { dep(s, dataset).Digest.SHA256 = sum }, "clawfsTree1 alone"},
		{"a dataset without its size", func(s st) { dep(s, dataset).Annotations = nil }, "annotations: expected at least one file and one byte"},
		{"a dataset without files", func(s st) { dep(s, dataset).Annotations.Files = 0 }, "at least one file"},
		{"a dataset of negative bytes", func(s st) { dep(s, dataset).Annotations.Bytes = -5 }, "one byte"},
		{"a dataset of 2^53 bytes", func(s st) { dep(s, dataset).Annotations.Bytes = 1 << 53 }, "one byte"},
		{"a dataset of 2^53 files", func(s st) { dep(s, dataset).Annotations.Files = 1 << 53 }, "one file"},
		{"a dataset without a name", func(s st) { dep(s, dataset).Name = "dataset:" }, "expected a name of letters"},
		{"a dataset named ..", func(s st) { dep(s, dataset).Name = "dataset:.." }, "expected a name of letters"},
		{"a dataset that is a path", func(s st) { dep(s, dataset).Name = "dataset:a/b" }, "expected a name of letters"},

		{"a source with a name", func(s st) { add(s, "source:x", verifier.DigestSet{GitCommit: commit, ClawfsTree1: sum}, nil) }, "expected source, environment"},
		{"a dataset kind alone", func(s st) { add(s, "dataset", verifier.DigestSet{ClawfsTree1: sum}, nil) }, "expected source, environment"},
		{"a model by a hash", func(s st) { add(s, "model:base", verifier.DigestSet{SHA256: sum}, nil) }, "never by a hash"},
		{"a model by claim and hash", func(s st) { add(s, "model:base", verifier.DigestSet{ClawfsClaim1: sum, SHA256: sum}, nil) }, "never by a hash"},
		{"a model with a size", func(s st) {
			add(s, "model:base", verifier.DigestSet{ClawfsClaim1: sum}, &verifier.Annotations{Files: 1, Bytes: 1})
		}, "belong to trees only"},
		{"a model that is a path", func(s st) { add(s, "model:../base", verifier.DigestSet{ClawfsClaim1: sum}, nil) }, "expected a name of letters"},
		{"a dataset by claim", func(s st) { dep(s, dataset).Digest = verifier.DigestSet{ClawfsClaim1: sum} }, "clawfsTree1 alone"},
		{"an environment by claim too", func(s st) { dep(s, environment).Digest.ClawfsClaim1 = sum }, "sha256 alone"},
		{"a submodule that climbs", func(s st) {
			add(s, "submodule:../x", verifier.DigestSet{GitCommit: commit, ClawfsTree1: sum}, nil)
		}, "submodule:../x"},
		{"a submodule without its tree", func(s st) { add(s, "submodule:vendor/x", verifier.DigestSet{GitCommit: commit}, nil) }, "needs the digest clawfsTree1"},
		{"a large file that is absolute", func(s st) {
			add(s, "lfs:/etc/passwd", verifier.DigestSet{SHA256: sum}, &verifier.Annotations{Bytes: 1})
		}, "lfs:/etc/passwd"},
		{"a large file without its size", func(s st) { add(s, "lfs:w.bin", verifier.DigestSet{SHA256: sum}, nil) }, "bytes of at least 1"},
		{"a large file of several files", func(s st) {
			add(s, "lfs:w.bin", verifier.DigestSet{SHA256: sum}, &verifier.Annotations{Files: 2, Bytes: 1})
		}, "and no files"},
		{"an empty mirror", func(s st) { dep(s, dataset).Annotations.Mirrors = []string{""} }, "one is empty"},
		{"a mirror twice", func(s st) { dep(s, dataset).Annotations.Mirrors = []string{"x:y", "x:y"} }, "twice"},
		{"a mirror with an escape", func(s st) { dep(s, dataset).Annotations.Mirrors = []string{"https://x\x1b[2J"} }, "printable ASCII"},
		{"17 mirrors", func(s st) {
			for i := range 17 {
				dep(s, dataset).Annotations.Mirrors = append(dep(s, dataset).Annotations.Mirrors, fmt.Sprint("x:", i))
			}
		}, "at most 16"},
		{"an unknown lock format", func(s st) { dep(s, lockfile).Annotations = &verifier.Annotations{Format: "poetry", Extras: "refused"} }, "format: expected one of"},
		{"a lock format without a word on extras", func(s st) { dep(s, lockfile).Annotations = &verifier.Annotations{Format: "dpkg"} }, "extras: expected"},
		{"extras without a format", func(s st) { dep(s, lockfile).Annotations = &verifier.Annotations{Extras: "allowed"} }, "format: expected one of"},
		{"a dataset with a lock format", func(s st) { dep(s, dataset).Annotations.Format = "dpkg" }, "lockfile only"},

		{"a stage with a negative limit", func(s st) { params(s).Stages[0].Limits = &verifier.StageLimits{MemoryBytes: -1} }, "memoryBytes"},
		{"a stage with endless CPU time", func(s st) { params(s).Stages[0].Limits = &verifier.StageLimits{CPUSeconds: 1 << 40} }, "cpuSeconds"},
		{"an artifact that climbs", func(s st) { params(s).Stages[0].Artifacts = []string{"../x"} }, "artifacts"},
		{"an artifact twice", func(s st) { params(s).Stages[0].Artifacts = []string{"x", "x"} }, "twice"},
		{"dispatch of another word", func(s st) { s.Predicate.Platform.CPUDispatch = "any" }, "cpuDispatch"},
		{"exact dispatch of nothing", func(s st) {
			s.Predicate.Platform.CPUDispatch, s.Predicate.Platform.CPUFeatures = verifier.ExactDispatch, nil
		}, "there are none"},
	}
	for _, tt := range tests {
		s := statement(t, ledgerKey(t))
		tt.change(&s)
		if tt.want == "" { // what encoding cannot express is not written
			if data, err := s.Payload(); err != nil || strings.Contains(string(data), "cpuFeatures") {
				t.Errorf("%s: Payload = %s, %v, want the empty list left out", tt.name, data, err)
			}
			continue
		}
		if data, err := s.Payload(); err == nil || !strings.Contains(err.Error(), tt.want) || data != nil {
			t.Errorf("%s: Payload = %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestLedgerAccepts(t *testing.T) {
	type st = *verifier.Statement
	deps := func(s st) *[]verifier.Dependency { return &s.Predicate.BuildDefinition.ResolvedDependencies }
	for name, change := range map[string]func(s st){
		"no lockfile, no dataset": func(s st) { *deps(s) = (*deps(s))[:2] },
		"no features":             func(s st) { s.Predicate.Platform.CPUFeatures = nil },
		"every kind and field": func(s st) {
			sum := digest(t, image)
			*deps(s) = append(*deps(s),
				verifier.Dependency{Name: "model:base", URI: "file:///models/base", Digest: verifier.DigestSet{ClawfsClaim1: sum}},
				verifier.Dependency{Name: "submodule:vendor/x", Digest: verifier.DigestSet{GitCommit: commit, ClawfsTree1: sum}},
				verifier.Dependency{Name: "lfs:data/w.bin", Digest: verifier.DigestSet{SHA256: sum}, Annotations: &verifier.Annotations{Bytes: 1, Mirrors: []string{"https://b.example/w"}}})
			(*deps(s))[2].Annotations = &verifier.Annotations{Format: "requirements", Extras: verifier.ExtrasRefused}
			s.Predicate.Platform.CPUDispatch = verifier.ExactDispatch
			g := &s.Predicate.BuildDefinition.ExternalParameters.Stages[0]
			g.Artifacts, g.Limits = []string{"features.npz"}, &verifier.StageLimits{CPUSeconds: 60}
		},
		"no environment set": func(s st) { s.Predicate.BuildDefinition.ExternalParameters.Env = nil },
		"an empty argument": func(s st) {
			s.Predicate.BuildDefinition.ExternalParameters.Stages[0].Argv = []string{"x", "", "é\n"}
		},
		"as many and as long arguments as there may be": func(s st) {
			argv := slices.Repeat([]string{""}, 4096)
			argv[0], argv[1] = "x", strings.Repeat("x", 64<<10)
			s.Predicate.BuildDefinition.ExternalParameters.Stages[0].Argv = argv
		},
		"the largest dataset": func(s st) {
			(*deps(s))[3].Annotations = &verifier.Annotations{Files: 1<<53 - 1, Bytes: 1<<53 - 1}
		},
		"outputs in folders": func(s st) {
			s.Predicate.BuildDefinition.ExternalParameters.Outputs = []verifier.Output{{Name: "a/b", Path: "c/d"}, {Name: "a/c", Path: "c/e"}}
		},
		"a SHA-256 commit alone": func(s st) {
			d := verifier.DigestSet{GitCommit: verifier.GitCommit(strings.Repeat("4b", 32))}
			s.Subject[0].Digest, (*deps(s))[0].Digest = d, d
		},
		"the source's size": func(s st) { (*deps(s))[0].Annotations = &verifier.Annotations{Files: 3, Bytes: 9} },
		"a model of a team": func(s st) { s.Predicate.Model = "acme/team/langid" },
		"the last sequence": func(s st) { s.Predicate.Sequence = 1<<53 - 1 },
	} {
		s := statement(t, ledgerKey(t))
		change(&s)
		data, err := s.Payload()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		l, err := verifier.ParseLedger(data)
		if err != nil || !reflect.DeepEqual(l.Statement(), s) {
			t.Errorf("%s: parsed as %+v, %v, want %+v", name, l.Statement(), err, s)
		}
	}
}

func TestEmptyFeaturesAreRefused(t *testing.T) {
	good := string(payload(t, statement(t, ledgerKey(t))))
	if _, err := verifier.ParseLedger([]byte(strings.Replace(good, `["avx2"]`, `[]`, 1))); err == nil || !strings.Contains(err.Error(), "cpuFeatures is empty") {
		t.Errorf("ParseLedger with cpuFeatures [] = %v, want a refusal", err)
	}
}

// FuzzLedger: what parses has one printed form, which parses to the same.
func FuzzLedger(f *testing.F) {
	good := payload(f, statement(f, ledgerKey(f)))
	f.Add(good)
	f.Add([]byte(strings.ReplaceAll(string(good), ",", " ,\n")))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"source"}],"predicate":{"sequence":1e9}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := verifier.ParseLedger(data)
		var r *verifier.Refusal
		if err != nil {
			if !errors.As(err, &r) || !l.IsZero() {
				t.Errorf("ParseLedger(%q) = %v, want a refusal and nothing", data, err)
			}
			return
		}
		if !bytes.Equal(l.Payload(), data) {
			t.Errorf("ParseLedger(%q) holds %q", data, l.Payload())
		}
		printed, err := l.Statement().Payload()
		if err != nil {
			t.Fatalf("%q parsed, but its statement does not print: %v", data, err)
		}
		again, err := verifier.ParseLedger(printed)
		if err != nil {
			t.Fatalf("%q does not parse: %v", printed, err)
		}
		twice, err := again.Statement().Payload()
		if err != nil || !bytes.Equal(twice, printed) {
			t.Errorf("%q prints as %q, then as %q, %v", data, printed, twice, err)
		}
	})
}
