package fetch

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// site is a real server of one file with faults. It counts what it served.
type site struct {
	*httptest.Server
	mu      sync.Mutex
	content []byte
	etag    string
	cutAt   int64 // the connection ends after so many bytes of a body; 0 means never
	fault   func(w http.ResponseWriter, r *http.Request, n int) bool
	served  []int64 // bytes of each answer
	heads   []http.Header
}

// newSite serves content at every path. fault, if not nil, may answer the n-th
// request (from 0) itself.
func newSite(t *testing.T, secure bool, content []byte, fault func(w http.ResponseWriter, r *http.Request, n int) bool) *site {
	s := &site{content: content, etag: `"v1"`, fault: fault}
	h := http.HandlerFunc(s.serve)
	s.Server = httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n, content, etag, cut := len(s.served), s.content, s.etag, s.cutAt
	s.served = append(s.served, 0)
	s.heads = append(s.heads, r.Header.Clone())
	s.mu.Unlock()
	c := &counter{ResponseWriter: w, s: s, n: n, left: cut}
	if s.fault != nil && s.fault(c, r, n) {
		return
	}
	w.Header().Set("ETag", etag)
	http.ServeContent(c, r, "", time.Time{}, bytes.NewReader(content))
}

func (s *site) set(change func()) { s.mu.Lock(); defer s.mu.Unlock(); change() }

// log returns the bytes of each answer so far, and the heads of the requests.
func (s *site) log() ([]int64, []http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.served), slices.Clone(s.heads)
}

func (s *site) answers() int { served, _ := s.log(); return len(served) }

func (s *site) place() Place { return Place{URI: s.URL + "/file", Trusted: true} }

type counter struct {
	http.ResponseWriter
	s    *site
	n    int
	left int64
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counter) Write(p []byte) (int, error) {
	if c.left > 0 && int64(len(p)) >= c.left {
		p = p[:c.left]
		defer func() { http.NewResponseController(c).Flush(); panic(http.ErrAbortHandler) }()
	}
	n, err := c.ResponseWriter.Write(p)
	c.left -= int64(n)
	c.s.set(func() { c.s.served[c.n] += int64(n) })
	return n, err
}

func answer(code int, header ...string) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

func roots(sites ...*site) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, s := range sites {
		pool.AddCert(s.Certificate())
	}
	return pool
}

// A download that is cut off asks only for the rest.
func TestResume(t *testing.T) {
	content := randomBytes(1, 3<<20)
	s := newSite(t, false, content, nil)
	s.cutAt = 1 << 20
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{})
	var seen int64
	l, err := c.File(t.Context(), digest(content), 3<<20, []Place{s.place()}, func(n int64) { seen += n })
	if err != nil {
		t.Fatalf("%v\n%v", err, j)
	}
	closeLease(t, l)
	resumed := j.of(Resumed)
	served, heads := s.log()
	if len(served) < 3 || len(resumed) != len(served)-1 || seen != int64(len(content)) {
		t.Fatalf("%d answers, %d bytes seen:\n%v", len(served), seen, j)
	}
	for i, n := range resumed {
		if want := fmt.Sprintf("bytes=%d-", n.Bytes); heads[i+1].Get("Range") != want || heads[i+1].Get("If-Range") != `"v1"` || n.Bytes == 0 {
			t.Errorf("request %d has %v, want Range %s", i+1, heads[i+1], want)
		}
	}
	var total int64
	for _, n := range served {
		total += n
	}
	if total != int64(len(content)) {
		t.Errorf("the server served %d bytes of %d", total, len(content))
	}
	if left := names(t, c.dir, "partial"); len(left) != 0 {
		t.Errorf("partial holds %q", left)
	}
}

// hang sends half of the content and then nothing.
func hang(content []byte) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n > 0 {
			return false
		}
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		w.Write(content[:len(content)/2])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
}

