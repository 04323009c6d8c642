package main

import (
	"context"
	"time"

	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
)

// bases finds the live capabilities of the models that a ledger starts from, for
// a rebuild without a worker. It takes the daemon's records, revocations
// included, and checks each against the policy itself.
func (a *app) bases(ctx context.Context, st verifier.Statement) (rebuild.Bases, error) {
	if len(st.Models()) == 0 {
		return nil, nil
	}
	c, err := a.daemon(ctx)
	if err != nil {
		return nil, err
	}
	view, err := a.known(ctx, c)
	if err != nil {
		return nil, err
	}
	return rebuild.LiveBases(view, st, time.Now())
}
