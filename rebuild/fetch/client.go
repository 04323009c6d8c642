package fetch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// The cache's rules for others that fetch: registries and git.

// Transport returns what carries the requests of another client to a place on
// host: for a trusted place to whatever host's addresses are, else, like every
// redirect to another host, to public addresses only.
func (c *Cache) Transport(host string, trusted bool) http.RoundTripper {
	if !trusted {
		host = ""
	}
	return route{c, host}
}

// Resolver returns a function that looks a host up for a place on it, and leaves
// out the addresses that such a place may not lead to.
func (c *Cache) Resolver(trusted bool) func(ctx context.Context, host string) ([]netip.Addr, error) {
	return func(ctx context.Context, host string) ([]netip.Addr, error) {
		all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", strings.Trim(host, "[]"))
		if err != nil || trusted || (route{c, ""}).allowed(host) {
			return all, err
		}
		var may []netip.Addr
		for _, a := range all {
			if public(a) {
				may = append(may, a)
			}
		}
		if len(may) == 0 {
			return nil, fmt.Errorf("%w to connect to %s for a ledger: none of its addresses is public; hosts in the table [fetch] of clawfs.toml can allow it", ErrRefused, host)
		}
		return may, nil
	}
}

// remote are the schemes that lead to other machines, as the programs that are
// given such a URI read them: in lower case.
var remote = []string{"https", "http", "ssh", "oci", "docker"}

// LocalPath returns the local path that a place leads to, and whether it leads
// to one. One that a ledger names lies below Options.LocalRoots. A place that
// surely leads neither to a path nor to another machine is an error: git and
// image tools know more spellings of a file's name ("file:/x", "FILE:///x",
// "file://%2Fx") than are judged here.
func (c *Cache) LocalPath(p Place) (path string, local bool, err error) {
	uri := strings.TrimPrefix(p.URI, "git+")
	if scheme, _, ok := strings.Cut(uri, "://"); ok && slices.Contains(remote, scheme) {
		return "", false, nil
	}
	u, err := parse(uri)
	if err != nil || u.Scheme != "" {
		return "", false, errors.New("expected an absolute path, file://, https://, or ssh:// of git, or oci:// or docker:// of a registry")
	}
	if p.Trusted {
		return u.Path, true, nil
	}
	path, err = c.allowedPath(u.Path)
	return path, true, err
}
