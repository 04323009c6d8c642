package verifier

import (
	"fmt"
	"slices"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Each of these returns an edited copy of a policy that passes ParsePolicy's
// rules, or an error; p itself stays as it is.

// NewPolicy returns a policy with one operator that mints and revokes. It has
// no publishers yet, so it denies everything.
func NewPolicy(operator string, mint, revoker dsse.PublicKey, builds Builds) (*Policy, error) {
	p := &Policy{
		Version:  policyVersion,
		Mints:    []Operator{{operator, []dsse.PublicKey{mint}}},
		Revokers: []Operator{{operator, []dsse.PublicKey{revoker}}},
		Builds:   builds,
	}
	return p.clone()
}

// AddPublisher adds the rule r.
func (p *Policy) AddPublisher(r PublisherRule) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		c.Publishers = append(c.Publishers, r)
		return nil
	})
}

// RemovePublisher removes the rule named name.
func (p *Policy) RemovePublisher(name string) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		i, err := c.publisher(name)
		if err != nil {
			return err
		}
		c.Publishers = slices.Delete(c.Publishers, i, i+1)
		return nil
	})
}

// PinSequence refuses ledgers of model below minimum from now on. It does not
// lower a minimum: that would let an older ledger back in.
func (p *Policy) PinSequence(model string, minimum int64) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		r, ok := c.Rule(model)
		if !ok {
			return fmt.Errorf("policy: no publisher speaks for %q", clip(model))
		}
		if old := r.MinimumSequence[model]; minimum < old {
			return fmt.Errorf("policy: %s is pinned at sequence %d already, which is above %d", model, old, minimum)
		}
		i, err := c.publisher(r.Name)
		if err != nil {
			return err
		}
		if c.Publishers[i].MinimumSequence == nil {
			c.Publishers[i].MinimumSequence = make(map[string]int64)
		}
		c.Publishers[i].MinimumSequence[model] = minimum
		return nil
	})
}

// AllowImage lets the publisher named name build in the image with this
// manifest digest. It has no effect on a rule that allows any image.
func (p *Policy) AllowImage(name string, manifest hashpipe.Digest) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		i, err := c.publisher(name)
		if err != nil {
			return err
		}
		r := &c.Publishers[i]
		r.Images = addOnce(r.Images, imagePrefix+manifest.String())
		if slices.Contains(r.Images, anyImage) {
			r.Images = []string{anyImage}
		}
		return nil
	})
}

// AllowEnv lets ledgers set the environment variable name.
func (p *Policy) AllowEnv(name string) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		c.Builds.Env = addOnce(c.Builds.Env, name)
		return nil
	})
}

// AddMint makes capabilities signed by key count as operator's.
func (p *Policy) AddMint(operator string, key dsse.PublicKey) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		c.Mints = addKey(c.Mints, operator, key)
		return nil
	})
}

// AddRevoker makes revocations signed by key count as operator's.
func (p *Policy) AddRevoker(operator string, key dsse.PublicKey) (*Policy, error) {
	return p.edit(func(c *Policy) error {
		c.Revokers = addKey(c.Revokers, operator, key)
		return nil
	})
}

func (p *Policy) edit(change func(*Policy) error) (*Policy, error) {
	c, err := p.clone()
	if err != nil {
		return nil, err
	}
	if err := change(c); err != nil {
		return nil, err
	}
	return c.clone()
}

// clone goes through the text, so that nothing is shared and nothing unchecked
// comes out.
func (p *Policy) clone() (*Policy, error) {
	data, err := p.Encode()
	if err != nil {
		return nil, err
	}
	return ParsePolicy(data)
}

func (p *Policy) publisher(name string) (int, error) {
	i := slices.IndexFunc(p.Publishers, func(r PublisherRule) bool { return r.Name == name })
	if i < 0 {
		return 0, fmt.Errorf("policy: there is no publisher %q", clip(name))
	}
	return i, nil
}

func addKey(operators []Operator, name string, key dsse.PublicKey) []Operator {
	for i := range operators {
		if operators[i].Operator == name {
			operators[i].Keys = append(operators[i].Keys, key)
			return operators
		}
	}
	return append(operators, Operator{name, []dsse.PublicKey{key}})
}

func addOnce(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
