package capstore

import (
	"slices"
	"sync"
)

// maxCached bounds the records that are kept parsed and verified, in bytes of their
// texts. In memory a parsed record takes some five times as much.
const maxCached = 8 << 20

// cache holds records that were verified under the Trust of now, by number. Which of
// them goes when it is full is left to chance.
type cache struct {
	mu           sync.Mutex // guards all below
	capabilities map[uint32]Capability
	revocations  map[uint32]Revocation
	size         int
}

func newCache() *cache {
	return &cache{capabilities: make(map[uint32]Capability), revocations: make(map[uint32]Revocation)}
}

func (c *cache) capability(number uint32) (Capability, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.capabilities[number]
	return have, ok
}

func (c *cache) revocation(number uint32) (Revocation, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.revocations[number]
	return have, ok
}

// keepCapability returns the one that is kept: of two who read it at once, the first.
func (c *cache) keepCapability(number uint32, x Capability) Capability {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.capabilities[number]; ok {
		return have
	}
	c.room(len(x.rec.envelope))
	c.capabilities[number] = x
	return x
}

func (c *cache) keepRevocation(number uint32, x Revocation) Revocation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.revocations[number]; ok {
		return have
	}
	c.room(len(x.rec.envelope))
	c.revocations[number] = x
	return x
}

// room makes room for a text. Callers hold c.mu.
func (c *cache) room(n int) {
	c.size += n
	for number, x := range c.capabilities {
		if c.size <= maxCached {
			return
		}
		c.size -= len(x.rec.envelope)
		delete(c.capabilities, number)
	}
	for number, x := range c.revocations {
		if c.size <= maxCached {
			return
		}
		c.size -= len(x.rec.envelope)
		delete(c.revocations, number)
	}
}

// maxRejected bounds what is told of rows that do not verify.
const maxRejected = 1000

// rejections are what was found not to verify, each place once. The zero value is
// empty.
type rejections struct {
	mu   sync.Mutex // guards all below
	list []RejectedRow
	seen map[string]bool
	more int // beyond maxRejected
}

func (r *rejections) add(key, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[key] {
		return
	}
	if len(r.list) == maxRejected {
		r.more++
		return
	}
	if r.seen == nil {
		r.seen = make(map[string]bool)
	}
	r.seen[key] = true
	r.list = append(r.list, RejectedRow{Key: key, Reason: reason})
}

func (r *rejections) all() []RejectedRow {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// forget begins anew.
func (r *rejections) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list, r.seen, r.more = nil, nil, 0
}
