package mint

import (
	"errors"
	"fmt"

	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// SignRecord signs what the worker says about a job and returns the envelope. A
// record.Record is neither a capability nor a revocation, so that this method
// grants nothing.
func (k *Key) SignRecord(r record.Record) ([]byte, error) {
	if k == nil || k.key.Public().IsZero() {
		return nil, errors.New("signing record: no mint key")
	}
	if len(r.Payload()) == 0 {
		return nil, errors.New("signing record: there is none")
	}
	envelope, err := dsse.Sign(dsse.PayloadType, r.Payload(), k.key)
	if err != nil {
		return nil, fmt.Errorf("signing record: %w", err)
	}
	return envelope, nil
}