// A download that a job began is continued by the next, in another process as
// well: nothing is in memory. It is part of the usage, and can be evicted.
func TestResumeInAnotherJob(t *testing.T) {
	content := randomBytes(1, 1<<20)
	s := newSite(t, false, content, hang(content))
	dir := filepath.Join(t.TempDir(), "cache")
	c, _ := testCache(t, dir, 1<<30, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var seen int64
	_, err := c.File(ctx, digest(content), 1<<20, []Place{s.place()}, func(n int64) {
		if seen += n; seen == 1<<19 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if u, err := c.Usage(); err != nil || u.Partial < 1<<19 || u.Partial != u.Bytes || u.Entries != 0 {
		t.Errorf("Usage = %+v, %v", u, err)
	}
	c2, j := testCache(t, dir, 1<<30, Options{})
	closeLease(t, mustFile(t, c2, content, s.place()))
	if served, _ := s.log(); len(j.of(Resumed)) != 1 || j.of(Resumed)[0].Bytes != 1<<19 || served[1] != 1<<19 {
		t.Errorf("served %v:\n%v", served, j)
	}

	s.set(func() { s.served = nil })
	c3, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1, Options{Stall: 500 * time.Millisecond})
	if _, err := c3.File(t.Context(), digest(content), 1<<20, []Place{s.place()}, nil); !errors.As(err, new(*Unavailable)) {
		t.Fatal(err)
	}
	if left := names(t, c3.dir, "partial"); len(left) != 0 || len(j.of(Evicted)) != 1 {
		t.Errorf("a partial download beyond the budget stays: %q\n%v", left, j)
	}
}

// A file that changed is fetched from its beginning, whatever the server makes
// of Range and If-Range.
func TestChangedFile(t *testing.T) {
	old, now := randomBytes(1, 1<<20), randomBytes(2, 1<<20)
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, n int) bool
		now    []byte
	}{
		"If-Range is understood": {nil, now},
		"shorter":                {nil, now[:1<<18]},
		"Range is ignored": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			r.Header.Del("Range")
			return false
		}, now},
		"If-Range is ignored": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			r.Header.Del("If-Range")
			return false
		}, now},
		"If-Range is ignored, and there is no tag": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n != 1 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", 1<<19, 1<<20-1, 1<<20))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(now[1<<19:])
			return true
		}, now},
		"shorter, and If-Range is ignored": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			r.Header.Del("If-Range")
			return false
		}, now[:1<<18]},
	} {
		s := newSite(t, false, old, c.answer)
		s.cutAt = 1 << 19
		dir := filepath.Join(t.TempDir(), "cache")
		first, _ := testCache(t, dir, 1<<30, Options{Attempts: 1})
		if _, err := first.File(t.Context(), digest(c.now), 1<<20, []Place{s.place()}, nil); err == nil {
			t.Fatal("the old file was taken")
		}
		s.set(func() { s.content, s.etag, s.cutAt = c.now, `"v2"`, 0 })
		second, j := testCache(t, dir, 1<<30, Options{})
		l, err := second.File(t.Context(), digest(c.now), 1<<20, []Place{s.place()}, nil)
		if err != nil {
			t.Errorf("%s: %v\n%v", name, err, j)
			continue
		}
		closeLease(t, l)
		if len(j.of(Restarted)) != 1 || len(j.of(Lied)) != 0 || len(j.of(Resumed)) != 0 && !strings.Contains(name, "no tag") {
			t.Errorf("%s:\n%v", name, j)
		}
	}
}

