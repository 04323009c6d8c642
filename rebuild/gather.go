package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// Inputs says where fetched inputs are kept and how they may be fetched. The
// zero Inputs keeps them for the one job alone, reaches public addresses, and
// has no credentials.
type Inputs struct {
	Dir     string // of the cache, which jobs share
	Budget  int64  // bytes that may stay in it
	Options fetch.Options
	Hosts   Hosts
}

// Open opens the cache; nil without a Dir. What happens to each place, and which
// of them lied, goes to note.
func (in Inputs) Open(note func(fetch.Note)) (*fetch.Cache, error) {
	if in.Dir == "" {
		return nil, nil
	}
	o := in.Options
	o.Observer = note
	return fetch.Open(in.Dir, in.Budget, o)
}

// inputs are a ledger's inputs after each was compared with its digest, where
// the sandbox mounts them: in the cache, or below the job's own directory.
type inputs struct {
	rootfs string
	mounts []sandbox.Input
	env    []string // the image's
	leases []*fetch.Lease
}

// close lets the cache evict what the job used.
func (in inputs) close() error {
	var errs []error
	for _, l := range in.leases {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// gatherer fetches the inputs of one ledger.
type gatherer struct {
	cache *fetch.Cache
	hosts Hosts
	bases Bases
	dir   string // the job's own
	st    verifier.Statement
	loc   capstore.Locations
	p     *progress
	in    inputs
	// submodules counts those that were checked out, for the names of their
	// directories: paths are too long for that.
	submodules int
	// within bounds the time for all inputs together.
	within time.Duration
}

// maxGather bounds the time for the inputs of one job. A server that sends a
// byte before each time it would be given up keeps a worker from all others.
// What it sent until then is kept for the next try.
const maxGather = 24 * time.Hour

// gather fetches all inputs, whose leases the caller closes also after an
// error. Every failure is FETCH_FAILED: an input that is absent and an input
// with other bytes are both not what the ledger names. A machine that is full
// is no answer.
func (g *gatherer) gather(whole context.Context) error {
	ctx, cancel := context.WithTimeoutCause(whole, g.within, fmt.Errorf("the inputs were not there within %v", g.within))
	defer cancel()
	g.in.rootfs = filepath.Join(g.dir, "rootfs")
	for _, step := range []func(context.Context) error{g.source, g.datasets, g.models, g.lockfile, g.image} {
		if err := step(ctx); err != nil {
			var f *Failure
			if errors.As(err, &f) || whole.Err() != nil {
				return err
			}
			if ctx.Err() == nil && exhausted(err) {
				return fmt.Errorf("fetching inputs: %w", err)
			}
			f = fail(capstore.FetchFailed, "%v", err)
			f.Temporary = temporary(err) || ctx.Err() != nil
			return f
		}
	}
	return nil
}

// exhausted says whether an input was not fetched because this machine has no
// room for it. That is no fault of the input. Words do not say it: servers and
// ledgers choose many of those that an error has.
func exhausted(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// places are where an input may be: where the operator said, and nowhere else,
// or where the ledger does.
func places(operator string, ledger ...string) []fetch.Place {
	if operator != "" {
		return []fetch.Place{{URI: operator, Trusted: true}}
	}
	var list []fetch.Place
	for _, uri := range ledger {
		if uri != "" {
			list = append(list, fetch.Place{URI: uri})
		}
	}
	return list
}

// hinted is an error that says already what a person can do.
type hinted struct{ error }

func (h *hinted) Unwrap() error { return h.error }

// hint adds what a person can do about an input that was not had. Of a part of
// the source, the part's own says it.
func hint(what, option string, err error) error {
	if h := (*hinted)(nil); errors.As(err, &h) {
		return fmt.Errorf("%s: %w", what, err)
	}
	next := "next: "
	if strings.Contains(err.Error(), "next: ") { // such as a login
		next = "or "
	}
	return &hinted{fmt.Errorf("%s: %w; %sname where it is with %s", what, err, next, option)}
}

// each tries places in turn and returns the errors of all if none will do. What
// becomes of each that is not the only one is noted under the name of the input.
func (g *gatherer) each(ctx context.Context, what string, list []fetch.Place, try func(fetch.Place) error) error {
	if len(list) == 0 {
		return errors.New("no place is known")
	}
	var errs []error
	for _, p := range list {
		err := try(p)
		if err == nil || ctx.Err() != nil || exhausted(err) {
			return err
		}
		if len(list) > 1 {
			n := fetch.Note{Entry: what, Event: fetch.Failed, Place: p, Err: err}
			if errors.Is(err, oci.ErrOtherBytes) || errors.Is(err, errOtherTree) {
				n.Event = fetch.Lied
			}
			g.cache.Note(n)
		}
		errs = append(errs, fmt.Errorf("%s: %w", p, err))
	}
	return failures(errs)
}

// failures joins the errors of several places on one line.
type failures []error

func (f failures) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (f failures) Unwrap() []error { return f }

func (g *gatherer) keep(l *fetch.Lease) string {
	g.in.leases = append(g.in.leases, l)
	return l.Path()
}

func (g *gatherer) mount(name, path string) {
	g.in.mounts = append(g.in.mounts, sandbox.Input{Name: name, Path: path})
}

func (g *gatherer) say(phase Phase, total int64, format string, args ...any) {
	g.p.say(phase, escape(fmt.Sprintf(format, args...)), total)
}

func (g *gatherer) datasets(ctx context.Context) error {
	sets := g.st.Datasets()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		path, err := g.dataset(ctx, name, sets[name])
		if err != nil {
			return hint(fmt.Sprintf("dataset %q", name), "--dataset "+name+"=WHERE", err)
		}
		g.mount("dataset/"+name, path)
	}
	return nil
}

// dataset returns the directory of a dataset. Registries come after the places
// that need no unpacking.
func (g *gatherer) dataset(ctx context.Context, name string, d verifier.Dependency) (string, error) {
	root := d.Digest.ClawfsTree1
	size := &fetch.Size{Files: d.Annotations.Files, Bytes: d.Annotations.Bytes}
	g.say(PhaseDataset, size.Bytes, "%s, tree %s", name, root)
	var plain, registries []fetch.Place
	for _, p := range places(g.loc.Datasets[name], d.Places()...) {
		if isRegistry(p.URI) {
			registries = append(registries, p)
		} else {
			plain = append(plain, p)
		}
	}
	var errs failures
	if len(plain) > 0 || len(registries) == 0 {
		lease, err := g.cache.Tree(ctx, root, size, plain, g.p.add)
		if err == nil {
			return g.keep(lease), nil
		}
		if len(registries) == 0 || ctx.Err() != nil || exhausted(err) {
			return "", err
		}
		errs = append(errs, err)
	}
	var got tree.Root
	lease, err := g.cache.Make(ctx, "artifact "+root.String(), func(ctx context.Context, dir string) error {
		return g.each(ctx, verifier.DatasetPrefix+name, registries, func(p fetch.Place) error {
			dest := filepath.Join(dir, "tree")
			if err := os.RemoveAll(dest); err != nil {
				return err
			}
			limits := oci.Limits{Bytes: size.Bytes, Entries: min(2*size.Files+1000, 1<<30)}
			if _, err := oci.PullArtifact(ctx, p.URI, dest, limits, g.registry(p, 4*size.Bytes+64<<20)); err != nil {
				return err
			}
			if err := fetch.Freeze(dest); err != nil {
				return err
			}
			return checkTreeAt(ctx, dest, tree.Data, d)
		})
	}, func(ctx context.Context, dir string) error {
		return checkKept(ctx, filepath.Join(dir, "tree"), tree.Data, root, &got)
	})
	if err != nil {
		return "", append(errs, err)
	}
	return filepath.Join(g.keep(lease), "tree"), checkTree("what is there", got, d)
}

func (g *gatherer) lockfile(ctx context.Context) error {
	want, ok := g.st.Lockfile()
	if !ok {
		return nil
	}
	lease, err := g.cache.File(ctx, want.Digest.SHA256, maxLockfile, places(g.loc.Lockfile, want.Places()...), g.p.add)
	if err != nil {
		return hint("lockfile", "--lockfile FILE", err)
	}
	g.mount("lockfile", g.keep(lease))
	return nil
}

// models lay out the outputs of the bases as their publishers named them.
func (g *gatherer) models(ctx context.Context) error {
	models := g.st.Models()
	for _, name := range slices.Sorted(maps.Keys(models)) {
		c := g.bases[name]
		id := verifier.ModelPrefix + name
		g.say(PhaseModel, 0, "%s is %s %s, claim %s", name, c.Model(), c.Version(), c.Claim())
		var where []fetch.Place
		for _, p := range places(g.loc.Inputs[id], models[name].Places()...) {
			p.URI = strings.TrimSuffix(p.URI, "/") + "/"
			where = append(where, p)
		}
		lease, err := g.cache.Make(ctx, "model "+c.Claim().String(), func(ctx context.Context, dir string) error {
			return g.layOut(ctx, dir, c.Subjects(), where)
		}, func(ctx context.Context, dir string) error { return checkModel(ctx, dir, c.Subjects(), g.p.add) })
		if err != nil {
			return hint(fmt.Sprintf("model %q", name), "--model "+name+"=DIR", err)
		}
		g.mount("model/"+name, g.keep(lease))
	}
	return nil
}

// layOut puts each file of a model below dir under its own name.
func (g *gatherer) layOut(ctx context.Context, dir string, subjects []capstore.Subject, where []fetch.Place) error {
	for _, s := range subjects {
		var at []fetch.Place
		for _, p := range where {
			uri := p.URI + s.Name
			if strings.Contains(p.URI, "://") && !strings.HasPrefix(p.URI, "file://") {
				uri = p.URI + (&url.URL{Path: s.Name}).EscapedPath()
			}
			at = append(at, fetch.Place{URI: uri, Trusted: p.Trusted})
		}
		if err := g.layOutFile(ctx, filepath.Join(dir, s.Name), s, at); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return fetch.Freeze(dir)
}

func (g *gatherer) layOutFile(ctx context.Context, dest string, s capstore.Subject, at []fetch.Place) error {
	lease, err := g.cache.File(ctx, s.Digest, s.Size, at, g.p.add)
	if err != nil {
		return err
	}
	defer lease.Close()
	if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
		return err
	}
	// Both lie in the cache, and neither is ever written again.
	return os.Link(lease.Path(), dest)
}

// checkModel measures every file of a model and refuses whatever else is there.
func checkModel(ctx context.Context, dir string, subjects []capstore.Subject, seen func(int64)) error {
	if err := fetch.Frozen(dir); err != nil {
		return err
	}
	expected := map[string]bool{".": true}
	for _, s := range subjects {
		for name := s.Name; name != "."; name = path.Dir(name) {
			expected[name] = true
		}
	}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil && !expected[name] {
			err = fmt.Errorf("%.200q is no file of the model", name)
		}
		return err
	})
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, s := range subjects {
		f, err := root.OpenFile(s.Name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		m, err := hashpipe.Measure(ctx, f, seen)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if !m.Sum().Is(s.Digest) {
			return fmt.Errorf("%s: SHA-256 is %s, its capability says %s", s.Name, m.Sum(), s.Digest)
		}
	}
	return nil
}

// checkKept measures a directory of the cache, in which modes and times are part
// of what a build sees, and compares it with the root by which it is kept. That a
// ledger promises other numbers of files and bytes is no fault of the entry: the
// caller compares got.
func checkKept(ctx context.Context, dir string, profile tree.Profile, root hashpipe.Digest, got *tree.Root) error {
	if err := fetch.Frozen(dir); err != nil {
		return err
	}
	var err error
	if *got, err = tree.Walk(ctx, dir, profile, nil); err != nil {
		return err
	}
	if got.Digest != root {
		return fmt.Errorf("tree root is %s (%d files, %d bytes), expected %s", got.Digest, got.Files, got.Bytes, root)
	}
	return nil
}

// checkTreeAt measures a directory and compares it with the ledger.
func checkTreeAt(ctx context.Context, dir string, profile tree.Profile, want verifier.Dependency) error {
	root, err := tree.Walk(ctx, dir, profile, nil)
	if err != nil {
		return err
	}
	return checkTree("what is there", root, want)
}
