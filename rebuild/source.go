package rebuild

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// source checks the source out, with its submodules and large files in their
// places. A source that is one commit alone is kept in the cache; the root of
// its tree, which is measured again each time, says that it is still that.
func (g *gatherer) source(ctx context.Context) error {
	want := g.st.Source()
	operator := g.loc.Source
	ledger := want.Places()
	if want.URI == "" && len(g.st.Subject) > 0 {
		ledger = append([]string{g.st.Subject[0].URI}, ledger...)
	}
	where := places(operator, ledger...)
	g.say(PhaseSource, 0, "commit %s", want.Digest.GitCommit)
	option := "--source PATH or URL"
	if want.Digest.ClawfsTree1.IsZero() || len(g.st.Submodules())+len(g.st.LargeFiles()) > 0 {
		dest := g.scratch("source")
		if _, err := g.checkOut(ctx, "", want, where, dest); err != nil {
			return hint("source", option, err)
		}
		g.mount("source", dest)
		return nil
	}
	key := fmt.Sprintf("git %s %s", want.Digest.GitCommit, want.Digest.ClawfsTree1)
	var got tree.Root
	lease, err := g.cache.Make(ctx, key, func(ctx context.Context, dir string) error {
		_, err := g.checkOut(ctx, "", want, where, filepath.Join(dir, "tree"))
		return err
	}, func(ctx context.Context, dir string) error {
		return checkKept(ctx, filepath.Join(dir, "tree"), tree.Source, want.Digest.ClawfsTree1, &got)
	})
	if err == nil {
		g.mount("source", filepath.Join(g.keep(lease), "tree"))
		err = checkTree("source of commit "+string(want.Digest.GitCommit), got, want)
	}
	if err != nil {
		return hint("source", option, err)
	}
	return nil
}

// checkOut fetches the commit of a dependency from where it is first found and
// writes its files into dest, with what the ledger names below at, the path of
// a submodule and a slash, or "" for the source.
func (g *gatherer) checkOut(ctx context.Context, at string, want verifier.Dependency, where []fetch.Place, dest string) (tree.Root, error) {
	s := Source{Commit: want.Digest.GitCommit, Submodules: make(map[string]CheckedOut), LFS: make(map[string]File)}
	subs := g.st.Submodules()
	inside := func(path string) (rest string, ok bool) {
		rest, ok = strings.CutPrefix(path, at)
		if !ok || rest == "" {
			return "", false
		}
		for other := range subs { // one of a submodule further down is not ours
			if deeper, ok := strings.CutPrefix(path, other+"/"); ok && deeper != "" && len(other)+1 > len(at) {
				return "", false
			}
		}
		return rest, true
	}
	for _, path := range slices.Sorted(maps.Keys(subs)) {
		rest, ok := inside(path)
		if !ok {
			continue
		}
		d := subs[path]
		id := verifier.SubmodulePrefix + path
		g.submodules++
		dir := g.scratch(fmt.Sprintf("submodule-%d", g.submodules))
		if _, err := g.checkOut(ctx, path+"/", d, places(g.loc.Inputs[id], d.Places()...), dir); err != nil {
			return tree.Root{}, hint(fmt.Sprintf("submodule %q", path), "--input "+id+"=WHERE", err)
		}
		root, err := tree.Walk(ctx, dir, tree.Source, nil)
		if err != nil {
			return tree.Root{}, fmt.Errorf("submodule %q: %w", path, err)
		}
		s.Submodules[rest] = CheckedOut{Commit: d.Digest.GitCommit, Dir: dir, Root: root}
	}
	files := g.st.LargeFiles()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		rest, ok := inside(path)
		if !ok {
			continue
		}
		d := files[path]
		id := verifier.LFSPrefix + path
		lease, err := g.cache.File(ctx, d.Digest.SHA256, d.Annotations.Bytes, places(g.loc.Inputs[id], d.Places()...), g.p.add)
		if err != nil {
			return tree.Root{}, hint(fmt.Sprintf("large file %q", path), "--input "+id+"=WHERE", err)
		}
		s.LFS[rest] = File{Digest: d.Digest.SHA256, Size: d.Annotations.Bytes, Path: g.keep(lease)}
	}
	what := verifier.SourceName
	if at != "" {
		what = verifier.SubmodulePrefix + strings.TrimSuffix(at, "/")
	}
	var root tree.Root
	err := g.each(ctx, what, where, func(p fetch.Place) error {
		if err := removeTree(dest); err != nil {
			return err
		}
		path, local, err := g.cache.LocalPath(p)
		if err != nil {
			return err
		}
		s.Location, s.Trusted, s.Access = p.URI, p.Trusted, g.hosts.Git
		if local {
			s.Location = path
		}
		s.Access.Resolve = g.cache.Resolver(p.Trusted)
		if root, err = CheckOut(ctx, s, g.dir, dest, g.p.add); err != nil {
			return err
		}
		return checkTree("source of commit "+string(s.Commit), root, want)
	})
	return root, err
}
