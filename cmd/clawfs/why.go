package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// The attributes of a file on a clawfs mount. whyXattr decides anew and may
// read the whole file; the others are what the mount knows already.
const (
	whyXattr    = "user.clawfs.why"
	statusXattr = "user.clawfs.status"
	digestXattr = "user.clawfs.digest"
	tierXattr   = "user.clawfs.tier"
	reasonXattr = "user.clawfs.reason"
	levelXattr  = "user.clawfs.level"
	onlyXattr   = "user.clawfs.only"
)

// explanation is the document in user.clawfs.why. Unknown members are left
// alone: an older clawfs may look at a newer mount.
type explanation struct {
	Path       string `json:"path"`
	Allowed    bool   `json:"allowed"`
	Reason     string `json:"reason"`
	Detail     string `json:"detail"`
	Next       string `json:"next,omitempty"`
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256,omitempty"`
	Tier       string `json:"tier,omitempty"`
	TierNote   string `json:"tierNote,omitempty"` // why it is not a better one
	Capability string `json:"capability,omitempty"`
	Claim      string `json:"claim,omitempty"`
	Model      string `json:"model,omitempty"`
	Version    string `json:"version,omitempty"`
	SBA        string `json:"sba,omitempty"`
	Publisher  string `json:"publisher,omitempty"`
	NotAfter   string `json:"notAfter,omitempty"`

	// Who has measured the same now, how many have to, and what the capability is
	// narrowed to.
	Level        string   `json:"level,omitempty"`
	Operators    []string `json:"operators,omitempty"`
	Needed       int      `json:"needed,omitempty"`
	Restrictions []string `json:"restrictions,omitempty"`

	// LostBases are the models that this one was built from and that were taken
	// back since.
	LostBases []string `json:"lostBases,omitempty"`

	// In audit mode: until when, and whether this file, which the rules refuse, is
	// served all the same.
	AuditUntil string `json:"auditUntil,omitempty"`
	Audited    bool   `json:"audited,omitempty"`

	// Link is a link on the way to the file. Audit mode follows it, whatever the
	// rules say of it, and the answer is of the file that it leads to.
	Link string `json:"link,omitempty"`

	// Logged is where the attestation lies, by the daemon. A mount does not know.
	Logged capstore.Logged `json:"logged,omitzero"`
}

// whyAnswer is the document of why: the mount's, and what a bundle says, which is
// no part of the mount's answer.
type whyAnswer struct {
	explanation
	Evidence *shownEvidence `json:"evidence,omitzero"`
	// Store is why the daemon works without its store, so that nothing new is granted.
	Store *control.StoreTrouble `json:"store,omitempty"`
}

