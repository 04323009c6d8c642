package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/fs"
)

func newMountCommand(a *app) *cobra.Command {
	var foreground bool
	var flags mountFlags
	c := &cobra.Command{
		Use:   "mount SRC DIR",
		Short: "Mount a directory of model files; only granted files open",
		Long: `mount shows the files of SRC at DIR. All of them are listed; one opens only if
its bytes are those of a live capability. Nothing can be written.

It returns once the mount is live. A process of its own serves it, started and
watched by the daemon, which is started if it is not running. With --foreground
this process serves it, until it is told to end or the mount is taken away.

--seal says how an approved file is kept safe from whoever can write SRC:
  reflink  the file's blocks are shared with a file that nobody can open, and
           that one is hashed and served by the kernel at native speed; needs
           root, Linux 6.9, and xfs or btrfs (the default for root)
  copy     the same with a copy: any file system, and the space of every model
           that is opened, up to --private-bytes
  off      each block is hashed again whenever it is read; needs nothing
Where this machine cannot seal, files are served as with off, and clawfs status
says why. The private files have no names and are gone when the mount is.

--bind release refuses a file while others of another release lie beside it: a
model and its tokenizer open together or not at all.

--mode audit is for a roll-out: until --audit-until, which is at most 30 days
ahead, files that would be refused open, and each is logged as audited with the
reason. Then the mount enforces by itself. status warns of it; no setting does it.

What is not given here is as the table [mount] of clawfs.toml says. What is given
stays with the mount when the daemon starts it again.`,
		Example: `  clawfs mount /srv/downloads /models
  clawfs mount --seal copy --private-dir /fast/private --private-bytes 200GiB /srv/downloads /models
  clawfs mount --mode audit --audit-until 72h /srv/downloads /models
  clawfs mount --bind release /srv/downloads /models
  clawfs mount --foreground /srv/downloads /models`,
		Args: cobra.MatchAll(cobra.ExactArgs(2), noEmptyPath),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := flags.options(c.Flags())
			if err != nil {
				return err
			}
			src, dir, err := a.checkMount(args[0], args[1], o)
			if err != nil {
				return exit(codeMount, err)
			}
			if foreground {
				return a.mountForeground(c.Context(), src, dir, o)
			}
			return a.mountBackground(c.Context(), src, dir, o)
		},
	}
	flags.add(c.Flags())
	c.Flags().BoolVar(&foreground, "foreground", false, "serve in this process; refusals are written to standard error")
	for flag, values := range map[string][]string{"seal": config.Seals, "bind": config.Binds, "mode": {modeEnforce, modeAudit}} {
		completes(c, flag, values)
	}
	return c
}

// mounted is the result of the verb.
type mounted struct {
	Source     string `json:"source"`
	Mountpoint string `json:"mountpoint"`
	ID         string `json:"id"`
	PID        int    `json:"pid"`
	Log        string `json:"log"`
	Mode       string `json:"mode"` // enforce, audit

	AuditUntil time.Time `json:"auditUntil,omitzero"`
}

// warnOfAudit is said with --quiet, too.
func (a *app) warnOfAudit(o control.MountOptions, dir string) {
	if !o.AuditUntil.IsZero() {
		fmt.Fprintf(a.stderr, "warning: AUDIT MODE at %s until %s: files that nobody granted open, and %s tells of each; then they are refused\n",
			dir, o.AuditUntil.Format(time.RFC3339), a.config().MountLog(mountID(dir)))
	}
}

func (a *app) mountBackground(ctx context.Context, src, dir string, o control.MountOptions) error {
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	m, err := c.Mount(ctx, control.MountRequest{Source: src, Mountpoint: dir, MountOptions: o})
	if err != nil {
		return a.answered(err)
	}
	if m.State == mountStarting {
		if m, err = a.awaitServed(ctx, c, m); err != nil {
			return err
		}
	}
	// The daemon's mount table is not always this process's.
	if err := awaitMounted(ctx, dir, 5*time.Second); err != nil {
		return exit(codeMount, err)
	}
	v := mounted{Source: src, Mountpoint: dir, ID: m.ID, PID: m.PID, Log: a.config().MountLog(m.ID), Mode: modeEnforce, AuditUntil: o.AuditUntil}
	if !o.AuditUntil.IsZero() {
		v.Mode = modeAudit
	}
	a.warnOfAudit(o, dir)
	return a.print(v, func() { a.notef("mounted %s at %s\n", src, dir) })
}

