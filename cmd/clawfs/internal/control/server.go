package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// MaxBody bounds a request's body in bytes: an envelope of 4 MiB in base64,
	// and room for the rest.
	MaxBody = 6 << 20
	// maxHeader bounds a request's header in bytes.
	maxHeader = 16 << 10
	// Heartbeat is how often a stream with nothing to say says so.
	Heartbeat = 2 * time.Second

	headerTimeout = 5 * time.Second
	bodyTimeout   = 20 * time.Second
	replyTimeout  = 60 * time.Second
	sendTimeout   = 10 * time.Second // for one line of a stream
	drainTimeout  = 3 * time.Second  // for open requests when the daemon ends

	// smallBody is what a body may have, in bytes, to be read at once; of longer
	// ones, which a client may be slow to send, only so many are in memory.
	smallBody      = 64 << 10
	maxLong        = 8
	maxLongProcess = 2 // of one process

	// maxViewProcess bounds the view streams of one process: each may hold a line of
	// maxLine bytes for a client that does not read, and what the store has read ahead.
	// A mount process has one.
	maxViewProcess = 4
)

// Serve answers requests on l with h until ctx ends, then lets open requests
// finish for a short time and returns. Requests see ctx end at once, so that
// streams stop.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           bounded(h),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      replyTimeout,
		IdleTimeout:       replyTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	// One request for each connection: what follows it is nobody's.
	srv.SetKeepAlivesEnabled(false)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("control socket: %w", err)
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

// connKey is where a request's context has its connection.
type connKey struct{}

// bounded keeps what a client can take within its bounds, and clients of another
// protocol away.
func bounded(h http.Handler) http.Handler {
	long, views := newTurns(maxLong, maxLongProcess), newTurns(MaxConnections, maxViewProcess)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(protocolHeader, protocol)
		var from uint32
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			c.asks(true)
			defer c.asks(false)
			from = c.peer.PID
		}
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		// Who is refused in the middle of a body sees a broken pipe in place of the words.
		refuse := func(err error) {
			io.Copy(io.Discard, r.Body)
			ReplyError(w, err)
		}
		if err := checkProtocol(r); err != nil {
			refuse(err)
			return
		}
		if r.ContentLength < 0 || r.ContentLength > smallBody {
			if !long.take(from) {
				refuse(&Error{Status: http.StatusServiceUnavailable, Message: "other long requests are being received; next: the same again in a minute"})
				return
			}
			defer long.giveBack(from)
		}
		if r.URL.Path == "/v1/view" {
			if !views.take(from) {
				refuse(&Error{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf("process %d follows the view %d times already", from, maxViewProcess)})
				return
			}
			defer views.giveBack(from)
		}
		h.ServeHTTP(w, r)
	})
}

// turns counts what may be done so many times at once.
type turns struct {
	total, each int

	mu    sync.Mutex // guards what follows
	taken int
	by    map[uint32]int
}

func newTurns(total, each int) *turns {
	return &turns{total: total, each: each, by: make(map[uint32]int)}
}

func (t *turns) take(who uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken >= t.total || t.by[who] >= t.each {
		return false
	}
	t.taken++
	t.by[who]++
	return true
}

func (t *turns) giveBack(who uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	if t.by[who]--; t.by[who] == 0 {
		delete(t.by, who)
	}
}

// Error is a refusal that crosses the socket.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
	// Code is the exit code that a verb should end with.
	Code int `json:"code"`
}

func (e *Error) Error() string { return e.Message }

// Reply writes v as the whole answer.
func Reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"encoding the answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// ReplyError writes err, with its own status when it is an *Error.
func ReplyError(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Message: err.Error()}
	}
	status := e.Status
	if status == 0 {
		status = http.StatusInternalServerError
	}
	Reply(w, status, e)
}

// ReadBody decodes the body of r into v: one JSON document without unknown or
// repeated members.
func ReadBody(r *http.Request, v any) error { return readBody(r, v, true) }

// ReadReport is ReadBody for what a mount process says, which may be newer than
// the daemon: members that this version does not know are left alone.
func ReadReport(r *http.Request, v *MountReport) error { return readBody(r, v, false) }

func readBody(r *http.Request, v any, strict bool) error {
	err := json.UnmarshalRead(r.Body, v, json.RejectUnknownMembers(strict))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return &Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("request longer than %d bytes", big.Limit)}
	}
	if err != nil {
		return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("request: %v", err)}
	}
	return nil
}

// Stream is an answer of one JSON document a line, without an end.
type Stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	enc *jsontext.Encoder
}

// NewStream starts the answer. The time limit for the whole request no longer
// counts; each Send has its own.
func NewStream(w http.ResponseWriter) (*Stream, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &Stream{w: w, rc: rc, enc: jsontext.NewEncoder(w)}, nil
}

// Send writes one line and flushes it. A client that does not read for ten
// seconds loses the connection and has to come back.
func (s *Stream) Send(v any) error {
	if err := s.Write(v); err != nil {
		return err
	}
	return s.rc.Flush()
}

// Write is Send without the flush.
func (s *Stream) Write(v any) error {
	if err := s.rc.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	return json.MarshalEncode(s.enc, v)
}