// Without a strong validator nothing is continued.
func TestWeakValidators(t *testing.T) {
	content := randomBytes(1, 1<<20)
	date := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		header []string
		resume bool
	}{
		{[]string{"ETag", `"x"`}, true},
		{[]string{"ETag", `W/"x"`}, false},
		{[]string{"Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT"}, true},
		{[]string{"Last-Modified", date}, false},
		{[]string{"Last-Modified", "yesterday"}, false},
		{nil, false},
	} {
		s := newSite(t, false, content, func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n > 0 {
				return false
			}
			for i := 0; i < len(c.header); i += 2 {
				w.Header().Set(c.header[i], c.header[i+1])
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write(content[:1<<19])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		cache, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{})
		closeLease(t, mustFile(t, cache, content, s.place()))
		_, heads := s.log()
		if got := heads[1].Get("Range") != ""; got != c.resume {
			t.Errorf("%q: continued %v, want %v", c.header, got, c.resume)
		}
	}
}

// The place that lied is named, with what it gave, and the next one is asked.
func TestLyingMirror(t *testing.T) {
	content := randomBytes(1, 100_000)
	liar := newSite(t, true, randomBytes(2, 100_000), nil)
	honest := newSite(t, true, content, nil)
	gone := newSite(t, true, nil, answer(404))
	busy := newSite(t, true, nil, answer(503))
	opts := Options{RootCAs: roots(liar, honest, gone, busy), Attempts: 2}
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, opts)
	closeLease(t, mustFile(t, c, content, liar.place(), gone.place(), honest.place()))
	lies := j.of(Lied)
	if len(lies) != 1 || lies[0].Place != liar.place() || !strings.Contains(lies[0].Expected, digest(content).String()) ||
		!strings.Contains(lies[0].Got, digest(liar.content).String()) || len(j.of(Failed)) != 1 || len(j.of(Fetched)) != 1 {
		t.Errorf("notes:\n%v", j)
	}
	for _, tt := range []struct {
		name            string
		places          []Place
		lied, temporary bool
	}{
		{"two lies", []Place{liar.place(), {URI: liar.URL + "/other", Trusted: true}}, true, false},
		{"a lie and an absence", []Place{liar.place(), gone.place()}, false, false},
		{"a lie and a bad day", []Place{busy.place(), liar.place()}, false, true},
		{"absence", []Place{gone.place()}, false, false},
	} {
		c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, opts)
		_, err := c.File(t.Context(), digest(content), 100_000, tt.places, nil)
		var u *Unavailable
		if errors.As(err, new(*Mismatch)) != tt.lied || errors.As(err, &u) == tt.lied || u != nil && u.Temporary() != tt.temporary {
			t.Errorf("%s: %v", tt.name, err)
		}
		for _, p := range tt.places {
			if !strings.Contains(err.Error(), p.URI) {
				t.Errorf("%s: %v does not name %s", tt.name, err, p.URI)
			}
		}
	}
}

func TestStallAsksTheNextPlace(t *testing.T) {
	content := randomBytes(1, 1<<20)
	head := newSite(t, false, nil, func(w http.ResponseWriter, r *http.Request, n int) bool { <-r.Context().Done(); return true })
	body := newSite(t, false, content, hang(content))
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Stall: 500 * time.Millisecond})
	closeLease(t, mustFile(t, c, content, head.place(), body.place(), place(t, content)))
	failed := j.of(Failed)
	if len(failed) != 2 || head.answers() != 1 || body.answers() != 1 || !strings.Contains(failed[0].Err.Error(), "sent nothing for 500ms") ||
		!strings.Contains(failed[1].Err.Error(), "sent nothing for 500ms") {
		t.Errorf("notes:\n%v", j)
	}
	_, err := c.File(t.Context(), digest([]byte("x")), 1, []Place{head.place()}, nil)
	if u := new(Unavailable); !errors.As(err, &u) || !u.Temporary() {
		t.Errorf("a stall is not temporary: %v", err)
	}
	// A slow server is no stalled one.
	slow := newSite(t, false, content, func(w http.ResponseWriter, r *http.Request, n int) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		for part := range slices.Chunk(content, len(content)/8) {
			w.Write(part)
			http.NewResponseController(w).Flush()
			time.Sleep(200 * time.Millisecond)
		}
		return true
	})
	c, j = testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Stall: time.Second})
	closeLease(t, mustFile(t, c, content, slow.place()))
	if slow.answers() != 1 {
		t.Errorf("a slow server:\n%v", j)
	}
}

