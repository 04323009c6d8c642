package main

import (
	"fmt"
	"net"
	"os"
	"reflect"
	"runtime"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/hashpipe"
)

// States of a capability as the verbs show them.
const (
	capLive     = string(capstore.StateLive)
	capPending  = string(capstore.StatePending)
	capExpired  = string(capstore.StateExpired)
	capRevoked  = string(capstore.StateRevoked)
	capWaiting  = string(capstore.StateWaiting)
	capDisputed = string(capstore.StateDisputed)
	capStale    = string(capstore.StateStale)
)

func (d *daemon) capabilities(now time.Time) []control.Capability {
	list := []control.Capability{}
	for _, g := range d.store.All() {
		agreed := g.Standing().AgreeAt(now)
		c := control.Capability{
			ID: g.ID(), State: string(g.State(now)), Model: g.Model(), Version: g.Version(), Sequence: g.Sequence(),
			Claim: g.Claim(), SBA: g.SBA(), Publisher: g.Publisher().ID(), Minter: g.Minter(), Operator: g.Operator(),
			Level: agreed.Level(), NotBefore: g.NotBefore(), NotAfter: g.NotAfter(),
			Agreed: agreed.Operators, Needed: agreed.Needed, Missing: agreed.Missing,
			DelegatedBy: g.DelegatedBy(), DerivedFrom: g.Parents(), Delegates: g.Delegates(), Environment: g.Environment(),
		}
		for _, r := range g.Restrictions() {
			if text := r.String(); text != "" {
				c.Restrictions = append(c.Restrictions, text)
			}
		}
		if o := g.Standing().Conflict(); !o.IsZero() {
			c.Conflict = &control.Conflict{Operator: o.Operator(), Capability: o.ID(), Claim: o.Claim()}
		} else if id, operator, lost := g.Standing().Unread(); lost {
			c.Conflict = &control.Conflict{Operator: operator, Capability: id}
		}
		for _, s := range g.Subjects() {
			f := control.File{Name: s.Name, SHA256: s.Digest, Size: s.Size}
			if r := d.store.View().RevokedBy(capstore.KindFile, s.Digest); !r.IsZero() {
				answer := revocationAnswer(r)
				f.Revoked = &answer
			}
			c.Files = append(c.Files, f)
		}
		lost := make(map[hashpipe.Digest]*control.Revocation)
		for _, l := range d.store.View().LostBases(g.Capability()) {
			answer := revocationAnswer(l.By)
			lost[l.Claim] = &answer
		}
		for _, claim := range g.Bases() {
			c.Bases = append(c.Bases, control.Base{Claim: claim, Lost: lost[claim]})
		}
		if r, revoked := g.Revoked(); revoked {
			answer := revocationAnswer(r)
			c.Revoked = &answer
		}
		list = append(list, c)
	}
	return list
}

// loggedCapabilities are the capabilities with what their jobs say of logs. A
// job whose row is damaged says nothing.
func (d *daemon) loggedCapabilities(now time.Time) ([]control.Capability, error) {
	jobs, err := d.store.Jobs()
	if err != nil && len(jobs) == 0 {
		return nil, err
	}
	entries := make(map[hashpipe.Digest]capstore.Logged)
	for _, j := range jobs {
		if !j.Capability.IsZero() {
			entries[j.Capability] = j.Logged
		}
	}
	list := d.capabilities(now)
	for i := range list {
		list[i].Logged = entries[list[i].ID]
	}
	return list, nil
}

// resources are what this process uses, whose control socket is l. What the kernel
// does not say is 0.
func resources(l net.Listener) control.Resources {
	r := control.Resources{Goroutines: runtime.NumGoroutine(), HeapLiveBytes: heapLive(), Connections: control.Connections(l)}
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		r.Descriptors = len(list) - 1 // the one that reads this
	}
	var size, resident int64
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if _, err := fmt.Sscan(string(b), &size, &resident); err == nil {
			r.ResidentBytes = resident * int64(os.Getpagesize())
		}
	}
	return r
}

func (d *daemon) status() (control.Status, error) {
	s := control.Status{
		Version: readVersion().Version, Protocol: control.Protocol(), Resources: resources(d.listener), PID: os.Getpid(), State: string(d.state), StartedAt: d.started,
		Jobs: map[string]int{}, Mounts: d.mounts.list(), Revocations: taken(d.store.View()),
		Generation: d.store.View().Extent(),
	}
	jobs, err := d.store.Jobs()
	if err != nil {
		return s, err
	}
	for _, j := range jobs {
		s.Jobs[string(j.State)]++
	}
	now := d.clock.now()
	heads := d.census.of(d.store.View(), now, d.store.Sending)
	s.Capabilities, s.Warnings = heads.states, d.warnings(heads, now)
	for _, r := range d.store.Rejected() {
		s.Rejected = append(s.Rejected, control.Rejected{Key: r.Key, Reason: r.Reason})
	}
	return s, nil
}

