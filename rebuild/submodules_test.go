package rebuild

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
)

// TestSourceWithParts: a source of nested submodules and large files, at names
// that begin like each other and are as long as git allows, is gathered from a
// ledger.
func TestSourceWithParts(t *testing.T) {
	deep := strings.Repeat("third-party/", 20) + "deps/c"
	inner, inInner := repository(t, "sha256", map[string]string{"c.h": "inner\n", "c.bin": pointerTo("in the inner")})
	middle, _ := repository(t, "sha256", map[string]string{"b.h": "middle\n", "small.bin": pointerTo("small")})
	inMiddle := gitlink(t, middle, deep, inInner)
	other, inOther := repository(t, "sha256", map[string]string{"o.h": "other\n"})
	repo, _ := repository(t, "sha256", map[string]string{"train.txt": "how\n", "w.bin": pointerTo(weights)})
	at := strings.Repeat("vendor/", 40) + "lib"
	gitlink(t, repo, at, inMiddle)
	commit := gitlink(t, repo, at+"2", inOther)

	s := newSite(t)
	s.st.Subject[0].Digest.GitCommit = commit
	*s.dependency("source") = verifier.Dependency{Name: verifier.SourceName, Digest: verifier.DigestSet{GitCommit: commit}}
	s.loc.Source, s.loc.Inputs = repo, map[string]string{}
	objects := t.TempDir()
	for _, p := range []struct {
		path, where string
		commit      verifier.GitCommit
	}{{at, middle, inMiddle}, {at + "/" + deep, inner, inInner}, {at + "2", other, inOther}} {
		id := verifier.SubmodulePrefix + p.path
		s.add(verifier.Dependency{Name: id, Digest: verifier.DigestSet{GitCommit: p.commit}})
		s.loc.Inputs[id] = p.where
	}
	for path, text := range map[string]string{"w.bin": weights, at + "/small.bin": "small", at + "/" + deep + "/c.bin": "in the inner"} {
		id := verifier.LFSPrefix + path
		s.add(verifier.Dependency{Name: id, Digest: verifier.DigestSet{SHA256: digest(text)}, Annotations: &verifier.Annotations{Bytes: int64(len(text))}})
		s.loc.Inputs[id] = filepath.Join(objects, filepath.Base(path))
		if err := os.WriteFile(s.loc.Inputs[id], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gather := func() (string, error) {
		t.Helper()
		cache, err := Inputs{Dir: filepath.Join(t.TempDir(), "cache"), Budget: 1 << 30, Options: fetch.Options{}}.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cache.Close() })
		g := &gatherer{cache: cache, dir: t.TempDir(), st: s.ledger().Statement(), loc: s.loc, p: &progress{}, within: maxGather}
		t.Cleanup(func() { g.in.close() })
		if err := g.source(t.Context()); err != nil {
			return "", err
		}
		return g.in.mounts[0].Path, nil
	}
	dir, err := gather()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"train.txt": "how\n", "w.bin": weights, at + "/b.h": "middle\n", at + "/small.bin": "small", at + "2/o.h": "other\n",
		at + "/" + deep + "/c.h": "inner\n", at + "/" + deep + "/c.bin": "in the inner",
	} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != want {
			t.Errorf("%s = %.40q, %v, want %.40q", name, text, err, want)
		}
	}
	if err := fetch.Frozen(dir); err != nil {
		t.Error(err)
	}

	// A large file of the inner one with other bytes, named for all three.
	lie := verifier.LFSPrefix + at + "/" + deep + "/c.bin"
	if err := os.WriteFile(s.loc.Inputs[lie], []byte("in the other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := gather(); err == nil || !strings.Contains(err.Error(), "every place gave something else") {
		t.Errorf("other bytes of a large file: %v", err)
	}
	// A ledger that gives the inner submodule's file to the outer one.
	d := s.dependency(lie)
	d.Name = verifier.LFSPrefix + at + "/c.bin"
	d.Digest.SHA256 = hashpipe.SumBytes([]byte("in the other")).Claim()
	s.loc.Inputs[d.Name] = s.loc.Inputs[lie]
	delete(s.loc.Inputs, lie)
	s.wantFailure(s.config(nil), capstore.FetchFailed, "does not name", "c.bin")
}
