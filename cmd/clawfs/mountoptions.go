package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/fs"
)

// mountFlags are the flags of `clawfs mount` that its record keeps, so that the
// mount comes back as it was.
type mountFlags struct {
	seal, privateDir, privateBytes string
}

func (m *mountFlags) add(f *pflag.FlagSet) {
	f.StringVar(&m.seal, "seal", "", "`how` approved files are kept for the kernel to serve: reflink, copy or off (default mount.seal of clawfs.toml, else reflink for root, off for others)")
	f.StringVar(&m.privateDir, "private-dir", "", "`directory` of the private files (default the source's file system for reflink, the state directory for copy)")
	f.StringVar(&m.privateBytes, "private-bytes", "", "most that the private files may hold, a `size` such as 200GiB (default half of what is free)")
}

// options reads what was typed. Its errors are of usage.
func (m *mountFlags) options(f *pflag.FlagSet) (control.MountOptions, error) {
	o := control.MountOptions{Seal: m.seal}
	wrong := func(flag, got, want string) (control.MountOptions, error) {
		return control.MountOptions{}, exitf(codeUsage, "--%s %q: want %s; see `clawfs mount --help`", flag, got, want)
	}
	if f.Changed("seal") && (config.Mount{Seal: m.seal}).Check() != nil {
		return wrong("seal", m.seal, "reflink, copy or off")
	}
	if m.seal == "off" && (f.Changed("private-dir") || f.Changed("private-bytes")) {
		return o, exitf(codeUsage, "--private-dir and --private-bytes want --seal reflink or copy, got off; see `clawfs mount --help`")
	}
	if f.Changed("private-dir") {
		real, err := realDirectory(m.privateDir)
		if err != nil {
			return o, exitf(codeMount, "private directory %s: %w; next: mkdir -p -m 0700 %s", m.privateDir, err, shellWord(m.privateDir))
		}
		o.PrivateDir = real
	}
	if f.Changed("private-bytes") {
		var n config.Bytes
		if err := n.UnmarshalText([]byte(m.privateBytes)); err != nil || n == 0 || (config.Mount{Seal: "off", PrivateBytes: n}).Check() != nil {
			return wrong("private-bytes", m.privateBytes, "a size of at least 1MiB, such as 200GiB")
		}
		o.PrivateBytes = int64(n)
	}
	return o, nil
}

// mountSettings are the settings of one mount: what its flags said, else the
// file.
func mountSettings(m config.Mount, o control.MountOptions) (config.Mount, error) {
	if o.Seal != "" {
		m.Seal = o.Seal
	}
	if o.PrivateDir != "" {
		m.PrivateDir = o.PrivateDir
	}
	if o.PrivateBytes != 0 {
		m.PrivateBytes = config.Bytes(o.PrivateBytes)
	}
	return m, m.Check()
}

// sealing turns settings into those of package fs, and refuses a place for the
// private files that the mount would show or hide.
func sealing(s config.State, m config.Mount, src, dir string) (how fs.Seal, private string, err error) {
	switch m.Seal {
	case "off":
		return fs.SealOff, "", nil
	case "reflink":
		how = fs.SealReflink
	case "copy":
		how = fs.SealCopy
	}
	switch {
	case m.PrivateDir == "" && how == fs.SealReflink:
		return how, "", nil // the source itself
	case m.PrivateDir == "":
		private, err = s.MakePrivate()
		return how, private, err
	case below(m.PrivateDir, dir): // before anybody looks there
		return how, "", placeError(m.PrivateDir, "mount point", dir)
	}
	if private, err = realDirectory(m.PrivateDir); err != nil {
		return how, "", fmt.Errorf("private directory %s: %w; next: mkdir -p -m 0700 %s", m.PrivateDir, err, shellWord(m.PrivateDir))
	}
	if below(private, dir) {
		return how, "", placeError(private, "mount point", dir)
	}
	if below(private, src) {
		return how, "", placeError(private, "source", src)
	}
	if how == fs.SealReflink {
		err = shareBlocks(private, src)
	}
	return how, private, err
}

func placeError(private, what, dir string) error {
	return fmt.Errorf("the private directory %s lies inside the %s %s; keep private files elsewhere (--private-dir)", private, what, dir)
}

// shareBlocks refuses two directories of which it is certain that no reflink
// leads from one to the other. The subvolumes of one btrfs have device numbers of
// their own.
func shareBlocks(private, src string) error {
	var a, b unix.Stat_t
	var fsys unix.Statfs_t
	if err := errors.Join(unix.Stat(private, &a), unix.Stat(src, &b), unix.Statfs(src, &fsys)); err != nil {
		return &os.PathError{Op: "stat", Path: private, Err: err}
	}
	if a.Dev != b.Dev && fsys.Type != unix.BTRFS_SUPER_MAGIC {
		return fmt.Errorf("the private directory %s is on another file system than the source %s, and a reflink does not leave its file system; next: a directory on that of the source, or --seal copy", private, src)
	}
	return nil
}
