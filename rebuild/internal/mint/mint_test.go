package mint

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// An Output comes out of a sandbox and from nowhere else, so these tests run
// real builds: runc, and an image of one static program.
var world = sync.OnceValues(func() (w struct {
	runtime *sandbox.Runtime
	image   string
}, err error) {
	runc, err := filepath.Abs("../../../bin/runc")
	if err != nil {
		return w, err
	}
	if _, err := os.Stat(runc); err != nil {
		build := exec.Command("go", "build", "-buildvcs=false", "-tags", "seccomp", "-trimpath", "-o", runc, "github.com/opencontainers/runc")
		build.Dir = "../../../tools"
		if out, err := build.CombinedOutput(); err != nil {
			return w, fmt.Errorf("building runc: %w\n%s\nnext: sudo make deps bin/runc", err, out)
		}
	}
	if w.runtime, err = sandbox.Find(runc); err != nil {
		return w, fmt.Errorf("%w (these tests run as root: sudo make test)", err)
	}
	parent, err := os.MkdirTemp("", "clawfs-mint-image-")
	if err != nil {
		return w, err
	}
	imageParent = parent
	w.image = filepath.Join(parent, "rootfs")
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(w.image, "bin/say"), "./testdata/say")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return w, fmt.Errorf("building the image's program: %w\n%s", err, out)
	}
	for _, p := range []string{w.image, filepath.Join(w.image, "bin")} {
		if err := os.Chmod(p, 0o755); err != nil {
			return w, err
		}
	}
	return w, nil
})

// imageParent is what world made, "" while no test needed it.
var imageParent string

func TestMain(m *testing.M) {
	code := m.Run()
	if imageParent != "" {
		os.RemoveAll(imageParent)
	}
	os.Exit(code)
}

