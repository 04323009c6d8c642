package rebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// wantFailure runs a rebuild that has to end with verdict and all texts.
func (s *site) wantFailure(c Config, verdict capstore.Verdict, texts ...string) {
	s.t.Helper()
	rep, err := Reproduce(s.t.Context(), c, s.ledger(), s.loc)
	rep.Close()
	var f *Failure
	if !errors.As(err, &f) || f.Verdict != verdict {
		s.t.Errorf("Reproduce = %v, want %s", err, verdict)
		return
	}
	for _, text := range texts {
		if !strings.Contains(f.Detail+"\n"+f.Diagnosis, text) {
			s.t.Errorf("Reproduce = %v\n%s\nwant it to say %q", f, f.Diagnosis, text)
		}
	}
}

func (s *site) add(d verifier.Dependency) {
	deps := &s.st.Predicate.BuildDefinition.ResolvedDependencies
	*deps = append(*deps, d)
}

// base grants a model of one file here and makes the ledger start from it.
func (s *site) base(content string) (Bases, string) {
	s.t.Helper()
	mint := capstore.Trust{Mints: []capstore.Signer{{Operator: "local", Key: s.mint.Public()}}, Revokers: []capstore.Signer{{Operator: "local", Key: s.revoker.Public()}}}
	view, err := capstore.NewView(mint)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := view.Admit(capability(s.t, jobFile{SBA: digest("sba")}, s.ledger(), s.publisher.Public(), s.mint, content))
	if err != nil {
		s.t.Fatal(err)
	}
	s.add(verifier.Dependency{Name: "model:base", Digest: verifier.DigestSet{ClawfsClaim1: c.Claim()}})
	dir := s.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.bin"), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.loc.Inputs = map[string]string{"model:base": dir}
	return Bases{"base": c}, dir
}

