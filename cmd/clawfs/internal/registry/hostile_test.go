package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/oci/ocitest"
)

// lie answers in place of an honest registry and says whether it did.
type lie func(w http.ResponseWriter, r *http.Request) bool

// liar stands in front of an honest registry.
func liar(t testing.TB, honest string, l lie) *Place {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: honest})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !l(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return open(t, "oci://"+strings.TrimPrefix(srv.URL, "http://")+"/acme/trust")
}

// on lies about the paths that end so.
func on(end string, l lie) lie {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, end) && l(w, r)
	}
}

func answer(status int, mediaType, body string) lie {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	}
}

func fetched(t testing.TB, host, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + host + "/v2/acme/trust/" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", path, resp.Status, err)
	}
	return string(text)
}

func TestHostileFetch(t *testing.T) {
	host := inProcess(t)
	honest := open(t, "oci://"+host+"/acme/trust")
	r, other := identify(t, sign(t, revPayload("one"))), identify(t, sign(t, revPayload("two")))
	sba, err := identify(t, sign(t, sbaPayload("acme/langid"))).WithProof(proof(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Record{r, other, sba} {
		if _, err := honest.Push(t.Context(), r, false); err != nil {
			t.Fatal(err)
		}
	}
	manifest, foreign := fetched(t, host, "manifests/"+r.Tag()), fetched(t, host, "manifests/"+other.Tag())
	blob := string(blobDigest(r.Envelope))
	var blobs, sent atomic.Int64
	endless := func(w http.ResponseWriter, req *http.Request) bool {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		for req.Context().Err() == nil {
			n, err := w.Write(make([]byte, 32<<10))
			if sent.Add(int64(n)); err != nil {
				break
			}
		}
		return true
	}
	as := func(old, new string) lie {
		changed := strings.Replace(manifest, old, new, 1)
		if changed == manifest {
			t.Fatalf("the manifest has no %q", old)
		}
		return on("manifests/"+r.Tag(), answer(200, v1.MediaTypeImageManifest, changed))
	}
	size := fmt.Sprintf(`"size":%d}]`, len(r.Envelope))
	redirect := func(to string) lie {
		return func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, to, http.StatusTemporaryRedirect)
			return true
		}
	}
	for _, tt := range []struct {
		name  string
		tag   string
		lie   lie
		text  string
		lied  bool
		is    error
		blobs int64 // how many blobs may have been asked for
	}{
		{"the manifest of another record", r.Tag(), on("manifests/"+r.Tag(), answer(200, v1.MediaTypeImageManifest, foreign)), "the record of " + other.Tag(), true, nil, 1},
		{"no such tag", r.Tag(), on("manifests/"+r.Tag(), answer(404, "application/json", "{}")), "is not there", false, oci.ErrAbsent, 0},
		{"blob dropped", r.Tag(), on(blob, answer(404, "application/json", "{}")), "is not there", false, oci.ErrAbsent, 1},
		{"blob altered", r.Tag(), on(blob, answer(200, "application/octet-stream", strings.Replace(string(r.Envelope), "payload", "Payload", 1))), "hash to", true, oci.ErrOtherBytes, 1},
		{"blob of another record", r.Tag(), on(blob, answer(200, "application/octet-stream", string(other.Envelope))), "hash to", true, oci.ErrOtherBytes, 1},
		{"blob cut", r.Tag(), on(blob, answer(200, "application/octet-stream", string(r.Envelope[:20]))), "20 bytes", true, oci.ErrOtherBytes, 1},
		{"blob without end", r.Tag(), on(blob, endless), "more than", true, oci.ErrOtherBytes, 1},
		{"manifest without end", r.Tag(), on("manifests/"+r.Tag(), endless), "more than 65536 bytes", true, oci.ErrOtherBytes, 0},
		{"manifest is no JSON", r.Tag(), on("manifests/"+r.Tag(), answer(200, v1.MediaTypeImageManifest, "<html>")), "manifest", true, oci.ErrOtherBytes, 0},
		{"an image index", r.Tag(), as(v1.MediaTypeImageManifest, v1.MediaTypeImageIndex), "media type", true, oci.ErrOtherBytes, 0},
		{"an image", r.Tag(), as(`"artifactType":"application/vnd.clawfs.revocation.v1+json",`, ""), "no artifactType", true, oci.ErrOtherBytes, 0},
		{"another artifactType", r.Tag(), as("clawfs.revocation.v1", "clawfs.capability.v1"), "artifactType", true, nil, 0},
		{"a config", r.Tag(), as(v1.MediaTypeEmptyJSON, v1.MediaTypeImageConfig), "config", true, oci.ErrOtherBytes, 0},
		{"another media type of the layer", r.Tag(), as(envelopeType, "application/octet-stream"), "layer 0", true, nil, 0},
		{"a layer of 5 MiB", r.Tag(), as(size, `"size":5242880}]`), "5242880 bytes", true, nil, 0},
		{"a layer of -1 bytes", r.Tag(), as(size, `"size":-1}]`), "size -1", true, oci.ErrOtherBytes, 0},
		{"a layer from elsewhere", r.Tag(), as(size, strings.TrimSuffix(size, "}]")+`,"urls":["http://192.0.2.1/x"]}]`), "foreign", true, oci.ErrOtherBytes, 0},
		{"a digest of another kind", r.Tag(), as(blob, "md5:d41d8cd98f00b204e9800998ecf8427e"), "digest", true, oci.ErrOtherBytes, 0},
		{"a digest that is a path", r.Tag(), as(blob, "sha256:../../../../etc/passwd"), "digest", true, oci.ErrOtherBytes, 0},
		{"no layer", r.Tag(), as(manifest[strings.Index(manifest, `"layers":`):strings.Index(manifest, `,"annotations"`)], `"layers":[]`), "0 layers", true, nil, 0},
		{"blob elsewhere, without TLS", r.Tag(), on(blob, redirect("http://192.0.2.1/blob")), "expected https", false, nil, 1},
		{"manifest elsewhere, without TLS", r.Tag(), on("manifests/"+r.Tag(), redirect("http://192.0.2.1/m")), "expected https", false, nil, 0},
		{"always 500", r.Tag(), on(blob, answer(500, "application/json", "{}")), "500", false, oci.ErrUnreachable, 4},
		{"always 429", r.Tag(), on("manifests/"+r.Tag(), answer(429, "application/json", "{}")), "429", false, oci.ErrUnreachable, 0},
		{"proof altered", sba.Tag(), on(string(blobDigest(sba.Proof)), answer(200, "text/plain", strings.Repeat("x", len(sba.Proof)))), "hash to", true, oci.ErrOtherBytes, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			blobs.Store(0)
			p := liar(t, host, func(w http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, "/blobs/") {
					blobs.Add(1)
				}
				return tt.lie(w, req)
			})
			got, err := p.Fetch(t.Context(), tt.tag)
			var lied *LieError
			if err == nil || !strings.Contains(err.Error(), tt.text) || errors.As(err, &lied) != tt.lied || !strings.Contains(err.Error(), p.String()) {
				t.Fatalf("Fetch = %v, %v; want an error of %s with %q; a LieError: %v", got.Tag(), err, p, tt.text, tt.lied)
			}
			for _, is := range []error{oci.ErrUnreachable, oci.ErrOtherBytes, oci.ErrAbsent} {
				if errors.Is(err, is) != (is == tt.is) {
					t.Errorf("Fetch: %v; is it %v?", err, is)
				}
			}
			if n := blobs.Load(); n > tt.blobs {
				t.Errorf("%d blobs were asked for, want at most %d", n, tt.blobs)
			}
		})
	}
	if n := sent.Load(); n == 0 || n > 64<<20 {
		t.Errorf("a body without end: %d bytes were taken", n)
	}
	// A registry that is overloaded for a moment is asked again.
	var failures atomic.Int64
	p := liar(t, host, func(w http.ResponseWriter, req *http.Request) bool {
		if n := failures.Add(1) % 5; n != 1 && n != 4 {
			return false
		}
		return answer([]int{429, 500}[failures.Load()/2%2], "application/json", "{}")(w, req)
	})
	third := identify(t, sign(t, revPayload("three")))
	if _, err := p.Push(t.Context(), third, false); err != nil {
		t.Errorf("pushing to a busy registry: %v", err)
	}
	if got, err := p.Fetch(t.Context(), third.Tag()); err != nil || got.ID != third.ID {
		t.Errorf("fetching from a busy registry: %v", err)
	}
}