func TestRetries(t *testing.T) {
	content := randomBytes(1, 1000)
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request, n int) bool{
		"503":               answer(503, "Retry-After", "0"),
		"429 for too long":  answer(429, "Retry-After", "-1"),
		"500":               answer(500),
		"408":               answer(408),
		"date in the past":  answer(502, "Retry-After", "Mon, 02 Jan 2006 15:04:05 GMT"),
		"connection closed": func(http.ResponseWriter, *http.Request, int) bool { panic(http.ErrAbortHandler) },
		"connection reset": func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
			return err == nil
		},
		"no HTTP": func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Write([]byte("220 smtp.example ESMTP\r\n"))
				conn.Close()
			}
			return err == nil
		},
	} {
		s := newSite(t, false, content, func(w http.ResponseWriter, r *http.Request, n int) bool { return n < 2 && fault(w, r, n) })
		c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Attempts: 3})
		closeLease(t, mustFile(t, c, content, s.place()))
		if s.answers() != 3 || len(j.of(Retrying)) != 2 {
			t.Errorf("%s: %d requests:\n%v", name, s.answers(), j)
		}
		s = newSite(t, false, content, fault)
		c, j = testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Attempts: 2})
		_, err := c.File(t.Context(), digest(content), 1000, []Place{s.place()}, nil)
		if u := new(Unavailable); !errors.As(err, &u) || !u.Temporary() || s.answers() != 2 {
			t.Errorf("%s, for ever: %v after %d requests:\n%v", name, err, s.answers(), j)
		}
	}
	for _, code := range []int{400, 401, 403, 404, 410, 204, 206, 304, 416, 501, 505} {
		s := newSite(t, false, content, answer(code))
		c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{})
		_, err := c.File(t.Context(), digest(content), 1000, []Place{s.place()}, nil)
		if u := new(Unavailable); !errors.As(err, &u) || u.Temporary() || s.answers() != 1 || !strings.Contains(err.Error(), fmt.Sprint(code)) {
			t.Errorf("%d: %v after %d requests, want one", code, err, s.answers())
		}
	}
	// A wait of an hour is not waited for: it is bounded, and ends with ctx.
	s := newSite(t, false, content, answer(503, "Retry-After", "3600"))
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.File(ctx, digest(content), 1000, []Place{s.place()}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a long wait: %v", err)
	}
}

// A server that ends each connection early is asked as long as it makes
// headway, and no longer.
func TestHeadway(t *testing.T) {
	content := randomBytes(1, 6<<20)
	for cut, ok := range map[int64]bool{headway + 1000: true, headway / 2: false} {
		s := newSite(t, false, content, nil)
		s.cutAt = cut
		c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Attempts: 3})
		_, err := c.File(t.Context(), digest(content), 6<<20, []Place{s.place()}, nil)
		if (err == nil) != ok {
			t.Errorf("cut after %d: %v, want success %v", cut, err, ok)
		}
	}
}

func TestBodiesWithoutEnd(t *testing.T) {
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request, n int) bool{
		"endless": func(w http.ResponseWriter, r *http.Request, _ int) bool {
			for block := make([]byte, 64<<10); r.Context().Err() == nil; {
				if _, err := w.Write(block); err != nil {
					break
				}
			}
			return true
		},
		"announced": func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Length", "1000000000000")
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		},
		"endless header": func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("X-Long", strings.Repeat("x", 100<<10))
			return false
		},
		"compressed": func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte{0x1f, 0x8b})
			return true
		},
	} {
		s := newSite(t, false, []byte("x"), fault)
		c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Attempts: 1})
		var seen int64
		_, err := c.File(t.Context(), digest([]byte("y")), 1<<20, []Place{s.place()}, func(n int64) { seen += n })
		bounded := name == "endless" || name == "announced"
		if err == nil || errors.As(err, new(*Mismatch)) != bounded || seen > 2<<20 || name != "endless" && seen > 0 {
			t.Errorf("%s: %v after %d bytes\n%v", name, err, seen, j)
		}
		if u, err := c.Usage(); err != nil || u.Bytes != 0 {
			t.Errorf("%s: left %+v, %v", name, u, err)
		}
	}
}

