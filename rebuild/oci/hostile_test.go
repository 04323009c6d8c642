package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/openclaw/clawfs/hashpipe"
)

// lie answers in place of an honest registry and says whether it did.
type lie func(w http.ResponseWriter, r *http.Request, blob []byte) bool

// liar is a registry of one layout that lies about some blobs.
func liar(t testing.TB, layout string, lies map[hashpipe.Digest]lie) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for d, l := range lies {
			if strings.HasSuffix(r.URL.Path, "sha256:"+d.String()) {
				text, _ := os.ReadFile(filepath.Join(layout, "blobs/sha256", d.String()))
				if l(w, r, text) {
					return
				}
			}
		}
		serveBlob(w, r, layout)
	}))
	t.Cleanup(srv.Close)
	return "oci://" + strings.TrimPrefix(srv.URL, "http://") + "/acme/base"
}

func status(code int) lie {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		http.Error(w, "{\"errors\":[{\"code\":\"NO\",\"message\":\"a reason\x1b[31m\\u001b\"}]}", code)
		return true
	}
}

// chunked sends a body whose length is not told.
func chunked(body func([]byte) []byte) lie {
	return func(w http.ResponseWriter, _ *http.Request, blob []byte) bool {
		w.(http.Flusher).Flush()
		w.Write(body(bytes.Clone(blob)))
		return true
	}
}

func plainly(body func([]byte) []byte) lie {
	return func(w http.ResponseWriter, _ *http.Request, blob []byte) bool {
		blob = body(bytes.Clone(blob))
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		w.Write(blob)
		return true
	}
}

// cut sends half of what is asked and closes the connection.
func cut(w http.ResponseWriter, _ *http.Request, blob []byte) bool {
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	w.Write(blob[:len(blob)/2])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func flip(b []byte) []byte { b[len(b)/2] ^= 1; return b }
func trim(b []byte) []byte { return b[:len(b)-1] }
func more(b []byte) []byte { return append(b, 0) }

func TestHostileRegistry(t *testing.T) {
	layout, d := twoLayers(t)
	_, layers, err := inspect(t.Context(), layout, d)
	if err != nil {
		t.Fatal(err)
	}
	big := layers[0].blob
	config := configOf(t, layout, d)
	var sent atomic.Int64
	endless := func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		w.(http.Flusher).Flush()
		w.Write(blob)
		for r.Context().Err() == nil {
			n, err := w.Write(make([]byte, 64<<10))
			if sent.Add(int64(n)); err != nil {
				break
			}
		}
		return true
	}
	hang := func(w http.ResponseWriter, r *http.Request, _ []byte) bool { <-r.Context().Done(); return true }
	redirect := func(to string) lie {
		return func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return true
		}
	}
	for _, tt := range []struct {
		name string
		of   hashpipe.Digest
		lie  lie
		text string
		is   error // or nil: neither
	}{
		{"manifest with a flipped bit", d, plainly(flip), "manifest: ", ErrOtherBytes},
		{"manifest without end", d, endless, "manifest: more than 4194304 bytes", ErrOtherBytes},
		{"empty manifest", d, plainly(func([]byte) []byte { return nil }), "manifest: 0 bytes", ErrOtherBytes},
		{"configuration with a flipped bit", config, plainly(flip), "configuration: ", ErrOtherBytes},
		{"longer configuration", config, chunked(more), "configuration: ", ErrOtherBytes},
		{"layer with a flipped bit", big, plainly(flip), "layer 1 of 2: ", ErrOtherBytes},
		{"shorter layer", big, plainly(trim), "the descriptor says", ErrOtherBytes},
		{"longer layer", big, plainly(more), "the descriptor says", ErrOtherBytes},
		{"shorter layer, length untold", big, chunked(trim), "ends after", ErrOtherBytes},
		{"longer layer, length untold", big, chunked(more), "more than the", ErrOtherBytes},
		{"layer without end", big, endless, "more than the", ErrOtherBytes},
		{"another range", big, func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(blob)-1, len(blob)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[5:])
			return true
		}, "Content-Range", ErrOtherBytes},
		{"absent manifest", d, status(404), `manifest: the registry answers "404 Not Found"`, nil},
		{"absent layer", big, status(404), "layer 1 of 2: the registry answers", nil},
		{"credentials wanted", big, status(403), "docker login", nil},
		{"other refusal", big, status(410), `"410 Gone"`, nil},
		{"overloaded", big, status(429), `"429 Too Many Requests"`, ErrUnreachable},
		{"broken", d, status(500), `"500 Internal Server Error"`, ErrUnreachable},
		{"silent", big, hang, "layer 1 of 2: not reachable: not one byte within", ErrUnreachable},
		{"silent in the middle", big, func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
			w.Write(blob[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, "not one byte within", ErrUnreachable},
		{"closed before the answer", big, func(http.ResponseWriter, *http.Request, []byte) bool { panic(http.ErrAbortHandler) }, "not reachable", ErrUnreachable},
		{"redirect without end", big, func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, "more than 5 redirects", nil},
		{"redirect to plain HTTP elsewhere", big, redirect("http://blobs.example/x"), `redirects to "http://blobs.example/x": expected https`, nil},
		{"redirect to a file", big, redirect("file:///etc/passwd"), "redirects to", nil},
		{"redirect to nowhere", big, redirect("http://127.0.0.1:1/x"), "not reachable", ErrUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sent.Store(0)
			from := liar(t, layout, map[hashpipe.Digest]lie{tt.of: tt.lie})
			o := options()
			if strings.HasPrefix(tt.name, "silent") {
				o.Stall = 300 * time.Millisecond
			}
			dest := t.TempDir()
			err := Pull(t.Context(), from, d, dest, o)
			if err == nil || !strings.Contains(err.Error(), tt.text) || strings.ContainsRune(err.Error(), '\x1b') {
				t.Fatalf("Pull: %v, want an error with %q", err, tt.text)
			}
			checkKind(t, err, tt.is)
			if n := sent.Load(); n > 32<<20 {
				t.Errorf("%d bytes of an endless body were taken", n)
			}
			// No name without the bytes that it names.
			blobs, _ := filepath.Glob(filepath.Join(dest, "blobs/sha256/[^.]*"))
			for _, b := range blobs {
				if text, err := os.ReadFile(b); err != nil || hashpipe.SumBytes(text).String() != filepath.Base(b) {
					t.Errorf("%s holds other bytes: %v", filepath.Base(b), err)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(dest, "blobs/sha256/.part-*")); len(left) > 0 && tt.is == ErrOtherBytes {
				t.Errorf("%q of a lie was kept", left)
			}
			// An honest place then completes the same layout.
			if err := Pull(t.Context(), layout, d, dest, options()); err != nil {
				t.Error(err)
			}
			checkPulled(t, dest, d)
		})
	}
}