// A registry that took an upload and answers with an error is not sent the same
// bytes again into the same upload.
func TestUploadIsBegunAnew(t *testing.T) {
	addr, _ := ocitest.Distribution(t, "")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	var uploads, manifests atomic.Int64
	p := liar(t, addr, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method != http.MethodPut:
			return false
		case strings.Contains(r.URL.Path, "/manifests/"):
			if manifests.Add(1) > 1 {
				return false
			}
			return answer(400, "application/json", `{"errors":[{"code":"DIGEST_INVALID","message":"x"}]}`)(w, r)
		case uploads.Add(1)%2 == 0:
			return false
		}
		proxy.ServeHTTP(httptest.NewRecorder(), r)
		return answer(500, "application/json", "{}")(w, r)
	})
	r := identify(t, sign(t, revPayload("x")))
	if _, err := p.Push(t.Context(), r, false); err != nil {
		t.Errorf("Push: %v", err)
	}
	if got, err := p.Fetch(t.Context(), r.Tag()); err != nil || got.ID != r.ID {
		t.Errorf("Fetch: %v", err)
	}
	if uploads.Load() == 0 || manifests.Load() < 2 {
		t.Errorf("%d uploads, %d manifests: nothing was tried again", uploads.Load(), manifests.Load())
	}
}

