package control

import (
	"context"
	"net/http"

	"github.com/openclaw/clawfs/hashpipe"
)

// RecordRequest hands the daemon a signed record. Kind is one of capstore's
// RecordCapability, RecordRevocation and RecordList.
type RecordRequest struct {
	Kind     string `json:"kind"`
	Envelope []byte `json:"envelope"` // of a delegated capability: all its lines
}

// RecordResult says what became of a record. Added is false if it was there.
type RecordResult struct {
	ID    hashpipe.Digest `json:"id"`
	Added bool            `json:"added"`
}

// Admit returns after the record was verified and is on stable storage.
func (c *Client) Admit(ctx context.Context, r RecordRequest) (res RecordResult, err error) {
	return res, c.do(ctx, http.MethodPost, "/v1/records", r, &res)
}

// CapabilityText returns the signed text of a capability, all its lines.
func (c *Client) CapabilityText(ctx context.Context, id hashpipe.Digest) ([]byte, error) {
	var e Envelope
	err := c.do(ctx, http.MethodGet, "/v1/capabilities/"+id.String()+"/envelope", nil, &e)
	return e.Envelope, err
}
