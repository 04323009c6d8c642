package lock

import (
	"regexp"
	"strings"
)

// maxVersion bounds a version and a name in bytes.
const maxVersion = 200

var (
	pypiName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`) // PEP 508
	runs     = regexp.MustCompile(`[-_.]+`)
	// anyVersion is what a version may be made of where PEP 440 is not kept.
	anyVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+!_~-]*$`)
	// pep440 is the grammar of PEP 440 with everything that its normalisation
	// accepts: case, separators, spellings, "v".
	pep440 = regexp.MustCompile(`^v?(?:([0-9]+)!)?([0-9]+(?:\.[0-9]+)*)` +
		`(?:[-_.]?(alpha|beta|preview|pre|a|b|c|rc)[-_.]?([0-9]*))?` +
		`(?:-([0-9]+)|[-_.]?(post|rev|r)[-_.]?([0-9]*))?` +
		`(?:[-_.]?(dev)[-_.]?([0-9]*))?` +
		`(?:\+([a-z0-9]+(?:[-_.][a-z0-9]+)*))?$`)
)

// PyPIName is a Python package's name normalised by PEP 503, and whether it is
// a name at all (PEP 508).
func PyPIName(s string) (string, bool) {
	if len(s) > maxVersion || !pypiName.MatchString(s) {
		return "", false
	}
	return strings.ToLower(runs.ReplaceAllString(s, "-")), true
}

// version440 is a version normalised by PEP 440 so that two versions are equal
// when their texts are: trailing zeros of the release are gone.
type version440 struct{ public, local string }

// parse440 reports false for what is no version by PEP 440.
func parse440(s string) (version440, bool) {
	if !goodVersion(s) { // lowering case makes ASCII of some other letters
		return version440{}, false
	}
	m := pep440.FindStringSubmatch(strings.ToLower(s))
	if m == nil {
		return version440{}, false
	}
	var b strings.Builder
	if e := number(m[1]); e != "0" {
		b.WriteString(e + "!")
	}
	release := strings.Split(m[2], ".")
	for i := range release {
		release[i] = number(release[i])
	}
	for len(release) > 1 && release[len(release)-1] == "0" {
		release = release[:len(release)-1]
	}
	b.WriteString(strings.Join(release, "."))
	if m[3] != "" {
		b.WriteString(map[string]string{"alpha": "a", "beta": "b", "preview": "rc", "pre": "rc", "a": "a", "b": "b", "c": "rc", "rc": "rc"}[m[3]] + number(m[4]))
	}
	if m[5] != "" || m[6] != "" {
		b.WriteString(".post" + number(m[5]+m[7]))
	}
	if m[8] != "" {
		b.WriteString(".dev" + number(m[9]))
	}
	local := strings.Split(runs.ReplaceAllString(m[10], "."), ".")
	for i, part := range local {
		if part != "" && strings.Trim(part, "0123456789") == "" {
			local[i] = number(part)
		}
	}
	return version440{b.String(), strings.Join(local, ".")}, true
}

// number drops leading zeros; nothing is 0, as PEP 440 has it.
func number(s string) string {
	if s = strings.TrimLeft(s, "0"); s == "" {
		return "0"
	}
	return s
}

// matches440 reports whether an installed version is the locked one: `==` of
// PEP 440, so a lock without a local label ("+cpu") takes any. Versions that
// PEP 440 does not know must be the same text.
func matches440(locked, have string) bool {
	l, okL := parse440(locked)
	h, okH := parse440(have)
	if !okL || !okH {
		return locked == have
	}
	return l.public == h.public && (l.local == "" || l.local == h.local)
}
