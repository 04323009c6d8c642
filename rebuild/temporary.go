package rebuild

import (
	"errors"
	"slices"
	"strings"

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

// temporary says whether an input that was not fetched may be had later. What
// is not known to pass is taken for permanent: a person is asked.
func temporary(err error) bool {
	if several := (failures)(nil); errors.As(err, &several) {
		return slices.ContainsFunc(several, temporary)
	}
	if errors.Is(err, fetch.ErrRefused) { // a registry's error calls that unreachable
		return false
	}
	var t interface{ Temporary() bool }
	if errors.As(err, &t) && t.Temporary() {
		return true
	}
	if errors.Is(err, oci.ErrUnreachable) {
		return true
	}
	text := err.Error()
	for _, words := range gitTrouble {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}
