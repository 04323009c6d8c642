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
	maxArtifacts    = 1000 // of one stage
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
	switch {
	case p.CPUDispatch == "":
	case p.CPUDispatch != ExactDispatch:
		return fmt.Errorf("cpuDispatch: expected %q or nothing, got %q", ExactDispatch, clip(p.CPUDispatch))
	case len(p.CPUFeatures) == 0:
		return fmt.Errorf("cpuDispatch %q says that cpuFeatures are all that matter, and there are none", p.CPUDispatch)
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
	if err := g.Limits.check(); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	if err := checkArtifacts(g.Artifacts); err != nil {
		return fmt.Errorf("artifacts: %w", err)
	}
	return checkEnv(g.Env)
}

func (l *StageLimits) check() error {
	if l == nil {
		return nil
	}
	if *l == (StageLimits{}) {
		return errors.New("expected at least one limit; leave it out for the policy's")
	}
	for _, f := range []struct {
		name      string
		got, most int64
	}{
		{"memoryBytes", l.MemoryBytes, maxInteger}, {"processes", l.Processes, maxProcesses},
		{"cpuSeconds", l.CPUSeconds, maxTimeout}, {"outputBytes", l.OutputBytes, maxInteger},
	} {
		if f.got < 0 || f.got > f.most {
			return fmt.Errorf("%s: expected 1 to %d, got %d", f.name, f.most, f.got)
		}
	}
	return nil
}

func checkArtifacts(paths []string) error {
	if paths == nil {
		return nil
	}
	if err := count("the list", len(paths), maxArtifacts); err != nil {
		return err
	}
	seen := make(names)
	for _, p := range paths {
		if err := tree.CheckPath(p); err != nil {
			return err
		}
		if err := seen.add("path", p); err != nil {
			return err
		}
	}
	return nil
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

func checkModel(model string) error {
	if !modelPattern.MatchString(model) {
		return fmt.Errorf("model: expected publisher/name in lower case (a-z 0-9 . _ -), got %+q", clip(model))
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