func configOf(t testing.TB, layout string, d hashpipe.Digest) hashpipe.Digest {
	t.Helper()
	cfg, err := os.ReadFile(filepath.Join(layout, "blobs/sha256", d.String()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(cfg, []byte(`"config":`))
	_, rest, ok := bytes.Cut(rest, []byte("sha256:"))
	config, err := hashpipe.ParseDigest(string(rest[:64]))
	if !ok || err != nil {
		t.Fatalf("no configuration in %s: %v", cfg, err)
	}
	return config
}

// A transfer that breaks off goes on where it was: in the same call, and in the
// next one.
func TestPullResumes(t *testing.T) {
	layout, d := twoLayers(t)
	_, layers, err := inspect(t.Context(), layout, d)
	if err != nil {
		t.Fatal(err)
	}
	big, size := layers[0].blob, layers[0].size

	var asked []string
	breaks := 3
	from := liar(t, layout, map[hashpipe.Digest]lie{big: func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		asked = append(asked, r.Header.Get("Range"))
		if breaks--; breaks < 0 {
			return false
		}
		var at int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
		if at > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(blob)-1, len(blob)))
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)-at))
			w.WriteHeader(http.StatusPartialContent)
		}
		return cut(w, r, blob[at:])
	}})
	var seen int64
	o := options()
	o.Seen = func(n int64) { seen += n }
	dest := t.TempDir()
	if err := Pull(t.Context(), from, d, dest, o); err != nil {
		t.Fatalf("Pull with three breaks: %v", err)
	}
	checkPulled(t, dest, d)
	if len(asked) != 4 || asked[0] != "" || !strings.HasPrefix(asked[3], "bytes=") || seen > size+64<<10 {
		t.Errorf("asked for %q, %d bytes came for %d", asked, seen, size)
	}

	// A place that always breaks off at once is left alone, and the next call
	// goes on elsewhere.
	dest = t.TempDir()
	half := liar(t, layout, map[hashpipe.Digest]lie{big: cut})
	err = Pull(t.Context(), half, d, dest, o)
	checkKind(t, err, ErrUnreachable)
	part := filepath.Join(dest, "blobs/sha256/.part-"+big.String())
	st, err := os.Stat(part)
	if err != nil || st.Size() == 0 || st.Size() >= size {
		t.Fatalf("after a break: %v, %v", st, err)
	}
	asked, seen = nil, 0
	if err := Pull(t.Context(), from, d, dest, o); err != nil || seen > size-st.Size()+64<<10 {
		t.Errorf("Pull after a break: %v, %d bytes came, %d were missing", err, seen, size-st.Size())
	}
	if want := fmt.Sprintf("bytes=%d-", st.Size()); len(asked) != 1 || asked[0] != want {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	checkPulled(t, dest, d)

	// What a liar left does not make an honest place a liar, whether it knows
	// ranges or not.
	for _, from := range []string{from, layout, liar(t, layout, map[hashpipe.Digest]lie{big: chunked(func(b []byte) []byte { return b })})} {
		dest = t.TempDir()
		if err := errors.Join(os.MkdirAll(filepath.Join(dest, "blobs/sha256"), 0o755),
			os.WriteFile(filepath.Join(dest, "blobs/sha256/.part-"+big.String()), make([]byte, 1<<20), 0o644)); err != nil {
			t.Fatal(err)
		}
		if err := Pull(t.Context(), from, d, dest, o); err != nil {
			t.Errorf("Pull onto a liar's half: %v", err)
		}
		checkPulled(t, dest, d)
	}
}

