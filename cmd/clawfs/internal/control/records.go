package control

import (
	"context"
	"net/http"

	"github.com/openclaw/clawfs/hashpipe"
)

// CapabilityText returns the signed text of a capability, all its lines.
func (c *Client) CapabilityText(ctx context.Context, id hashpipe.Digest) ([]byte, error) {
	var e Envelope
	err := c.do(ctx, http.MethodGet, "/v1/capabilities/"+id.String()+"/envelope", nil, &e)
	return e.Envelope, err
}
