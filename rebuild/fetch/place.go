package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Place is where something may be. It is a hint: what is there is measured.
//
//   - An absolute path, or one behind file://, of a file or a directory.
//   - https://HOST/PATH, a file.
//   - http://HOST/PATH, if the place is trusted or its host is in
//     Options.Hosts.
//
// A file that is asked for as a tree is an archive, which is told by its content
// and never by its name; see Cache.Tree. No credentials are sent anywhere, and a
// URI that carries some is refused.
type Place struct {
	URI string
	// Trusted says that the operator of this machine named the place. Others
	// come from a ledger: a stranger chose where this machine connects to.
	// They lead only to public addresses, and to files only below
	// Options.LocalRoots. So does a redirect, also that of a trusted place, which
	// leads to a host that the operator did not name.
	Trusted bool
}

// String returns the URI, quoted and without what may be a secret of the
// operator's: a user with a password, and a query, which signs some URLs. It is
// for texts that are kept, signed and handed on.
func (p Place) String() string {
	uri := p.URI
	if scheme, rest, ok := strings.Cut(uri, "://"); ok && scheme != "file" {
		rest, _, query := strings.Cut(rest, "?")
		host, path, slash := strings.Cut(rest, "/")
		if i := strings.LastIndexByte(host, '@'); i >= 0 {
			host = "…" + host[i:]
		}
		uri = scheme + "://" + host
		if slash {
			uri += "/" + path
		}
		if query {
			uri += "?…"
		}
	}
	if len(uri) > 200 {
		return strconv.Quote(uri[:200]) + "…"
	}
	return strconv.Quote(uri)
}

// Options are the settings of a cache. The zero Options allow least.
type Options struct {
	// Hosts may be connected to whatever their addresses are, and by http. A
	// host name, an IP address, or "*." and the end of a name.
	Hosts []string
	// LocalRoots are the absolute paths below which a place that is not trusted
	// may be a local path; links are resolved first. With "/" a ledger may name
	// any file of the machine. Then its author learns from the answer of the job
	// whether a path exists and what the digest of the file is, and can make the
	// worker read it, all with the worker's rights; a build is given only bytes
	// whose digest the author knew before.
	LocalRoots []string
	// Mirrors are asked before the places that they mirror.
	Mirrors []Mirror
	// RootCAs are the roots of TLS; nil means the system's.
	RootCAs *x509.CertPool
	// Stall is how long a server may send nothing; 0 means 30 seconds. A server
	// that sends a byte in that time is only ended by the context of the call.
	Stall time.Duration
	// Attempts is how often in a row one server is asked that answers with
	// transient errors; 0 means 5.
	Attempts int
	// Observer, if not nil, is called with what happens, on the goroutine that
	// it happens to. Entries may be locked meanwhile, so it must not use the
	// cache.
	Observer func(Note)
}

// Mirror names places of the operator that stand in for others: a URI that
// begins with Prefix is looked for where it is replaced by each of URLs, in
// this order, and then at itself. Both end in a slash.
type Mirror struct {
	Prefix string
	URLs   []string
}

func (o Options) checked() (Options, error) {
	for _, h := range o.Hosts {
		if rest := strings.TrimPrefix(h, "*."); rest == "" || strings.ContainsAny(rest, "*/@ ") {
			return o, fmt.Errorf("host %q: expected a name, an address, or *. and the end of a name", h)
		}
	}
	for _, r := range o.LocalRoots {
		if !filepath.IsAbs(r) {
			return o, fmt.Errorf("local root %q: expected an absolute path", r)
		}
	}
	for _, m := range o.Mirrors {
		for _, u := range append([]string{m.Prefix}, m.URLs...) {
			if _, err := parse(u); err != nil {
				return o, fmt.Errorf("mirror of %q: %w", m.Prefix, err)
			}
			if !strings.HasSuffix(u, "/") {
				return o, fmt.Errorf("mirror of %q: expected %q to end in a slash, so that a name is not taken for the beginning of another", m.Prefix, u)
			}
		}
	}
	if o.Stall == 0 {
		o.Stall = 30 * time.Second
	}
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Stall < 0 || o.Attempts < 0 {
		return o, errors.New("a negative stall limit or number of attempts")
	}
	return o, nil
}

// maxPlaces and maxURI bound what a ledger can name: places for one thing, and
// the bytes of each.
const (
	maxPlaces = 64
	maxURI    = 8192
)

