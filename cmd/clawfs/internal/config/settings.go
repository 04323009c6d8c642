package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/dustin/go-humanize"
)

// Settings is clawfs.toml. Nothing in it weakens a check: it says where
// programs are and how much of the machine to use.
type Settings struct {
	Build      Build      `toml:"build"`
	Fetch      Fetch      `toml:"fetch"`
	Capability Capability `toml:"capability"`
	Mount      Mount      `toml:"mount"`
}

// Build is the table [build].
type Build struct {
	// Runtime is the absolute path of the OCI runtime; empty: found on PATH.
	Runtime string `toml:"runtime"`
	// Concurrency is how many rebuilds run at once, at most 64; 0: as many as
	// the machine holds with the policy's limits for each.
	Concurrency int `toml:"concurrency"`
	// Executor is where the builds of jobs run: one of Executors.
	Executor string `toml:"executor"`
	Slurm    Slurm  `toml:"slurm"`
}

// Executors are the values of Build.Executor.
var Executors = []string{"local", "slurm"}

// Slurm is the table [build.slurm].
type Slurm struct {
	// SharedDir is a directory that all nodes have under this path, where only
	// root writes. Required.
	SharedDir string `toml:"shared_dir"`
	// Clawfs is the path of clawfs on the nodes. Required.
	Clawfs string `toml:"clawfs"`
	// Partition is where jobs go; empty: the cluster's default.
	Partition string `toml:"partition"`
	// SbatchArgs are more options of sbatch, such as "--account=models".
	SbatchArgs []string `toml:"sbatch_args"`
	// Commands is the directory with sbatch; empty: found on PATH.
	Commands string `toml:"commands"`
	// Conf is the path of slurm.conf; empty: where the commands look.
	Conf string `toml:"conf"`
}

// check refuses values that mean nothing for an executor; what the cluster
// accepts is not known here.
func (s Slurm) check(executor string) error {
	required := executor == "slurm"
	for _, p := range []struct {
		name, path string
		required   bool
	}{{"shared_dir", s.SharedDir, required}, {"clawfs", s.Clawfs, required}, {"commands", s.Commands, false}, {"conf", s.Conf, false}} {
		switch {
		case p.path == "" && p.required:
			return fmt.Errorf("%s is missing: executor = \"slurm\" needs it", p.name)
		case p.path != "" && (!filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path):
			return fmt.Errorf("%s %q: want an absolute, clean path", p.name, p.path)
		}
	}
	return nil
}

// Capability is the table [capability].
type Capability struct {
	// Lifetime is how long a minted capability opens files, from 1h to 8784h
	// (366 days).
	Lifetime Duration `toml:"lifetime"`
}

// Mount is the table [mount].
type Mount struct {
	// AllowOther lets other users than the one that mounted read the files.
	AllowOther bool `toml:"allow_other"`
	// HashWorkers is the number of hashing threads; 0: one for each core.
	HashWorkers int `toml:"hash_workers"`
	// Seal is how a content gets into a private file that the kernel serves by
	// itself: one of Seals.
	Seal string `toml:"seal"`
	// PrivateDir is where the private files are made, an absolute path; empty: for
	// "reflink" the source's own file system, for "copy" State.Private.
	PrivateDir string `toml:"private_dir"`
	// PrivateBytes bounds the private files of one mount; 0: half of what is free
	// when the mount begins.
	PrivateBytes Bytes `toml:"private_bytes"`
	// Bind is what the name of a file demands: one of Binds.
	Bind string `toml:"bind"`
	// MaxDaemonAge is how long ago the daemon may have been heard for a file to open,
	// from 10s to 8784h (366 days); 0: no bound. Longer ago, revocations may have been
	// missed. What is open stays open.
	MaxDaemonAge Duration `toml:"max_daemon_age"`
	// Preverify measures new files in the background, before somebody opens them.
	Preverify bool `toml:"preverify"`
}

// Seals are the values of Mount.Seal.
var Seals = []string{"reflink", "copy", "off"}

// Binds are the values of Mount.Bind.
var Binds = []string{"name", "release"}

// minPrivate is the least that PrivateBytes may be, in bytes: below it no file
// would be worth a private one.
const minPrivate = 1 << 20

// Check refuses values that mean nothing.
func (m Mount) Check() error {
	if n := m.HashWorkers; n < 0 || n > 1024 {
		return fmt.Errorf("hash_workers %d: want 0 to 1024", n)
	}
	if !slices.Contains(Seals, m.Seal) {
		return fmt.Errorf("seal %q: want reflink, copy or off", m.Seal)
	}
	if !slices.Contains(Binds, m.Bind) {
		return fmt.Errorf("bind %q: want name or release", m.Bind)
	}
	if d := m.PrivateDir; d != "" && (!filepath.IsAbs(d) || filepath.Clean(d) != d) {
		return fmt.Errorf("private_dir %q: want an absolute, clean path", d)
	}
	if n := m.PrivateBytes; n != 0 && n < minPrivate {
		return fmt.Errorf("private_bytes %d: want at least 1MiB, such as \"200GiB\"", n)
	}
	// A stream with nothing to say says so every two seconds, and a restart of the
	// daemon must not be noticed.
	if d := time.Duration(m.MaxDaemonAge); d != 0 && (d < 10*time.Second || d > 366*24*time.Hour) {
		return fmt.Errorf("max_daemon_age %s: want 0s, for no bound, or 10s to 8784h", d)
	}
	return nil
}

