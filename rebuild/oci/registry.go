package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	// maxRedirects bounds the redirects of one request; blobs have one or two.
	maxRedirects = 5
	// maxProblem bounds in bytes what is read of a registry's error.
	maxProblem = 8 << 10
)

// acceptManifest is what may answer where the kind of a manifest is unknown.
var acceptManifest = strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, dockerManifest, dockerList}, ", ")

// registryPlace is a repository of a registry (OCI distribution-spec).
type registryPlace struct {
	ref    registry.Reference
	client *auth.Client
	scheme string
	// plain says that the registry may turn out to have no TLS.
	plain bool
	stall time.Duration
}

func newRegistryPlace(repository string, o Options) (*registryPlace, error) {
	if host, _, _ := strings.Cut(repository, "/"); strings.Contains(host, "@") {
		return nil, errors.New("expected oci://HOST[:PORT]/REPOSITORY without a user: credentials belong into a Docker configuration")
	}
	ref, err := registry.ParseReference(repository)
	if err != nil {
		return nil, fmt.Errorf("expected oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX]: %w", err)
	}
	if o.Transport == nil {
		return nil, errors.New("no transport for registries was given")
	}
	p := &registryPlace{ref: ref, scheme: "https", stall: o.Stall}
	switch {
	case slices.Contains(o.PlainHTTP, ref.Registry):
		p.scheme = "http"
	case isLoopback(ref.Registry):
		p.plain = true
	}
	p.client = &auth.Client{
		Client:   &http.Client{Transport: o.Transport, CheckRedirect: p.checkRedirect},
		Header:   http.Header{"User-Agent": {"clawfs"}},
		Cache:    auth.NewCache(),
		ClientID: "clawfs",
	}
	if o.DockerConfig != "" {
		var store credentials.Store
		if o.Trusted {
			store, err = credentials.NewStore(o.DockerConfig, credentials.StoreOptions{})
		} else {
			store, err = credentials.NewFileStore(o.DockerConfig)
		}
		if err != nil {
			return nil, fmt.Errorf("reading credentials: %w", err)
		}
		p.client.Credential = credentials.Credential(store)
	}
	return p, nil
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// redirectError is a redirect that was not followed.
type redirectError struct{ to, why string }

func (e *redirectError) Error() string {
	return fmt.Sprintf("the registry redirects to %.200q: %s", e.to, e.why)
}

func (p *registryPlace) checkRedirect(req *http.Request, via []*http.Request) error {
	to := &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path} // the query may be a secret
	switch {
	case len(via) > maxRedirects:
		return &redirectError{to.String(), fmt.Sprintf("more than %d redirects", maxRedirects)}
	case req.URL.Scheme == "https":
	case req.URL.Scheme == "http" && via[len(via)-1].URL.Scheme == "http" && (req.URL.Host == p.ref.Host() || isLoopback(p.ref.Host()) && isLoopback(req.URL.Host)):
	default:
		return &redirectError{to.String(), "expected https"}
	}
	return nil
}

func (p *registryPlace) Close() error { return nil } // the transport is the caller's

