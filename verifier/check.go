package verifier

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tree"
)

// Bounds of a ledger. They are far above real builds and far below what hurts.
const (
	maxStages       = 256
	maxOutputs      = 1000 // what one capability can name
	maxDependencies = 256
	maxArgs         = 4096
	maxEnv          = 256
	maxValue        = 64 << 10 // bytes of one argument or environment value
	maxURI          = 2048
	maxTimeout      = 366 * 24 * 3600 // seconds
)

var (
	modelPattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,95}(/[a-z0-9][a-z0-9._-]{0,95}){1,4}$`)
	versionPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$`)
	safeNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	envPattern      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	wordPattern     = regexp.MustCompile(`^[a-z0-9][a-z0-9._:-]{0,63}$`)
	hexPattern      = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	uriPattern      = regexp.MustCompile(`^[!-~]+$`)
)

// IsSHA1 reports whether the commit is named by SHA-1, which needs the root of
// the checked-out tree beside it.
func (c GitCommit) IsSHA1() bool { return len(c) == 40 }

func (c GitCommit) check() error {
	if !hexPattern.MatchString(string(c)) || strings.Trim(string(c), "0") == "" {
		return fmt.Errorf("gitCommit: expected 40 or 64 lower-case hex digits, got %q", clip(string(c)))
	}
	return nil
}

// check applies every rule of docs/ledger.md that the types do not.
func (s Statement) check() error {
	switch {
	case s.Type != StatementType:
		return fmt.Errorf("_type: expected %q, got %q", StatementType, clip(s.Type))
	case s.PredicateType != LedgerType:
		return fmt.Errorf("predicateType: expected %q, got %q", LedgerType, clip(s.PredicateType))
	case len(s.Subject) != 1:
		return fmt.Errorf("subject: expected exactly the source commit, got %d subjects", len(s.Subject))
	}
	subject := s.Subject[0]
	if subject.Name != SourceName {
		return fmt.Errorf("subject: expected the name %q, got %q", SourceName, clip(subject.Name))
	}
	if subject.Digest != (DigestSet{GitCommit: subject.Digest.GitCommit}) {
		return errors.New("subject: expected the digest gitCommit alone")
	}
	if err := subject.Digest.GitCommit.check(); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	if err := checkURI(subject.URI); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	if err := s.Predicate.check(); err != nil {
		return fmt.Errorf("predicate: %w", err)
	}
	if got, want := s.Source().Digest.GitCommit, subject.Digest.GitCommit; got != want {
		return fmt.Errorf("dependency source: expected the subject's gitCommit %s, got %s", want, got)
	}
	return nil
}

func (p Predicate) check() error {
	if err := checkModel(p.Model); err != nil {
		return err
	}
	switch {
	case !versionPattern.MatchString(p.Version):
		return fmt.Errorf("version: expected letters, digits and ._+- (at most 64), got %q", clip(p.Version))
	case p.Sequence < 1 || p.Sequence > maxInteger:
		return fmt.Errorf("sequence: expected 1 to 2^53-1, got %d", p.Sequence)
	case p.IssuedAt.IsZero():
		return errors.New("issuedAt is missing")
	}
	if err := checkKeyID(p.Publisher.KeyID); err != nil {
		return fmt.Errorf("publisher: %w", err)
	}
	if err := p.Platform.check(); err != nil {
		return fmt.Errorf("platform: %w", err)
	}
	d := p.BuildDefinition
	if d.BuildType != BuildType {
		return fmt.Errorf("buildType: expected %q, got %q", BuildType, clip(d.BuildType))
	}
	if err := d.ExternalParameters.check(); err != nil {
		return fmt.Errorf("externalParameters: %w", err)
	}
	return checkDependencies(d.ResolvedDependencies)
}