// TestLedgersLeadToPublicAddresses: no URI of a ledger reaches a server here.
func TestLedgersLeadToPublicAddresses(t *testing.T) {
	content := randomBytes(1, 1000)
	secret := newSite(t, true, content, nil)
	port := secret.URL[strings.LastIndex(secret.URL, ":")+1:]
	plain := newSite(t, false, content, nil)
	// Only "localhost" is allowed, from where the hops lead on.
	opts := Options{Hosts: []string{"localhost", "*.svc.example"}, Attempts: 1}
	local := func(s *site) string { return strings.Replace(s.URL, "127.0.0.1", "localhost", 1) }
	hop := newSite(t, false, content, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		http.Redirect(w, r, "https://127.0.0.1:"+port+"/file", http.StatusFound)
		return true
	})
	hopPlain := newSite(t, false, content, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		http.Redirect(w, r, plain.URL, http.StatusMovedPermanently)
		return true
	})
	for uri, want := range map[string]string{
		"https://127.0.0.1:" + port + "/file":          "expected a public address",
		"https://127.1.2.3:" + port + "/file":          "expected a public address",
		"https://[::1]:" + port + "/file":              "expected a public address",
		"https://[::ffff:127.0.0.1]:" + port + "/file": "expected a public address",
		"https://[::ffff:7f00:1]:" + port + "/file":    "expected a public address",
		"https://[64:ff9b::7f00:1]:" + port + "/file":  "expected a public address",
		"https://0.0.0.0:" + port + "/file":            "expected a public address",
		"https://[::]:" + port + "/file":               "expected a public address",
		"https://10.0.0.1:" + port + "/file":           "expected a public address",
		"https://169.254.169.254/latest/meta-data/":    "expected a public address",
		"https://[fe80::1%25lo]:" + port + "/file":     "expected a public address",
		plain.URL + "/file":                            "expected https, or a host of hosts in the table [fetch] of clawfs.toml",
		"http://x.svc.example.evil.example/file":       "expected https, or a host of hosts in the table [fetch] of clawfs.toml",
		"http://svc.example/file":                      "expected https, or a host of hosts in the table [fetch] of clawfs.toml",
		local(hop):                                     "expected a public address",
		local(hopPlain):                                "expected https, or a host of hosts in the table [fetch] of clawfs.toml",
		"https://user:password@data.example/file":      "credentials",
		"ftp://data.example/file":                      "expected an absolute path",
		"https:///file":                                "expected an absolute path",
		"https://data.example/\x00":                    "not a URL",
		"https://" + strings.Repeat("x", maxURI):       "expected at most",
	} {
		c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, opts)
		_, err := c.File(t.Context(), digest(content), 1000, []Place{{URI: uri}}, nil)
		u := new(Unavailable)
		if !errors.As(err, &u) || u.Temporary() || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", uri, err, want)
		}
	}
	if secret.answers()+plain.answers() != 0 {
		t.Errorf("%d requests arrived, want none", secret.answers()+plain.answers())
	}
	if hop.answers() != 1 || hopPlain.answers() != 1 {
		t.Errorf("the redirects were not followed to their refusal: %d, %d requests", hop.answers(), hopPlain.answers())
	}
	// What the operator named is reached: the place, or the host.
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{RootCAs: roots(secret)})
	closeLease(t, mustFile(t, c, content, secret.place()))
	c, _ = testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{RootCAs: roots(secret), Hosts: []string{"127.0.0.1"}})
	closeLease(t, mustFile(t, c, content, Place{URI: secret.URL}))
	c, _ = testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Hosts: []string{"LOCALHOST"}})
	closeLease(t, mustFile(t, c, content, Place{URI: local(plain)}))
	// A certificate that nobody vouches for is no temporary thing.
	c, _ = testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{})
	_, err := c.File(t.Context(), digest(content), 1000, []Place{secret.place()}, nil)
	if u := new(Unavailable); !errors.As(err, &u) || u.Temporary() || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown certificate: %v", err)
	}
}

