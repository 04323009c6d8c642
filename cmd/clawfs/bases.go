package main

import (
	"context"
	"errors"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
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
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return nil, err
	}
	view, err := capstore.NewView(policy.Trust())
	if err != nil {
		return nil, err
	}
	c, err := a.daemon(ctx)
	if err != nil {
		return nil, err
	}
	whole := errors.New("the snapshot is whole")
	err = c.View(ctx, func(l control.ViewLine) error {
		switch l.Kind {
		case control.LineHeartbeat:
			return nil
		case control.LineSnapshot:
			return whole
		}
		// Whom the policy does not name neither grants nor revokes here.
		view.Apply(capstore.Record{Kind: l.Kind, Envelope: l.Envelope})
		return nil
	})
	if err == nil {
		err = errors.New("the daemon ended its list of capabilities early")
	}
	if !errors.Is(err, whole) {
		return nil, a.answered(err)
	}
	return rebuild.LiveBases(view, st, time.Now())
}
