// Package bundle reads and writes a file of trust records for machines that no
// network reaches: in-toto's JSON Lines, one DSSE envelope a line.
//
// Two kinds of line are no envelope, though they look like one without
// signatures. A log proof stands directly after the attestation that it is for:
//
//	{"payloadType":"text/vnd.clawfs.tlog-proof","payload":"<base64>","signatures":[]}
//
// Its authenticity is the proof's own. And a record of several envelopes, such as
// a delegated capability, is one line with all of them, one a line of the
// payload:
//
//	{"payloadType":"application/vnd.clawfs.chain.v1+jsonl","payload":"<base64>","signatures":[]}
//
// The bundle itself is signed by nobody. Whoever carries it can leave lines out,
// double them or change their order: every line is judged as if it had come alone,
// and what is missing proves nothing.
package bundle

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// MaxLine bounds one line in bytes, without its newline.
	MaxLine = 4 << 20
	// MaxBytes bounds the whole file.
	MaxBytes = 256 << 20
	// MaxLines bounds the lines of a file.
	MaxLines = 100_000
)

const (
	proofType = "text/vnd.clawfs.tlog-proof"
	chainType = "application/vnd.clawfs.chain.v1+jsonl"
)

// Item is one record of a bundle.
type Item struct {
	Line     int    // from 1
	Envelope []byte // one envelope; or several, one a line
	Proof    []byte // the text of the proof line after it; nil: none
}

// FormatError says why a file is no bundle.
type FormatError struct {
	Line   int // from 1; 0: the file as a whole
	Detail string
}

func (e *FormatError) Error() string {
	if e.Line == 0 {
		return "bundle: " + e.Detail
	}
	return fmt.Sprintf("bundle: line %d: %s", e.Line, e.Detail)
}

func malformed(line int, format string, args ...any) error {
	return &FormatError{line, fmt.Sprintf(format, args...)}
}

// Read hands each record to each, in the order of the file. A file beyond the
// bounds, an empty line, a line that is no JSON object with a payloadType, and a proof that
// does not stand directly after an envelope are a *FormatError; records before
// that line were handed out by then. So is a file without a line. An error of
// each ends the reading and is returned as it is. What an envelope holds is not
// looked at.
func Read(r io.Reader, each func(Item) error) error {
	lines := lineReader{r: bufio.NewReaderSize(r, 64<<10)}
	var held Item // waits for a proof
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		it, proof, err := parseLine(lines.n, line)
		if err != nil {
			return err
		}
		if proof {
			if held.Envelope == nil || held.Proof != nil {
				return malformed(lines.n, "a log proof that does not stand directly after an attestation")
			}
			held.Proof = it.Proof
			continue
		}
		if held.Envelope != nil {
			if err := each(held); err != nil {
				return err
			}
		}
		held = it
	}
	if held.Envelope == nil {
		return malformed(0, "empty")
	}
	return each(held)
}

func parseLine(n int, line []byte) (it Item, proof bool, err error) {
	var head struct {
		PayloadType string `json:"payloadType"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return Item{}, false, malformed(n, "expected an envelope, got %.40q: %v", line, err)
	}
	switch head.PayloadType {
	case "":
		return Item{}, false, malformed(n, "expected an envelope, got an object without a payloadType")
	case proofType, chainType:
	default:
		return Item{Line: n, Envelope: line}, false, nil
	}
	var w wrapper
	if err := json.Unmarshal(line, &w, json.RejectUnknownMembers(true)); err != nil {
		return Item{}, false, malformed(n, "%s: %v", head.PayloadType, err)
	}
	if len(w.Payload) == 0 || w.Signatures == nil || len(w.Signatures) > 0 {
		return Item{}, false, malformed(n, "%s: expected a payload and an empty list of signatures", head.PayloadType)
	}
	if head.PayloadType == proofType {
		return Item{Line: n, Proof: w.Payload}, true, nil
	}
	if jsontext.Value(w.Payload).IsValid() {
		return Item{}, false, malformed(n, "%s: one envelope alone is a line of its own", chainType)
	}
	return Item{Line: n, Envelope: w.Payload}, false, nil
}

// wrapper is a line that is no envelope.
type wrapper struct {
	PayloadType string           `json:"payloadType"`
	Payload     []byte           `json:"payload"`
	Signatures  []jsontext.Value `json:"signatures"`
}

// lineReader hands out lines within the bounds.
type lineReader struct {
	r     *bufio.Reader
	n     int   // lines so far
	bytes int64 // of them
}

// next returns a line without its newline, which the last one may lack; io.EOF
// after it.
func (l *lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if l.bytes += int64(len(part)); l.bytes > MaxBytes {
			return nil, malformed(0, "more than %d bytes", MaxBytes)
		}
		line = append(line, part...)
		if len(bytes.TrimSuffix(line, []byte("\n"))) > MaxLine {
			return nil, malformed(l.n+1, "more than %d bytes", MaxLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
			return nil, err
		}
		break
	}
	if l.n++; l.n > MaxLines {
		return nil, malformed(0, "more than %d lines", MaxLines)
	}
	line = bytes.TrimSuffix(line, []byte("\n"))
	if len(bytes.TrimSpace(line)) == 0 {
		return nil, malformed(l.n, "empty")
	}
	return line, nil
}

// Append adds the lines of a record to b. White space of an envelope goes; its
// payload and its signatures stay as they are.
func Append(b []byte, it Item) ([]byte, error) {
	envelope := jsontext.Value(bytes.Clone(it.Envelope))
	if !envelope.IsValid() {
		return appendWrapper(b, chainType, it.Envelope)
	}
	if err := envelope.Compact(); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if len(envelope) > MaxLine {
		return nil, fmt.Errorf("bundle: an envelope of %d bytes, at most %d are allowed", len(envelope), MaxLine)
	}
	b = append(append(b, envelope...), '\n')
	if it.Proof == nil {
		return b, nil
	}
	return appendWrapper(b, proofType, it.Proof)
}

func appendWrapper(b []byte, payloadType string, payload []byte) ([]byte, error) {
	line, err := json.Marshal(wrapper{payloadType, payload, []jsontext.Value{}})
	if err == nil && (len(payload) == 0 || len(line) > MaxLine) {
		err = fmt.Errorf("%s of %d bytes", payloadType, len(payload))
	}
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return append(append(b, line...), '\n'), nil
}
