package capstore

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Restrict narrows a capability to some opens. A list that is nil restricts
// nothing; one that is empty is an error, because an intersection that is empty
// must not read as "everybody". A reader that meets a member that it does not know
// refuses the whole capability: passing it over would widen the access.
type Restrict struct {
	// Paths are relative to the mount's root: a file, or a directory and "/" for
	// all below it.
	Paths []string `json:"paths,omitzero"`
	// UIDs are user ids of whoever opens, as the kernel gives them to the mount.
	UIDs []int64 `json:"uids,omitzero"`
	// Mounts are absolute mount points.
	Mounts []string `json:"mounts,omitzero"`
}

const maxRestrict = 256 // entries of one list

// Overflow ids: what the kernel says of a user that the mount's user namespace
// does not know. They are nobody in particular.
const (
	overflowUID = 65534
	invalidUID  = math.MaxUint32
)

// NewRestrict returns the restriction with its lists in their only order, or nil
// for no restriction at all, which is three lists that are nil. A list that is
// empty and not nil, such as an intersection that came out so, is an error.
func NewRestrict(paths []string, uids []int64, mounts []string) (*Restrict, error) {
	if paths == nil && uids == nil && mounts == nil {
		return nil, nil
	}
	r := &Restrict{slices.Clone(paths), slices.Clone(uids), slices.Clone(mounts)}
	slices.Sort(r.Paths)
	slices.Sort(r.UIDs)
	slices.Sort(r.Mounts)
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Restrict) check() error {
	if r == nil {
		return nil
	}
	if r.Paths == nil && r.UIDs == nil && r.Mounts == nil {
		return fmt.Errorf("it is empty: leave it out")
	}
	if err := checkList("paths", r.Paths, func(p string) error {
		if err := checkName("path", strings.TrimSuffix(p, "/")); err != nil {
			return err
		}
		return nil
	}); err != nil {
		return err
	}
	if err := checkList("uids", r.UIDs, func(uid int64) error {
		if uid < 0 || uid >= invalidUID || uid == overflowUID {
			return fmt.Errorf("%d is no user id of its own: want 0 to %d, and not %d", uid, int64(invalidUID-1), overflowUID)
		}
		return nil
	}); err != nil {
		return err
	}
	return checkList("mounts", r.Mounts, func(m string) error {
		if !path.IsAbs(m) || path.Clean(m) != m || len(m) > maxName || !utf8.ValidString(m) || strings.ContainsFunc(m, isControl) {
			return fmt.Errorf("%.200q is not an absolute, clean path", m)
		}
		return nil
	})
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// checkList wants a list that is nil, or not empty and strictly rising.
func checkList[T string | int64](what string, list []T, check func(T) error) error {
	if list == nil {
		return nil
	}
	if len(list) == 0 {
		return fmt.Errorf("%s is empty: leave it out", what)
	}
	if len(list) > maxRestrict {
		return fmt.Errorf("%s has %d entries: at most %d", what, len(list), maxRestrict)
	}
	for i, x := range list {
		if err := check(x); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if i > 0 && list[i-1] >= x {
			return fmt.Errorf("%s: %v follows %v: entries are unique and sorted", what, x, list[i-1])
		}
	}
	return nil
}

// Use is one open, as a restriction judges it.
type Use struct {
	Path  string // relative to the mount's root
	Mount string // the mount point
	UID   uint32
	// Anyone asks whether some user may, in place of UID.
	Anyone bool
}

// Permits returns "" if every link of the capability allows the use, else what
// the first that does not would allow. A zero Use is allowed by nothing that
// restricts paths, mounts or, without Anyone, users other than 0.
func (c Capability) Permits(u Use) (only string) {
	if c.rec == nil {
		return "nothing"
	}
	for _, st := range c.rec.chain {
		if only := st.Predicate.Restrict.permits(u); only != "" {
			return only
		}
	}
	return ""
}

func (r *Restrict) permits(u Use) (only string) {
	switch {
	case r == nil:
		return ""
	case r.Paths != nil && !slices.ContainsFunc(r.Paths, func(p string) bool {
		return p == u.Path || strings.HasSuffix(p, "/") && strings.HasPrefix(u.Path, p)
	}):
		return "the paths " + strings.Join(r.Paths, ", ")
	case r.Mounts != nil && !slices.Contains(r.Mounts, u.Mount):
		return "the mounts " + strings.Join(r.Mounts, ", ")
	case r.UIDs != nil && !u.Anyone && !slices.Contains(r.UIDs, int64(u.UID)):
		var ids []string
		for _, id := range r.UIDs {
			ids = append(ids, strconv.FormatInt(id, 10))
		}
		return "the users " + strings.Join(ids, ", ")
	}
	return ""
}

// String says what is allowed, for people; "" for no restriction.
func (r *Restrict) String() string {
	if r == nil {
		return ""
	}
	var parts []string
	if r.Paths != nil {
		parts = append(parts, "paths "+strings.Join(r.Paths, ", "))
	}
	if r.Mounts != nil {
		parts = append(parts, "mounts "+strings.Join(r.Mounts, ", "))
	}
	if r.UIDs != nil {
		parts = append(parts, fmt.Sprintf("uids %v", r.UIDs))
	}
	return strings.Join(parts, "; ")
}