func TestHostileListing(t *testing.T) {
	host := inProcess(t)
	honest := open(t, "oci://"+host+"/acme/trust")
	var all []string
	for i := range 5 {
		r := identify(t, sign(t, revPayload(fmt.Sprint(i))))
		if _, err := honest.Push(t.Context(), r, false); err != nil {
			t.Fatal(err)
		}
		all = append(all, r.Tag())
	}
	slices.Sort(all)
	page := func(tags ...string) string {
		b, err := json.Marshal(map[string]any{"name": "acme/trust", "tags": tags})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var asked atomic.Int64
	next := func(link string, body func(n int64) string) lie {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Link", link)
			return answer(200, "application/json", body(asked.Add(1)))(w, r)
		}
	}
	many := make([]string, 60_000)
	for i := range many {
		many[i] = fmt.Sprintf("rev-%064x", i)
	}
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	for _, tt := range []struct {
		name string
		lie  lie
		want []string
		text string
		is   error
		most int64 // pages
	}{
		{"in another order, some twice", answer(200, "application/json", page(append(backwards, all[0])...)), all, "", nil, 1},
		{"with tags of other things", answer(200, "application/json", page(append(all, "latest", "sha256-"+sbaHex, "rev-1")...)), all, "", nil, 1},
		{"one is left out", answer(200, "application/json", page(all[1:]...)), all[1:], "", nil, 1},
		{"no tags", answer(200, "application/json", `{"name":"acme/trust","tags":null}`), nil, "", nil, 1},
		{"two pages", func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("last") == "x" {
				return answer(200, "application/json", page(all[3:]...))(w, r)
			}
			return next(`</v2/acme/trust/tags/list?last=x>; rel="next"`, func(int64) string { return page(all[:3]...) })(w, r)
		}, all, "", nil, 2},
		{"pages without end", next(`</v2/acme/trust/tags/list?last=x>; rel="next"`, func(int64) string { return page() }), nil, "more than 2000 pages", oci.ErrOtherBytes, 2002},
		{"tags without end", next(`</v2/acme/trust/tags/list?last=x>; rel="next"`, func(int64) string { return page(many...) }), nil, "more than 100000 tags", oci.ErrOtherBytes, 4},
		// Cut at the bound, it looks like a transfer that broke off.
		{"a page of 20 MiB", answer(200, "application/json", page(strings.Repeat("x", 20<<20))), nil, "listing", oci.ErrUnreachable, 1},
		{"a tag that is a path", answer(200, "application/json", page("../../etc")), nil, "is no tag", oci.ErrOtherBytes, 1},
		{"the next page elsewhere", next(`<http://192.0.2.1/v2/acme/trust/tags/list>; rel="next"`, func(int64) string { return page(all...) }), nil, "same origin", nil, 2},
		{"no JSON", answer(200, "text/html", "<html>"), nil, "listing", nil, 1},
		{"always 503", answer(503, "application/json", "{}"), nil, "503", oci.ErrUnreachable, 4},
		{"forbidden", answer(403, "application/json", `{"errors":[{"code":"DENIED","message":"no \u001b[31m"}]}`), nil, `other credentials`, nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked.Store(0)
			p := liar(t, host, on("/tags/list", tt.lie))
			tags, err := p.Tags(t.Context())
			if tt.text == "" && (err != nil || !slices.Equal(tags, tt.want)) {
				t.Errorf("Tags = %q, %v; want %q", tags, err, tt.want)
			}
			if tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text) || tags != nil || strings.ContainsRune(err.Error(), 0x1b)) {
				t.Errorf("Tags = %d tags, %v; want an error with %q", len(tags), err, tt.text)
			}
			for _, is := range []error{oci.ErrUnreachable, oci.ErrOtherBytes, oci.ErrAbsent} {
				if errors.Is(err, is) != (is == tt.is) {
					t.Errorf("Tags: %v; is it %v?", err, is)
				}
			}
			if asked.Load() > tt.most+1 { // the first question finds out whether it has TLS
				t.Errorf("%d pages were asked for, want at most %d", asked.Load(), tt.most)
			}
		})
	}
}

