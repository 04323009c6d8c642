package mint

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
)

// A capability names every model that its build started from, each once and in
// order. One that forgot a base would outlive the revocation of that base.
func TestSignBases(t *testing.T) {
	k := newKey(t)
	argv := []string{"say", "a", "alpha"}
	var inputs []verifier.Dependency
	var want []hashpipe.Digest
	for i := range 8 {
		claim := hashpipe.SumBytes(fmt.Appendf(nil, "claim %d", i/2)).Claim() // each under two names
		inputs = append(inputs, verifier.Dependency{Name: fmt.Sprintf("model:m%d", i), Digest: verifier.DigestSet{ClawfsClaim1: claim}})
		if i%2 == 0 {
			want = append(want, claim)
		}
	}
	slices.SortFunc(want, func(a, b hashpipe.Digest) int { return strings.Compare(a.String(), b.String()) })
	att := attestStatement(t, argv, nil, inputs, []verifier.Output{{Name: "a", Path: "a"}})
	envelope, err := k.Sign(att, run(t, att, "one", argv, "a"), run(t, att, "two", argv, "a"), terms())
	if err != nil {
		t.Fatal(err)
	}
	self := []capstore.Signer{{Operator: "here", Key: k.Public()}}
	v, err := capstore.NewView(capstore.Trust{Mints: self, Revokers: self})
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Admit(envelope)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Bases(); !slices.Equal(got, want) {
		t.Errorf("the capability's bases are %v, want %v", got, want)
	}
}