func newWhyCommand(a *app) *cobra.Command {
	var flags evidenceFlags
	c := &cobra.Command{
		Use:   "why PATH",
		Short: "Say why a file on a mount opens, or why it is refused",
		Long: `Asks the mount to decide about PATH now, and prints one sentence, the facts, and
the command that would change the answer. Programs seldom show why they could
not open a model; this does. The answer is the one for the user who asks. A file that was not looked at before is read and
hashed, which takes as long as reading it.

--evidence shows beside that what somebody else signed about the file: a Sigstore
bundle (version 0.3) of a statement or of the file, under a key of yours
(--evidence-key). With --evidence-log a Rekor v2 log must hold the signature.
Bundles with a certificate (keyless) are refused: they are left to a separate
helper program. Evidence opens nothing and closes nothing, and does not change the
exit code, refused or not.

Exit code 0: granted. 3: refused, also if audit mode serves it all the same, or
PATH is on no clawfs mount.`,
		Example: "  clawfs why /models/langid.bin\n  clawfs why /models/langid.bin -o json | jq .reason\n  clawfs why /models/langid.bin --evidence langid.sigstore.json --evidence-key scanner.pub --evidence-log rekor.vkey",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("evidence") && flags.bundle == "" {
				return exitf(codeUsage, "--evidence: got an empty path; see `%s --help`", c.CommandPath())
			}
			question, err := flags.read()
			if err != nil {
				return err
			}
			var doc whyAnswer
			if doc.explanation, err = explain(args[0]); err != nil {
				return err
			}
			doc.Logged = a.loggedAt(c.Context(), doc.Capability)
			doc.Store = a.storeTrouble(c.Context())
			e := doc.explanation
			if question != nil {
				doc.Evidence = question.ask(e)
			}
			text := func() {
				a.showExplanation(args[0], e)
				if t := doc.Store; t != nil {
					a.printf("  the daemon has NO STORE since %s (%s), so nothing new is granted; next: %s\n", stamp(t.Since), printable(t.Cause), a.command("status"))
				}
				if doc.Evidence != nil {
					a.showEvidence(doc.Evidence)
				}
			}
			if err := a.print(doc, text); err != nil {
				return err
			}
			if !e.Allowed {
				return &quietExit{codeRefused}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&flags.bundle, "evidence", "", "Sigstore `bundle` to show beside the verdict")
	f.StringVar(&flags.key, "evidence-key", "", "public key `file` of whoever signed it")
	f.StringVar(&flags.log, "evidence-log", "", "the log that must hold it: a verifier `key`, or a file with one or with a policy")
	return c
}

// explain asks the mount about path.
func explain(path string) (explanation, error) {
	var e explanation
	abs, err := filepath.Abs(path)
	if err != nil {
		return e, err
	}
	fi, err := os.Stat(abs)
	if link, lerr := os.Lstat(abs); err != nil && lerr == nil && link.Mode()&os.ModeSymlink != 0 && onMount(filepath.Dir(abs)) == nil {
		return e, exitf(codeRefused, "%s: refused: a link that leads out of the mount, to nothing, or to a file under another name; next: put the file itself there", abs)
	}
	if err != nil {
		return e, mountError(abs, err)
	}
	if fi.IsDir() {
		if err := onMount(abs); err != nil {
			return e, mountError(abs, err)
		}
		return e, exitf(codeRefused, "%s is a directory, and only files are granted or refused; next: clawfs ls -l %s", abs, path)
	}
	doc, err := readXattr(abs, whyXattr)
	if link, found := linkOnMount(abs); found && (errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP)) {
		return e, exitf(codeRefused, "%s: refused: %s is a link that leads out of the mount; audit mode follows it, and nothing checks what is read there; next: put the file itself there", abs, link)
	}
	if err != nil {
		return e, mountError(abs, err)
	}
	if err := json.Unmarshal(doc, &e); err != nil {
		return e, fmt.Errorf("%s: reading %s: %w", abs, whyXattr, err)
	}
	if e.Path == "" {
		e.Path = abs
	}
	if e.AuditUntil != "" {
		e.Link, _ = linkOnMount(abs)
	}
	return e, nil
}

// loggedPatience bounds how long why waits for the daemon, without which it has
// answered already.
const loggedPatience = 2 * time.Second

// loggedAt asks the daemon, if one answers this user, in which log the
// attestation behind a capability lies.
func (a *app) loggedAt(ctx context.Context, capability string) capstore.Logged {
	if capability == "" {
		return capstore.Logged{}
	}
	ctx, cancel := context.WithTimeout(ctx, loggedPatience)
	defer cancel()
	list, err := a.client().LoggedCapabilities(ctx)
	if err != nil {
		return capstore.Logged{}
	}
	for _, c := range list {
		if c.ID.String() == capability {
			return c.Logged
		}
	}
	return capstore.Logged{}
}

// storeTrouble is what the daemon says of its store, nil if it is in order or no
// daemon answers in time.
func (a *app) storeTrouble(ctx context.Context) *control.StoreTrouble {
	ctx, cancel := context.WithTimeout(ctx, loggedPatience)
	defer cancel()
	s, err := a.client().Status(ctx)
	if err != nil {
		return nil
	}
	return s.Store
}

