package verifier

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	// maxText bounds a ledger and a policy in bytes.
	maxText = 1 << 20
	// maxDepth bounds how deep their JSON nests. The formats need eight levels.
	maxDepth = 32
	// maxTokens bounds the JSON tokens of a text, because three bytes of text
	// can become two hundred of memory ("{}," in a list of dependencies).
	maxTokens = 100_000
	// maxInteger is the largest integer that every JSON reader keeps exactly.
	maxInteger = 1<<53 - 1
)

// decodeStrict decodes one JSON text: UTF-8, no duplicate, unknown or
// differently cased member, no null, nothing after the value, bounded in size
// and depth.
func decodeStrict(data []byte, v any) error {
	if len(data) == 0 {
		return errors.New("it is empty")
	}
	if len(data) > maxText {
		return fmt.Errorf("expected at most %d bytes, got %d", maxText, len(data))
	}
	if err := scan(data); err != nil {
		return err
	}
	return dsse.JSONError(json.Unmarshal(data, v, json.RejectUnknownMembers(true)))
}

// scan reads the tokens before anything is decoded. It refuses null because a
// decoder leaves the zero value for it, which in an optional field would pass.
func scan(data []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(data))
	for n := 0; ; n++ {
		if n > maxTokens {
			return fmt.Errorf("more than %d JSON tokens", maxTokens)
		}
		token, err := dec.ReadToken()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return dsse.JSONError(err)
		}
		if dec.StackDepth() > maxDepth {
			return fmt.Errorf("nested more than %d levels deep", maxDepth)
		}
		if token.Kind() == 'n' {
			return fmt.Errorf("at %q: null is not a value here", dec.StackPointer())
		}
	}
}

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
