package main

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/hashpipe"
)

const (
	// repinEvery is how soon a changed policy counts for whom nobody asks.
	repinEvery = 2 * time.Second
	// repinAgain is how soon a policy is tried again that could not be taken over,
	// which can cost a reading of the whole store.
	repinAgain = 10 * time.Second
)

// pinned is the policy that a daemon's store goes by.
//
// A policy that LoadPolicy refuses is never pinned: one that cannot be read, was
// edited by hand or is older than one that was installed. The one before counts
// until its own end. One that has expired is pinned, as a restart would pin it,
// and opens nothing.
type pinned struct {
	policy atomic.Pointer[config.Policy]

	// mu guards what follows, and is held while a policy is taken over.
	mu     sync.Mutex
	failed hashpipe.Digest // of the policy that could not be
	at     time.Time
	err    error
}

// repin takes policy.json over as it is. Its error says why a policy that is in
// order is not gone by. Of one that is not, policyWarnings tells.
func (d *daemon) repin() error {
	d.pinned.mu.Lock()
	defer d.pinned.mu.Unlock()
	policy, err := d.state.LoadPolicy()
	if err != nil {
		return nil
	}
	old := d.pinned.policy.Load()
	same := sameTrust(policy.Trust(), old.Trust())
	if same && policy.Digest == old.Digest {
		return nil
	}
	if policy.Digest == d.pinned.failed && time.Since(d.pinned.at) < repinAgain {
		return d.pinned.err
	}
	if err = d.state.RememberPolicy(policy); err == nil && !same {
		err = d.store.Retrust(policy.Trust())
	}
	if err != nil {
		d.log.Error("the changed policy is not taken over; the one before counts", "policy", policy.Digest.String(), "error", err)
		d.pinned.failed, d.pinned.at, d.pinned.err = policy.Digest, time.Now(), err
		return err
	}
	d.pinned.failed = hashpipe.Digest{}
	d.pinned.policy.Store(&policy)
	if same {
		return nil
	}
	d.log.Warn("the policy has changed: other mints, revokers or rules count", "revision", policy.Revision, "policy", policy.Digest.String(), "capabilities", count(d.store.View()))
	d.logRejected()
	// The rows of a revoker who is trusted again may have a newer list.
	if err := checkNewestList(memory.Dir(d.state.Memory()), policy.Trust().Revokers, d.store.View()); err != nil {
		d.log.Error("the daemon would not start again", "error", err)
	}
	return nil
}

// watchPolicy takes changes over until ctx ends. repin logs its errors, and status
// tells them.
func (d *daemon) watchPolicy(ctx context.Context) {
	tick := time.NewTicker(repinEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = d.repin()
		}
	}
}

// repinned lets each request be answered by the policy as it is: what was installed
// before it counts. The reports of mounts, of which there are many, ask nothing.
func (d *daemon) repinned(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/report") {
			_ = d.repin() // logged; the policy before counts
		}
		next.ServeHTTP(w, r)
	})
}

func (d *daemon) logRejected() {
	for _, r := range d.store.Rejected() {
		d.log.Error("a row of the store does not verify; it grants nothing", "key", r.Key, "reason", r.Reason)
	}
}

// repin takes the keys and rules of policy.json over as they are, whether there is
// a daemon or not. One that LoadPolicy refuses changes nothing: see pinned. What a
// key that is trusted since then has signed comes with the daemon's next snapshot.
func (p *mountProcess) repin() {
	policy, err := p.state.LoadPolicy()
	if err != nil {
		p.oldKeys = false // of which the daemon warns
		return
	}
	t := policy.Trust()
	if sameTrust(t, p.pins) {
		p.oldKeys = false
		return
	}
	if err := p.view.Retrust(t); err != nil {
		if !p.oldKeys {
			p.log.Error("the changed policy is not taken over; the one before counts", "policy", policy.Digest.String(), "error", err)
		}
		p.oldKeys = true
		return
	}
	p.pins, p.oldKeys = t, false
	p.log.Warn("the policy has changed: other mints, revokers or rules count", "revision", policy.Revision, "policy", policy.Digest.String(), "capabilities", count(p.view))
	p.feed.resubscribe()
}

// count is how many capabilities a view has.
func count(v *capstore.View) int {
	n, _ := v.Count()
	return n
}
