// Package tree computes clawfs-tree/v1 roots, the identity of a directory of
// data or source.
//
// A tree is a list of records, one for each file:
//
//	"clawfs-tree/v1\n" kind SP sha256 SP size SP path
//
// kind is f (regular file), x (executable regular file: the owner's x bit) or l
// (symlink); sha256 is in lower-case hex; size is in decimal bytes; path runs to
// the end. Of a symlink, sha256 and size are those of its target's text. The
// records are sorted bytewise by path, and the root is the Merkle tree hash of
// RFC 6962 section 2.1 over them with SHA-256. A tree without records has no
// root.
//
// A path is relative UTF-8 of at most 4095 bytes with components of at most
// 255, none of them empty, "." or "..", without control bytes and backslashes;
// nothing is normalised. Profile Data takes only f and does not look at the x
// bit. Profile Source takes f, x and l; a symlink's target is relative, stays
// inside the root, and has ".." only at its start, because behind a directory
// that is itself a symlink ".." leads elsewhere than it reads. Times, owners,
// other mode bits, extended attributes and empty directories are not part of a
// tree.
package tree

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/openclaw/clawfs/hashpipe"
)

const (
	header       = "clawfs-tree/v1\n"
	maxPath      = 4095
	maxComponent = 255
	// maxBytes bounds the total, so that a ledger can carry it as an integer
	// that every JSON reader keeps exactly.
	maxBytes = 1<<53 - 1
)

// Profile says which kinds of records a tree may hold. The zero Profile allows
// none.
type Profile int

// The profiles.
const (
	Data   Profile = iota + 1 // regular files only; the x bit is not recorded
	Source                    // regular files, executable ones, relative symlinks
)

func (p Profile) allows(k Kind) bool {
	switch p {
	case Data:
		return k == File
	case Source:
		return k == File || k == Executable || k == Symlink
	}
	return false
}

// String returns the profile's name.
func (p Profile) String() string {
	switch p {
	case Data:
		return "data"
	case Source:
		return "source"
	}
	return "none"
}

// Kind is the kind of a record, as its letter.
type Kind byte

// The kinds.
const (
	File       Kind = 'f'
	Executable Kind = 'x'
	Symlink    Kind = 'l'
)

// Root is the identity and the size of a tree. All three are compared.
type Root struct {
	Digest hashpipe.Digest // clawfsTree1 of a digest set
	Files  int64           // records, symlinks included
	Bytes  int64           // sum of the records' sizes
}

// CheckPath says why p cannot be the path of a record, or nil.
func CheckPath(p string) error {
	switch {
	case p == "":
		return errors.New("the path is empty")
	case len(p) > maxPath:
		return fmt.Errorf("path %.60q…: expected at most %d bytes, got %d", p, maxPath, len(p))
	case !utf8.ValidString(p):
		return fmt.Errorf("path %q is not UTF-8", p)
	}
	for c := range strings.SplitSeq(p, "/") {
		switch {
		case c == "" || c == "." || c == "..":
			return fmt.Errorf("path %q: expected a relative path without empty, . or .. components", p)
		case len(c) > maxComponent:
			return fmt.Errorf("path %q: expected components of at most %d bytes, got %d", p, maxComponent, len(c))
		}
	}
	if strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }) {
		return fmt.Errorf("path %q: a control byte or a backslash", p)
	}
	return nil
}

// checkTarget says why the symlink at p cannot point to target.
func checkTarget(p, target string) error {
	switch {
	case target == "" || len(target) > maxPath:
		return fmt.Errorf("symlink %q: expected a target of 1 to %d bytes, got %d", p, maxPath, len(target))
	case path.IsAbs(target):
		return fmt.Errorf("symlink %q -> %q: expected a relative target", p, target)
	}
	up := strings.Count(p, "/") // levels between the symlink and the root
	down := false
	for c := range strings.SplitSeq(target, "/") {
		switch c {
		case "", ".":
		case "..":
			if down {
				return fmt.Errorf("symlink %q -> %q: expected .. at the start of the target only", p, target)
			}
			if up--; up < 0 {
				return fmt.Errorf("symlink %q -> %q: the target lies outside the tree", p, target)
			}
		default:
			down = true
		}
	}
	return nil
}

// merkle is the RFC 6962 tree hash of a growing list: the roots of its complete
// subtrees, largest first, so one hash for each bit that is set in n.
type merkle struct {
	roots []hashpipe.Sum
	n     int64
	bytes int64
	last  string
}

// add takes the records in ascending order of path.
func (m *merkle) add(kind Kind, path string, sum hashpipe.Sum, size int64) error {
	if sum.IsZero() {
		return fmt.Errorf("path %q: its content was not measured", path)
	}
	if size < 0 || size > maxBytes-m.bytes {
		return fmt.Errorf("path %q: a size of %d bytes beside %d is out of range", path, size, m.bytes)
	}
	if m.n > 0 && path <= m.last {
		return fmt.Errorf("path %q comes after %q: expected ascending paths", path, m.last)
	}
	leaf := make([]byte, 0, 1+len(header)+2+64+1+20+len(path))
	leaf = append(leaf, 0)
	leaf = append(leaf, header...)
	leaf = append(leaf, byte(kind), ' ')
	leaf = append(leaf, sum.String()...)
	leaf = append(leaf, ' ')
	leaf = strconv.AppendInt(leaf, size, 10)
	leaf = append(leaf, ' ')
	leaf = append(leaf, path...)
	h := hashpipe.SumBytes(leaf)
	for bit := m.n; bit&1 == 1; bit >>= 1 {
		h = node(m.roots[len(m.roots)-1], h)
		m.roots = m.roots[:len(m.roots)-1]
	}
	m.roots = append(m.roots, h)
	m.n, m.bytes, m.last = m.n+1, m.bytes+size, path
	return nil
}

func (m *merkle) root() (Root, error) {
	if m.n == 0 {
		return Root{}, errors.New("the tree holds no files")
	}
	h := m.roots[len(m.roots)-1]
	for i := len(m.roots) - 2; i >= 0; i-- {
		h = node(m.roots[i], h)
	}
	return Root{h.Claim(), m.n, m.bytes}, nil
}

func node(left, right hashpipe.Sum) hashpipe.Sum {
	l, r := left.Bytes(), right.Bytes()
	b := make([]byte, 0, 65)
	b = append(b, 1)
	b = append(b, l[:]...)
	return hashpipe.SumBytes(append(b, r[:]...))
}