func TestRedirects(t *testing.T) {
	content := randomBytes(1, 1000)
	goal := newSite(t, true, content, nil)
	plain := newSite(t, false, content, nil)
	var hops *site
	to := func(target string) func(w http.ResponseWriter, r *http.Request, n int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if target == "" {
				target = hops.URL
			}
			w.Header().Set("Set-Cookie", "a=b")
			http.Redirect(w, r, target, http.StatusTemporaryRedirect)
			return true
		}
	}
	for _, c := range []struct {
		name, target, want string
	}{
		{"to https", goal.URL + "/x", ""},
		{"for ever", "", "more than 5 redirects"},
		{"to http", plain.URL, "from https to http"},
		{"with credentials", strings.Replace(goal.URL, "://", "://user:password@", 1), "credentials"},
		{"to a file", "file:///etc/passwd", "from https to file"},
	} {
		hops = newSite(t, true, nil, to(c.target))
		cache, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{RootCAs: roots(goal, hops), Hosts: []string{"127.0.0.1"}})
		_, err := cache.File(t.Context(), digest(content), 1000, []Place{{URI: hops.URL + "/file?token=x"}}, nil)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if n := hops.answers(); n > 6 {
			t.Errorf("%s: %d requests", c.name, n)
		}
	}
	if plain.answers() != 0 || goal.answers() != 1 {
		t.Fatalf("%d plain requests and %d others", plain.answers(), goal.answers())
	}
	_, heads := goal.log()
	for _, h := range []string{"Authorization", "Cookie", "Referer"} {
		if v := heads[0].Get(h); v != "" {
			t.Errorf("the redirect carries %s %q", h, v)
		}
	}
	if v := heads[0].Get("Accept-Encoding"); v != "identity" {
		t.Errorf("Accept-Encoding is %q", v)
	}
}

