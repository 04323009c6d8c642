package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return codeError
}

// reportError writes err to w, as the sentence "clawfs: …" or, for -o json,
// as one document {"error","code"}. Errors never go to standard output, so
// that a pipe carries results only.
func reportError(w io.Writer, err error, format string) {
	if format == "json" {
		b, _ := json.Marshal(struct {
			Error string `json:"error"`
			Code  int    `json:"code"`
		}{err.Error(), exitCode(err)}, jsontext.Multiline(true))
		fmt.Fprintf(w, "%s\n", b)
		return
	}
	fmt.Fprintf(w, "clawfs: %v\n", err)
}