// linkOnMount returns the first link on the way to path that lies on a clawfs
// mount.
func linkOnMount(path string) (link string, found bool) {
	if dir := filepath.Dir(path); dir != path {
		if link, found := linkOnMount(dir); found {
			return link, true
		}
		fi, err := os.Lstat(path)
		if err == nil && fi.Mode()&os.ModeSymlink != 0 && onMount(dir) == nil {
			return path, true
		}
	}
	return "", false
}

// onMount returns ENODATA, as a missing attribute would, if the directory dir
// lies on no clawfs mount. Directories carry no attributes themselves.
func onMount(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	list, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.fstype == mountType && m.device == (device{unix.Major(st.Dev), unix.Minor(st.Dev)}) {
			return nil
		}
	}
	return unix.ENODATA
}

// mountError explains an error of a system call on path, with the exit code
// and the next command that belong to it.
func mountError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return exitf(codeMount, "%s: the process that served this mount is gone; next: clawfs umount the mount point, then clawfs mount again", path)
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return exitf(codeRefused, "%s is not on a clawfs mount, so nothing checks what is read from it; next: clawfs status", path)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s does not exist; next: clawfs ls %s", path, filepath.Dir(path))
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: this user (uid %d) may not look at it; next: ask as another user, such as with sudo", path, os.Geteuid())
	}
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// readXattr reads an attribute of any size that Linux allows.
func readXattr(path, name string) ([]byte, error) {
	buf := make([]byte, 4<<10)
	for {
		n, err := unix.Getxattr(path, name, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(buf) < 64<<10:
			buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		case err != nil:
			return nil, err
		default:
			return buf[:n], nil
		}
	}
}

// agreement says who stands behind a capability.
func agreement(e explanation) string {
	if e.Level == "" {
		return ""
	}
	return fmt.Sprintf("%s by %s; the policy asks for %d", e.Level, strings.Join(e.Operators, ", "), e.Needed)
}

func (a *app) showExplanation(path string, e explanation) {
	verdict := "refused"
	if e.Allowed {
		verdict = "granted"
	}
	a.printf("%s: %s", printable(path), verdict)
	if e.Detail != "" {
		a.printf(": %s", printable(e.Detail))
	}
	a.printf("\n")
	for _, f := range []struct{ label, value string }{
		{"reason", e.Reason},
		{"sha256", e.SHA256},
		{"size", humanize.IBytes(uint64(e.Size))},
		{"tier", strings.TrimSuffix(e.Tier+": "+e.TierNote, ": ")},
		{"model", e.Model + " " + e.Version},
		{"publisher", e.Publisher},
		{"sba", e.SBA},
		{"logged", loggedText(e.Logged)},
		{"claim", e.Claim},
		{"capability", e.Capability},
		{"valid until", e.NotAfter},
		{"level", agreement(e)},
		{"only", strings.Join(e.Restrictions, "; and only ")},
	} {
		if f.value != "" && f.value != " " {
			a.printf("  %-12s %s\n", f.label, printable(f.value))
		}
	}
	for _, base := range e.LostBases {
		a.printf("WARNING: built from a model that was taken back since: %s\n", printable(base))
	}
	if e.Audited {
		a.printf("AUDIT MODE: it opens all the same, unchecked, until %s\n", printable(e.AuditUntil))
	}
	if e.Link != "" {
		a.printf("AUDIT MODE: this is the answer for %s. The link %s is followed until %s, also if it is refused then: the mount's log tells of it (\"audited\")\n",
			printable(e.Path), printable(e.Link), printable(e.AuditUntil))
	}
	if e.Allowed {
		a.printf("This means: an independent rebuild of the publisher's signed recipe produced these very bytes.\nIt says nothing about whether the source or the data are good.\n")
	}
	if e.Next != "" {
		a.printf("next: %s\n", printable(e.Next))
	}
}