// What somebody does on the disk of a real registry, or of a layout, is found
// out and does not spread to other records.
func TestAlteredOnDisk(t *testing.T) {
	addr, data := ocitest.Distribution(t, "")
	layout := filepath.Join(t.TempDir(), "trust")
	for name, tt := range map[string]struct {
		place *Place
		data  string
	}{"distribution": {open(t, "oci://"+addr+"/acme/trust"), data}, "layout": {open(t, layout), layout}} {
		t.Run(name, func(t *testing.T) {
			var records []Record
			for i := range 3 {
				r := identify(t, sign(t, revPayload(fmt.Sprint(i))))
				if _, err := tt.place.Push(t.Context(), r, false); err != nil {
					t.Fatal(err)
				}
				records = append(records, r)
			}
			altered := bytes.Replace(records[0].Envelope, []byte("AAAA"), []byte("AAAB"), 1)
			altered[len(altered)/2] ^= 1
			files := map[string]func(string) error{
				string(records[0].Envelope): func(path string) error { return os.WriteFile(path, altered, 0o644) },
				string(records[1].Envelope): os.Remove,
			}
			found := 0
			err := filepath.WalkDir(tt.data, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				text, err := os.ReadFile(path)
				if change := files[string(text)]; err == nil && change != nil {
					found++
					return change(path)
				}
				return err
			})
			if err != nil || found != 2 {
				t.Fatalf("%d blobs found on the disk, %v", found, err)
			}
			var lied *LieError
			if _, err := tt.place.Fetch(t.Context(), records[0].Tag()); !errors.As(err, &lied) || lied.Place != tt.place.String() {
				t.Errorf("Fetch of what was altered: %v, want a LieError", err)
			}
			if _, err := tt.place.Fetch(t.Context(), records[1].Tag()); err == nil {
				t.Error("what was removed was fetched")
			}
			if got, err := tt.place.Fetch(t.Context(), records[2].Tag()); err != nil || got.ID != records[2].ID {
				t.Errorf("Fetch of what was left alone: %v", err)
			}
			// In a layout, pushing again mends both. A registry believes that it
			// has the blob, so there is nothing to do for it here.
			if name == "layout" {
				for _, r := range records[:2] {
					if _, err := tt.place.Push(t.Context(), r, true); err != nil {
						t.Error(err)
					}
					if _, err := tt.place.Fetch(t.Context(), r.Tag()); err != nil {
						t.Errorf("after pushing it again: %v", err)
					}
				}
			}
		})
	}
}

// The index of a layout is as little believed as a registry.
func TestHostileLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "trust")
	p := open(t, dir)
	r, other := identify(t, sign(t, revPayload("one"))), identify(t, sign(t, revPayload("two")))
	for _, r := range []Record{r, other} {
		if _, err := p.Push(t.Context(), r, false); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(good, &index); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, index, text string }{
		{"two of one tag", strings.Replace(string(good), other.Tag(), r.Tag(), 1), "2 manifests have this tag"},
		{"tags swapped", strings.NewReplacer(other.Tag(), r.Tag(), r.Tag(), other.Tag()).Replace(string(good)), "the record of " + other.Tag()},
		{"a digest that is a path", strings.Replace(string(good), string(index.Manifests[0].Digest), "sha256:../../../../etc/passwd", 1), "digest"},
		{"no JSON", "{", "index.json"},
	} {
		if err := os.WriteFile(filepath.Join(dir, v1.ImageIndexFile), []byte(tt.index), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Fetch(t.Context(), r.Tag()); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: Fetch: %v, want an error with %q", tt.name, err, tt.text)
		}
	}
}
