package logserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"

	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	// maxCosignature bounds a witness's answer in bytes: some signature lines, of
	// which a post-quantum one has 5 kB.
	maxCosignature  = 64 << 10
	witnessPatience = 10 * time.Second
)

// witnessGroup makes the quorum of a policy that the library asks. It is not made
// by the library's own parser, which takes a threshold of 0, one member or one key
// twice, and two quorum lines.
func witnessGroup(policy tlog.Policy, names map[string]string) (tessera.WitnessGroup, error) {
	quorum, ok := policy.Quorum()
	if !ok {
		return tessera.NewWitnessGroup(0), nil
	}
	for _, w := range quorum.Witnesses() {
		u, err := witnessURL(w)
		if err != nil {
			return tessera.WitnessGroup{}, err
		}
		// The library asks each address once, for the first of its witnesses.
		if other, ok := names[u]; ok {
			return tessera.WitnessGroup{}, fmt.Errorf("witness policy: %s and %s have the same address %s", other, w.Name, u)
		}
		names[u] = w.Name
	}
	if len(quorum.Members) == 0 {
		quorum = tlog.Party{Name: quorum.Name, K: 1, Members: []tlog.Party{quorum}}
	}
	return group(quorum), nil
}

func group(p tlog.Party) tessera.WitnessGroup {
	g := tessera.WitnessGroup{N: p.K}
	for _, m := range p.Members {
		if len(m.Members) > 0 {
			g.Components = append(g.Components, group(m))
			continue
		}
		u, _ := witnessURL(m)
		g.Components = append(g.Components, tessera.Witness{Key: m.Key, URL: u})
	}
	return g
}

// witnessURL is where a witness takes checkpoints, after C2SP tlog-witness.
func witnessURL(w tlog.Party) (string, error) {
	u, err := url.Parse(w.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("witness policy: %s: a log asks its witnesses, so each needs the http or https URL of where it is, got %.100q", w.Name, w.URL)
	}
	return u.JoinPath("add-checkpoint").String(), nil
}

// witnessClient is the http.RoundTripper with which witnesses are asked. It bounds
// their answers, which the library does not, and remembers how each went.
type witnessClient struct {
	next  http.RoundTripper
	names map[string]string // by address

	mu   sync.Mutex
	last map[string]string // what is wrong with a witness, by its name; "" if nothing is
}

func newWitnessClient(names map[string]string) *witnessClient {
	return &witnessClient{
		next:  &http.Transport{Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute},
		names: names, last: make(map[string]string),
	}
}

func (w *witnessClient) client() *http.Client {
	return &http.Client{
		Transport:     w,
		Timeout:       witnessPatience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("a witness does not redirect") },
	}
}

// RoundTrip asks one witness.
func (w *witnessClient) RoundTrip(r *http.Request) (*http.Response, error) {
	name := w.names[r.URL.String()]
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		switch r.Context().Err() {
		case nil:
			w.note(name, "it cannot be reached")
		case context.DeadlineExceeded:
			w.note(name, "it does not answer")
		} // else the quorum was there without it
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		w.note(name, "")
	case resp.StatusCode == http.StatusConflict && resp.Header.Get("Content-Type") == "text/x.tlog.size":
		// It says which size it has, and is asked again.
	default:
		w.note(name, "it answers "+resp.Status)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxCosignature), resp.Body}
	return resp, nil
}

func (w *witnessClient) note(name, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[name] = what
}

// report says what is wrong with the witnesses, "" if nothing is known.
func (w *witnessClient) report() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(w.last)) {
		if what := w.last[name]; what != "" {
			all = append(all, "witness "+name+": "+what)
		}
	}
	return strings.Join(all, "; ")
}
