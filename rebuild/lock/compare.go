package lock

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Extras says whether the image may have packages that the lock does not name.
// Anything but Allowed refuses.
type Extras string

// The values of Extras, as the ledger writes them.
const (
	Refused Extras = "refused"
	Allowed Extras = "allowed"
)

// Mismatch is a package that the image has in another version than the lock, at
// one place at least.
type Mismatch struct {
	Locked Row
	Have   []Package // at every place, also those of the right version
}

// Difference is everything in which an image differs from a lock. Its slices are
// sorted by name.
type Difference struct {
	Missing []Row
	Extra   []Package // empty if extras are allowed
	Differ  []Mismatch
	// Matched counts the rows that the image has in the locked version.
	Matched int
}

// Compare compares the packages of the lock's ecosystem. Python's versions are
// compared by PEP 440, the others by their text.
func Compare(list List, have []Package, extras Extras) Difference {
	var d Difference
	byName := map[string][]Package{}
	for _, p := range have {
		if p.Ecosystem == list.Ecosystem() && p.Ecosystem != "" {
			byName[p.Name] = append(byName[p.Name], p)
		}
	}
	locked := map[string][]string{} // architectures of each name
	for _, r := range list.rows {
		locked[r.Name] = append(locked[r.Name], r.Arch)
		var here []Package
		same := true
		for _, p := range byName[r.Name] {
			if r.Arch == "" || p.Arch == r.Arch {
				here = append(here, p)
				same = same && matches(r, p)
			}
		}
		switch {
		case len(here) == 0 && !r.Optional:
			d.Missing = append(d.Missing, r)
		case len(here) == 0:
		case !same:
			d.Differ = append(d.Differ, Mismatch{r, here})
		default:
			d.Matched++
		}
	}
	if extras == Allowed {
		return d
	}
	for name, packages := range byName {
		for _, p := range packages {
			if archs := locked[name]; !slices.Contains(archs, p.Arch) && !slices.Contains(archs, "") {
				d.Extra = append(d.Extra, p)
			}
		}
	}
	slices.SortFunc(d.Extra, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Path, b.Path))
	})
	return d
}

// matches is false for a package of unknown version: a Row has one always.
func matches(r Row, p Package) bool {
	if r.Ecosystem == PyPI {
		return matches440(r.Version, p.Version)
	}
	return r.Version == p.Version
}

// OK reports whether the image is as the lock says. An image that has nothing of
// the lock is not, even if the lock names only Optional packages.
func (d Difference) OK() bool {
	return len(d.Missing) == 0 && len(d.Extra) == 0 && len(d.Differ) == 0 && d.Matched > 0
}

// Bounds of what String prints.
const (
	maxShown  = 50 // packages
	maxPlaces = 8  // of one package
)

// String tells the difference to a person: a summary, then a line for each
// package, at most maxShown of each kind.
func (d Difference) String() string {
	if d.OK() {
		return fmt.Sprintf("the image has what the lock says: %d packages", d.Matched)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the image is not what the lock says: %d missing, %d of another version, %d extra, %d as locked",
		len(d.Missing), len(d.Differ), len(d.Extra), d.Matched)
	some(&b, "missing", d.Missing, Row.String)
	some(&b, "differs", d.Differ, func(m Mismatch) string {
		places := make([]string, 0, maxPlaces+1)
		for _, p := range m.Have[:min(len(m.Have), maxPlaces)] {
			places = append(places, place(p))
		}
		if more := len(m.Have) - maxPlaces; more > 0 {
			places = append(places, fmt.Sprintf("%d more", more))
		}
		return fmt.Sprintf("%s in the lock; the image has %s", m.Locked, strings.Join(places, " and "))
	})
	some(&b, "extra", d.Extra, func(p Package) string { return fmt.Sprintf("%s in %s", p, shown(p.Path)) })
	return b.String()
}

func place(p Package) string {
	v := p.Version
	if v == "" {
		v = "an unknown version"
	}
	if p.Arch != "" {
		v += " (" + p.Arch + ")"
	}
	return v + " in " + shown(p.Path)
}

func some[T any](b *strings.Builder, word string, list []T, say func(T) string) {
	for _, x := range list[:min(len(list), maxShown)] {
		fmt.Fprintf(b, "\n  %-8s %s", word, say(x))
	}
	if more := len(list) - maxShown; more > 0 {
		fmt.Fprintf(b, "\n  %-8s %d more", word, more)
	}
}

// Write writes the packages of one ecosystem as a lockfile that Parse reads:
// PyPI as "pip-freeze", Deb as "dpkg". It refuses what would not be read back or
// would say two things: an unknown version, one package in two versions, nothing
// at all.
func Write(have []Package, ecosystem string) ([]byte, error) {
	format := map[string]string{PyPI: "pip-freeze", Deb: "dpkg"}[ecosystem]
	if format == "" {
		return nil, fmt.Errorf("writing a lock of %s: expected %s or %s", shown(ecosystem), PyPI, Deb)
	}
	var out []string
	seen := map[string]Package{}
	for _, p := range have {
		if p.Ecosystem != ecosystem {
			continue
		}
		if p.Version == "" {
			return nil, fmt.Errorf("writing a lock: %s in %s has no version", p.Name, shown(p.Path))
		}
		if old, twice := seen[title(p.Name, p.Arch)]; twice && old.Version != p.Version {
			return nil, fmt.Errorf("writing a lock: the image has %s as %s and as %s; next: leave one of them in the image", title(p.Name, p.Arch), place(old), place(p))
		}
		seen[title(p.Name, p.Arch)] = p
		line := title(p.Name, p.Arch) + " " + p.Version
		if ecosystem == PyPI {
			equals := "=="
			if _, ok := parse440(p.Version); !ok {
				equals = "==="
			}
			line = p.Name + equals + p.Version
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("writing a lock: the image has no packages of %s", ecosystem)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	text := []byte(strings.Join(append(out, ""), "\n"))
	if _, err := Parse(format, text); err != nil {
		return nil, fmt.Errorf("writing a lock: %w", err)
	}
	return text, nil
}