func (p Platform) check() error {
	for _, f := range []struct{ name, value string }{{"os", p.OS}, {"arch", p.Arch}, {"accelerator", p.Accelerator}} {
		if !wordPattern.MatchString(f.value) {
			return fmt.Errorf("%s: expected a lower-case word, got %q", f.name, clip(f.value))
		}
	}
	if p.CPUFeatures != nil && len(p.CPUFeatures) == 0 {
		return errors.New("cpuFeatures is empty; leave it out if the build needs none")
	}
	if len(p.CPUFeatures) > maxEnv {
		return fmt.Errorf("cpuFeatures: expected at most %d, got %d", maxEnv, len(p.CPUFeatures))
	}
	seen := make(names)
	for _, f := range p.CPUFeatures {
		if !wordPattern.MatchString(f) {
			return fmt.Errorf("cpuFeatures: expected lower-case words, got %q", clip(f))
		}
		if err := seen.add("cpuFeatures", f); err != nil {
			return err
		}
	}
	return nil
}

func (e ExternalParameters) check() error {
	if err := checkEnv(e.Env); err != nil {
		return err
	}
	if err := count("stages", len(e.Stages), maxStages); err != nil {
		return err
	}
	seen := make(names)
	for _, g := range e.Stages {
		if !safeNamePattern.MatchString(g.Name) {
			return fmt.Errorf("stages: expected a name of letters, digits and ._- (at most 64), got %q", clip(g.Name))
		}
		if err := seen.add("stages", g.Name); err != nil {
			return err
		}
		if err := g.check(); err != nil {
			return fmt.Errorf("stage %s: %w", g.Name, err)
		}
	}
	return checkOutputs(e.Outputs)
}

func (g Stage) check() error {
	if err := count("argv", len(g.Argv), maxArgs); err != nil {
		return err
	}
	if g.Argv[0] == "" {
		return errors.New("argv: the program's name is empty")
	}
	for _, a := range g.Argv {
		if err := checkValue(a); err != nil {
			return fmt.Errorf("argv: %w", err)
		}
	}
	if g.WorkDir != "" {
		if !path.IsAbs(g.WorkDir) || path.Clean(g.WorkDir) != g.WorkDir || len(g.WorkDir) > maxURI || strings.ContainsFunc(g.WorkDir, isControl) {
			return fmt.Errorf("workdir: expected an absolute, clean path, got %q", clip(g.WorkDir))
		}
	}
	if g.TimeoutSeconds < 0 || g.TimeoutSeconds > maxTimeout {
		return fmt.Errorf("timeoutSeconds: expected at most %d, got %d", maxTimeout, g.TimeoutSeconds)
	}
	return checkEnv(g.Env)
}

// checkOutputs also refuses a file that would have to be a directory as well.
func checkOutputs(outputs []Output) error {
	if err := count("outputs", len(outputs), maxOutputs); err != nil {
		return err
	}
	seenNames, seenPaths := make(names), make(names)
	for _, o := range outputs {
		if err := tree.CheckPath(o.Name); err != nil {
			return fmt.Errorf("outputs: name: %w", err)
		}
		if err := tree.CheckPath(o.Path); err != nil {
			return fmt.Errorf("outputs: path: %w", err)
		}
		if err := seenNames.add("outputs: name", o.Name); err != nil {
			return err
		}
		if err := seenPaths.add("outputs: path", o.Path); err != nil {
			return err
		}
	}
	for _, o := range outputs {
		for _, f := range []struct {
			seen names
			path string
		}{{seenNames, o.Name}, {seenPaths, o.Path}} {
			for d := path.Dir(f.path); d != "."; d = path.Dir(d) {
				if f.seen[d] {
					return fmt.Errorf("outputs: %q is a file and the directory of %q", clip(d), clip(f.path))
				}
			}
		}
	}
	return nil
}

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