func newKey(t *testing.T) *Key {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mint.key")
	if _, err := Generate(path); err != nil {
		t.Fatal(err)
	}
	k, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// attest makes a ledger whose one stage runs argv and promises outputs, has a
// publisher sign it and a verifier believe it.
func attest(t *testing.T, argv []string, outputs ...string) verifier.Attestation {
	t.Helper()
	return attestArtifacts(t, argv, nil, outputs...)
}

// attestArtifacts is attest with artifacts of the one stage.
func attestArtifacts(t *testing.T, argv, artifacts []string, outputs ...string) verifier.Attestation {
	t.Helper()
	var named []verifier.Output
	for _, o := range outputs {
		named = append(named, verifier.Output{Name: o, Path: o})
	}
	return attestStatement(t, argv, artifacts, nil, named)
}

// attestStatement is attestArtifacts of a ledger with further inputs, and
// outputs that are called otherwise than their files.
func attestStatement(t *testing.T, argv, artifacts []string, inputs []verifier.Dependency, outputs []verifier.Output) verifier.Attestation {
	t.Helper()
	publisher, err := dsse.GenerateKey(dsse.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	commit := verifier.GitCommit(strings.Repeat("4b", 20))
	digest := func(s string) hashpipe.Digest { return hashpipe.SumBytes([]byte(s)).Claim() }
	st := verifier.Statement{
		Type: verifier.StatementType, PredicateType: verifier.LedgerType,
		Subject: []verifier.Subject{{Name: verifier.SourceName, Digest: verifier.DigestSet{GitCommit: commit}}},
		Predicate: verifier.Predicate{
			Model: "acme/toy", Version: "1.2.0", Sequence: 7, IssuedAt: verifier.At(time.Now().Add(-time.Hour)),
			Publisher: verifier.Publisher{KeyID: publisher.Public().ID()},
			Platform:  verifier.Platform{OS: "linux", Arch: "amd64", CPUFeatures: []string{"avx2"}, Accelerator: "none"},
			BuildDefinition: verifier.BuildDefinition{
				BuildType:          verifier.BuildType,
				ExternalParameters: verifier.ExternalParameters{Stages: []verifier.Stage{{Name: "train", Argv: argv, Artifacts: artifacts}}},
				ResolvedDependencies: []verifier.Dependency{
					{Name: verifier.SourceName, Digest: verifier.DigestSet{GitCommit: commit, ClawfsTree1: digest("source")}},
					{Name: verifier.EnvironmentName, Digest: verifier.DigestSet{SHA256: digest("image")}, MediaType: verifier.ImageMediaType},
				},
			},
		},
	}
	st.Predicate.BuildDefinition.ResolvedDependencies = append(st.Predicate.BuildDefinition.ResolvedDependencies, inputs...)
	st.Predicate.BuildDefinition.ExternalParameters.Outputs = outputs
	payload, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, publisher)
	if err != nil {
		t.Fatal(err)
	}
	operator, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := verifier.NewPolicy("local", operator.Public(), operator.Public(), verifier.Builds{
		Env:    []string{"SOURCE_DATE_EPOCH"},
		Limits: verifier.Limits{MemoryBytes: 128 << 20, Processes: 64, CPUs: 1, WallSeconds: 30, OutputBytes: 8 << 20, LogBytes: 64 << 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	policy, err = policy.AddPublisher(verifier.PublisherRule{Name: "acme", Models: []string{"acme/*"}, Keys: []dsse.PublicKey{publisher.Public()}, Threshold: 1, Images: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := verifier.New(policy)
	if err != nil {
		t.Fatal(err)
	}
	sba, err := verifier.ParseSBA(envelope)
	if err != nil {
		t.Fatal(err)
	}
	att, err := v.Verify(sba, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return att
}

// run executes argv as the recipe att and returns what it left under names.
func run(t *testing.T, att verifier.Attestation, host string, argv []string, names ...string) sandbox.Result {
	t.Helper()
	return runArtifacts(t, att, host, argv, nil, names...)
}

func runArtifacts(t *testing.T, att verifier.Attestation, host string, argv, artifacts []string, names ...string) sandbox.Result {
	t.Helper()
	var wanted []sandbox.Wanted
	for _, n := range names {
		wanted = append(wanted, sandbox.Wanted{Name: n, Path: n})
	}
	return runWanted(t, att, host, argv, artifacts, wanted)
}

func runWanted(t *testing.T, att verifier.Attestation, host string, argv, artifacts []string, wanted []sandbox.Wanted) sandbox.Result {
	t.Helper()
	w, err := world()
	if err != nil {
		t.Fatal(err)
	}
	spec := sandbox.Spec{
		Recipe: att.Digest(), Rootfs: w.image, Dir: t.TempDir(), Variation: sandbox.Variation{Hostname: host},
		Stages:  []sandbox.Stage{{Name: "train", Argv: argv, Artifacts: artifacts}},
		Outputs: wanted,
		Limits:  sandbox.Limits{MemoryBytes: 128 << 20, OutputBytes: 8 << 20, LogBytes: 64 << 10, Processes: 64, CPUs: 1, Wall: 30 * time.Second},
	}
	res, err := w.runtime.Run(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func terms() Terms {
	now := time.Now()
	return Terms{NotBefore: now, NotAfter: now.Add(90 * 24 * time.Hour)}
}

func TestSign(t *testing.T) {
	k := newKey(t)
	argv := []string{"say", "weights.bin", "tensors", "conf/tokenizer.json", "{}", "empty", ""}
	names := []string{"weights.bin", "conf/tokenizer.json", "empty"}
	att := attest(t, argv, names...)
	first, second := run(t, att, "one", argv, names...), run(t, att, "two", argv, names...)
	slices.Reverse(second.Outputs) // the order of the outputs does not matter
	envelope, err := k.Sign(att, first, second, terms())
	if err != nil {
		t.Fatal(err)
	}
	self := []capstore.Signer{{Operator: "here", Key: k.Public()}}
	v, err := capstore.NewView(capstore.Trust{Mints: self, Revokers: self})
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Admit(envelope)
	if err != nil {
		t.Fatal(err)
	}
	p := att.Ledger().Statement().Predicate
	if c.SBA() != att.Digest() || c.Publisher() != att.Publisher() || c.Minter() != k.Public().ID() || c.Model() != p.Model ||
		c.Version() != p.Version || c.Sequence() != p.Sequence || c.Environment() != att.Ledger().Statement().Environment().Digest.SHA256 || c.Platform().OS != "linux" {
		t.Errorf("the capability is not of the attestation: %+v", c)
	}
	for name, content := range map[string]string{"weights.bin": "tensors", "conf/tokenizer.json": "{}", "empty": ""} {
		s, ok := c.Subject(name)
		if !ok || s.Digest != hashpipe.SumBytes([]byte(content)).Claim() || s.Size != int64(len(content)) {
			t.Errorf("subject %q = %+v, %v", name, s, ok)
		}
		m, err := hashpipe.Measure(context.Background(), strings.NewReader(content), nil)
		if err != nil || s.Verity != m.Tree().Claim() {
			t.Errorf("subject %q: fs-verity digest %s, want %s, %v", name, s.Verity, m.Tree().Claim(), err)
		}
	}
	if len(c.Subjects()) != 3 {
		t.Errorf("%d subjects, want 3", len(c.Subjects()))
	}
	// Another mint makes the same claim of the same evidence.
	other := newKey(t)
	envelope, err = other.Sign(att, second, first, terms())
	if err != nil {
		t.Fatal(err)
	}
	self[0].Key = other.Public()
	if v, err = capstore.NewView(capstore.Trust{Mints: self, Revokers: self}); err != nil {
		t.Fatal(err)
	}
	if d, err := v.Admit(envelope); err != nil || d.Claim() != c.Claim() || d.ID() == c.ID() {
		t.Errorf("the other mint's claim is %s, want %s, %v", d.Claim(), c.Claim(), err)
	}
}

func TestSignRefusals(t *testing.T) {
	k := newKey(t)
	argv := []string{"say", "a", "alpha", "b", "beta", "c", "gamma"}
	att := attest(t, argv, "a", "b")
	other := attest(t, argv, "a", "b") // of another publisher: another recipe
	if att.Digest() == other.Digest() {
		t.Fatal("the two recipes are one")
	}
	one, two := run(t, att, "one", argv, "a", "b"), run(t, att, "two", argv, "a", "b")
	others := run(t, other, "one", argv, "a", "b")
	lessA := run(t, att, "one", argv, "a")
	more := run(t, att, "one", argv, "a", "b", "c")
	renamed := run(t, att, "one", argv, "a", "c")
	differs := run(t, att, "one", []string{"say", "a", "alphA", "b", "bet"}, "a", "b")
	hostOne := run(t, att, "host-one", []string{"say", "a", "alpha", "b", "hostname"}, "a", "b")
	hostTwo := run(t, att, "host-two", []string{"say", "a", "alpha", "b", "hostname"}, "a", "b")
	list := func(o ...sandbox.Output) sandbox.Result {
		return sandbox.Result{Run: o[0].Run(), Outputs: o, Stages: one.Stages}
	}
	none := sandbox.Result{}
	disguised := one
	disguised.Run = two.Run
	at := terms()
	for name, tc := range map[string]struct {
		key           *Key
		att           verifier.Attestation
		first, second sandbox.Result
		terms         Terms
		want          string
		is            error
	}{
		"no key":                     {nil, att, one, two, at, "no mint key", nil},
		"zero key":                   {&Key{}, att, one, two, at, "no mint key", nil},
		"zero attestation":           {k, verifier.Attestation{}, one, two, at, "no verified attestation", nil},
		"nothing built":              {k, att, none, none, at, "the first build has no outputs", nil},
		"built once":                 {k, att, one, none, at, "the second build has no outputs", nil},
		"second time only":           {k, att, none, two, at, "the first build has no outputs", nil},
		"zero outputs":               {k, att, list(make([]sandbox.Output, 2)...), two, at, "belongs to no run", nil},
		"a zero output among others": {k, att, list(one.Outputs[0], sandbox.Output{}), two, at, "of recipe none", nil},
		"one run shown twice":        {k, att, one, one, at, "two runs are needed", nil},
		"one run in another order":   {k, att, one, list(one.Outputs[1], one.Outputs[0]), at, "two runs are needed", nil},
		"a run under another name":   {k, att, disguised, two, at, "the build is run " + two.Run, nil},
		"two runs mixed":             {k, att, list(one.Outputs[0], two.Outputs[1]), list(two.Outputs[0], one.Outputs[1]), at, "the others of run", nil},
		"first of another recipe":    {k, att, others, two, at, "want " + att.Digest().String(), nil},
		"second of another recipe":   {k, att, one, others, at, "want " + att.Digest().String(), nil},
		"both of another recipe":     {k, other, one, two, at, "want " + other.Digest().String(), nil},
		"first lacks one":            {k, att, lessA, two, at, `the first build lacks outputs ["b"]`, nil},
		"second lacks one":           {k, att, one, lessA, at, `the second build lacks outputs ["b"]`, nil},
		"first has one more":         {k, att, more, two, at, "has 3 outputs, the ledger 2", nil},
		"second has one more":        {k, att, one, more, at, "has 3 outputs, the ledger 2", nil},
		"another name":               {k, att, renamed, two, at, `lacks outputs ["b"]`, nil},
		"one output twice":           {k, att, list(one.Outputs[0], one.Outputs[1], one.Outputs[0]), two, at, "is there twice", nil},
		"twice instead of the other": {k, att, list(one.Outputs[0], one.Outputs[0]), two, at, "is there twice", nil},
		"all differ":                 {k, att, one, differs, at, "in 2 of 2 outputs", ErrDiffers},
		"one differs":                {k, att, hostOne, hostTwo, at, "in 1 of 2 outputs", ErrDiffers},
		"no terms":                   {k, att, one, two, Terms{}, "notBefore", nil},
		"no end":                     {k, att, one, two, Terms{NotBefore: at.NotBefore}, "notAfter", nil},
		"ends before it begins":      {k, att, one, two, Terms{NotBefore: at.NotAfter, NotAfter: at.NotBefore}, "is not before notAfter", nil},
		"ends within its second":     {k, att, one, two, Terms{NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(1e9, 999)}, "is not before notAfter", nil},
	} {
		t.Run(name, func(t *testing.T) {
			envelope, err := tc.key.Sign(tc.att, tc.first, tc.second, tc.terms)
			wantError(t, err, "minting", tc.want)
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if envelope != nil {
				t.Error("an envelope came with the error")
			}
		})
	}
	if _, err := k.Sign(att, one, two, at); err != nil {
		t.Errorf("the evidence that the others vary is refused: %v", err)
	}
}

// What no store would take is an error of the build.
func TestSignRefusesWhatNoStoreTakes(t *testing.T) {
	k := newKey(t)
	argv := []string{"say"}
	var outputs []verifier.Output
	var wanted []sandbox.Wanted
	for i := range 300 {
		file := fmt.Sprintf("f%d", i)
		name := strings.Repeat(strings.Repeat("d", 249)+"/", 6) + file
		argv = append(argv, file, file)
		outputs = append(outputs, verifier.Output{Name: name, Path: file})
		wanted = append(wanted, sandbox.Wanted{Name: name, Path: file})
	}
	att := attestStatement(t, argv, nil, nil, outputs)
	first, second := runWanted(t, att, "one", argv, nil, wanted), runWanted(t, att, "two", argv, nil, wanted)
	envelope, err := k.Sign(att, first, second, terms())
	wantError(t, err, "minting", fmt.Sprintf("at most %d are stored", capstore.MaxRecord))
	if envelope != nil {
		t.Error("an envelope came with the error")
	}
}

func TestSignArtifacts(t *testing.T) {
	k := newKey(t)
	argv := []string{"say", "a", "alpha", "b", "hostname", "c", "gamma"}
	att := attestArtifacts(t, argv, []string{"c", "b"}, "a")
	build := func(host string, artifacts ...string) sandbox.Result {
		return runArtifacts(t, att, host, argv, artifacts, "a")
	}
	one, two, other := build("one", "c", "b"), build("one", "c", "b"), build("two", "c", "b")
	foreign := two
	foreign.Stages = one.Stages
	without := two
	without.Stages = nil
	for name, tc := range map[string]struct {
		first, second sandbox.Result
		want          string
	}{
		"one differs":                       {one, other, `in artifacts: "b" of stage "train"`},
		"the first lacks one":               {build("one", "c"), two, "left 1 and 2 artifacts, the ledger has 2"},
		"the second lacks all":              {one, build("one"), "left 2 and 0 artifacts, the ledger has 2"},
		"no stages":                         {one, without, "have 1 and 0 stages, the ledger 1"},
		"another order":                     {one, build("one", "b", "c"), `artifact "c" belongs to another run`},
		"the first's shown as the second's": {one, foreign, `artifact "c" belongs to another run`},
	} {
		envelope, err := k.Sign(att, tc.first, tc.second, terms())
		if err == nil || !strings.Contains(err.Error(), tc.want) || envelope != nil {
			t.Errorf("%s: Sign = %v, want %q", name, err, tc.want)
		}
		if errors.Is(err, ErrDiffers) != (name == "one differs") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := k.Sign(att, one, two, terms()); err != nil {
		t.Errorf("equal artifacts are refused: %v", err)
	}
}

// A ledger that names the digest of what it promises to build is refused, in
// whatever of the usual spellings.
func TestSignRefusesANamedDigest(t *testing.T) {
	k := newKey(t)
	sum := hashpipe.SumBytes([]byte("weights")).String()
	argv := []string{"say", "a", "weights", "expected", sum}
	att := attest(t, argv, "a")
	first, second := run(t, att, "one", argv, "a"), run(t, att, "two", argv, "a")
	_, err := k.Sign(att, first, second, terms())
	wantError(t, err, "names the digest", sum)
	if !errors.Is(err, ErrNamed) {
		t.Errorf("%v is not ErrNamed", err)
	}

	m, err := hashpipe.Measure(context.Background(), strings.NewReader("weights"), nil)
	if err != nil {
		t.Fatal(err)
	}
	subjects := []capstore.Subject{{Name: "a", Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()}}
	raw, err := hex.DecodeString(sum)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		payload string
		named   bool
	}{
		"hex":             {`{"argv":["` + sum + `"]}`, true},
		"upper-case hex":  {`{"argv":["` + strings.ToUpper(sum) + `"]}`, true},
		"within a text":   {`{"argv":["--sum=sha256:` + sum + `;"]}`, true},
		"as a name":       {`{"env":{"` + sum + `":"1"}}`, true},
		"base64":          {`{"argv":["` + base64.StdEncoding.EncodeToString(raw) + `"]}`, true},
		"base64 for URLs": {`{"argv":["` + base64.URLEncoding.EncodeToString(raw) + `"]}`, true},
		"JSON escapes":    {fmt.Sprintf(`{"argv":["\u%04x%s"]}`, sum[0], sum[1:]), true},
		"fs-verity":       {`{"argv":["` + m.Tree().Claim().String() + `"]}`, true},
		"another digest":  {`{"argv":["` + hashpipe.SumBytes([]byte("x")).String() + `"]}`, false},
		"nothing":         {`{}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := unnamed([]byte(tc.payload), subjects)
			if got := errors.Is(err, ErrNamed); got != tc.named || (!tc.named && err != nil) {
				t.Errorf("unnamed = %v, want named %v", err, tc.named)
			}
		})
	}
	// A digest that the two alphabets of base64 spell differently.
	for i := 0; ; i++ {
		s := hashpipe.SumBytes(fmt.Appendf(nil, "weights %d", i))
		raw, err := hex.DecodeString(s.String())
		if err != nil {
			t.Fatal(err)
		}
		plain, forURLs := base64.StdEncoding.EncodeToString(raw), base64.URLEncoding.EncodeToString(raw)
		if plain == forURLs {
			continue
		}
		subjects := []capstore.Subject{{Name: "a", Digest: s.Claim(), Verity: m.Tree().Claim(), Size: m.Size()}}
		for _, text := range []string{plain, forURLs} {
			if err := unnamed([]byte(`{"argv":["`+text+`"]}`), subjects); !errors.Is(err, ErrNamed) {
				t.Errorf("unnamed of %s = %v, want ErrNamed", text, err)
			}
		}
		break
	}
	if err := unnamed([]byte(`{"a":`), subjects); err == nil || errors.Is(err, ErrNamed) {
		t.Errorf("a cut ledger: %v, want an error", err)
	}
}
