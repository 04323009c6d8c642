package fs

import "testing"

// tiers are the ways in which this machine can serve a content, each with what
// makes a mount choose it.
var tiers = []struct {
	name   string
	change func(testing.TB, *serverSpec)
}{
	{TierBlocks, func(testing.TB, *serverSpec) {}},
}

// everyTier runs a test once on each tier. The test makes its mounts with
// mountEmpty(t, choose).
func everyTier(t *testing.T, run func(t *testing.T, choose func(*serverSpec))) {
	t.Helper()
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			run(t, func(s *serverSpec) { tier.change(t, s) })
		})
	}
}
