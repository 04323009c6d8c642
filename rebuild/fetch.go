package rebuild

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// inputs are a ledger's inputs after each was compared with its digest. They
// are copies below one private directory.
type inputs struct {
	dir    string // what is mounted, by name
	rootfs string
	mounts []sandbox.Input
	env    []string // the image's
}

// fetch brings all inputs below dir. Every failure is FETCH_FAILED: an input
// that is absent and an input with other bytes are both not what the ledger
// names. A machine that is full is no answer.
func fetch(ctx context.Context, dir string, st verifier.Statement, loc capstore.Locations, p *progress) (inputs, error) {
	in := inputs{dir: filepath.Join(dir, "in"), rootfs: filepath.Join(dir, "rootfs")}
	if err := os.Mkdir(in.dir, 0o700); err != nil {
		return inputs{}, fmt.Errorf("fetching inputs: %w", err)
	}
	for _, step := range []func(context.Context, verifier.Statement, capstore.Locations, *progress) error{
		in.source, in.datasets, in.lockfile, in.image,
	} {
		if err := step(ctx, st, loc, p); err != nil {
			var f *Failure
			if errors.As(err, &f) || ctx.Err() != nil {
				return inputs{}, err
			}
			if exhausted(err) {
				return inputs{}, fmt.Errorf("fetching inputs: %w", err)
			}
			f = fail(capstore.FetchFailed, "%v", err)
			f.Temporary = temporary(err)
			return inputs{}, f
		}
	}
	return in, nil
}

// exhausted says whether an input was not fetched because this machine has no
// room for it. That is no fault of the input; git tells it in words alone.
func exhausted(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return strings.Contains(err.Error(), "No space left on device") || strings.Contains(err.Error(), "Out of diskspace")
}

func (in *inputs) source(ctx context.Context, st verifier.Statement, loc capstore.Locations, p *progress) error {
	want := st.Source()
	s := Source{Location: loc.Source, Trusted: loc.Source != "", Commit: want.Digest.GitCommit}
	if s.Location == "" {
		s.Location = want.URI
	}
	if s.Location == "" && len(st.Subject) > 0 {
		s.Location = st.Subject[0].URI
	}
	p.say(PhaseSource, escape(fmt.Sprintf("commit %s from %s", s.Commit, s.Location)), 0)
	dest := filepath.Join(in.dir, "source")
	root, err := CheckOut(ctx, s, filepath.Dir(in.dir), dest, p.add)
	if err != nil {
		return err
	}
	in.mounts = append(in.mounts, sandbox.Input{Name: "source", Path: dest})
	return checkTree("source of commit "+string(s.Commit), root, want)
}

func (in *inputs) datasets(ctx context.Context, st verifier.Statement, loc capstore.Locations, p *progress) error {
	sets := st.Datasets()
	if len(sets) == 0 {
		return nil
	}
	parent := filepath.Join(in.dir, "dataset")
	if err := os.Mkdir(parent, 0o700); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		want := sets[name]
		hint := loc.Datasets[name]
		if hint == "" {
			hint = want.URI
		}
		from, err := localPath(fmt.Sprintf("dataset %q", name), "--dataset "+name+"=DIR", hint)
		if err != nil {
			return err
		}
		var total int64
		if want.Annotations != nil {
			total = want.Annotations.Bytes
		}
		p.say(PhaseDataset, escape(fmt.Sprintf("copying %s from %s", name, from)), total)
		dest := filepath.Join(parent, name)
		if err := copyDataset(ctx, from, dest, want.Annotations, p.add); err != nil {
			return fmt.Errorf("dataset %q: %w", name, err)
		}
		p.say(PhaseDataset, escape("checking "+name), total)
		root, err := tree.Walk(ctx, dest, tree.Data, p.add)
		if err != nil {
			return fmt.Errorf("dataset %q: %w", name, err)
		}
		if err := checkTree(fmt.Sprintf("dataset %q at %s", name, from), root, want); err != nil {
			return err
		}
	}
	if err := freeze(parent); err != nil {
		return err
	}
	in.mounts = append(in.mounts, sandbox.Input{Name: "dataset", Path: parent})
	return nil
}

func (in *inputs) lockfile(ctx context.Context, st verifier.Statement, loc capstore.Locations, p *progress) error {
	want, ok := st.Lockfile()
	if !ok {
		return nil
	}
	hint := loc.Lockfile
	if hint == "" {
		hint = want.URI
	}
	from, err := localPath("lockfile", "--lockfile FILE", hint)
	if err != nil {
		return err
	}
	dest := filepath.Join(in.dir, "lockfile")
	if err := copyLockfile(ctx, from, dest, want.Digest.SHA256); err != nil {
		return err
	}
	in.mounts = append(in.mounts, sandbox.Input{Name: "lockfile", Path: dest})
	return freeze(dest)
}

func (in *inputs) image(ctx context.Context, st verifier.Statement, loc capstore.Locations, p *progress) error {
	want := st.Environment()
	hint := loc.Image
	if hint == "" {
		hint = want.URI
	}
	layout, err := localPath("environment image", "--image DIR (an OCI image layout directory)", hint)
	if err != nil {
		return err
	}
	p.say(PhaseImage, escape(fmt.Sprintf("unpacking %s from %s", want.Digest.SHA256, layout)), 0)
	limited, cancel := context.WithTimeout(ctx, maxUnpack)
	defer cancel()
	config, err := oci.Unpack(limited, layout, want.Digest.SHA256, in.rootfs, imageLimits)
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("environment image %s in %s: not unpacked within %v", want.Digest.SHA256, layout, maxUnpack)
	}
	if err != nil {
		return fmt.Errorf("environment image %s in %s: %w", want.Digest.SHA256, layout, err)
	}
	if pf := st.Predicate.Platform; config.OS != pf.OS || config.Architecture != pf.Arch {
		return fail(capstore.NotComparable, "the environment image is for %s/%s, the ledger's platform is %s/%s", config.OS, config.Architecture, pf.OS, pf.Arch)
	}
	in.env, err = imageEnv(config.Env)
	return err
}

// imageEnv refuses what execve would not take.
func imageEnv(env []string) ([]string, error) {
	for _, e := range env {
		if strings.HasPrefix(e, "=") || strings.ContainsRune(e, 0) {
			return nil, fmt.Errorf("environment image: its variable %.100q is not of the form NAME=value", e)
		}
	}
	return env, nil
}
