package rebuild

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/fetch"
)

// TestLedgerReachesNoFile: whatever way a ledger spells a local path, it leads
// nowhere outside the roots that the operator named. Every spelling here was
// once read by git's URL parser, or by that of images, as what the cache's took
// for no path at all.
func TestLedgerReachesNoFile(t *testing.T) {
	s := newSite(t)
	repo, layout := s.loc.Source, s.loc.Image
	fifo := filepath.Join(t.TempDir(), "fifo")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("mkfifo: %v %s", err, out)
	}
	c := s.config(nil)
	root := t.TempDir()
	fresh := func() { // what one spelling brought in would serve the next
		t.Helper()
		var err error
		c.Cache, err = Inputs{Dir: filepath.Join(t.TempDir(), "cache"), Budget: 1 << 30, Options: fetch.Options{LocalRoots: []string{root}}}.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Cache.Close() })
	}
	good := s.loc
	refused := func(uri, input string) {
		t.Helper()
		fresh()
		rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
		rep.Close()
		var f *Failure
		if !errors.As(err, &f) || f.Verdict != capstore.FetchFailed || !strings.Contains(f.Detail, input) {
			t.Errorf("Reproduce with %s at %s = %v, want FETCH_FAILED", input, uri, err)
		}
	}
	escaped := func(path string) string { return strings.Replace(path, "/", "%2F", 1) }
	for _, uri := range []string{
		repo, "file://" + repo, "git+file://" + repo, "git+file:" + repo, "file:" + repo, "FILE://" + repo, "git+FILE:" + repo,
		"file://localhost" + repo, "file://" + escaped(repo), "git+git+file://" + repo, "git+" + repo, "git+git+" + repo,
	} {
		s.loc = good
		s.loc.Source = ""
		s.dependency("source").URI = uri
		refused(uri, "source")
	}
	s.dependency("source").URI = ""
	for _, uri := range []string{
		layout, "file://" + layout, "file://" + escaped(layout), "FILE://" + layout, "file:" + layout, "git+" + layout,
		layout + "@sha256:" + s.dependency("environment").Digest.SHA256.String(), "file://" + escaped(layout) + "@sha256:" + s.dependency("environment").Digest.SHA256.String(),
		"file://" + escaped(fifo), "file://" + escaped("/dev/null"),
	} {
		s.loc = good
		s.loc.Image = ""
		s.dependency("environment").URI = uri
		refused(uri, "environment image")
	}
	// What the operator names is taken, a pipe or a device never.
	s.dependency("environment").URI = ""
	s.loc = good
	s.loc.Image = layout + "@sha256:" + s.dependency("environment").Digest.SHA256.String()
	fresh()
	rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
	if err != nil {
		t.Errorf("a layout and a digest that the operator names: %v", err)
	}
	rep.Close()
	for _, path := range []string{fifo, os.DevNull} {
		s.loc.Image = path
		fresh()
		s.wantFailure(c, capstore.FetchFailed, "neither a directory nor a regular file")
	}
}

// TestRegistryLeadsNowhere: a registry that a ledger may name sends neither for
// a token nor by a redirect to a host that it may not.
func TestRegistryLeadsNowhere(t *testing.T) {
	var hits atomic.Int64
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hits.Add(1) }))
	defer inner.Close()
	target := strings.Replace(inner.URL, "127.0.0.1", "localhost", 1)
	for name, answer := range map[string]http.HandlerFunc{
		"token": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Www-Authenticate", `Bearer realm="`+target+`/token",service="x",scope="repository:x:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, target+r.URL.Path, http.StatusTemporaryRedirect)
		},
		"https redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.Replace(target, "http:", "https:", 1)+r.URL.Path, http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			registry := httptest.NewServer(answer)
			defer registry.Close()
			host := strings.TrimPrefix(registry.URL, "http://")
			s := newSite(t)
			corpus := s.loc.Datasets
			s.loc.Image, s.loc.Datasets = "", nil
			s.dependency("environment").URI = "oci://" + host + "/x"
			s.dependency("dataset:corpus").URI = "oci://" + host + "/x:tag"
			c := s.config(nil)
			c.Hosts.PlainHTTP = []string{host}
			var err error
			c.Cache, err = Inputs{Dir: filepath.Join(t.TempDir(), "cache"), Budget: 1 << 30, Options: fetch.Options{Hosts: []string{"127.0.0.1"}}}.Open(nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Cache.Close()
			s.wantFailure(c, capstore.FetchFailed, `dataset "corpus"`)
			s.loc.Datasets = corpus
			rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
			rep.Close()
			var f *Failure
			if !errors.As(err, &f) || f.Verdict != capstore.FetchFailed || f.Temporary || !strings.Contains(f.Detail, "environment image") {
				t.Errorf("Reproduce = %v, want FETCH_FAILED for good", err)
			}
			if hits.Load() != 0 {
				t.Errorf("%d requests reached a host that was not allowed", hits.Load())
			}
		})
	}
}
