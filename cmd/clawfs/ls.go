package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// listed is one name of `clawfs ls`.
type listed struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"` // file, directory, symlink
	Size   int64  `json:"size"`
	State  string `json:"state,omitempty"` // as the mount says: granted, refused, audited, verifying 42%, pending, unknown: never looked at
	Tier   string `json:"tier,omitempty"`  // of a granted file: blocks, sealed, verity
	SHA256 string `json:"sha256,omitempty"`
	Reason string `json:"reason,omitempty"`
	Level  string `json:"level,omitempty"` // of a granted file: rebuilt, or reproduced-<n>
	Only   string `json:"only,omitempty"`  // what its capability is narrowed to
	Target string `json:"target,omitempty"`
}

func newLsCommand(a *app) *cobra.Command {
	var long bool
	c := &cobra.Command{
		Use:   "ls [DIR]",
		Short: "List a directory of a mount with the state of each file",
		Long: `Lists DIR with what the mount knows of each file already: granted, refused,
audited if the rules refuse it and audit mode serves it, verifying while it is
hashed, pending if that comes next, or unknown when nobody has looked at its
present bytes. It never reads a file; to have one looked at, open it or ask
clawfs why.

-l shows the tier in which a granted file is served, too: blocks (each read is
hashed again), sealed (a private file that nobody can write), verity (that, and
the kernel checks every page), how many operators stand behind it, and why a file
is refused, or what its capability is narrowed to. All of it is the answer for
the user who asks: a file can be granted to one and refused to another.`,
		Example: "  clawfs ls -l /models\n  clawfs ls /models -o json | jq '.[] | select(.state==\"refused\") | .name'",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			rows, err := list(dir)
			if err != nil {
				return err
			}
			return a.print(rows, func() { a.showListed(rows, long) })
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "size, tier, digest and reason, too")
	return c
}

// list reads the names of dir, or the one file that dir is, with the
// attributes that cost the mount nothing.
func list(dir string) ([]listed, error) {
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, mountError(dir, err)
	}
	if !fi.IsDir() {
		row, err := listOne(dir, fi)
		return []listed{row}, err
	}
	if err := onMount(dir); err != nil {
		return nil, mountError(dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, mountError(dir, err)
	}
	rows := []listed{}
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // gone since the directory was read
		}
		if err != nil {
			return nil, mountError(filepath.Join(dir, e.Name()), err)
		}
		row, err := listOne(filepath.Join(dir, e.Name()), fi)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func listOne(path string, fi os.FileInfo) (listed, error) {
	row := listed{Name: fi.Name(), Kind: "file", Size: fi.Size()}
	switch {
	case fi.IsDir():
		row.Kind = "directory"
		return row, nil
	case fi.Mode()&os.ModeSymlink != 0:
		row.Kind = "symlink"
		target, err := os.Readlink(path)
		if errors.Is(err, os.ErrPermission) { // it leaves the mount
			row.State, row.Reason = "refused", "symlink"
		}
		row.Target = target
		return row, nil
	}
	state, err := lreadXattr(path, statusXattr)
	if errors.Is(err, os.ErrPermission) { // a file of another user, which hides no other
		row.State, row.Reason = "unknown", "not-permitted"
		return row, nil
	}
	if err != nil {
		return row, mountError(path, err)
	}
	row.State = state
	if state == "unknown" || state == "pending" {
		return row, nil // then there is nothing else, and directories can be large
	}
	for name, field := range map[string]*string{tierXattr: &row.Tier, digestXattr: &row.SHA256, reasonXattr: &row.Reason, levelXattr: &row.Level, onlyXattr: &row.Only} {
		value, err := lreadXattr(path, name)
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return row, mountError(path, err)
		}
		*field = value
	}
	return row, nil
}

// lreadXattr reads a short attribute without following a link.
func lreadXattr(path, name string) (string, error) {
	buf := make([]byte, 4<<10)
	for {
		n, err := unix.Lgetxattr(path, name, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		return string(buf[:n]), nil
	}
}

func (a *app) showListed(rows []listed, long bool) {
	var cells [][]string
	for _, r := range rows {
		name := r.Name
		switch r.Kind {
		case "directory":
			name += "/"
		case "symlink":
			if r.Target != "" {
				name += " -> " + r.Target
			}
		}
		state := r.State
		if state == "" {
			state = "-"
		}
		if !long {
			cells = append(cells, []string{state, name})
			continue
		}
		size := ""
		if r.Kind == "file" {
			size = humanize.IBytes(uint64(r.Size))
		}
		reason := r.Reason
		if reason == state {
			reason = ""
		}
		if r.Only != "" {
			if reason != "" {
				reason += ", "
			}
			reason += "only " + clipped(printable(r.Only), maxOnly)
		}
		// Names come last: one that is long moves nothing.
		cells = append(cells, []string{state, fmt.Sprintf("%9s", size), dash(r.Tier), dash(r.Level), dash(fmt.Sprintf("%.*s", shortID, r.SHA256)), dash(reason), name})
	}
	header := []string{"STATE", "NAME"}
	if long {
		header = []string{"STATE", fmt.Sprintf("%9s", "SIZE"), "TIER", "LEVEL", "SHA256", "REASON", "NAME"}
	}
	a.table(header, cells)
}

// maxOnly bounds in characters what a list shows of a restriction; why shows all.
const maxOnly = 60

func clipped(s string, max int) string {
	if r := []rune(s); len(r) > max {
		return string(r[:max-1]) + "…"
	}
	return s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
