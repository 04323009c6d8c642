package logserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	// addPatience is how long an addition waits for the quorum of witnesses.
	addPatience = 25 * time.Second
	// maxAdditions bounds the additions that are served at the same time; each may
	// hold an envelope of 4 MiB.
	maxAdditions = 64
	// endPatience bounds how long a server that was told to end lets requests go on.
	endPatience = 3 * time.Second
	retryAfter  = "5" // seconds
)

// tilePattern matches what C2SP tlog-tiles names, and nothing that leads out of
// the tree.
var (
	tilePattern = regexp.MustCompile(`^/tile/(?:entries|[0-9]|[1-5][0-9]|6[0-3])/(?:x[0-9]{3}/){0,6}[0-9]{3}(?:\.p/(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?$`)
	blobPattern = regexp.MustCompile(`^/blob/sha256/[0-9a-f]{64}$`)
)

// handler answers requests about a log.
type handler struct {
	log       *Log
	root      *os.Root
	additions chan struct{}
	patience  time.Duration
}

// ServeHTTP answers GET and HEAD of what is public, and POST /add. It compares
// whole paths and cleans none.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	kind, public := publicKind(path)
	switch {
	case path == "/add" && r.Method == http.MethodPost:
		h.add(w, r)
	case path == "/add":
		w.Header().Set("Allow", "POST")
		http.Error(w, "an envelope is added with POST", http.StatusMethodNotAllowed)
	case !public:
		http.Error(w, "a log has /checkpoint, /tile/ and /blob/sha256/, and takes envelopes at /add", http.StatusNotFound)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this can only be read", http.StatusMethodNotAllowed)
	default:
		h.file(w, r, kind)
	}
}

// public are the headers of one kind of files.
type public struct{ contentType, cacheControl string }

const forever = "public, max-age=31536000, immutable"

func publicKind(path string) (public, bool) {
	switch {
	case path == "/"+translog.CheckpointPath:
		return public{"text/plain; charset=utf-8", "no-cache"}, true
	case tilePattern.MatchString(path):
		return public{"application/octet-stream", forever}, true
	case blobPattern.MatchString(path):
		return public{"application/vnd.dsse.envelope.v1+json", forever}, true
	}
	return public{}, false
}

func (h *handler) file(w http.ResponseWriter, r *http.Request, kind public) {
	f, err := h.root.OpenFile(strings.TrimPrefix(r.URL.Path, "/"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		text := "there is no such file"
		if r.URL.Path == "/"+translog.CheckpointPath {
			text = "no checkpoint is published yet: the quorum of witnesses is missing"
		}
		http.Error(w, text, http.StatusNotFound)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		http.Error(w, "there is no such file", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", kind.contentType)
	w.Header().Set("Cache-Control", kind.cacheControl)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", fi.ModTime(), f)
}

func (h *handler) add(w http.ResponseWriter, r *http.Request) {
	select {
	case h.additions <- struct{}{}:
		defer func() { <-h.additions }()
	default:
		unavailable(w, "the log is busy; ask again")
		return
	}
	envelope, err := io.ReadAll(http.MaxBytesReader(w, r.Body, dsse.MaxEnvelope))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		http.Error(w, "an envelope has at most 4194304 bytes", http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, "the envelope did not arrive", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.patience)
	defer cancel()
	proof, err := h.log.Add(ctx, envelope)
	var refused *Refusal
	var pending *PendingError
	switch {
	case errors.As(err, &refused):
		code := http.StatusForbidden
		switch {
		case refused.Malformed:
			code = http.StatusBadRequest
		case refused.Backward:
			code = http.StatusConflict
		}
		h.log.log.Info("refused", "peer", r.RemoteAddr, "reason", refused.Detail)
		http.Error(w, oneLine(refused.Detail), code)
	case errors.As(err, &pending):
		unavailable(w, oneLine(pending.Detail))
	case err != nil:
		h.log.log.Error("an addition failed", "peer", r.RemoteAddr, "error", err)
		unavailable(w, "the log cannot add it now; its operator's log says why")
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(proof)
	}
}

func unavailable(w http.ResponseWriter, text string) {
	w.Header().Set("Retry-After", retryAfter)
	http.Error(w, text, http.StatusServiceUnavailable)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Serve answers requests until ctx ends, and then ends within seconds. It does not
// close the log.
func (l *Log) Serve(ctx context.Context, listener net.Listener) error {
	return l.serve(ctx, listener, addPatience)
}

func (l *Log) serve(ctx context.Context, listener net.Listener, patience time.Duration) error {
	root, err := os.OpenRoot(l.tree())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer root.Close()
	requests, cancel := context.WithCancel(context.Background())
	defer cancel()
	srv := &http.Server{
		Handler:           &handler{log: l, root: root, additions: make(chan struct{}, maxAdditions), patience: patience},
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      patience + 30*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	cancel() // additions that wait for witnesses answer that they did not come
	ctx, stop := context.WithTimeout(context.Background(), endPatience)
	defer stop()
	if err := srv.Shutdown(ctx); err != nil {
		srv.Close()
	}
	<-ended
	return nil
}

// Tree returns the directory that may be public.
func Tree(dir string) string { return filepath.Join(dir, translog.TreeDir) }
