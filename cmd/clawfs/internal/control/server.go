package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
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
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
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

func bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		h.ServeHTTP(w, r)
	})
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
func ReadBody(r *http.Request, v any) error {
	err := json.UnmarshalRead(r.Body, v, json.RejectUnknownMembers(true))
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