func TestMirrorsAreAskedFirst(t *testing.T) {
	content := randomBytes(1, 1000)
	mirror := newSite(t, false, content, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/m/a/b.bin" {
			w.WriteHeader(404)
			return true
		}
		return false
	})
	local := t.TempDir()
	write(t, local, map[string]string{"c/d": string(content)})
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Attempts: 1, Mirrors: []Mirror{
		{"https://data.example/", []string{mirror.URL + "/m/", "file://" + local + "/"}},
	}})
	closeLease(t, mustFile(t, c, content, Place{URI: "https://data.example/a/b.bin"}))
	if err := c.Evict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.evict(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	closeLease(t, mustFile(t, c, content, Place{URI: "https://data.example/c/d"}))
	if len(j.of(Fetched)) != 2 || len(j.of(Failed)) != 1 {
		t.Errorf("notes:\n%v", j)
	}
	for uri, want := range map[string][]string{
		"https://data.example/x?y=../z":               {mirror.URL + "/m/x?y=../z", "file://" + local + "/x?y=../z", "https://data.example/x?y=../z"},
		"https://data.example/../x":                   {"https://data.example/../x"},
		"https://data.example/a/%2e%2e/x":             {"https://data.example/a/%2e%2e/x"},
		"https://data.example/a%2f..%2f..%2fx":        {"https://data.example/a%2f..%2f..%2fx"},
		`https://data.example/a\..\x`:                 {`https://data.example/a\..\x`},
		"https://data.example.evil.example/x":         {"https://data.example.evil.example/x"},
		"https://data.example@evil.example/x":         {"https://data.example@evil.example/x"},
		"https://other.example/https://data.example/": {"https://other.example/https://data.example/"},
	} {
		var got []string
		for _, p := range c.expand([]Place{{URI: uri}, {URI: uri}}) {
			got = append(got, p.URI)
			if p.Trusted != (p.URI != uri) {
				t.Errorf("%s: trusted %v", p.URI, p.Trusted)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is looked for at %q, want %q", uri, got, want)
		}
	}
	var many []Place
	for i := range 1000 {
		many = append(many, Place{URI: fmt.Sprintf("https://data.example/%d", i)})
	}
	if n := len(c.expand(many)); n != maxPlaces {
		t.Errorf("%d places are asked", n)
	}
}

func TestAllowedHosts(t *testing.T) {
	r := route{&Cache{opts: Options{Hosts: []string{"a.example", "*.b.example", "192.0.2.1"}}}, "Named.example"}
	for host, want := range map[string]bool{
		"a.example": true, "A.Example.": true, "x.a.example": false, "xa.example": false, "b.example": false, "x.b.example": true,
		"x.y.b.example": true, "xb.example": false, ".b.example": false, "192.0.2.1": true, "192.0.2.10": false, "": false,
		"named.example": true, "x.named.example": false,
	} {
		if got := r.allowed(host); got != want {
			t.Errorf("allowed(%q) = %v, want %v", host, got, want)
		}
	}
	if (route{c: &Cache{}}).allowed("") {
		t.Error("no host is allowed")
	}
}

// One file at full length, for the order of magnitude.
func TestThroughput(t *testing.T) {
	content := randomBytes(1, 32<<20)
	s := newSite(t, true, content, nil)
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{RootCAs: roots(s)})
	begin := time.Now()
	l, err := c.File(t.Context(), digest(content), 32<<20, []Place{s.place()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	fetched := time.Since(begin)
	closeLease(t, l)
	begin = time.Now()
	l, err = c.File(t.Context(), digest(content), 32<<20, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeLease(t, l)
	t.Logf("32 MiB: fetched by https and measured at %.0f MB/s, leased again at %.0f MB/s",
		32*1.048576/fetched.Seconds(), 32*1.048576/time.Since(begin).Seconds())
}

// FuzzPartial: whatever lies in the directory of partial downloads, the file is
// the right one or there is none.
func FuzzPartial(f *testing.F) {
	content := randomBytes(1, 5000)
	f.Add([]byte("{}"), content[:100])
	f.Add([]byte(`{"uri":"URI","validator":"\"v1\"","total":5000}`), content[:100])
	f.Add([]byte(`{"uri":"URI","validator":"\"v1\"","total":5000}`), randomBytes(2, 5000))
	f.Add([]byte(`{"uri":"URI","validator":"\"v1\"","total":-1}`), randomBytes(2, 6000))
	f.Add([]byte(`{"uri":"URI","validator":"a\r\nX: b","total":5000}`), content[:100])
	f.Add([]byte(`{"uri":"URI","validator":"\"v1\"","total":5000}`), content)
	f.Fuzz(func(t *testing.T, meta, data []byte) {
		s := newSite(t, false, content, nil)
		c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{Attempts: 2})
		name := "file-" + digest(content).String()
		key := hashpipe.SumBytes([]byte(s.URL + "/file")).String()[:32]
		if err := errors.Join(os.Mkdir(c.partial(name), 0o700),
			os.WriteFile(filepath.Join(c.partial(name), key), data, 0o600),
			os.WriteFile(filepath.Join(c.partial(name), key+".json"), bytes.ReplaceAll(meta, []byte("URI"), []byte(s.URL+"/file")), 0o600)); err != nil {
			t.Fatal(err)
		}
		l, err := c.File(t.Context(), digest(content), 5000, []Place{s.place()}, nil)
		if err != nil {
			t.Fatalf("%v\n%v", err, j)
		}
		closeLease(t, l)
	})
}
