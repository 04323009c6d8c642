package rebuild

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/verifier"
)

// Hosts is what the operator gives for reaching others. The zero Hosts has no
// credentials.
type Hosts struct {
	// Git is for git over https and ssh; its Resolve is set here.
	Git Access
	// DockerConfig is the path of a Docker configuration with credentials for
	// registries; empty: none.
	DockerConfig string
	// PlainHTTP lists registries ("host:port") that have no TLS.
	PlainHTTP []string
}

func isRegistry(uri string) bool {
	return strings.HasPrefix(uri, "oci://") || strings.HasPrefix(uri, "docker://")
}

// registry says how a place is reached that may be a registry.
func (g *gatherer) registry(p fetch.Place, most int64) oci.Options {
	host := ""
	if u, err := url.Parse(p.URI); err == nil {
		host = u.Hostname()
	}
	pf := g.st.Predicate.Platform
	return oci.Options{
		Bytes: most, Platform: oci.Config{OS: pf.OS, Architecture: pf.Arch}, Trusted: p.Trusted,
		DockerConfig: g.hosts.DockerConfig, PlainHTTP: g.hosts.PlainHTTP,
		Transport: g.cache.Transport(host, p.Trusted), Seen: g.p.add,
	}
}

// image unpacks the environment from where it is first found whole. A layout
// directory is unpacked from where it lies; all else comes into the cache first.
// Unpacking hashes every layer on its way into the very directory that the
// sandbox mounts.
func (g *gatherer) image(ctx context.Context) error {
	want := g.st.Environment()
	err := g.each(ctx, verifier.EnvironmentName, places(g.loc.Image, want.Places()...), func(p fetch.Place) error {
		layout, err := g.layout(ctx, p)
		if err != nil {
			return err
		}
		return g.unpack(ctx, layout)
	})
	if f := (*Failure)(nil); err != nil && !errors.As(err, &f) {
		err = hint(fmt.Sprintf("environment image %s", want.Digest.SHA256), "--image WHERE", err)
	}
	return err
}

// layout returns an OCI image layout directory that has the image.
func (g *gatherer) layout(ctx context.Context, p fetch.Place) (string, error) {
	named := p
	if !isRegistry(p.URI) { // of a path, only the ledger's own digest counts
		named.URI, _, _ = strings.Cut(p.URI, "@sha256:")
	}
	path, local, err := g.cache.LocalPath(named)
	if err != nil {
		return "", err
	}
	if !local && !isRegistry(p.URI) {
		return "", errors.New("expected a layout or an archive of one, by its absolute path, or oci:// or docker:// of a registry")
	}
	from := p.URI
	if local {
		if strings.Contains(path, "@sha256:") {
			return "", errors.New("expected a path without @sha256:")
		}
		from = path
		info, err := os.Stat(from)
		if err != nil {
			return "", err
		}
		if info.IsDir() {
			return from, nil
		}
	}
	digest := g.st.Environment().Digest.SHA256
	g.say(PhaseImage, 0, "pulling %s from %s", digest, p)
	o := g.registry(p, imageLimits.Bytes)
	lease, err := g.cache.Make(ctx, "image "+digest.String(), func(ctx context.Context, dir string) error {
		err := oci.Pull(ctx, from, digest, dir, o)
		for _, pause := range registryRetry {
			if !errors.Is(err, oci.ErrUnreachable) || errors.Is(err, fetch.ErrRefused) || sleep(ctx, pause) != nil {
				break
			}
			err = oci.Pull(ctx, from, digest, dir, o) // goes on where it broke off
		}
		return err
	}, func(ctx context.Context, dir string) error {
		return oci.Pull(ctx, dir, digest, dir, o) // hashes what is there
	})
	if err != nil {
		return "", err
	}
	return g.keep(lease), nil
}

func (g *gatherer) unpack(ctx context.Context, layout string) error {
	digest := g.st.Environment().Digest.SHA256
	g.say(PhaseImage, 0, "unpacking %s from %s", digest, layout)
	if err := removeTree(g.in.rootfs); err != nil {
		return err
	}
	config, err := UnpackImage(ctx, layout, digest, g.in.rootfs)
	if err != nil {
		return err
	}
	if pf := g.st.Predicate.Platform; config.OS != pf.OS || config.Architecture != pf.Arch {
		return fail(capstore.NotComparable, "the environment image is for %s/%s, the ledger's platform is %s/%s", config.OS, config.Architecture, pf.OS, pf.Arch)
	}
	g.in.env, err = imageEnv(config.Env)
	return err
}

// UnpackImage unpacks an image of a layout directory into rootfs, which must not
// exist, within the bounds of a rebuild.
func UnpackImage(ctx context.Context, layout string, manifest hashpipe.Digest, rootfs string) (oci.Config, error) {
	limited, cancel := context.WithTimeout(ctx, maxUnpack)
	defer cancel()
	config, err := oci.Unpack(limited, layout, manifest, rootfs, imageLimits)
	if limited.Err() != nil && ctx.Err() == nil {
		return oci.Config{}, fmt.Errorf("not unpacked within %v", maxUnpack)
	}
	return config, err
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

// Pauses before a registry that broke off is asked again.
var registryRetry = []time.Duration{time.Second, 5 * time.Second}

// scratch is a directory of the job's own.
func (g *gatherer) scratch(name string) string { return filepath.Join(g.dir, name) }
