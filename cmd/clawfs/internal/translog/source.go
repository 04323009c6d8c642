package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	requestPatience = 30 * time.Second
	// addPatience is longer than a log waits for its witnesses.
	addPatience   = 90 * time.Second
	maxAnswer     = 1 << 10 // bytes of a refusal
	defaultRetry  = 5 * time.Second
	maxRetryAfter = time.Minute
)

// source delivers the files of a log, none of them checked.
type source interface {
	// read returns the file at a path below the root. One that is not there is
	// fs.ErrNotExist, one that has more than limit bytes another error.
	read(ctx context.Context, path string, limit int64) ([]byte, error)
}

// openSource takes an http or https URL, or a directory: of a server, or of a
// static copy.
func openSource(location string) (source, error) {
	if strings.Contains(location, "://") {
		return newWeb(location)
	}
	// A server's own directory has its key beside the tree.
	if fi, err := os.Stat(filepath.Join(location, TreeDir)); err == nil && fi.IsDir() {
		location = filepath.Join(location, TreeDir)
	}
	root, err := os.OpenRoot(location)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return directory{root}, nil
}

// TreeDir is the part of a server's directory that may be public.
const TreeDir = "tree"

type directory struct{ root *os.Root }

func (d directory) read(ctx context.Context, path string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", d.root.Name(), err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("log %s: %s is not a regular file", d.root.Name(), path)
	}
	return bounded(f, filepath.Join(d.root.Name(), path), limit)
}

type web struct {
	base   *url.URL
	client *http.Client
}

func newWeb(location string) (web, error) {
	u, err := url.Parse(location)
	switch {
	case err != nil:
		return web{}, fmt.Errorf("log: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return web{}, fmt.Errorf("log: expected http:// or https://, a host and a path, got %q", clip(location))
	}
	return web{u, &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        30 * time.Second,
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			return fmt.Errorf("it redirects to %s; give that address if you mean it", r.URL.Redacted())
		},
	}}, nil
}

func (w web) read(ctx context.Context, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	u := w.base.JoinPath(path).String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return bounded(resp.Body, u, limit)
	case http.StatusNotFound:
		return nil, fmt.Errorf("log: %s: %w", u, fs.ErrNotExist)
	}
	return nil, fmt.Errorf("log: %s: expected status 200, got %s", u, resp.Status)
}

// submit posts an envelope to the path add below the root and returns the
// answer's body of status 200.
func (w web) submit(ctx context.Context, envelope []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, addPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.base.JoinPath("add").String(), bytes.NewReader(envelope))
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	req.Header.Set("Content-Type", "application/vnd.dsse.envelope.v1+json")
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return bounded(resp.Body, req.URL.String(), tlog.MaxProof)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	detail := strings.TrimSpace(string(text))
	if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests {
		return nil, &PendingError{Detail: detail, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	}
	return nil, &RejectedError{Status: resp.StatusCode, Detail: detail}
}

func retryAfter(header string) time.Duration {
	n, err := strconv.Atoi(header)
	if err != nil || n < 1 {
		return defaultRetry
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}

// Submit hands an envelope to the log at a URL, once, and returns the text of the
// proof, which nobody has checked. It may be called again with the same envelope.
// The error is a *PendingError if the log has not published the entry, a
// *RejectedError if it will not take it.
func Submit(ctx context.Context, location string, envelope []byte) ([]byte, error) {
	w, err := newWeb(location)
	if err != nil {
		return nil, err
	}
	defer w.client.CloseIdleConnections()
	return w.submit(ctx, envelope)
}

func bounded(r io.Reader, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("log: reading %s: %w", what, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("log: %s: expected at most %d bytes, got more", what, limit)
	}
	return b, nil
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// clip bounds hostile text in an error message.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