// check demands for each kind of dependency exactly the digests that the
// worker compares: one that nobody would compare is an error.
func (d Dependency) check() error {
	if err := checkURI(d.URI); err != nil {
		return err
	}
	dataset, isDataset := strings.CutPrefix(d.Name, DatasetPrefix)
	if d.Name != EnvironmentName && d.MediaType != "" {
		return errors.New("mediaType belongs to the environment only")
	}
	if d.Annotations != nil {
		if d.Name != SourceName && !isDataset {
			return errors.New("annotations belong to trees only")
		}
		if a := *d.Annotations; a.Files < 1 || a.Files > maxInteger || a.Bytes < 1 || a.Bytes > maxInteger {
			return fmt.Errorf("annotations: expected at least one file and one byte, got files %d, bytes %d", a.Files, a.Bytes)
		}
	}
	switch {
	case d.Name == SourceName:
		if err := d.Digest.GitCommit.check(); err != nil {
			return err
		}
		if d.Digest.GitCommit.IsSHA1() && d.Digest.ClawfsTree1.IsZero() {
			return errors.New("a SHA-1 commit needs the digest clawfsTree1 beside it")
		}
		if d.Annotations != nil && d.Digest.ClawfsTree1.IsZero() {
			return errors.New("annotations without the digest clawfsTree1")
		}
		if !d.Digest.SHA256.IsZero() {
			return errors.New("expected the digests gitCommit and clawfsTree1, got sha256 too")
		}
	case d.Name == EnvironmentName:
		if d.MediaType != ImageMediaType {
			return fmt.Errorf("mediaType: expected %q, got %q", ImageMediaType, clip(d.MediaType))
		}
		return d.Digest.onlySHA256()
	case d.Name == LockfileName:
		return d.Digest.onlySHA256()
	case isDataset:
		if !safeNamePattern.MatchString(dataset) {
			return errors.New("expected dataset: and a name of letters, digits and ._- (at most 64)")
		}
		if d.Digest.ClawfsTree1.IsZero() || d.Digest != (DigestSet{ClawfsTree1: d.Digest.ClawfsTree1}) {
			return errors.New("expected the digest clawfsTree1 alone")
		}
		if d.Annotations == nil {
			return errors.New("annotations (files, bytes) are missing")
		}
	default:
		return fmt.Errorf("expected %s, %s, %s or %s<name>", SourceName, EnvironmentName, LockfileName, DatasetPrefix)
	}
	return nil
}

func (s DigestSet) onlySHA256() error {
	if s.SHA256.IsZero() || s != (DigestSet{SHA256: s.SHA256}) {
		return errors.New("expected the digest sha256 alone")
	}
	return nil
}

func checkModel(model string) error {
	if !modelPattern.MatchString(model) {
		return fmt.Errorf("model: expected publisher/name in lower case (a-z 0-9 . _ -), got %q", clip(model))
	}
	return nil
}

func checkKeyID(id dsse.KeyID) error {
	if len(id) != 64 || !hexPattern.MatchString(string(id)) {
		return fmt.Errorf("keyid: expected 64 lower-case hex digits, got %q", clip(string(id)))
	}
	return nil
}

func checkEnv(env map[string]string) error {
	if len(env) > maxEnv {
		return fmt.Errorf("env: expected at most %d variables, got %d", maxEnv, len(env))
	}
	for name, value := range env {
		if !envPattern.MatchString(name) {
			return fmt.Errorf("env: expected a name of letters, digits and _, got %q", clip(name))
		}
		if err := checkValue(value); err != nil {
			return fmt.Errorf("env: %s: %w", name, err)
		}
	}
	return nil
}

// checkValue holds for what execve takes: a NUL would cut it short.
func checkValue(v string) error {
	if len(v) > maxValue {
		return fmt.Errorf("expected at most %d bytes, got %d", maxValue, len(v))
	}
	if strings.ContainsRune(v, 0) {
		return fmt.Errorf("a NUL byte in %q", clip(v))
	}
	return nil
}

func checkURI(uri string) error {
	if uri != "" && (len(uri) > maxURI || !uriPattern.MatchString(uri)) {
		return fmt.Errorf("uri: expected at most %d printable ASCII characters, got %q", maxURI, clip(uri))
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f || r == utf8.RuneError }

// count refuses a list that is empty or too long.
func count(what string, n, most int) error {
	if n == 0 {
		return fmt.Errorf("%s is missing or empty", what)
	}
	if n > most {
		return fmt.Errorf("%s: expected at most %d, got %d", what, most, n)
	}
	return nil
}

// names is a set that refuses the second of two.
type names map[string]bool

func (n names) add(what, name string) error {
	if n[name] {
		return fmt.Errorf("%s: %q is given twice", what, clip(name))
	}
	n[name] = true
	return nil
}

// clip bounds hostile text in an error message; the caller quotes it.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
