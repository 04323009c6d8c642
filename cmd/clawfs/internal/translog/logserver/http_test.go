package logserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// raw sends a request line as it is, because http.Client would clean its path.
func raw(t *testing.T, url, method, path string) (status int, body string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: log.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", method, path)
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(b)
}

func TestServeRefuses(t *testing.T) {
	w := newWorld(t)
	l := w.open(t)
	w.add(t, l, 1)
	url := w.serve(t, l, time.Minute)
	// What a link in the tree leads to is not served.
	payload := w.leaf(t, 1).Payload()
	if err := os.Symlink(filepath.Join(w.dir, keyFile), filepath.Join(Tree(w.dir), "tile/0/001")); err != nil {
		t.Fatal(err)
	}
	secret, err := os.ReadFile(filepath.Join(w.dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	blob := "/" + translog.BlobPath(payload)
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 404},
		{"GET", "/log.key", 404},
		{"GET", "/policy.json", 404},
		{"GET", "/.state/treeState", 404},
		{"GET", "/tile", 404},
		{"GET", "/tile/", 404},
		{"GET", "/tile/0/", 404},
		{"GET", "/tile/0/000", 404}, // there is only a partial one
		{"GET", "/tile/0/001", 404}, // the link
		{"GET", "/tile/0/000.p/0", 404},
		{"GET", "/tile/0/000.p/256", 404},
		{"GET", "/tile/64/000", 404},
		{"GET", "/tile/00/000.p/1", 404},
		{"GET", "/tile/0/0", 404},
		{"GET", "/tile/0/x000/000.p/1", 404},
		{"GET", "/tile/8/0/000.p/1", 404},
		{"GET", "/tile/../log.key", 404},
		{"GET", "/tile/0/../../../log.key", 404},
		{"GET", "/tile/%2e%2e/%2e%2e/log.key", 404},
		{"GET", "/tile/0/..%2f..%2f..%2flog.key", 404},
		{"GET", "//log.key", 404},
		{"GET", "/checkpoint/", 404},
		{"GET", "/checkpoint%00", 404},
		{"GET", "/checkpoint%0a", 404},
		{"GET", "/blob/sha256/", 404},
		{"GET", "/blob/sha256/../../../log.key", 404},
		{"GET", "/blob/sha256/" + strings.ToUpper(payload.String()), 404},
		{"GET", blob + "0", 404},
		{"GET", "/blob/sha256/" + strings.Repeat("0", 64), 404},
		{"GET", "/blob/sha512/" + payload.String(), 404},
		{"GET", "/add", 405},
		{"PUT", "/add", 405},
		{"POST", "/", 404},
		{"POST", "/add/", 404},
		{"POST", "/checkpoint", 405},
		{"POST", blob, 405},
		{"DELETE", blob, 405},
		{"PUT", "/tile/0/000.p/1", 405},
		{"POST", "/add", 400},
	} {
		status, body := raw(t, url, tt.method, tt.path)
		if status != tt.want {
			t.Errorf("%s %s = %d, want %d", tt.method, tt.path, status, tt.want)
		}
		if strings.Contains(body, "PRIVATE+KEY") || strings.Contains(body, strings.TrimSpace(string(secret))) {
			t.Errorf("%s %s gives the log's key away", tt.method, tt.path)
		}
	}
	for _, path := range []string{"/checkpoint", "/tile/0/000.p/1", "/tile/entries/000.p/1", blob} {
		if status, body := raw(t, url, "GET", path); status != 200 || body == "" {
			t.Errorf("GET %s = %d, %q, want 200", path, status, body)
		}
		if status, body := raw(t, url, "HEAD", path); status != 200 || body != "" {
			t.Errorf("HEAD %s = %d, %q, want 200 and nothing", path, status, body)
		}
	}
}

func TestServeAdd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := newWitness(t, "a", w.vkey)
	l := w.open(t, a.line(), "quorum a")
	url := w.serve(t, l, 2*time.Second)
	var rejected *translog.RejectedError
	for _, tt := range []struct {
		name     string
		envelope []byte
		status   int
	}{
		{"no envelope", []byte("weights"), 400},
		{"a foreign signer", sign(t, ledger(w.stranger.Public(), "acme/langid", 1), w.stranger), 403},
		{"too large", bytes.Repeat([]byte(" "), dsse.MaxEnvelope+1), 413},
	} {
		proof, err := translog.Submit(t.Context(), url, tt.envelope)
		if !errors.As(err, &rejected) || rejected.Status != tt.status || proof != nil {
			t.Errorf("%s: Submit = %q, %v, want status %d", tt.name, proof, err, tt.status)
		}
	}
	text, err := translog.Submit(t.Context(), url, w.sba(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	w.verify(t, w.trust(t, a.line(), "quorum a"), text, 1)
	a.setDown(true)
	var pending *translog.PendingError
	if proof, err := translog.Submit(t.Context(), url, w.sba(t, 2)); !errors.As(err, &pending) || !strings.Contains(err.Error(), "index 1") || pending.RetryAfter != 5*time.Second || proof != nil {
		t.Errorf("Submit without the witness = %q, %v, want a PendingError about index 1", proof, err)
	}
	a.setDown(false)
	if text, err = translog.Submit(t.Context(), url, w.sba(t, 2)); err != nil {
		t.Fatal(err)
	}
	if p := w.verify(t, l.Policy(), text, 2); p.Index != 1 {
		t.Errorf("index after the witness came back = %d, want 1", p.Index)
	}
}

// A server that is told to end lets those who wait for witnesses go, at once.
func TestServeEnds(t *testing.T) {
	w := newWorld(t)
	a := newWitness(t, "a", w.vkey)
	l := w.open(t, a.line(), "quorum a")
	waiting := make(chan error, 1)
	t.Run("while an addition waits", func(t *testing.T) {
		url := w.serve(t, l, 10*time.Minute)
		a.setDown(true)
		envelope := w.sba(t, 1)
		go func() {
			_, err := translog.Submit(context.Background(), url, envelope) // longer than the subtest
			waiting <- err
		}()
		eventually(t, "the entry is written", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.index) == 1 })
	})
	// serve has ended by now.
	var pending *translog.PendingError
	if err := <-waiting; !errors.As(err, &pending) {
		t.Errorf("Submit to a server that ended = %v, want a PendingError", err)
	}
	a.setDown(false)
	if p := w.add(t, l, 1); p.Index != 0 {
		t.Errorf("index of what waited = %d, want 0", p.Index)
	}
}
