package dsse

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// JSONError drops the Go types from an error of the JSON library, which say
// nothing to whoever wrote the JSON. Every other error stays as it is.
func JSONError(err error) error {
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) {
		return err
	}
	cause := semantic.Err
	if cause == nil {
		cause = fmt.Errorf("a JSON %v does not belong here", semantic.JSONKind)
	}
	return fmt.Errorf("at %q: %w", semantic.JSONPointer, cause)
}
