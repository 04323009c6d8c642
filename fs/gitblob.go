package fs

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"sync/atomic"

	"github.com/openclaw/clawfs/hashpipe"
)

// maxGitBlob bounds in bytes the files that may be called by their git blob id.
// Hubs keep larger ones under their SHA-256.
const maxGitBlob = 16 << 20

// gitAddress reads a file name that is a git blob id: the SHA-1, in 40 lower-case
// hex digits, of "blob", a space, the size in decimal, a zero byte and the
// content. Hugging Face caches call small files so.
//
// SHA-1 approves nothing here. A name has to tell which of the approved contents
// is meant, so that none stands in for another, and for that two contents of one
// id would have to be both approved: a collision that their publisher made.
func gitAddress(base string) (id string, ok bool) {
	b, err := hex.DecodeString(base)
	return base, err == nil && len(b) == sha1.Size && hex.EncodeToString(b) == base
}

// gitID is the git blob id of a measured content, once somebody asked for it.
type gitID struct{ id atomic.Pointer[string] }

// is reports whether a name is the id. It is false for a name that nobody had
// compared.
func (g *gitID) is(base string) bool {
	if g == nil {
		return false
	}
	id := g.id.Load()
	return id != nil && *id == base
}

// compare finds out the id, if base could be one. The bytes are read again, each
// unit checked against the tree.
func (p proof) compare(base string, file *os.File) error {
	size := p.tree.Size()
	if _, ok := gitAddress(base); !ok || p.git == nil || p.git.id.Load() != nil || size > maxGitBlob {
		return nil
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", size)
	if _, err := io.Copy(h, io.NewSectionReader(hashpipe.NewCheckedReader(file, p.tree), 0, size)); err != nil {
		return err
	}
	id := hex.EncodeToString(h.Sum(nil))
	p.git.id.Store(&id)
	return nil
}

// linkedByGit answers for a link to a git blob id whose own name is approved. The
// content there has to be what the link's name says. (It is opened under the id,
// which it then has to have: nothing else can come in its place.)
func (f *filesystem) linkedByGit(l look, link, target string, lost Verdict) assessment {
	p := path.Join(path.Dir(link), target)
	no := assessment{verdict: lost, status: statusRefused}
	file, st, err := f.src.open(p)
	if err != nil || file == nil {
		return no
	}
	defer file.Close()
	a := f.assess(l, p, identityOf(&st), file, nil)
	if !a.verdict.Allowed() {
		if a.status == statusRefused {
			a.verdict = refused(lost.Reason, lost.Detail+"; "+a.verdict.Detail, a.verdict.Next)
		}
		return a
	}
	for _, g := range f.view.Lookup(a.flight.digest) {
		for _, s := range g.Subjects() {
			if s.Digest == a.flight.digest && hasSuffix(link, s.Name) {
				return assessment{}
			}
		}
	}
	return no
}
