package tree

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
)

// Builder computes a root from records in memory, added in any order.
type Builder struct {
	profile Profile
	records map[string]record
}

type record struct {
	kind Kind
	sum  hashpipe.Sum
	size int64
}

// NewBuilder returns a Builder for records of profile p.
func NewBuilder(p Profile) *Builder {
	return &Builder{profile: p, records: make(map[string]record)}
}

// Add adds a file. It does not take symlinks: AddLink does, because it sees the
// target and can check it.
func (b *Builder) Add(kind Kind, path string, sum hashpipe.Sum, size int64) error {
	if kind == Symlink {
		return fmt.Errorf("path %q: a symlink is added with its target", path)
	}
	return b.add(kind, path, sum, size)
}

// AddLink adds a symlink that points to target.
func (b *Builder) AddLink(path, target string) error {
	if err := checkTarget(path, target); err != nil {
		return err
	}
	return b.add(Symlink, path, hashpipe.SumBytes([]byte(target)), int64(len(target)))
}

func (b *Builder) add(kind Kind, path string, sum hashpipe.Sum, size int64) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if !b.profile.allows(kind) {
		return fmt.Errorf("path %q: profile %v does not take kind %q", path, b.profile, byte(kind))
	}
	if _, ok := b.records[path]; ok {
		return fmt.Errorf("path %q is given twice", path)
	}
	b.records[path] = record{kind, sum, size}
	return nil
}

// Root returns the root of all records. A path that is a file and a directory
// at once is an error.
func (b *Builder) Root() (Root, error) {
	paths := make([]string, 0, len(b.records))
	for p := range b.records {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if _, ok := b.records[d]; ok {
				return Root{}, fmt.Errorf("path %q is a file and the directory of %q", d, p)
			}
		}
		paths = append(paths, p)
	}
	slices.SortFunc(paths, strings.Compare)
	var m merkle
	for _, p := range paths {
		r := b.records[p]
		if err := m.add(r.kind, p, r.sum, r.size); err != nil {
			return Root{}, err
		}
	}
	return m.root()
}
