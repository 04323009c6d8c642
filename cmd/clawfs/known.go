package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// known is what the daemon has, checked here by the keys of the policy: whoever
// signs something because of it does not sign what the daemon says.
func (a *app) known(ctx context.Context, c *control.Client) (*capstore.View, error) {
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return nil, err
	}
	if _, err := c.Status(ctx); err != nil { // before anything is made in the state directory
		return nil, a.answered(err)
	}
	view, err := capstore.NewViewIn(a.config().Run(), policy.Trust())
	if err != nil {
		return nil, err
	}
	whole := errors.New("whole")
	err = c.View(ctx, func(l control.ViewLine) error {
		switch l.Kind {
		case control.LineHeartbeat:
			return nil
		case control.LineSnapshot:
			return whole
		case control.LineNoStore:
			_, err := c.Capabilities(ctx) // which says why
			return errors.Join(errors.New("the daemon has no store"), err)
		}
		err := view.Apply(capstore.Record(l))
		if err != nil && l.Kind == capstore.RecordCapability { // the policy is newer than the daemon; it grants nothing
			a.notef("passed over: %v\n", err)
			return nil
		}
		return err
	})
	switch {
	case errors.Is(err, whole):
		return view, nil
	case err == nil:
		err = errors.New("the daemon's stream ended before it was whole")
	}
	return nil, a.answered(fmt.Errorf("what the daemon knows: %w", err))
}
