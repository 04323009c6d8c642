package verifier

import (
	"maps"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The constants of the ledger format. A ledger carries exactly these.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	LedgerType    = "https://github.com/openclaw/clawfs/build-ledger/v1"
	BuildType     = "https://github.com/openclaw/clawfs/buildtypes/stages/v1"
	// ImageMediaType is the only media type of an environment: a manifest of
	// one platform, never an index, so that the digest names one file system.
	ImageMediaType = "application/vnd.oci.image.manifest.v1+json"
)

// The names of a ledger's dependencies. Those of the last four kinds are a
// prefix and the dependency's own name: of a dataset or a model, or the path
// in the source at which a submodule or a large file belongs.
const (
	SourceName      = "source"
	EnvironmentName = "environment"
	LockfileName    = "lockfile"
	DatasetPrefix   = "dataset:"
	ModelPrefix     = "model:"
	SubmodulePrefix = "submodule:"
	LFSPrefix       = "lfs:"
)

// ExactDispatch is the only value of Platform.CPUDispatch.
const ExactDispatch = "exact"

// The values of Annotations.Extras.
const (
	ExtrasRefused = "refused"
	ExtrasAllowed = "allowed"
)

// Statement is a build ledger: an in-toto Statement v1 about one source
// commit. A Statement is only a text in Go's shape; whoever holds one knows
// nothing about who wrote it. Payload checks and encodes it, ParseLedger
// decodes and checks it.
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"` // exactly one, the source commit
	PredicateType string    `json:"predicateType"`
	Predicate     Predicate `json:"predicate"`
}

// Subject is the source commit that the ledger is about. The outputs cannot
// be subjects: a subject needs a digest, and they have none until a rebuild.
type Subject struct {
	Name   string    `json:"name"` // "source"
	URI    string    `json:"uri,omitempty"`
	Digest DigestSet `json:"digest"` // gitCommit alone
}

// DigestSet holds the digests of one thing. Every one that is present must
// match; an algorithm that is not listed here is an error.
type DigestSet struct {
	GitCommit   GitCommit       `json:"gitCommit,omitempty"`
	ClawfsTree1 hashpipe.Digest `json:"clawfsTree1,omitzero"` // package tree
	SHA256      hashpipe.Digest `json:"sha256,omitzero"`
	// ClawfsClaim1 is the claim of another model's capability (package
	// capstore, Claim), which two honest rebuilders of it share.
	ClawfsClaim1 hashpipe.Digest `json:"clawfsClaim1,omitzero"`
}

// GitCommit is the name of a git commit in lower-case hex: 40 digits of SHA-1
// or 64 of SHA-256.
type GitCommit string

// Predicate is what the publisher promises to have done.
type Predicate struct {
	Model           string          `json:"model"`    // "acme/langid"
	Version         string          `json:"version"`  // for people; sequence orders
	Sequence        int64           `json:"sequence"` // from 1, grows with each ledger of a model
	Publisher       Publisher       `json:"publisher"`
	IssuedAt        Time            `json:"issuedAt"`
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	Platform        Platform        `json:"platform"`
}

// Publisher names the key that signs the ledger, so that nobody else's
// signature over the same bytes counts.
type Publisher struct {
	KeyID dsse.KeyID `json:"keyid"`
}

// BuildDefinition has the shape of SLSA v1's and goes unchanged into SLSA
// Provenance v1 after a rebuild.
type BuildDefinition struct {
	BuildType            string             `json:"buildType"`
	ExternalParameters   ExternalParameters `json:"externalParameters"`
	ResolvedDependencies []Dependency       `json:"resolvedDependencies"`
}

// ExternalParameters are the steps of the build and the names of its outputs.
type ExternalParameters struct {
	Env     map[string]string `json:"env,omitempty"` // of every stage
	Stages  []Stage           `json:"stages"`        // run in this order
	Outputs []Output          `json:"outputs"`       // looked up in the last stage's /out
}

// Stage is one program run in a fresh container.
type Stage struct {
	Name           string            `json:"name"`
	Argv           []string          `json:"argv"`
	Env            map[string]string `json:"env,omitempty"`     // outranks ExternalParameters.Env
	WorkDir        string            `json:"workdir,omitempty"` // absolute and clean
	TimeoutSeconds int64             `json:"timeoutSeconds,omitempty"`
	Limits         *StageLimits      `json:"limits,omitempty"`    // below the policy's
	Artifacts      []string          `json:"artifacts,omitempty"` // files below this stage's /out that every rebuild must repeat
}

// StageLimits narrow what the policy allows one stage. A zero field is the
// policy's limit; all zero is an error.
type StageLimits struct {
	MemoryBytes int64 `json:"memoryBytes,omitzero"`
	Processes   int64 `json:"processes,omitzero"`
	CPUSeconds  int64 `json:"cpuSeconds,omitzero"` // of all its processes together
	OutputBytes int64 `json:"outputBytes,omitzero"`
}