// awaitServed waits for a mount whose process takes long to read the store.
func (a *app) awaitServed(ctx context.Context, c *control.Client, m control.Mount) (control.Mount, error) {
	bar := a.progress("the mount at " + m.Mountpoint + " reads the store").atOnce()
	defer bar.done()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ; ; wait(ctx, tick.C) {
		all, err := c.Mounts(ctx)
		at := slices.IndexFunc(all, func(o control.Mount) bool { return o.ID == m.ID })
		switch {
		case ctx.Err() != nil:
			return m, exitf(codeMount, "the mount at %s goes on starting; next: %s", printable(m.Mountpoint), a.command("status"))
		case err != nil:
			return m, a.answered(err)
		case at < 0:
			return m, exitf(codeMount, "somebody has taken back the mount at %s", printable(m.Mountpoint))
		case all[at].State == mountLive:
			return all[at], nil
		case all[at].LastError != "":
			return m, exitf(codeMount, "the mount at %s does not come up, and the daemon tries again: %s; next: %s, or %s",
				printable(m.Mountpoint), all[at].LastError, a.command("status"), a.command("umount", m.Mountpoint))
		}
		bar.records(all[at].Records)
	}
}

// awaitMounted looks into this process's mount table; it does not touch dir.
func awaitMounted(ctx context.Context, dir string, patience time.Duration) error {
	for end := time.Now().Add(patience); ; {
		m, found, err := mountedAt(dir)
		if err != nil {
			return err
		}
		if found && m.fstype == mountType {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("the mount at %s is live in the daemon's mount namespace and not in this one; start the daemon from here, or mount with --foreground", dir)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (a *app) mountForeground(ctx context.Context, src, dir string, o control.MountOptions) error {
	if _, err := a.daemon(ctx); err != nil {
		return err
	}
	if err := clearStale(dir); err != nil {
		return exit(codeMount, err)
	}
	a.warnOfAudit(o, dir)
	r := newRecord(src, dir, true, o)
	file, err := newLogFile(a.config().MountLog(r.ID))
	if err != nil {
		return err
	}
	p := &mountProcess{
		state: a.config(), record: r, audit: file, errors: a.stderr,
		log: slog.New(slog.NewTextHandler(a.stderr, nil)),
	}
	if a.quiet {
		p.log = slog.New(slog.NewJSONHandler(file, nil))
	}
	var failed error
	err = p.run(ctx, func(s startReport) {
		if !s.Starting {
			failed = r.write(a.config())
		}
	})
	return exit(codeMount, errors.Join(err, failed))
}

// newMountProcessCommand is what the daemon starts for a mount. The daemon
// wrote the record; file descriptor 3 takes a line now and then, and one when the
// mount is live or has failed.
func newMountProcessCommand(a *app) *cobra.Command {
	var resume bool
	c := &cobra.Command{
		Use:    "mount-process ID",
		Short:  "Serve a mount for the daemon",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			parent := os.NewFile(3, "parent")
			fi, err := parent.Stat()
			if err != nil || fi.Mode().Type() != os.ModeNamedPipe {
				return exitf(codeUsage, "mount-process is started by the daemon; next: %s", a.command("mount", "SRC", "DIR"))
			}
			unix.CloseOnExec(3)
			var from *fs.Session
			if resume {
				from = &fs.Session{Device: inheritedFile(4), Journal: inheritedFile(5)}
			}
			log := slog.New(slog.NewJSONHandler(a.stderr, nil)).With("pid", os.Getpid())
			err = a.serveMount(c.Context(), args[0], from, log, func(r startReport) { tell(parent, r) })
			if err != nil {
				tell(parent, startReport{Error: err.Error()})
				log.Error("mount process ends", "error", err)
			}
			return exit(codeMount, err)
		},
	}
	c.Flags().BoolVar(&resume, "resume", false, "go on with the session in descriptors 4 and 5")
	return c
}

func inheritedFile(fd int) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "session")
}

func (a *app) serveMount(ctx context.Context, id string, from *fs.Session, log *slog.Logger, say func(startReport)) error {
	r, err := readRecord(a.config(), id)
	if err != nil {
		return err
	}
	file, err := newLogFile(a.config().MountLog(id))
	if err != nil {
		return err
	}
	p := &mountProcess{state: a.config(), record: r, from: from, audit: file, log: log}
	return p.run(ctx, say)
}

