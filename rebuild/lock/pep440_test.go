package lock

import "testing"

// What packaging 21.3, the reference implementation of PEP 440, answers to
// SpecifierSet("==" + locked).contains(have, prereleases=True).
func TestMatches440(t *testing.T) {
	for _, tt := range []struct {
		locked, have string
		want         bool
	}{
		{"1.0", "1.0.0", true},
		{"1.0", "1", true},
		{"1.0", "1.0.1", false},
		{"1.1a1", "1.1.alpha1", true},
		{"1.1a1", "1.1-ALPHA-1", true},
		{"1.1a", "1.1a0", true},
		{"1.0rc1", "1.0c1", true},
		{"1.0rc1", "1.0.preview1", true},
		{"1.0rc1", "1.0pre_1", true},
		{"1.0.post1", "1.0-1", true},
		{"1.0.post1", "1.0r1", true},
		{"1.0.post1", "1.0.rev.1", true},
		{"1.0.post", "1.0.post0", true},
		{"1.0.dev1", "1.0dev1", true},
		{"1.0.dev", "1.0-dev0", true},
		{"v1.0", "1.0", true},
		{"0!1.0", "1.0", true},
		{"1!1.0", "1.0", false},
		{"1.01", "1.1", true},
		{"2013.010.000", "2013.10", true},
		{"1.10", "1.1", false},
		{"2.1.0", "2.1.0+cpu", true},
		{"2.1.0+cpu", "2.1.0", false},
		{"2.1.0+cpu", "2.1.0+CPU", true},
		{"2.1.0+cpu", "2.1.0+cu118", false},
		{"1.0+ubuntu-1", "1.0+ubuntu.1", true},
		{"1.0+ubuntu_01", "1.0+ubuntu.1", true},
		{"1.0+0a", "1.0+a", false},
		{"1.0a1", "1.0b1", false},
		{"1.0a1", "1.0", false},
		{"1.0.post1", "1.0", false},
		{"1.0.dev1", "1.0", false},
		{"1.0a1.post2.dev3", "1.0-a.1-post.2_dev_3", true},
		{"1.0-1", "1.0-2", false},
		{"1.13.0a0+gitunknown", "1.13a0+gitunknown", true},
		{"1.0+1.2", "1.0+1.2.0", false},
		// No versions of PEP 440: equal texts, as === has it.
		{"2004d_beta-x", "2004d_beta-x", true},
		{"2004d_beta-x", "2004d_BETA-x", false},
		{"1.0", "2004d_beta-x", false},
	} {
		if got := matches440(tt.locked, tt.have); got != tt.want {
			t.Errorf("matches440(%q, %q) = %v, want %v", tt.locked, tt.have, got, tt.want)
		}
	}
	for s, want := range map[string]bool{
		"1.0": true, "1.0.*": false, "1..0": false, "1.0-": false, "french toast": false, "1.0+": false, "1.0+_x": false,
		"1.0 beta": false, "1.0a-": true, "1.0a1b2": false, "": false, "0": true, "1.0post": true, "1.0-post-": true,
		"1!": false, "1.0.dev1.post1": false, "1.0+a+b": false,
		"1.0+\u212a": false, // KELVIN SIGN, whose lower case is k
	} {
		if _, got := parse440(s); got != want {
			t.Errorf("parse440(%q) = %v, want %v", s, got, want)
		}
	}
}

// The examples of PEP 503, and names of the index.
func TestPyPIName(t *testing.T) {
	for s, want := range map[string]string{
		"friendly-bard": "friendly-bard", "Friendly-Bard": "friendly-bard", "FRIENDLY-BARD": "friendly-bard",
		"friendly.bard": "friendly-bard", "friendly_bard": "friendly-bard", "friendly--bard": "friendly-bard",
		"FrIeNdLy-._.-bArD": "friendly-bard", "zope.interface": "zope-interface", "PyYAML": "pyyaml", "h5py.-debian": "h5py-debian",
		"": "", "-a": "", "a-": "", "a b": "", "ä": "", "a/b": "", "a\n": "", "\u212a": "",
	} {
		if got, ok := PyPIName(s); got != want || ok != (want != "") {
			t.Errorf("PyPIName(%q) = %q, %v, want %q", s, got, ok, want)
		}
	}
}