// Output names a file that the build must produce. It has no digest field: the
// ledger is a promise of process, and an unknown field is an error.
type Output struct {
	Name string `json:"name"` // the name under which the file is granted
	Path string `json:"path"` // below /out
}

// Dependency is one locked input.
type Dependency struct {
	Name        string       `json:"name"`
	URI         string       `json:"uri,omitempty"` // a hint where to look; the digests decide
	Digest      DigestSet    `json:"digest"`
	MediaType   string       `json:"mediaType,omitempty"`
	Annotations *Annotations `json:"annotations,omitempty"`
}

// Annotations are signed beside a dependency's digest: the size of a tree,
// written as decimal strings, further places where to look, and how a lockfile
// is read.
type Annotations struct {
	Files   int64    `json:"files,string,omitzero"` // of trees
	Bytes   int64    `json:"bytes,string,omitzero"` // of trees and large files
	Mirrors []string `json:"mirrors,omitempty"`     // hints like URI, tried after it
	// Format is one of LockFormats. Without it a lockfile is bytes for the
	// build; with it the image is compared with what the lockfile names.
	Format string `json:"format,omitempty"`
	Extras string `json:"extras,omitempty"` // whether the image may have packages that the lockfile does not name
}

// LockFormats are the values of Annotations.Format.
var LockFormats = []string{"requirements", "pip-freeze", "conda-explicit", "uv", "pylock", "dpkg"}

// Platform is the class of machines within which the bytes are promised equal.
type Platform struct {
	OS          string   `json:"os"`
	Arch        string   `json:"arch"`
	CPUFeatures []string `json:"cpuFeatures,omitempty"`
	// CPUDispatch is empty if a machine may have further features, or
	// ExactDispatch if those by which libraries choose their code must be
	// CPUFeatures and no others.
	CPUDispatch string `json:"cpuDispatch,omitempty"`
	Accelerator string `json:"accelerator"` // "none", or what a build needs
}

// Source returns the dependency "source", or the zero Dependency.
func (s Statement) Source() Dependency { d, _ := s.dependency(SourceName); return d }

// Environment returns the dependency "environment", or the zero Dependency.
func (s Statement) Environment() Dependency { d, _ := s.dependency(EnvironmentName); return d }

// Lockfile returns the dependency "lockfile" and whether the ledger has one.
func (s Statement) Lockfile() (Dependency, bool) { return s.dependency(LockfileName) }

// Datasets returns the datasets by their own names, without "dataset:".
func (s Statement) Datasets() map[string]Dependency { return s.named(DatasetPrefix) }

// Models returns the models that the build starts from by their own names,
// without "model:".
func (s Statement) Models() map[string]Dependency { return s.named(ModelPrefix) }

// Submodules returns the submodules of the source by their paths.
func (s Statement) Submodules() map[string]Dependency { return s.named(SubmodulePrefix) }

// LargeFiles returns the files of the source that git LFS keeps elsewhere, by
// their paths.
func (s Statement) LargeFiles() map[string]Dependency { return s.named(LFSPrefix) }

func (s Statement) named(prefix string) map[string]Dependency {
	found := make(map[string]Dependency)
	for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
		if name, ok := strings.CutPrefix(d.Name, prefix); ok {
			found[name] = d
		}
	}
	return found
}

// HasInput reports whether the ledger has a model, a submodule or a large file
// of that full name, such as "model:base".
func (s Statement) HasInput(name string) bool {
	for _, prefix := range []string{ModelPrefix, SubmodulePrefix, LFSPrefix} {
		if strings.HasPrefix(name, prefix) {
			_, ok := s.dependency(name)
			return ok
		}
	}
	return false
}

// Places returns where a dependency may be, the likeliest first: hints, none
// of them trusted.
func (d Dependency) Places() []string {
	var places []string
	if d.URI != "" {
		places = append(places, d.URI)
	}
	if d.Annotations != nil {
		places = append(places, d.Annotations.Mirrors...)
	}
	return places
}

// StageEnv returns the environment of a stage: the build's, overlaid with the
// stage's own.
func (s Statement) StageEnv(g Stage) map[string]string {
	env := make(map[string]string)
	maps.Copy(env, s.Predicate.BuildDefinition.ExternalParameters.Env)
	maps.Copy(env, g.Env)
	return env
}

func (s Statement) dependency(name string) (Dependency, bool) {
	deps := s.Predicate.BuildDefinition.ResolvedDependencies
	i := slices.IndexFunc(deps, func(d Dependency) bool { return d.Name == name })
	if i < 0 {
		return Dependency{}, false
	}
	return deps[i], true
}
