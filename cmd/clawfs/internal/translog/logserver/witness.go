package logserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
// their answers, remembers how each went, and leaves one that fails alone for a
// while: the library does none of that, and asks at each interval.
type witnessClient struct {
	next  http.RoundTripper
	names map[string]string // by address
	log   *slog.Logger

	mu   sync.Mutex         // guards what follows
	down map[string]trouble // by the witness's name
}

// trouble is what is wrong with a witness.
type trouble struct {
	what  string
	delay time.Duration // after which it is asked again
	until time.Time
}

const (
	firstDelay = 500 * time.Millisecond
	mostDelay  = 5 * time.Second
)

func newWitnessClient(names map[string]string, log *slog.Logger) *witnessClient {
	return &witnessClient{
		next:  &http.Transport{Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute},
		names: names, log: log, down: make(map[string]trouble),
	}
}

func (w *witnessClient) client() *http.Client {
	return &http.Client{
		Transport:     w,
		Timeout:       witnessPatience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("a witness does not redirect") },
	}
}

var errAskedBefore = errors.New("it failed a moment ago")

// RoundTrip asks one witness.
func (w *witnessClient) RoundTrip(r *http.Request) (*http.Response, error) {
	name := w.names[r.URL.String()]
	w.mu.Lock()
	early := time.Now().Before(w.down[name].until)
	w.mu.Unlock()
	if early {
		return nil, errAskedBefore
	}
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
		// It says which size it has seen, and is asked again at once, unless that is
		// more than the log has.
		w.mu.Lock()
		w.down[name] = trouble{what: "it has seen another size of the log"}
		w.mu.Unlock()
	default:
		w.note(name, "it answers "+resp.Status)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxCosignature), resp.Body}
	return resp, nil
}

// note remembers what is wrong with a witness, "" if nothing is, and tells the log
// if that is something else than before.
func (w *witnessClient) note(name, what string) {
	w.mu.Lock()
	before := w.down[name]
	if what == "" {
		delete(w.down, name)
	} else {
		delay := min(max(2*before.delay, firstDelay), mostDelay)
		w.down[name] = trouble{what, delay, time.Now().Add(delay)}
	}
	w.mu.Unlock()
	switch {
	case what == before.what:
	case what == "" && before.delay == 0: // it has seen another size
	case what == "":
		w.log.Info("a witness cosigns again", "witness", name)
	default:
		w.log.Warn("A WITNESS DOES NOT COSIGN", "witness", name, "why", what)
	}
}

// report says what is wrong with the witnesses, "" if nothing is known.
func (w *witnessClient) report() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(w.down)) {
		all = append(all, "witness "+name+": "+w.down[name].what)
	}
	return strings.Join(all, "; ")
}
