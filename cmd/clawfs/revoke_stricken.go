package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

// revokeWithoutStore takes back what is named in full, with a daemon that cannot
// open its store: what a short name or --derived would mean is in there.
func (a *app) revokeWithoutStore(ctx context.Context, c *control.Client, s control.Status, kind capstore.Kind, ids []string, reason, keyRef string, derived bool) error {
	why := func(what string) string {
		return fmt.Sprintf("nothing is revoked, because the store, which knows %s, cannot be opened: %s; next: %s", what, s.Store.Error, s.Store.Next)
	}
	if derived {
		return exitf(codeRefused, "--derived: %s", why("what was built from it"))
	}
	var targets []hashpipe.Digest
	for _, id := range ids {
		d, err := hashpipe.ParseDigest(strings.TrimPrefix(strings.ToLower(id), "sha256:"))
		if err != nil {
			return exitf(codeRefused, "%q is no whole ID of kind %s (64 hexadecimal digits): %s", id, kind, why("what short ones stand for"))
		}
		targets = append(targets, d)
	}
	key, err := a.openRevoker(ctx, keyRef)
	if err != nil {
		return err
	}
	envelopes, err := signRevocations(ctx, kind, targets, reason, key)
	if err != nil {
		return err
	}
	done := []revoked{}
	for _, e := range envelopes {
		r, err := c.Revoke(ctx, e)
		if err != nil {
			return fmt.Errorf("revoked %d of %d, then: %w", len(done), len(envelopes), a.answered(err))
		}
		done = append(done, revoked{Revocation: r})
	}
	return a.print(done, func() {
		for _, r := range done {
			a.printf("revoked %s %s: %s\n", r.Kind, r.Target, printable(r.Reason))
		}
		a.notef("the store cannot be opened (%s): the revocation is kept, the mounts have it, and the store takes it when it opens; who still reads it is not known; next: %s\n", printable(s.Store.Error), printable(s.Store.Next))
	})
}
