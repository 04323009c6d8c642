package verifier

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// Window is when a key counts: from NotBefore on, and no longer at NotAfter. A
// bound that is not set does not bind; the zero Window binds nothing and is an
// error in a policy.
type Window struct {
	NotBefore Time `json:"notBefore,omitzero"`
	NotAfter  Time `json:"notAfter,omitzero"`
}

// at returns nil if the key counts at the moment now.
func (w Window) at(key dsse.KeyID, now time.Time) error {
	switch {
	case !w.NotBefore.IsZero() && now.Before(w.NotBefore.Time()):
		return fmt.Errorf("key %s is valid from %s, and now is %s", key, w.NotBefore, now.UTC().Format(timeLayout))
	case !w.NotAfter.IsZero() && !now.Before(w.NotAfter.Time()):
		return fmt.Errorf("key %s is valid until %s, and now is %s", key, w.NotAfter, now.UTC().Format(timeLayout))
	}
	return nil
}

func (r PublisherRule) checkWindows() error {
	if r.Windows != nil && len(r.Windows) == 0 {
		return errors.New("windows is empty; leave it out")
	}
	for id, w := range r.Windows {
		switch {
		case !slices.ContainsFunc(r.Keys, func(k dsse.PublicKey) bool { return k.ID() == id }):
			return fmt.Errorf("windows: expected the key id of one of this rule's keys, got %q", clip(string(id)))
		case w == Window{}:
			return fmt.Errorf("windows: key %s: expected notBefore, notAfter or both", id)
		case !w.NotBefore.IsZero() && !w.NotAfter.IsZero() && !w.NotBefore.Time().Before(w.NotAfter.Time()):
			return fmt.Errorf("windows: key %s: expected notBefore before notAfter, got %s and %s", id, w.NotBefore, w.NotAfter)
		}
	}
	return nil
}
