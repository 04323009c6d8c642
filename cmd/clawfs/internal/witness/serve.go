package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	// maxProof bounds the hashes of a request, as the protocol does.
	maxProof = 63
	// maxRequest bounds the body of a request in bytes: the line of the old size,
	// hashes of 45 bytes, an empty line and a checkpoint.
	maxRequest = 64 + maxProof*45 + tlog.MaxCheckpoint
	maxHeader  = 16 << 10
	// maxConnections bounds what is open at once; the next one waits.
	maxConnections = 256

	headerTimeout = 5 * time.Second
	bodyTimeout   = 15 * time.Second
	replyTimeout  = 20 * time.Second
	idleTimeout   = 30 * time.Second
	drainTimeout  = 5 * time.Second // for open requests when the witness ends
)

// request is the body of add-checkpoint.
type request struct {
	old        uint64 // size
	proof      tlog.Consistency
	checkpoint []byte
}

func parseRequest(body []byte) (r request, err error) {
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return r, fmt.Errorf("expected an empty line and a checkpoint after the proof, got %q", clip(string(body)))
	}
	line, hashes, _ := strings.Cut(string(head)+"\n", "\n")
	digits, ok := strings.CutPrefix(line, "old ")
	if r.old, err = strconv.ParseUint(digits, 10, 64); !ok || err != nil || strconv.FormatUint(r.old, 10) != digits {
		return r, fmt.Errorf("expected a line \"old <size>\" first, got %q", clip(line))
	}
	if n := strings.Count(hashes, "\n"); n > maxProof {
		return r, fmt.Errorf("expected at most %d hashes, got %d", maxProof, n)
	}
	if r.proof, err = tlog.ParseConsistency([]byte(hashes)); err != nil {
		return r, err
	}
	r.checkpoint = checkpoint
	return r, nil
}

// statusOf gives the refusal of a checkpoint its status. Other errors stay.
func statusOf(err error) error {
	var r *tlog.Refusal
	if !errors.As(err, &r) {
		return err
	}
	status := http.StatusUnprocessableEntity
	switch r.Reason {
	case tlog.ReasonMalformed:
		status = http.StatusBadRequest
	case tlog.ReasonOrigin:
		status = http.StatusNotFound
	case tlog.ReasonSignature:
		status = http.StatusForbidden
	}
	return &problem{status, r.Detail}
}

// Handler answers POST /add-checkpoint, and GET /<origin hash>/checkpoint with
// the newest checkpoint of a log and the cosignature with which it was first
// cosigned.
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	mux.HandleFunc("GET /{hash}/checkpoint", func(rw http.ResponseWriter, r *http.Request) {
		note := w.newest(r.PathValue("hash"))
		if note == nil {
			http.Error(rw, "no checkpoint of this log was cosigned", http.StatusNotFound)
			return
		}
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Header().Set("Cache-Control", "no-cache")
		rw.Write(note)
	})
	return mux
}

func (w *Witness) addCheckpoint(rw http.ResponseWriter, r *http.Request) {
	line, err := w.answer(http.MaxBytesReader(rw, r.Body, maxRequest))
	var p *problem
	var c *conflict
	switch {
	case err == nil:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Write(line)
	case errors.As(err, &c):
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n", c.size)
	case errors.As(err, &p):
		w.log.Info("refused", "remote", r.RemoteAddr, "status", p.status, "reason", p.text)
		http.Error(rw, p.text, p.status)
	default:
		w.log.Error("no cosignature", "remote", r.RemoteAddr, "error", err)
		http.Error(rw, "this witness cannot cosign now; its operator finds the reason in its log", http.StatusInternalServerError)
	}
}

func (w *Witness) answer(body io.Reader) ([]byte, error) {
	b, err := io.ReadAll(body)
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, problemf(http.StatusRequestEntityTooLarge, "expected at most %d bytes, got more", big.Limit)
	}
	if err != nil {
		return nil, problemf(http.StatusBadRequest, "reading the request: %v", err)
	}
	r, err := parseRequest(b)
	if err != nil {
		return nil, problemf(http.StatusBadRequest, "%v", err)
	}
	return w.cosign(r)
}

// Serve answers requests on l until ctx ends, then lets open requests finish for
// five seconds at most.
func (w *Witness) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           w.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      replyTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(w.log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() {
		ended <- srv.Serve(&limited{Listener: l, slots: make(chan struct{}, maxConnections), closed: make(chan struct{})})
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("witness: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		srv.Close()
	}
	<-ended
	return nil
}

// limited accepts a connection when there is a slot for it.
type limited struct {
	net.Listener
	slots  chan struct{} // one token for each open connection
	closed chan struct{}
	once   sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotConn{c, sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	free func()
}

func (c *slotConn) Close() error {
	c.free()
	return c.Conn.Close()
}
