package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// maxReply bounds an answer that is not a stream, in bytes.
const maxReply = 64 << 20

// patience bounds a request that is not a stream: the daemon gives up earlier.
const patience = replyTimeout + 10*time.Second

// maxLine bounds one line of a stream in bytes: a record below 1 MiB, twice
// in base64.
const maxLine = 4 << 20

// Client talks to the daemon of one state directory. It keeps no connection
// between requests that a restarted daemon could break.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient is a client for the socket at path. It connects with the first
// request.
func NewClient(path string) *Client {
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialPatiently(ctx, path) },
		DisableKeepAlives: true,
	}}}
}

// queuePatience is how long a client waits for a place in the queue of the socket,
// which others can fill for a moment.
const queuePatience = 5 * time.Second

// dialPatiently is dial that waits while the queue of the socket is full.
func dialPatiently(ctx context.Context, path string) (net.Conn, error) {
	for end := time.Now().Add(queuePatience); ; {
		c, err := dial(ctx, path)
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) || ctx.Err() != nil {
			return c, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// UnreachableError says that no daemon answers.
type UnreachableError struct {
	Socket string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no daemon answers on %s (%v)", e.Socket, e.Err)
}
func (e *UnreachableError) Unwrap() error { return e.Err }

// do sends one request; in and out may be nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, &UnreachableError{c.socket, fmt.Errorf("it has been silent for %v", patience)})
	defer cancel()
	r, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxReply+1))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("reading the daemon's answer to %s: %w", path, err)
	}
	if len(b) > maxReply {
		return fmt.Errorf("the daemon's answer to %s is longer than %d bytes", path, maxReply)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("the daemon's answer to %s (is it another version than this program?): %w", path, err)
	}
	return nil
}

// open sends one request and returns the body of a successful answer.
func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://clawfs"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set(protocolHeader, protocol)
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, &UnreachableError{Socket: c.socket, Err: err}
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		if err := checkAnswer(resp.Header, path); err != nil {
			resp.Body.Close()
			return nil, err
		}
		return resp.Body, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's answer to %s: %w", path, err)
	}
	e := &Error{Status: resp.StatusCode}
	if err := json.Unmarshal(b, e); err != nil || e.Message == "" {
		e.Message = fmt.Sprintf("the daemon answered %s to %s", resp.Status, path)
	}
	return nil, e
}

// errSilent ends a stream whose daemon hangs.
var errSilent = errors.New("the daemon has stopped sending")

// stream hands each line of the answer to each until the answer ends, each
// returns an error, or nothing came for several heartbeats.
func (c *Client) stream(ctx context.Context, path string, each func(line []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(5*Heartbeat, func() { cancel(errSilent) })
	defer watch.Stop()
	r, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		watch.Reset(5 * Heartbeat)
		if err := each(lines.Bytes()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return lines.Err()
}
