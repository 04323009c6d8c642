package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// narrowFlags say what a capability is narrowed to.
type narrowFlags struct {
	dirs, files, mounts []string
	uids                []int64
	notAfter            string
	delegates           []string
}

// narrowHelp is for the help of the verbs that have these flags.
const narrowHelp = `  --path-prefix DIR   files below the directory DIR, at any depth
  --path FILE         the one file FILE
  --uid N             opens by the user with this number
  --mount DIR         opens through the mount at DIR, as clawfs status names it
  --not-after T       opens before T: a time such as 2026-12-31T18:00:00Z, or a
                      date, which is its first instant in UTC
Paths are relative to the root of the mount. Each may be given several times: one
of its values has to fit. Of those that are given, each has to fit; --path and
--path-prefix count as one.`

func (n *narrowFlags) register(f *pflag.FlagSet, handOn string) {
	f.StringArrayVar(&n.dirs, "path-prefix", nil, "only files below the directory `DIR` of the mount (repeat for more)")
	f.StringArrayVar(&n.files, "path", nil, "only the file `FILE` of the mount (repeat for more)")
	f.Int64SliceVar(&n.uids, "uid", nil, "only opens by the user `N` (repeat for more)")
	f.Lookup("uid").DefValue = "" // not the text of an empty list
	f.StringArrayVar(&n.mounts, "mount", nil, "only opens through the mount at `DIR` (repeat for more)")
	f.StringVar(&n.notAfter, "not-after", "", "only opens before `TIME`, or before a day begins in UTC")
	f.StringArrayVar(&n.delegates, handOn, nil, "who may hand it on, narrowed further: a public `keyfile` or a key id (repeat for more)")
}

func (n *narrowFlags) restrict() (*capstore.Restrict, error) {
	var paths, mounts []string
	add := func(flag, word, p string) error {
		if filepath.IsAbs(word) {
			return exitf(codeUsage, "%s %s: want a path relative to the root of the mount; --mount says which mount", flag, printable(shellWord(word)))
		}
		if _, err := capstore.NewRestrict([]string{p}, nil, nil); err != nil {
			return exitf(codeUsage, "%s %s: %w", flag, printable(shellWord(word)), err)
		}
		paths = append(paths, p)
		return nil
	}
	for _, p := range n.dirs {
		if err := add("--path-prefix", p, strings.TrimSuffix(p, "/")+"/"); err != nil {
			return nil, err
		}
	}
	for _, p := range n.files {
		if strings.HasSuffix(p, "/") && !filepath.IsAbs(p) {
			return nil, exitf(codeUsage, "--path %s: is a directory; next: --path-prefix %s", printable(shellWord(p)), printable(shellWord(p)))
		}
		if err := add("--path", p, p); err != nil {
			return nil, err
		}
	}
	if n.uids != nil {
		if _, err := capstore.NewRestrict(nil, n.uids, nil); err != nil {
			return nil, exitf(codeUsage, "--uid: %w", err)
		}
	}
	for _, m := range n.mounts {
		if !filepath.IsAbs(m) {
			return nil, exitf(codeUsage, "--mount %s: want an absolute path", printable(shellWord(m)))
		}
		mounts = append(mounts, filepath.Clean(m))
	}
	r, err := capstore.NewRestrict(paths, n.uids, mounts)
	if err != nil { // one value twice, or too many
		return nil, exitf(codeUsage, "--path, --path-prefix, --uid or --mount: %w", err)
	}
	return r, nil
}

// until is the time of --not-after, zero if there is none.
func (n *narrowFlags) until(now time.Time) (time.Time, error) {
	if n.notAfter == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, n.notAfter)
	if err != nil {
		if t, err = time.Parse(time.DateOnly, n.notAfter); err != nil {
			return time.Time{}, exitf(codeUsage, "--not-after %q: want a time such as 2026-12-31T18:00:00Z, or a date", n.notAfter)
		}
	}
	if t = t.UTC().Truncate(time.Second); !now.Before(t) {
		return time.Time{}, exitf(codeUsage, "--not-after %s: is in the past, now is %s", t.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return t, nil
}

// delegateIDs are the keys that may hand a capability on.
func (n *narrowFlags) delegateIDs() ([]dsse.KeyID, error) {
	var ids []dsse.KeyID
	for _, ref := range n.delegates {
		id, err := keyIDOf(ref)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return capstore.SortKeyIDs(ids), nil
}

// keyIDOf reads a key id, or the public key file whose it is.
func keyIDOf(ref string) (dsse.KeyID, error) {
	if d, err := hashpipe.ParseDigest(ref); err == nil {
		return dsse.KeyID(d.String()), nil
	}
	if _, err := os.Lstat(ref); errors.Is(err, fs.ErrNotExist) {
		return "", exitf(codeUsage, "%s: neither a key id (64 hex digits) nor a file; next: ask for the public key (PREFIX.pub of clawfs keygen)", printable(shellWord(ref)))
	}
	key, err := readPublicKey(ref)
	if err != nil {
		return "", err
	}
	return key.ID(), nil
}

func (n *narrowFlags) terms(now time.Time) (capstore.Terms, error) {
	r, err := n.restrict()
	if err != nil {
		return capstore.Terms{}, err
	}
	until, err := n.until(now)
	if err != nil {
		return capstore.Terms{}, err
	}
	ids, err := n.delegateIDs()
	if err != nil {
		return capstore.Terms{}, err
	}
	t, err := capstore.NewTerms(r, ids, until)
	return t, exit(codeUsage, err)
}
