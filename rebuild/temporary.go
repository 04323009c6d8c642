package rebuild

import (
	"errors"
	"slices"

	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
)

// gitTrouble are the words in which git and its helpers say (in LC_ALL=C) that
// a server was not to be had, not that it lacks something.
var gitTrouble = []string{
	"Could not resolve host", "Temporary failure in name resolution", "Connection refused", "Connection timed out",
	"Connection reset", "Connection closed", "No route to host", "Network is unreachable", "Failed to connect",
	"Operation timed out", "early EOF", "the remote end hung up unexpectedly", "RPC failed",
	"The requested URL returned error: 429", "The requested URL returned error: 5",
}

// temporary says whether an input that was not fetched may be had later, from
// one place at least. What is not known to pass is taken for permanent: a
// person is asked.
func temporary(err error) bool {
	if t, ok := err.(interface{ Temporary() bool }); ok && t.Temporary() || err == oci.ErrUnreachable {
		return true
	}
	switch x := err.(type) {
	case interface{ Unwrap() error }:
		return temporary(x.Unwrap())
	case failures: // of several places
		return slices.ContainsFunc(x, temporary)
	case interface{ Unwrap() []error }: // what a refused connection looks like to others is no trouble that passes
		return !errors.Is(err, fetch.ErrRefused) && slices.ContainsFunc(x.Unwrap(), temporary)
	}
	return false
}
