package fs

import (
	"fmt"
	"path"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Readlink hands out targets that stay inside the mount. The kernel follows a
// target in the reader's name space, so one that leaves would lead straight to
// an unchecked file.
//
// BUG: the daemon cannot see that a directory of the mount is bound elsewhere
// alone (a container's volume); there a target with ".." can leave the bind.
//
// Audit mode hands out the others too, and tells.
func (f *filesystem) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return nil, statusStale
	}
	target, st, err := f.src.readlink(n.path)
	if err != nil {
		return nil, statusOf(err)
	}
	if identityOf(&st) != n.ident {
		return nil, statusStale
	}
	l := f.lookFor(cancel, in.Caller) // all that the request waits for
	a := assessment{verdict: f.followable(n.path, target), status: statusRefused}
	if _, git := gitAddress(path.Base(target)); git && a.verdict.Reason == ReasonWrongName {
		a = f.linkedByGit(l, n.path, target, a.verdict)
	}
	if a.verdict.Reason == "" && f.bind != BindName {
		var o outcome
		if a.verdict, o = f.linked(l, n.path, target); o != finished {
			a = undecided(o)
		}
	}
	if f.excuses(a.verdict, nil) {
		f.tellAudited(in.Caller, n.path, a.verdict, nil)
		return []byte(target), fuse.OK
	}
	if a.verdict.Reason != "" {
		f.tell(in.Caller, n.path, a.verdict, nil, "")
		return nil, a.status
	}
	return []byte(target), fuse.OK
}

// followable returns a refusal, or the zero Verdict for a link that may be
// handed out; what it leads to is decided when that is opened, under the name
// that it leads to. So the link's own name must survive, or one approved file
// could stand in for another.
//
// A target that is a content's hash (Hugging Face: model.safetensors ->
// ../../blobs/<sha256>) binds no name, so here the link's own name must be one
// under which that content is approved. Else one approved file could stand in
// for another by a link. If nothing is known of the hash there is nothing to
// stand in: opening it refuses. A target that is a git blob id is looked into:
// see linkedByGit. Any other target must keep what a capability
// knows of the link's name: see lostName.
func (f *filesystem) followable(link, target string) Verdict {
	if why := escapes(link, target); why != "" {
		return refused(ReasonSymlink, fmt.Sprintf("link to %q: %s", target, why), "replace the link by a relative one that stays inside the source")
	}
	d, ok := contentAddress(path.Base(target))
	if !ok {
		if lost := lostName(f.view, link, path.Join(path.Dir(link), target)); lost != "" {
			return refused(ReasonWrongName, fmt.Sprintf("link to %q: %s names something that is approved, and the target is called otherwise", target, lost),
				"replace the link by the file or directory itself")
		}
		return Verdict{}
	}
	if own, ok := contentAddress(path.Base(link)); ok && own != d {
		return refused(ReasonWrongName, fmt.Sprintf("link to sha256:%s, under the name of sha256:%s", d, own), "replace the link by the file itself")
	}
	grants := f.view.Lookup(d)
	if len(grants) == 0 {
		return Verdict{}
	}
	var names []string
	for _, g := range grants {
		for _, s := range g.Subjects() {
			if s.Digest != d {
				continue
			}
			if carries(link, s) {
				return Verdict{}
			}
			names = append(names, s.Name)
		}
	}
	v := refused(ReasonWrongName, fmt.Sprintf("link to sha256:%s, which is approved as %s and not as %s", d, strings.Join(names, ", "), link),
		"give the link the name of the approved file")
	v.Capability = grants[0].Capability()
	return v
}

// escapes says why a target leaves the mount, or "". Steps up are allowed only
// at the beginning, where they climb real directories: after a name that may
// itself be a link nobody can tell from the text where ".." leads.
func escapes(link, target string) string {
	if target == "" {
		return "it is empty"
	}
	if strings.HasPrefix(target, "/") {
		return "it is absolute"
	}
	depth := strings.Count(link, "/") // directories between the root and the link
	down := false
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if down {
				return `it has ".." after a name`
			}
			if depth--; depth < 0 {
				return "it leaves the mount"
			}
		default:
			down = true
		}
	}
	return ""
}