// tell sends a line to the parent, which may be gone already. Nothing follows the
// last one.
func tell(parent io.WriteCloser, report startReport) {
	if b, err := json.Marshal(report); err == nil {
		parent.Write(append(b, '\n'))
	}
	if !report.Starting {
		parent.Close()
	}
}

// checkMount refuses what cannot be mounted, in words, before anything is
// started. It returns both paths absolute and without links.
func (a *app) checkMount(srcArg, dirArg string, o control.MountOptions) (src, dir string, err error) {
	src, err = realDirectory(srcArg)
	if err != nil {
		return "", "", fmt.Errorf("source %s: %w", srcArg, err)
	}
	dir, err = mountpointPath(dirArg)
	if err != nil {
		return "", "", fmt.Errorf("mount point %s: %w; next: mkdir -p %s", dirArg, err, shellWord(dirArg))
	}
	if err := a.checkPlaces(src, dir, o); err != nil {
		return "", "", err
	}
	if err := checkFuse(); err != nil {
		return "", "", err
	}
	m, found, err := mountedAt(dir)
	switch {
	case err != nil:
		return "", "", err
	case found && m.fstype == mountType:
		// Alive, it is in use; dead, the daemon clears it.
		if dead, err := isDead(dir); err != nil || !dead {
			return "", "", errors.Join(err, fmt.Errorf("mount point %s: a clawfs mount is there already; next: %s", dir, a.command("umount", dir)))
		}
		return src, dir, nil
	}
	real, err := realDirectory(dir)
	if errors.Is(err, errNoDirectory) {
		return "", "", fmt.Errorf("mount point %s: %w; next: mkdir -p %s", dirArg, err, shellWord(dir))
	}
	if err != nil {
		return "", "", fmt.Errorf("mount point %s: %w", dirArg, err)
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return "", "", fmt.Errorf("mount point: %w", err)
	}
	if len(entries) > 0 {
		return "", "", fmt.Errorf("mount point %s: holds %s, which the mount would hide; choose an empty directory", real, shellWord(entries[0].Name()))
	}
	return src, real, nil
}

// checkPlaces keeps the source, the mount and the state apart: a mount that
// shows itself waits for itself, and a state directory below a mount could
// not be read by the process that serves it. The private files have a place, too.
func (a *app) checkPlaces(src, dir string, o control.MountOptions) error {
	state, err := filepath.EvalSymlinks(a.state)
	if err != nil {
		return fmt.Errorf("%w %s; next: %s", config.ErrNoState, a.state, a.command("init"))
	}
	for _, c := range []struct {
		inner, outer string
		text         string
	}{
		{dir, src, "mount point %s lies inside the source %s; mount elsewhere"},
		{src, dir, "source %s lies inside the mount point %s; mount elsewhere"},
		{state, dir, "the state directory %s lies inside the mount point %s; mount elsewhere"},
		{dir, state, "mount point %s lies inside the state directory %s; mount elsewhere"},
		{src, state, "source %s lies inside the state directory %s; keep models elsewhere"},
		{state, src, "the state directory %s lies inside the source %s; keep the state elsewhere (--state)"},
	} {
		if below(c.inner, c.outer) {
			return fmt.Errorf(c.text, c.inner, c.outer)
		}
	}
	settings, err := a.config().LoadSettings(os.Geteuid())
	if err != nil {
		return err
	}
	m, err := mountSettings(settings.Mount, o)
	if err != nil {
		return err
	}
	if m.Seal == "off" && (o.PrivateDir != "" || o.PrivateBytes != 0) {
		return fmt.Errorf("--private-dir and --private-bytes want --seal reflink or copy, got off from %s (mount.seal, or its default for others than root); next: add --seal copy", a.config().Settings())
	}
	_, _, err = sealing(a.config(), m, src, dir)
	return err
}

var errNoDirectory = errors.New("does not exist")

func realDirectory(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, os.ErrNotExist) {
		return "", errNoDirectory
	}
	if err != nil {
		return "", err
	}
	fi, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if !fi.IsDir() {
		return "", errors.New("want a directory, got a file")
	}
	return real, nil
}

// checkFuse says what is missing on a machine or in a container that cannot
// mount.
func checkFuse() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return errors.New("/dev/fuse is missing: this kernel or container cannot mount; next: modprobe fuse, or run the container with --device /dev/fuse")
	case err != nil:
		return fmt.Errorf("%w; next: run as root, or ask for access to /dev/fuse", err)
	}
	f.Close()
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			return errors.New("fusermount3 is missing, which lets other users than root mount; next: apt-get install fuse3")
		}
	}
	return nil
}
