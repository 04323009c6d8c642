package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The exit codes are part of the command line: scripts branch on them, so a
// number never changes its meaning.
const (
	codeDone      = 0
	codeError     = 1
	codeUsage     = 2
	codeRefused   = 3 // refused, or nothing to verify
	codeSignature = 4 // signature or signer not acceptable
	codeDiffers   = 5 // the rebuild, or the file, differs
	codePending   = 6 // not finished yet, or timed out waiting
	codeDaemon    = 7 // the daemon cannot be reached
	codeMount     = 8 // the mount point cannot be used
)

// exitError carries the exit code that belongs to err.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// diagnosed is an error with what is known of its cause, one finding a line.
type diagnosed struct {
	err       error
	diagnosis string
}

func (d *diagnosed) Error() string { return d.err.Error() }
func (d *diagnosed) Unwrap() error { return d.err }

// exit gives err an exit code. A nil err stays nil.
func exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: code, err: err}
}

// exitf is exit of a new error; %w works.
func exitf(code int, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

// exitCode is the code of the outermost exitError in err, else codeError.
func exitCode(err error) int {
	if err == nil {
		return codeDone
	}
	var quiet *quietExit
	if errors.As(err, &quiet) {
		return quiet.code
	}
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return codeError
}

// refusal gives the error of ParseSBA or Verify its exit code.
func refusal(what string, err error) error {
	code := codeError
	var r *verifier.Refusal
	if errors.As(err, &r) {
		code = codeRefused
		switch r.Reason {
		case verifier.ReasonSignature, verifier.ReasonSigner, verifier.ReasonLogSignature, verifier.ReasonLogQuorum:
			code = codeSignature
		}
	}
	return exitf(code, "%s: %w", what, err)
}

// recordCode is the exit code for a capability, a revocation or a list that is not
// believed: who signed it is one thing, what it is another.
func recordCode(err error) int {
	if errors.Is(err, dsse.ErrUnverified) {
		return codeSignature
	}
	return codeRefused
}

// verdictCode is the exit code for a rebuild that ended with v.
func verdictCode(v capstore.Verdict) int {
	switch v {
	case capstore.Minted:
		return codeDone
	case capstore.Nondeterministic, capstore.Disputed:
		return codeDiffers
	}
	return codeRefused
}

// quietExit ends the program with a code after the verb has printed its whole
// answer to standard output: a refusal that was asked about is no error.
type quietExit struct{ code int }

func (e *quietExit) Error() string { return fmt.Sprintf("exit %d", e.code) }

// reportError writes err to w, as the sentence "clawfs: …" after a rebuild's
// diagnosis, or for -o json as one document. Errors never go to standard
// output, so that a pipe carries results only.
func reportError(w io.Writer, err error, format string) {
	var quiet *quietExit
	if errors.As(err, &quiet) {
		return
	}
	doc := struct {
		Error     string           `json:"error"`
		Code      int              `json:"code"`
		Verdict   capstore.Verdict `json:"verdict,omitzero"`
		Diagnosis string           `json:"diagnosis,omitzero"`
	}{Error: err.Error(), Code: exitCode(err)}
	var f *rebuild.Failure
	if errors.As(err, &f) {
		doc.Verdict, doc.Diagnosis = f.Verdict, strings.TrimRight(f.Diagnosis, "\n")
	}
	var d *diagnosed
	if errors.As(err, &d) {
		doc.Diagnosis = d.diagnosis
	}
	if format == "json" {
		b, _ := json.Marshal(doc, jsontext.Multiline(true), jsontext.WithIndent("  ")) // strings and a number: cannot fail
		fmt.Fprintf(w, "%s\n", b)
		return
	}
	if doc.Diagnosis != "" {
		fmt.Fprintln(w, doc.Diagnosis)
	}
	fmt.Fprintf(w, "clawfs: %v\n", err)
}