func TestModelFromAModel(t *testing.T) {
	s := newSite(t)
	bases, dir := s.base("weights of the base")
	c := s.config(nil)
	if rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc); err == nil || !strings.Contains(err.Error(), "no capability of the claim") {
		t.Errorf("without the base: %v", err)
		rep.Close()
	}
	c.Bases = bases
	rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
	if err != nil {
		t.Fatal(err)
	}
	built := rep.Outputs()[0].Measurement().Sum()
	rep.Close()
	// The base is among what decides the bytes.
	other := newSite(t)
	c2 := other.config(nil)
	c2.Bases, _ = other.base("weights of another")
	if rep, err := Reproduce(t.Context(), c2, other.ledger(), other.loc); err != nil {
		t.Error(err)
	} else if rep.Outputs()[0].Measurement().Sum() == built {
		t.Error("another base made the same bytes: the build did not see it")
		rep.Close()
	} else {
		rep.Close()
	}
	good := s.params().Stages[0].Argv
	s.params().Stages[0].Argv = []string{"payload", "copy", "/in/model/base/model.bin"}
	s.wantFailure(c, capstore.CopiedInput, "/in/model/base/model.bin")
	s.params().Stages[0].Argv = good
	if err := os.WriteFile(filepath.Join(dir, "model.bin"), []byte("weights of a thief!"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.wantFailure(c, capstore.FetchFailed, `model "base"`, "--model base=DIR", "model.bin")
	os.Remove(filepath.Join(dir, "model.bin"))
	s.wantFailure(c, capstore.FetchFailed, `model "base"`, "no such file")
	s.loc.Inputs = nil
	s.wantFailure(c, capstore.FetchFailed, "no place is known")
}

func TestLiveBases(t *testing.T) {
	s := newSite(t)
	bases, _ := s.base("weights")
	c := bases["base"]
	envelopes := bases.envelopes()
	now := c.NotBefore()
	if got, err := readBases(s.policy, s.st, envelopes, now); err != nil || got["base"].ID() != c.ID() {
		t.Errorf("readBases = %v, %v", got, err)
	}
	refused := func(what string, policy *verifier.Policy, envelopes map[string][]byte, now time.Time) {
		t.Helper()
		var f *Failure
		if _, err := readBases(policy, s.st, envelopes, now); !errors.As(err, &f) || f.Verdict != capstore.PolicyRefused {
			t.Errorf("%s: readBases = %v, want %s", what, err, capstore.PolicyRefused)
		}
	}
	refused("no envelope", s.policy, nil, now)
	refused("expired", s.policy, envelopes, c.NotAfter())
	refused("not yet", s.policy, envelopes, c.NotBefore().Add(-time.Second))
	refused("another's mint", newParties(t).policy, envelopes, now)
	view, err := capstore.NewView(capstore.Trust{Mints: signers(s.policy.Mints), Revokers: []capstore.Signer{{Operator: "local", Key: s.revoker.Public()}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view.Admit(envelopes["base"]); err != nil {
		t.Fatal(err)
	}
	if _, err := view.Revoke(s.revocation(t, capstore.KindClaim, c.Claim().String())); err != nil {
		t.Fatal(err)
	}
	if _, err := LiveBases(view, s.st, now); err == nil || !strings.Contains(err.Error(), "was taken back, and is granted no more") || strings.Contains(err.Error(), "grant the attestation of that model") {
		t.Errorf("LiveBases after a revocation = %v, want no advice to grant it again", err)
	}
	refused("garbage", s.policy, map[string][]byte{"base": []byte("{}")}, now)
}

func TestArtifactsOfStages(t *testing.T) {
	s := newSite(t)
	s.params().Stages = []verifier.Stage{
		{Name: "load", Argv: []string{"payload", "stage"}, Artifacts: []string{"partial"}},
		{Name: "prepare", Argv: []string{"payload", "random", "partial"}, Artifacts: []string{"partial"}},
		{Name: "train", Argv: []string{"payload", "finish"}},
	}
	s.wantFailure(s.config(nil), capstore.Nondeterministic, "in 1 of 1 outputs: model.bin; and in 1 of 2 artifacts of stages: prepare/partial",
		`the first stage that differs is "prepare"; the artifacts of 1 stage before it are equal`)
	s.params().Stages[0].Artifacts = []string{"absent"}
	s.wantFailure(s.config(nil), capstore.OutputMissing, "load", "absent")
	// The same without the stage that rolls dice: artifacts of both builds are equal.
	s.params().Stages = []verifier.Stage{
		{Name: "prepare", Argv: []string{"payload", "stage"}, Artifacts: []string{"partial"}, Limits: &verifier.StageLimits{CPUSeconds: 30}},
		{Name: "train", Argv: []string{"payload", "finish"}},
	}
	rep, err := Reproduce(t.Context(), s.config(nil), s.ledger(), s.loc)
	if err != nil {
		t.Fatal(err)
	}
	defer rep.Close()
	first, second := rep.Builds()
	a, b := evidence(first), evidence(second)
	if len(a.Artifacts) != 1 || a.Artifacts[0] != b.Artifacts[0] || a.Artifacts[0].Stage != "prepare" || a.Artifacts[0].Name != "partial" {
		t.Errorf("artifacts %+v and %+v", a.Artifacts, b.Artifacts)
	}
}

func TestStageLimitsBelowThePolicy(t *testing.T) {
	s := newSite(t)
	l := s.policy.Builds.Limits
	for _, limits := range []verifier.StageLimits{{MemoryBytes: l.MemoryBytes + 1}, {Processes: l.Processes + 1}, {OutputBytes: l.OutputBytes + 1}} {
		s.params().Stages[0].Limits = &limits
		s.wantFailure(s.config(nil), capstore.PolicyRefused, "the policy's builds.limits allow")
	}
}

func TestLockAgainstImage(t *testing.T) {
	s := newSite(t)
	text := "numpy==1.24.2\n"
	if err := os.WriteFile(s.loc.Lockfile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := s.dependency("lockfile")
	d.Digest.SHA256, d.Annotations = digest(text), &verifier.Annotations{Format: "pip-freeze", Extras: "refused"}
	s.wantFailure(s.config(nil), capstore.PolicyRefused, "1 missing, 0 extra", "numpy")
	d.Annotations.Format = "requirements" // which has a hash for each
	s.wantFailure(s.config(nil), capstore.PolicyRefused, "locked dependencies")
	metadata := "Metadata-Version: 2.1\nName: numpy\nVersion: 1.24.2\n"
	for _, tc := range []struct {
		installed, want string
	}{{metadata, ""}, {strings.Replace(metadata, "1.24.2", "1.26.0", 1), "1 of another version"}} {
		d.Annotations.Format = "pip-freeze"
		s.imageOf(map[string]string{"usr/lib/python3/dist-packages/numpy-1.dist-info/METADATA": tc.installed})
		if tc.want != "" {
			s.wantFailure(s.config(nil), capstore.PolicyRefused, tc.want, "1.26.0")
			continue
		}
		rep, err := Reproduce(t.Context(), s.config(nil), s.ledger(), s.loc)
		if err != nil {
			t.Errorf("an image that is as locked: %v", err)
		}
		rep.Close()
	}
}

// imageOf replaces the environment by one of the payload and files.
func (s *site) imageOf(files map[string]string) {
	s.t.Helper()
	w, err := world()
	if err != nil {
		s.t.Fatal(err)
	}
	binary, err := os.ReadFile(filepath.Join(w.dir, "payload"))
	if err != nil {
		s.t.Fatal(err)
	}
	files["bin/payload"] = string(binary)
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	for name, text := range files {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprint(archive, text)
	}
	if err := archive.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.loc.Image = filepath.Join(s.t.TempDir(), "layout")
	s.dependency("environment").Digest.SHA256, err = oci.AppendImage(s.t.Context(), s.loc.Image, oci.Image{
		Config: oci.Config{OS: "linux", Architecture: HostPlatform().Arch, Env: []string{"PATH=/bin"}},
	}, &layer)
	if err != nil {
		s.t.Fatal(err)
	}
}

// adopt takes another operator's attestation and its inputs, and keeps its own
// mint.
func (s *jobSite) adopt(other *jobSite) {
	s.publisher, s.st, s.loc, s.envelope, s.att = other.publisher, other.st, other.loc, other.envelope, other.att
	s.setPolicy(s.t, s.mint.Public())
	s.config.Policy = s.policy
}

// mirror serves a tar of files under any name, and counts.
func mirror(t *testing.T, files map[string]string) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		archive := tar.NewWriter(w)
		for name, text := range files {
			archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))})
			fmt.Fprint(archive, text)
		}
		archive.Close()
	}))
	t.Cleanup(server.Close)
	return server.URL + "/corpus.tar"
}