// expand puts the operator's mirrors before the places they mirror.
func (c *Cache) expand(places []Place) []Place {
	var all []Place
	add := func(p Place) {
		if i := slices.IndexFunc(all, func(q Place) bool { return q.URI == p.URI }); i >= 0 {
			all[i].Trusted = all[i].Trusted || p.Trusted
		} else if p.URI != "" && len(all) < maxPlaces {
			all = append(all, p)
		}
	}
	for _, p := range places {
		for _, m := range c.opts.Mirrors {
			rest, ok := strings.CutPrefix(p.URI, m.Prefix)
			if !ok || !below(rest) {
				continue
			}
			for _, u := range m.URLs {
				add(Place{URI: u + rest, Trusted: true})
			}
		}
		add(p)
	}
	return all
}

// below says whether rest, which a stranger chose, stays below the operator's
// URL that it is put behind.
func below(rest string) bool {
	name, _, _ := strings.Cut(rest, "?")
	name, err := url.PathUnescape(name)
	return err == nil && !slices.Contains(strings.FieldsFunc(name, func(r rune) bool { return r == '/' || r == '\\' }), "..")
}

// parse returns the URL of a place. That of a local path has no scheme.
func parse(uri string) (*url.URL, error) {
	if len(uri) > maxURI {
		return nil, fmt.Errorf("a place of %d bytes, expected at most %d", len(uri), maxURI)
	}
	if p, isFile := strings.CutPrefix(uri, "file://"); isFile || path.IsAbs(uri) {
		if !path.IsAbs(p) {
			return nil, errors.New("expected an absolute path behind file://")
		}
		return &url.URL{Path: path.Clean(p)}, nil
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, errors.New("expected an absolute path, file://, https:// or http://")
	}
	if u.User != nil {
		return nil, errors.New("it carries credentials, which are never sent")
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// openLocal opens a file or directory, and nothing else.
func (c *Cache) openLocal(p Place, name string) (*os.File, error) {
	var resolve uint64
	if !p.Trusted {
		var err error
		if name, err = c.allowedPath(name); err != nil {
			return nil, err
		}
		resolve = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	}
	// Opening a device can do things, so it is looked at first.
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil, &wrong{"a file or directory", "a " + KindOf(info.Mode())}
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// allowedPath returns what a path of a ledger leads to.
func (c *Cache) allowedPath(name string) (string, error) {
	refused := errors.New("a ledger may not name local paths here; the operator can name this one for the job")
	real, err := filepath.EvalSymlinks(name)
	for _, r := range c.opts.LocalRoots {
		root, e := filepath.EvalSymlinks(r)
		if e != nil {
			continue
		}
		if err == nil && (root == "/" || real == root || strings.HasPrefix(real, root+"/")) {
			return real, stored(real)
		}
		if root == "/" {
			return "", err
		}
	}
	return "", refused // whether it exists or not
}

// stored refuses what the kernel makes up: reading it can do things (/proc/kmsg
// gives each message once), and no input lies there.
func stored(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch int64(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
		return errors.New("a ledger may not name a file of the kernel's")
	}
	return nil
}

// each asks the places in turn, until one gave what was asked for.
func (c *Cache) each(ctx context.Context, what, name, work string, places []Place, one func(context.Context, Place, *url.URL) error) error {
	var failures []Failure
	for _, p := range c.expand(places) {
		c.Note(Note{Entry: name, Event: Fetching, Place: p})
		u, err := parse(p.URI)
		if err == nil {
			err = one(ctx, p, u)
		}
		var (
			here *local
			ask  *claimError
			lie  *wrong
			try  *transient
		)
		switch {
		case err == nil:
			c.Note(Note{Entry: name, Event: Fetched, Place: p})
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &here) || errors.As(err, &ask) || exhausted(err):
			return fmt.Errorf("fetching %s from %s: %w", what, p, err)
		case errors.As(err, &lie):
			c.Note(Note{Entry: name, Event: Lied, Place: p, Expected: lie.expected, Got: lie.got})
		default:
			c.Note(Note{Entry: name, Event: Failed, Place: p, Err: err})
		}
		failures = append(failures, Failure{Place: p, Err: err, Lied: lie != nil, Transient: errors.As(err, &try) || flaky(err)})
		if err := empty(work); err != nil {
			return err
		}
	}
	return verdict(what, failures)
}

// flaky says whether a local place may be only temporarily out of reach, as
// network file systems and removable disks are.
func flaky(err error) bool {
	for _, e := range []error{unix.EIO, unix.ESTALE, unix.ETIMEDOUT, unix.ENOTCONN, unix.EHOSTDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func empty(dir string) error {
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
