package verifier

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/verifier/tree"
)

// maxMirrors bounds the further places of one dependency.
const maxMirrors = 16

func checkDependencies(deps []Dependency) error {
	if err := count("resolvedDependencies", len(deps), maxDependencies); err != nil {
		return err
	}
	seen := make(names)
	for _, d := range deps {
		if err := seen.add("resolvedDependencies", d.Name); err != nil {
			return err
		}
		if err := d.check(); err != nil {
			return fmt.Errorf("dependency %q: %w", clip(d.Name), err)
		}
	}
	for _, name := range []string{SourceName, EnvironmentName} {
		if !seen[name] {
			return fmt.Errorf("resolvedDependencies: %q is missing", name)
		}
	}
	return nil
}

// kind is what one kind of dependency carries beside its name and URI.
type kind struct {
	name   func(own string) error // of the part after the prefix; nil if the name is fixed
	digest func(DigestSet) error
	size   sizeRule
	media  bool
	format bool
}

// sizeRule is which of files and bytes the annotations of a kind have.
type sizeRule int

const (
	noSize sizeRule = iota
	mayHaveSize
	needsSize
	needsBytes
)

var kinds = map[string]kind{
	SourceName:      {digest: DigestSet.gitTree, size: mayHaveSize},
	EnvironmentName: {digest: DigestSet.onlySHA256, media: true},
	LockfileName:    {digest: DigestSet.onlySHA256, format: true},
	DatasetPrefix:   {name: checkOwnName, digest: DigestSet.onlyTree, size: needsSize},
	ModelPrefix:     {name: checkOwnName, digest: DigestSet.onlyClaim},
	SubmodulePrefix: {name: tree.CheckPath, digest: DigestSet.gitTree, size: mayHaveSize},
	LFSPrefix:       {name: tree.CheckPath, digest: DigestSet.onlySHA256, size: needsBytes},
}

// check demands for each kind of dependency exactly the digests that the
// worker compares: one that nobody would compare is an error.
func (d Dependency) check() error {
	if err := checkURI(d.URI); err != nil {
		return err
	}
	prefix, own, hasOwn := strings.Cut(d.Name, ":")
	if hasOwn {
		prefix += ":"
	}
	k, ok := kinds[prefix]
	if !ok || hasOwn != (k.name != nil) {
		return fmt.Errorf("expected %s, %s, %s, or a name after %s, %s, %s or %s", SourceName, EnvironmentName, LockfileName,
			DatasetPrefix, ModelPrefix, SubmodulePrefix, LFSPrefix)
	}
	if hasOwn {
		if err := k.name(own); err != nil {
			return err
		}
	}
	switch {
	case k.media && d.MediaType != ImageMediaType:
		return fmt.Errorf("mediaType: expected %q, got %q", ImageMediaType, clip(d.MediaType))
	case !k.media && d.MediaType != "":
		return errors.New("mediaType belongs to the environment only")
	}
	if err := k.digest(d.Digest); err != nil {
		return err
	}
	if err := d.Annotations.check(k); err != nil {
		return fmt.Errorf("annotations: %w", err)
	}
	if k.size == mayHaveSize && d.Annotations != nil && d.Annotations.Files > 0 && d.Digest.ClawfsTree1.IsZero() {
		return errors.New("annotations: files and bytes without the digest clawfsTree1")
	}
	return nil
}

func (a *Annotations) check(k kind) error {
	if a == nil {
		a = &Annotations{}
	} else if a.isEmpty() {
		return errors.New("expected at least one; leave the object out")
	}
	if a.Files < 0 || a.Files > maxInteger || a.Bytes < 0 || a.Bytes > maxInteger {
		return fmt.Errorf("expected at least one file and one byte, got files %d, bytes %d", a.Files, a.Bytes)
	}
	switch k.size {
	case noSize:
		if a.Files != 0 || a.Bytes != 0 {
			return errors.New("files and bytes belong to trees only")
		}
	case mayHaveSize:
		if (a.Files > 0) != (a.Bytes > 0) {
			return fmt.Errorf("expected at least one file and one byte, got files %d, bytes %d", a.Files, a.Bytes)
		}
	case needsSize:
		if a.Files < 1 || a.Bytes < 1 {
			return fmt.Errorf("expected at least one file and one byte, got files %d, bytes %d", a.Files, a.Bytes)
		}
	case needsBytes:
		if a.Bytes < 1 || a.Files != 0 {
			return fmt.Errorf("expected bytes of at least 1 and no files, got files %d, bytes %d", a.Files, a.Bytes)
		}
	}
	return errors.Join(a.checkMirrors(), a.checkFormat(k))
}

func (a *Annotations) isEmpty() bool {
	return a.Files == 0 && a.Bytes == 0 && len(a.Mirrors) == 0 && a.Format == "" && a.Extras == ""
}

func (a *Annotations) checkMirrors() error {
	if a.Mirrors == nil {
		return nil
	}
	if err := count("mirrors", len(a.Mirrors), maxMirrors); err != nil {
		return err
	}
	seen := make(names)
	for _, uri := range a.Mirrors {
		if uri == "" {
			return errors.New("mirrors: one is empty")
		}
		if err := checkURI(uri); err != nil {
			return fmt.Errorf("mirrors: %w", err)
		}
		if err := seen.add("mirrors", uri); err != nil {
			return err
		}
	}
	return nil
}

// checkFormat wants both fields or none: a lock that does not say what else
// the image may hold would leave that to the reader.
func (a *Annotations) checkFormat(k kind) error {
	switch {
	case a.Format == "" && a.Extras == "":
		return nil
	case !k.format:
		return errors.New("format and extras belong to the lockfile only")
	case !slices.Contains(LockFormats, a.Format):
		return fmt.Errorf("format: expected one of %q, got %q", LockFormats, clip(a.Format))
	case a.Extras != ExtrasRefused && a.Extras != ExtrasAllowed:
		return fmt.Errorf("extras: expected %q or %q beside format, got %q", ExtrasRefused, ExtrasAllowed, clip(a.Extras))
	}
	return nil
}

func checkOwnName(own string) error {
	if !safeNamePattern.MatchString(own) {
		return errors.New("expected a name of letters, digits and ._- (at most 64) after the colon")
	}
	return nil
}

func (s DigestSet) onlySHA256() error {
	if s.SHA256.IsZero() || s != (DigestSet{SHA256: s.SHA256}) {
		return errors.New("expected the digest sha256 alone")
	}
	return nil
}

func (s DigestSet) onlyTree() error {
	if s.ClawfsTree1.IsZero() || s != (DigestSet{ClawfsTree1: s.ClawfsTree1}) {
		return errors.New("expected the digest clawfsTree1 alone")
	}
	return nil
}

func (s DigestSet) onlyClaim() error {
	if s.ClawfsClaim1.IsZero() || s != (DigestSet{ClawfsClaim1: s.ClawfsClaim1}) {
		return errors.New("expected the digest clawfsClaim1 alone: a model is named by the claim of its capability, never by a hash")
	}
	return nil
}

// gitTree wants a commit and, beside one that SHA-1 names, the root of its files.
func (s DigestSet) gitTree() error {
	if err := s.GitCommit.check(); err != nil {
		return err
	}
	if s.GitCommit.IsSHA1() && s.ClawfsTree1.IsZero() {
		return errors.New("a SHA-1 commit needs the digest clawfsTree1 beside it")
	}
	if s != (DigestSet{GitCommit: s.GitCommit, ClawfsTree1: s.ClawfsTree1}) {
		return errors.New("expected the digests gitCommit and clawfsTree1 and no other")
	}
	return nil
}