// A place of a source, an image or a registry that did not do is named too.
func TestPlacesThatFailedAreNoted(t *testing.T) {
	s := newSite(t)
	source, image := s.dependency("source"), s.dependency("environment")
	source.URI, source.Annotations = "file:///nosuch/recipe", &verifier.Annotations{Mirrors: []string{"git+file://" + s.loc.Source}}
	image.URI, image.Annotations = "file:///nosuch/image", &verifier.Annotations{Mirrors: []string{"file://" + s.loc.Image}}
	s.loc.Source, s.loc.Image = "", ""
	var mu sync.Mutex
	failed := make(map[string]string)
	c := s.config(nil)
	var err error
	c.Cache, err = Inputs{Dir: filepath.Join(t.TempDir(), "cache"), Budget: 1 << 30, Options: fetch.Options{LocalRoots: []string{"/"}}}.Open(func(n fetch.Note) {
		mu.Lock()
		defer mu.Unlock()
		if n.Event == fetch.Failed {
			failed[n.Entry] = n.Place.URI
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Cache.Close()
	rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
	if err != nil {
		t.Fatal(err)
	}
	defer rep.Close()
	if want := map[string]string{"source": "file:///nosuch/recipe", "environment": "file:///nosuch/image"}; !maps.Equal(failed, want) {
		t.Errorf("failed places %v, want %v", failed, want)
	}
}

func TestMirrorsOfALedger(t *testing.T) {
	s := newSite(t)
	good := mirror(t, map[string]string{"a/one.txt": "eins\n", "two.txt": "zwei\n"})
	liar := mirror(t, map[string]string{"a/one.txt": "eins\n", "two.txt": "drei\n"})
	s.loc.Datasets = nil
	d := s.dependency("dataset:corpus")
	d.URI, d.Annotations.Mirrors = liar, []string{good}
	// A ledger leads nobody into this machine's own network.
	s.wantFailure(s.config(nil), capstore.FetchFailed, "127.0.0.1")
	var mu sync.Mutex
	var lied, served []string
	dir := filepath.Join(t.TempDir(), "cache")
	c := s.config(nil)
	var err error
	c.Cache, err = Inputs{Dir: dir, Budget: 1 << 30, Options: fetch.Options{Hosts: []string{"127.0.0.1"}}}.Open(func(n fetch.Note) {
		mu.Lock()
		defer mu.Unlock()
		switch n.Event {
		case fetch.Lied:
			lied = append(lied, n.Place.URI)
		case fetch.Fetched:
			served = append(served, n.Place.URI)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Cache.Close()
	rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
	if err != nil {
		t.Fatal(err)
	}
	rep.Close()
	if len(lied) != 1 || lied[0] != liar {
		t.Errorf("lied: %q, want %q", lied, liar)
	}
	// Another job of the same inputs fetches nothing.
	before := len(served)
	rep, err = Reproduce(t.Context(), c, s.ledger(), s.loc)
	if err != nil {
		t.Fatal(err)
	}
	rep.Close()
	if len(served) != before || before == 0 {
		t.Errorf("the second job fetched %q", served[before:])
	}
	d.Annotations.Mirrors = nil
	c.Cache, err = Inputs{Dir: filepath.Join(t.TempDir(), "cache"), Budget: 1 << 30, Options: fetch.Options{Hosts: []string{"127.0.0.1"}}}.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Cache.Close()
	s.wantFailure(c, capstore.FetchFailed, "every place gave something else", liar)
}

// TestClaimOfTwoStores: two operators with stores of their own that rebuild one
// attestation come to the same claim.
func TestClaimOfTwoStores(t *testing.T) {
	claims := make(map[hashpipe.Digest]string)
	var first *jobSite
	for i, name := range []string{"one", "two"} {
		s := newJobSite(t)
		if i == 0 {
			first = s
		} else {
			s.adopt(first)
			s.rewrite(s.envelope)
		}
		r, err := RunJob(t.Context(), s.config)
		if err != nil || r.Verdict != capstore.Minted {
			t.Fatalf("%s: %+v, %v", name, r, err)
		}
		c, err := s.store(t, filepath.Join(t.TempDir(), "store")).Admit(r.Capability)
		if err != nil {
			t.Fatal(err)
		}
		claims[c.Claim()] += name + " "
		if c.Minter() != s.mint.Public().ID() {
			t.Errorf("%s: minted by %s", name, c.Minter())
		}
	}
	if len(claims) != 1 {
		t.Errorf("claims %v, want one", claims)
	}
}

// TestKeptInputsChanged: what somebody changed in the cache so that no byte of
// the input's own differs is not what a build gets.
func TestKeptInputsChanged(t *testing.T) {
	s := newSite(t)
	c := s.config(nil)
	c.Bases, _ = s.base("weights of the base")
	dir := filepath.Join(t.TempDir(), "cache")
	broken := 0
	var err error
	c.Cache, err = Inputs{Dir: dir, Budget: 1 << 30}.Open(func(n fetch.Note) {
		if n.Event == fetch.Broken {
			broken++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Cache.Close()
	build := func() hashpipe.Sum {
		t.Helper()
		rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
		if err != nil {
			t.Fatal(err)
		}
		defer rep.Close()
		return rep.Outputs()[0].Measurement().Sum()
	}
	good := build()
	one := func(pattern string) string {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(dir, "entries", pattern))
		if err != nil || len(list) != 1 {
			t.Fatalf("%s: %q, %v", pattern, list, err)
		}
		return list[0]
	}
	// A ledger that promises other numbers takes nothing from the others.
	s.dependency("source").Annotations = &verifier.Annotations{Files: 7, Bytes: 7}
	s.wantFailure(c, capstore.FetchFailed, "the ledger says 7 files of 7 bytes")
	s.dependency("source").Annotations = nil
	if broken != 0 {
		t.Errorf("%d entries are broken for a ledger's promise", broken)
	}
	if err := errors.Join(
		os.Mkdir(filepath.Join(filepath.Dir(one("make-*/data/model.bin")), "extra"), 0o555),
		os.Chmod(one("make-*/data/tree/train.txt"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	if got := build(); got != good || broken != 2 {
		t.Errorf("%d broken entries, want 2; the output is the same: %t", broken, got == good)
	}
}

func TestCheckModel(t *testing.T) {
	s := newSite(t)
	bases, _ := s.base("weights")
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"as it was":          {func(string) error { return nil }, ""},
		"an extra file":      {func(dir string) error { return os.WriteFile(filepath.Join(dir, "extra"), nil, 0o444) }, "no file of the model"},
		"an extra link":      {func(dir string) error { return os.Symlink("model.bin", filepath.Join(dir, "extra")) }, "no file of the model"},
		"an extra directory": {func(dir string) error { return os.Mkdir(filepath.Join(dir, "extra"), 0o555) }, "no file of the model"},
		"nothing":            {func(dir string) error { return os.Remove(filepath.Join(dir, "model.bin")) }, "no such file"},
		"other bytes":        {func(dir string) error { return os.WriteFile(filepath.Join(dir, "model.bin"), []byte("w"), 0o444) }, "its capability says"},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "model.bin"), []byte("weights"), 0o444), c.change(dir), fetch.Freeze(dir)); err != nil {
			t.Fatal(err)
		}
		err := checkModel(t.Context(), dir, bases["base"].Subjects(), nil)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: checkModel = %v, want %q", name, err, c.want)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.bin"), []byte("weights"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := checkModel(t.Context(), dir, bases["base"].Subjects(), nil); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("a model with times of its own: checkModel = %v", err)
	}
}

// TestArtifactAlone: outputs that are equal do not make up for a stage that left
// something else.
func TestArtifactAlone(t *testing.T) {
	s := newSite(t)
	s.params().Stages = []verifier.Stage{
		{Name: "prepare", Argv: []string{"payload", "random", "partial"}, Artifacts: []string{"partial"}},
		{Name: "write", Argv: []string{"payload", "write", "the same"}, Artifacts: []string{"model.bin"}},
	}
	s.wantFailure(s.config(nil), capstore.Nondeterministic, "differ in 1 of 2 artifacts of stages: prepare/partial")
}

// TestDrip: a server that sends one byte now and then does not keep a worker.
func TestDrip(t *testing.T) {
	drip := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}))
	defer drip.Close()
	s := newSite(t)
	s.loc.Datasets["corpus"] = drip.URL
	s.dependency("dataset:corpus").Annotations.Bytes = 1 << 40
	cache, err := Inputs{Dir: filepath.Join(t.TempDir(), "cache"), Budget: 1 << 30}.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	g := &gatherer{cache: cache, dir: t.TempDir(), st: s.ledger().Statement(), loc: s.loc, p: &progress{}, within: 500 * time.Millisecond}
	err = g.gather(t.Context())
	g.in.close()
	var f *Failure
	if !errors.As(err, &f) || f.Verdict != capstore.FetchFailed || !f.Temporary || !strings.Contains(f.Detail, "not there within 500ms") {
		t.Errorf("gather = %v, want a temporary FETCH_FAILED that says why", err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	g.within = time.Hour
	if err := g.gather(stopped); errors.As(err, new(*Failure)) || !errors.Is(err, context.Canceled) {
		t.Errorf("gather that was stopped = %v, want no answer", err)
	}
}

// TestManyBases: more capabilities than fit into the file that a worker reads
// are refused, and not started three times.
func TestManyBases(t *testing.T) {
	s := newSite(t)
	view, err := capstore.NewView(s.trust())
	if err != nil {
		t.Fatal(err)
	}
	var subjects []capstore.Subject
	m, err := hashpipe.Measure(t.Context(), strings.NewReader("weights"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		subjects = append(subjects, capstore.Subject{Name: fmt.Sprintf("%s%d", strings.Repeat("x", 60), i), Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()})
	}
	now := time.Now().UTC().Truncate(time.Second)
	for i := 0; ; i++ {
		payload, err := capstore.NewStatement(subjects, capstore.Predicate{
			Model: "acme/base", Version: "1", Sequence: 1, SBA: capstore.Reference{Digest: capstore.DigestSet{SHA256: digest(fmt.Sprint(i))}},
			Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: digest("an image")}},
			Publisher:   capstore.Publisher{KeyID: s.publisher.Public().ID(), PublicKey: s.publisher.Public()},
			Minter:      capstore.Minter{KeyID: s.mint.Public().ID()},
			Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
			NotBefore:   now, NotAfter: now.Add(time.Hour),
		}).Payload()
		if err != nil {
			t.Fatal(err)
		}
		envelope, err := dsse.Sign(dsse.PayloadType, payload, s.mint)
		if err != nil {
			t.Fatal(err)
		}
		c, err := view.Admit(envelope)
		if err != nil {
			t.Fatal(err)
		}
		s.add(verifier.Dependency{Name: fmt.Sprintf("model:m%d", i), Digest: verifier.DigestSet{ClawfsClaim1: c.Claim()}})
		bases, err := LiveBases(view, s.st, now)
		var f *Failure
		switch {
		case errors.As(err, &f) && f.Verdict == capstore.PolicyRefused && strings.Contains(f.Detail, "longer than") && i > 1:
			return
		case err != nil || i > 100:
			t.Fatalf("LiveBases of %d models = %v", i+1, err)
		}
		name := filepath.Join(t.TempDir(), JobFile)
		if err := writeJSON(name, &jobFile{ID: "a", SBA: digest("sba"), Bases: bases.envelopes()}); err != nil {
			t.Fatal(err)
		}
		if text, err := readBounded(name); err != nil {
			t.Fatalf("%d models, %d bytes: %v", i+1, len(text), err)
		}
	}
}