func TestPullCancelled(t *testing.T) {
	layout, d := twoLayers(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("nobody waits")
	from := liar(t, layout, map[hashpipe.Digest]lie{d: func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		cancel(gone)
		<-r.Context().Done()
		return true
	}})
	err := Pull(ctx, from, d, t.TempDir(), options())
	if !errors.Is(err, gone) {
		t.Errorf("Pull after cancel: %v, want %v", err, gone)
	}
	checkKind(t, err, nil)
}

func TestRegistryLocations(t *testing.T) {
	layout, d := twoLayers(t)
	plain := liar(t, layout, nil)
	encrypted := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveBlob(w, r, layout) }))
	defer encrypted.Close()
	secure := "oci://" + strings.TrimPrefix(encrypted.URL, "https://") + "/acme/base"
	port := plain[strings.LastIndexByte(plain[:len(plain)-len("/acme/base")], ':'):]
	for _, tt := range []struct {
		name, from string
		change     func(*Options)
		text       string // or "": it works
		is         error
	}{
		{"plain on loopback", plain, nil, "", nil},
		{"plain on loopback by name", "docker://localhost" + port, nil, "", nil},
		{"TLS on loopback", secure, func(o *Options) { o.Transport = encrypted.Client().Transport }, "", nil},
		{"TLS of an unknown authority", secure, nil, "certificate", nil},
		{"plain and not on loopback", "oci://other.example" + port, nil, "HTTP response to HTTPS client", nil},
		{"plain and listed", "oci://other.example" + port, func(o *Options) { o.PlainHTTP = []string{"other.example" + port[:len(port)-len("/acme/base")]} }, "", nil},
		{"no transport", plain, func(o *Options) { o.Transport = nil }, "no transport", nil},
		{"no repository", "oci://registry.example", nil, "expected oci://HOST", nil},
		{"bad repository", "oci://registry.example/../x", nil, "expected oci://HOST", nil},
		{"upper case", "oci://registry.example/Acme", nil, "expected oci://HOST", nil},
		{"user in the host", "oci://user:secret@registry.example/acme", nil, "expected oci://HOST", nil},
		{"nobody listens", "oci://127.0.0.1:1/acme/base", nil, "connection refused", ErrUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			if strings.Contains(tt.from, "other.example") { // as a resolver would
				o.Transport = &http.Transport{DialContext: dialTo("127.0.0.1" + port[:len(port)-len("/acme/base")])}
			}
			if tt.change != nil {
				tt.change(&o)
			}
			err := Pull(t.Context(), tt.from, d, t.TempDir(), o)
			if tt.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "secret") {
				t.Fatalf("Pull: %v, want an error with %q", err, tt.text)
			}
			checkKind(t, err, tt.is)
		})
	}
}

// The transport's refusal reaches the caller, who knows it.
func TestTransportRefuses(t *testing.T) {
	private := errors.New("a private address")
	o := options()
	o.Transport = roundTripper(func(*http.Request) (*http.Response, error) { return nil, private })
	_, d := twoLayers(t)
	err := Pull(t.Context(), "oci://registry.example/acme/base:v1", d, t.TempDir(), o)
	if !errors.Is(err, private) {
		t.Errorf("Pull: %v, want %v", err, private)
	}
	checkKind(t, err, nil)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A tag that leads elsewhere by now is named; the image is still found by its
// digest where the registry has it.
func TestTagMoved(t *testing.T) {
	layout, d := twoLayers(t)
	other, otherD := image(t, amd64, archive(t, file("a", "1")))
	for name, tagged := range map[string]string{
		"image": otherD.String(),
		"index": string(index(t, other, describe(t, other, otherD, "amd64")).Digest[7:]),
	} {
		for _, kept := range []bool{false, true} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/manifests/v1") {
					text, _ := os.ReadFile(filepath.Join(other, "blobs/sha256", tagged))
					w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
					w.Write(text)
					return
				}
				if kept {
					serveBlob(w, r, layout)
				} else {
					serveBlob(w, r, other)
				}
			}))
			err := Pull(t.Context(), "oci://"+strings.TrimPrefix(srv.URL, "http://")+"/acme/base:v1", d, t.TempDir(), options())
			srv.Close()
			if kept {
				if err != nil {
					t.Errorf("%s: the digest is there and the tag leads elsewhere: %v", name, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), "the location leads to") || !strings.Contains(err.Error(), "sha256:"+otherD.String()) {
				t.Errorf("%s: %v, want a word of %v", name, err, otherD)
			}
			checkKind(t, err, ErrOtherBytes)
		}
	}
}

func dialTo(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}