// warnings are what a person should do something about.
func (d *daemon) warnings(heads headcount, now time.Time) []string {
	list := append(d.listWarnings(now), d.clock.warnings(time.Now())...)
	if n := len(d.store.Rejected()); n > 0 {
		list = append(list, fmt.Sprintf("%d rows of the store do not verify and grant nothing; look for who wrote them", n))
	}
	list = append(list, heads.warnings(now, count(d.store.View()))...)
	policy, err := d.state.LoadPolicy()
	list = append(list, policyWarnings(policy, err, time.Now())...)
	if err := d.repin(); err != nil {
		list = append(list, fmt.Sprintf("the daemon goes by an older policy, because the one of now cannot be taken over: %v", err))
	}
	if newest, _, err := memory.Dir(d.state.Memory()).Newest(memory.ListSequence); err == nil && newest > d.store.View().List().Sequence() {
		list = append(list, fmt.Sprintf("the newest revocation list by a revoker of the policy has sequence %d, and this machine has seen %d: the daemon would not start again; next: put the revoker back, or clawfs revocations import FILE with list %d or a newer one", d.store.View().List().Sequence(), newest, newest))
	}
	list = append(list, spaceWarnings(d.store.Space())...)
	list = append(list, memoryWarnings(d.state)...)
	list = append(list, auditWarnings(d.mounts.list())...)
	for _, m := range d.mounts.list() {
		if m.Report != nil && m.Report.OldKeys {
			list = append(list, fmt.Sprintf("the mount at %[1]s goes by an older policy and cannot take the one of now over (its log says why); next: clawfs umount %[1]s, then clawfs mount %[2]s %[1]s", shellWord(m.Mountpoint), shellWord(m.Source)))
		}
	}
	return list
}

// spaceWarnings are about the disk that the store lies on.
func spaceWarnings(s capstore.Space, err error) []string {
	switch {
	case err != nil:
		return []string{fmt.Sprintf("nobody knows how full the store's disk is: %v", err)}
	case s.Low && !s.Ballast:
		return []string{fmt.Sprintf("DISK FULL: %d MiB are left for the store, and the room that is kept for revocations is used up: nothing is granted, and the next revocation may not be recorded; next: make room", s.Free>>20)}
	case s.Low:
		return []string{fmt.Sprintf("DISK FULL: %d MiB are left for the store, and %d MiB are needed: nothing is granted; revocations are still recorded; next: make room", s.Free>>20, s.Reserve>>20)}
	}
	return nil
}

// policyWarnings are about what LoadPolicy returned. A policy that breaks while
// daemon and mounts run takes nothing away from them: the one before counts.
func policyWarnings(p config.Policy, err error, now time.Time) []string {
	if err != nil {
		return []string{fmt.Sprintf("nothing new is accepted, and what runs goes on with the policy before: %v", err)}
	}
	if w := expiryWarning(p.Policy, now); w != "" {
		return []string{w}
	}
	return nil
}

// auditWarnings are loud about every mount that refuses nothing.
func auditWarnings(mounts []control.Mount) (list []string) {
	for _, m := range mounts {
		until := m.AuditEnd()
		if until.IsZero() {
			continue
		}
		served := ""
		if m.Report != nil {
			served = fmt.Sprintf(" (%d opens so far)", m.Report.Counters["auditServed"])
		}
		list = append(list, fmt.Sprintf("AUDIT MODE at %[1]s until %[2]s: files that nobody granted open%[3]s; to enforce now: clawfs umount %[1]s, then clawfs mount %[4]s %[1]s",
			shellWord(m.Mountpoint), until.UTC().Format(time.RFC3339), served, shellWord(m.Source)))
	}
	return list
}

// sameTrust compares the pinned keys, in any order, and the rules.
func sameTrust(a, b capstore.Trust) bool {
	return sameSigners(a.Mints, b.Mints) && sameSigners(a.Revokers, b.Revokers) &&
		reflect.DeepEqual(a.Rules, b.Rules) && a.Local == b.Local && a.Expires.Equal(b.Expires)
}

func sameSigners(a, b []capstore.Signer) bool {
	if len(a) != len(b) {
		return false
	}
	count := make(map[string]int)
	for i := range a {
		count[a[i].Operator+" "+string(a[i].Key.ID())]++
		count[b[i].Operator+" "+string(b[i].Key.ID())]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}