func (p *registryPlace) top(ctx context.Context) ([]byte, error) {
	if p.ref.Reference == "" {
		return nil, nil
	}
	body, _, err := p.get(ctx, "manifests/"+p.ref.Reference, acceptManifest, blobName{size: -1}, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return readAll(body, maxDocument)
}

func (p *registryPlace) open(ctx context.Context, b blobName, offset int64) (io.ReadCloser, int64, error) {
	path, accept := "blobs/sha256:"+b.digest.String(), ""
	if b.manifest {
		path, accept = "manifests/sha256:"+b.digest.String(), acceptManifest
	}
	return p.get(ctx, path, accept, b, offset)
}

// get asks for a body from an offset on; the server may begin at 0 all the same.
func (p *registryPlace) get(ctx context.Context, path, accept string, b blobName, offset int64) (io.ReadCloser, int64, error) {
	ctx = auth.AppendRepositoryScope(ctx, p.ref, auth.ActionPull)
	ctx, cancel := context.WithCancelCause(ctx)
	dog := &watchdog{ctx: ctx, cancel: cancel, limit: p.stall}
	dog.timer = time.AfterFunc(p.stall, func() {
		cancel(fmt.Errorf("%w: not one byte within %v", ErrUnreachable, p.stall))
	})
	resp, err := p.do(ctx, path, accept, offset)
	dog.timer.Stop()
	if err != nil {
		err = answered(ctx, err)
		cancel(nil)
		return nil, 0, err
	}
	body := &watchedBody{watchdog: dog, body: resp.Body}
	at, err := judge(resp, b, offset)
	if err != nil {
		body.Close()
		return nil, 0, err
	}
	return body, at, nil
}

func (p *registryPlace) do(ctx context.Context, path, accept string, offset int64) (*http.Response, error) {
	u := url.URL{Scheme: p.scheme, Host: p.ref.Host(), Path: "/v2/" + p.ref.Repository + "/" + path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	// A compressed answer would not be the blob.
	req.Header.Set("Accept-Encoding", "identity")
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := p.client.Do(req)
	if err != nil && p.plain && p.scheme == "https" && errors.Is(err, http.ErrSchemeMismatch) {
		p.scheme = "http"
		return p.do(ctx, path, accept, offset)
	}
	return resp, err
}

// judge reads status and headers of an answer; the body is the caller's.
func judge(resp *http.Response, b blobName, offset int64) (at int64, err error) {
	switch code := resp.StatusCode; code {
	case http.StatusOK:
		if resp.ContentLength >= 0 {
			return 0, checkSize(b, resp.ContentLength)
		}
		return 0, nil
	case http.StatusPartialContent:
		if got := resp.Header.Get("Content-Range"); offset == 0 || !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)) {
			return 0, fmt.Errorf("asked for the bytes from %d on, got Content-Range %.80q: %w", offset, got, ErrOtherBytes)
		}
		if resp.ContentLength >= 0 {
			return offset, checkSize(b, offset+resp.ContentLength)
		}
		return offset, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, fmt.Errorf("the registry has no byte %d, the descriptor says %d bytes: %w", offset, b.size, ErrOtherBytes)
	case http.StatusNotFound:
		return 0, fmt.Errorf("the registry answers %q%s: %w", resp.Status, problem(resp.Body), ErrAbsent)
	case http.StatusUnauthorized, http.StatusForbidden:
		return 0, fmt.Errorf("the registry answers %q%s: it wants other credentials; next: docker login %s, and name the configuration file", resp.Status, problem(resp.Body), resp.Request.URL.Host)
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return 0, fmt.Errorf("%w: the registry answers %q%s", ErrUnreachable, resp.Status, problem(resp.Body))
	default:
		if code >= 500 {
			return 0, fmt.Errorf("%w: the registry answers %q%s", ErrUnreachable, resp.Status, problem(resp.Body))
		}
		return 0, fmt.Errorf("the registry answers %q%s", resp.Status, problem(resp.Body))
	}
}

// problem returns what a registry says of an error, as a few printable words.
func problem(r io.Reader) string {
	text, err := io.ReadAll(io.LimitReader(r, maxProblem))
	var said struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err != nil || json.Unmarshal(text, &said) != nil || len(said.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.40q %.200q)", said.Errors[0].Code, said.Errors[0].Message)
}

// watchdog ends a request that brings nothing.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// answered says whether a failed request may do better another time.
func answered(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var cert *tls.CertificateVerificationError
	var redirect *redirectError
	if errors.As(err, &cert) || errors.As(err, &redirect) || errors.Is(err, http.ErrSchemeMismatch) {
		return err
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return fmt.Errorf("the registry wants credentials; next: docker login, and name the configuration file: %w", err)
	}
	var token *errcode.ErrorResponse
	if errors.As(err, &token) && (token.StatusCode >= 500 || token.StatusCode == http.StatusTooManyRequests) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	var operation *net.OpError
	var network net.Error
	if errors.As(err, &operation) || errors.As(err, &network) && network.Timeout() || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		strings.Contains(err.Error(), "http2: ") { // its errors have no exported type
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

// watchedBody is a body whose failure to come is ErrUnreachable. The watchdog
// looks only while somebody waits for bytes.
type watchedBody struct {
	*watchdog
	body io.ReadCloser
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.body.Read(p)
	b.timer.Stop()
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return n, err
	}
	if cause := context.Cause(b.ctx); cause != nil {
		return n, cause
	}
	return n, fmt.Errorf("%w: the transfer broke off: %w", ErrUnreachable, err)
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}
