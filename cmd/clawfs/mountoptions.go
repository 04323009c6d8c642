package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/fs"
)

// mountFlags are the flags of `clawfs mount` that its record keeps, so that the
// mount comes back as it was.
type mountFlags struct {
	seal, privateDir, privateBytes, bind, mode, auditUntil string
	preverify                                              bool
}

// Modes of a mount.
const (
	modeEnforce = "enforce"
	modeAudit   = "audit"
)

// maxAudit bounds audit mode: a roll-out ends.
const maxAudit = 30 * 24 * time.Hour

func (m *mountFlags) add(f *pflag.FlagSet) {
	f.StringVar(&m.mode, "mode", modeEnforce, "`what` becomes of a refusal: enforce, or audit: it is served and logged until --audit-until, for a roll-out")
	f.StringVar(&m.auditUntil, "audit-until", "", "when --mode audit ends: a `time` (RFC 3339), date (its beginning in UTC) or duration, at most 30 days ahead")
	f.StringVar(&m.bind, "bind", "", "`what` a name demands: name, or release: all files of one model are of one release of it (default mount.bind of clawfs.toml, else name)")
	f.BoolVar(&m.preverify, "preverify", false, "hash new files in the background (default mount.preverify of clawfs.toml, else true)")
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
	switch {
	case m.mode != modeEnforce && m.mode != modeAudit:
		return wrong("mode", m.mode, "enforce or audit")
	case m.mode == modeAudit && m.auditUntil == "":
		return o, exitf(codeUsage, "--mode audit wants --audit-until, when enforcement begins, such as --audit-until 72h, got none; see `clawfs mount --help`")
	case m.mode != modeAudit && f.Changed("audit-until"):
		return o, exitf(codeUsage, "--audit-until wants --mode audit, got %s; see `clawfs mount --help`", m.mode)
	case m.mode == modeAudit:
		until, err := parseUntil(m.auditUntil, time.Now())
		if err != nil {
			return o, exitf(codeUsage, "--audit-until %q: %w; see `clawfs mount --help`", m.auditUntil, err)
		}
		o.AuditUntil = until
	}
	if f.Changed("seal") && !slices.Contains(config.Seals, m.seal) {
		return wrong("seal", m.seal, "reflink, copy or off")
	}
	if f.Changed("bind") && !slices.Contains(config.Binds, m.bind) {
		return wrong("bind", m.bind, "name or release")
	}
	o.Bind = m.bind
	if f.Changed("preverify") {
		o.Preverify = &m.preverify
	}
	if m.seal == "off" && (f.Changed("private-dir") || f.Changed("private-bytes")) {
		return o, exitf(codeUsage, "--private-dir and --private-bytes want --seal reflink or copy, got off; see `clawfs mount --help`")
	}
	if f.Changed("private-dir") {
		if m.privateDir == "" { // an unset variable is not the working directory
			return wrong("private-dir", "", "a directory")
		}
		real, err := realDirectory(m.privateDir)
		if err != nil {
			return o, exit(codeMount, privateError(m.privateDir, err))
		}
		o.PrivateDir = real
	}
	if f.Changed("private-bytes") {
		var n config.Bytes
		if err := n.UnmarshalText([]byte(m.privateBytes)); err != nil || n == 0 || (config.Mount{Seal: "off", Bind: "name", PrivateBytes: n}).Check() != nil {
			return wrong("private-bytes", m.privateBytes, "a size of at least 1MiB, such as 200GiB")
		}
		o.PrivateBytes = int64(n)
	}
	return o, nil
}

// parseUntil reads the end of audit mode.
func parseUntil(text string, now time.Time) (time.Time, error) {
	until, err := parseMoment(text, now)
	if err != nil {
		return time.Time{}, err
	}
	return until, checkAudit(until, now)
}

// parseMoment reads a time, the beginning of a day, or how long it is from now.
func parseMoment(text string, now time.Time) (time.Time, error) {
	until, err := time.Parse(time.RFC3339, text)
	if err != nil {
		until, err = time.Parse(time.DateOnly, text)
	}
	if d, notDuration := time.ParseDuration(text); notDuration == nil {
		until, err = now.Add(d), nil
	}
	if err != nil {
		return time.Time{}, errors.New("want a time such as 2026-01-31T18:00:00Z, a date such as 2026-01-31, or a duration such as 72h")
	}
	return until.UTC(), nil
}

// checkAudit refuses an audit mode that is over or that lasts too long.
func checkAudit(until, now time.Time) error {
	switch {
	case !until.After(now):
		return fmt.Errorf("want a time in the future, got %s, and now is %s", until.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case until.Sub(now) > maxAudit:
		return fmt.Errorf("want at most 30 days ahead, by %s, got %s", now.Add(maxAudit).UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339))
	}
	return nil
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
	if o.Bind != "" {
		m.Bind = o.Bind
	}
	if o.Preverify != nil {
		m.Preverify = *o.Preverify
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
		return how, "", privateError(m.PrivateDir, err)
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

// privateError names the command that makes the directory, if nothing is there.
func privateError(dir string, err error) error {
	if errors.Is(err, errNoDirectory) {
		return fmt.Errorf("private directory %s: %w; next: mkdir -p -m 0700 %s", dir, err, shellWord(dir))
	}
	return fmt.Errorf("private directory %s: %w; choose another (--private-dir)", dir, err)
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
