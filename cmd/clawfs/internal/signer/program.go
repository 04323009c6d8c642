package signer

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	protocolVersion = 1
	// maxAnswer bounds what a signer program may print on standard output, and
	// what is shown of its standard error, in bytes.
	maxAnswer = 64 << 10
	// maxLine bounds one line of standard error that is shown, in bytes.
	maxLine = 1 << 10
	// maxRef bounds the name of a key in bytes.
	maxRef = 4 << 10
	// exitUnknown is the exit code of a program that does not know the version
	// or the operation that it was asked for.
	exitUnknown = 2
)

var schemePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// Config says which program signs and with which key.
type Config struct {
	// Program is the absolute path of clawfs-signer-SCHEME. It is run without
	// arguments and without a shell, with the environment, the working
	// directory and the terminal of this process.
	Program string
	// Key is what stands after "SCHEME:", opaque here.
	Key string
	// TimeLimit bounds each answer; 0 is the constant TimeLimit.
	TimeLimit time.Duration
	// Note is called for each line of the program's standard error, which may
	// hold any bytes; nil drops them. It is not called after the program's end.
	Note func(line string)
}

// Program is a key behind a signer program.
type Program struct {
	config Config
	public dsse.PublicKey
}

// ProgramName returns the name of the program for a scheme, which is 1 to 32 of
// a-z, 0-9 and "-" and starts with a letter; false if scheme is none.
func ProgramName(scheme string) (string, bool) {
	return "clawfs-signer-" + scheme, schemePattern.MatchString(scheme)
}

type request struct {
	Version     int    `json:"clawfsSigner"`
	Op          string `json:"op"`
	Key         string `json:"key"`
	PublicKey   string `json:"publicKey,omitempty"`
	Algorithm   string `json:"algorithm,omitempty"`
	PayloadType string `json:"payloadType,omitempty"`
	Payload     []byte `json:"payload,omitempty"`
}

// OpenProgram asks the program for the public key. Every signature has to
// verify under that key.
func OpenProgram(ctx context.Context, c Config) (*Program, error) {
	p := &Program{config: c}
	switch {
	case !filepath.IsAbs(c.Program):
		return nil, fmt.Errorf("signer program %q: expected an absolute path", c.Program)
	case c.Key == "" || len(c.Key) > maxRef:
		return nil, fmt.Errorf("%s: expected the name of a key of 1 to %d bytes, got %d", p.name(), maxRef, len(c.Key))
	}
	var answer struct {
		PublicKey string `json:"publicKey"`
	}
	err := p.ask(ctx, request{Op: "public"}, &answer)
	if err == nil && !strings.HasPrefix(answer.PublicKey, "-----BEGIN PUBLIC KEY-----") {
		err = errors.New("its answer to public has no publicKey in PEM")
	}
	if err == nil {
		p.public, err = dsse.ParsePublicKey([]byte(answer.PublicKey))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return p, nil
}

// Public returns the key that the program named when it was opened.
func (p *Program) Public() dsse.PublicKey { return p.public }

// String names the program and the key.
func (p *Program) String() string { return fmt.Sprintf("%s with key %.100q", p.name(), p.config.Key) }

func (p *Program) name() string { return filepath.Base(p.config.Program) }

// Sign asks the program for a signature over PAE(payloadType, payload).
func (p *Program) Sign(ctx context.Context, payloadType string, payload []byte) ([]byte, error) {
	var answer struct {
		Signature string `json:"signature"`
	}
	err := p.ask(ctx, request{
		Op: "sign", PublicKey: string(p.public.PEM()), Algorithm: p.public.Algorithm(),
		PayloadType: payloadType, Payload: dsse.PAE(payloadType, payload),
	}, &answer)
	if err != nil {
		return nil, err
	}
	if answer.Signature == "" || strings.ContainsAny(answer.Signature, "\r\n") {
		return nil, errors.New("its answer to sign has no signature in base64 on one line")
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(answer.Signature)
	if err != nil {
		return nil, fmt.Errorf("its signature is not base64: %w", err)
	}
	return sig, nil
}

// ask runs the program once: one request on standard input, one answer on
// standard output. An answer counts only with exit code 0.
func (p *Program) ask(ctx context.Context, r request, answer any) error {
	r.Version, r.Key = protocolVersion, p.config.Key
	in, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("laying out the request: %w", err)
	}
	limit := p.config.TimeLimit
	if limit == 0 {
		limit = TimeLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer to %s within %s", r.Op, limit))
	defer cancel()
	out := &bounded{overflow: cancel}
	notes := &lines{note: p.config.Note}
	cmd := exec.CommandContext(ctx, p.config.Program)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(in, '\n')), out, notes
	// A program that it started may hold the pipes open after its end.
	cmd.WaitDelay = 2 * time.Second
	err = cmd.Run()
	notes.flush()
	var exited *exec.ExitError
	switch {
	case out.full:
		return fmt.Errorf("its answer to %s is longer than %d bytes", r.Op, maxAnswer)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exited) && exited.ExitCode() == exitUnknown:
		return fmt.Errorf("it does not know %s of version %d of the protocol (exit code %d)", r.Op, protocolVersion, exitUnknown)
	case err != nil:
		return fmt.Errorf("%s failed: %w", r.Op, err)
	}
	if err := decode(out.text.Bytes(), answer); err != nil {
		return fmt.Errorf("its answer to %s: %w", r.Op, err)
	}
	return nil
}

// decode accepts one JSON object without unknown, duplicate or differently cased
// members and without null.
func decode(text []byte, v any) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return errors.New("it printed nothing")
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(text, &members); err != nil {
		return err
	}
	for name, value := range members {
		if value.Kind() != '"' {
			return fmt.Errorf("expected a string for %q, got a JSON %v", name, value.Kind())
		}
	}
	return json.Unmarshal(text, v, json.RejectUnknownMembers(true))
}

// bounded keeps maxAnswer bytes and calls overflow when more come. It is no
// io.ReaderFrom, so that nothing more than that is ever held.
type bounded struct {
	text     bytes.Buffer
	full     bool
	overflow func()
}

func (b *bounded) Write(data []byte) (int, error) {
	if b.text.Len()+len(data) > maxAnswer {
		b.full = true
		b.overflow()
		return 0, errors.New("too long")
	}
	return b.text.Write(data)
}

// lines hands on lines of at most maxLine bytes, maxAnswer bytes in all, and
// swallows the rest: a program that is noisy may still answer.
type lines struct {
	note func(string)
	line []byte
	seen int
}

func (l *lines) Write(data []byte) (int, error) {
	for _, c := range data {
		if l.seen++; l.seen > maxAnswer {
			break
		}
		if c == '\n' {
			l.flush()
		} else if l.line = append(l.line, c); len(l.line) == maxLine {
			l.flush()
		}
	}
	return len(data), nil
}

func (l *lines) flush() {
	if len(l.line) > 0 && l.note != nil {
		l.note(string(l.line))
	}
	l.line = l.line[:0]
}