// Bytes is a number of bytes written as "200GiB" or "1.5TB".
type Bytes int64

func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > math.MaxInt64 {
		return fmt.Errorf("%q is not a number of bytes such as \"200GiB\"", text)
	}
	*b = Bytes(n)
	return nil
}

// Duration is a time.Duration written as "2160h".
type Duration time.Duration

func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"2160h\"", text)
	}
	*d = Duration(v)
	return nil
}

// Defaults are the settings of a state directory without clawfs.toml. A mount
// made by root is for everybody on the machine: that is what it is for. The
// kernel serves private files for nobody but root.
func Defaults(uid int) Settings {
	seal := "off"
	if uid == 0 {
		seal = "reflink"
	}
	return Settings{
		Build:      Build{Executor: "local"},
		Fetch:      Fetch{CacheBytes: 100 << 30, LocalRoots: []string{"/"}},
		Capability: Capability{Lifetime: Duration(90 * 24 * time.Hour)},
		Mount:      Mount{AllowOther: uid == 0, Seal: seal, Bind: "name", Preverify: true},
	}
}

// LoadSettings reads clawfs.toml over Defaults(uid). A missing file is the
// defaults; an unknown key, a wrong type or a value out of range is an error.
func (s State) LoadSettings(uid int) (Settings, error) {
	b, err := ReadPublic(s.Settings())
	if errors.Is(err, fs.ErrNotExist) {
		return Defaults(uid), nil
	}
	if err != nil {
		return Settings{}, err
	}
	v, err := ParseSettings(b, uid)
	if err != nil {
		return Settings{}, fmt.Errorf("%s: %w", s.Settings(), err)
	}
	return v, nil
}

// ParseSettings is LoadSettings on the text of a file.
func ParseSettings(text []byte, uid int) (Settings, error) {
	v := Defaults(uid)
	meta, err := toml.NewDecoder(bytes.NewReader(text)).Decode(&v)
	if err != nil {
		return Settings{}, err
	}
	unknown := meta.Undecoded()
	for _, k := range meta.Keys() {
		// The decoder takes RUNTIME for runtime, so that one could hide the other.
		if k.String() != strings.ToLower(k.String()) {
			unknown = append(unknown, k)
		}
	}
	if len(unknown) > 0 {
		names := make([]string, len(unknown))
		for i, k := range unknown {
			names[i] = k.String()
		}
		return Settings{}, fmt.Errorf("unknown setting %s; want one of %s", strings.Join(names, ", "), strings.Join(settingNames(), ", "))
	}
	if v.Build.Runtime != "" && !filepath.IsAbs(v.Build.Runtime) {
		return Settings{}, fmt.Errorf("build.runtime %q: not an absolute path", v.Build.Runtime)
	}
	if n := v.Build.Concurrency; n < 0 || n > 64 {
		return Settings{}, fmt.Errorf("build.concurrency %d: want 0 to 64", n)
	}
	if !slices.Contains(Executors, v.Build.Executor) {
		return Settings{}, fmt.Errorf("build.executor %q: want local or slurm", v.Build.Executor)
	}
	if err := v.Build.Slurm.check(v.Build.Executor); err != nil {
		return Settings{}, fmt.Errorf("build.slurm.%w", err)
	}
	if err := v.Fetch.check(); err != nil {
		return Settings{}, fmt.Errorf("fetch.%w", err)
	}
	if d := time.Duration(v.Capability.Lifetime); d < time.Hour || d > 366*24*time.Hour {
		return Settings{}, fmt.Errorf("capability.lifetime %s: want 1h to 8784h", d)
	}
	if err := v.Mount.Check(); err != nil {
		return Settings{}, fmt.Errorf("mount.%w", err)
	}
	return v, nil
}

// settingNames are the keys of clawfs.toml, such as "mount.seal".
func settingNames() []string { return namesOf("", reflect.TypeFor[Settings]()) }

func namesOf(prefix string, table reflect.Type) (names []string) {
	for _, key := range reflect.VisibleFields(table) {
		name := prefix + key.Tag.Get("toml")
		if key.Type.Kind() == reflect.Struct {
			names = append(names, namesOf(name+".", key.Type)...)
		} else {
			names = append(names, name)
		}
	}
	return names
}
