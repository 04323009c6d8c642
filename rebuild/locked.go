package rebuild

import (
	"context"
	"fmt"
	"os"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/lock"
)

// locked compares what the lockfile names with what the image really has, where
// the ledger says how the lockfile is read. Nothing of the image is run.
func (g *gatherer) locked(ctx context.Context) error {
	want, ok := g.st.Lockfile()
	if !ok || want.Annotations == nil || want.Annotations.Format == "" {
		return nil
	}
	format, extras := want.Annotations.Format, want.Annotations.Extras
	g.say(PhaseLock, 0, "comparing the image with the lockfile (%s, extra packages %s)", format, extras)
	have, err := lock.Installed(ctx, g.in.rootfs)
	if err != nil {
		if ctx.Err() != nil || exhausted(err) {
			return err
		}
		return fail(capstore.PolicyRefused, "locked dependencies: reading what the image has installed: %v", err)
	}
	text, err := os.ReadFile(g.lockfilePath())
	if err != nil {
		return fmt.Errorf("locked dependencies: %w", err)
	}
	list, err := lock.ParseFor(format, text, lock.Python(have))
	if err != nil {
		return fail(capstore.PolicyRefused, "locked dependencies: %v", err)
	}
	d := lock.Compare(list, have, lock.Extras(extras))
	if d.OK() {
		return nil
	}
	f := fail(capstore.PolicyRefused, "locked dependencies: the environment image is not what the lockfile names: %d missing, %d extra, %d of another version, %d as locked",
		len(d.Missing), len(d.Extra), len(d.Differ), d.Matched)
	f.Diagnosis = escape(d.String())
	return f
}

func (g *gatherer) lockfilePath() string {
	for _, m := range g.in.mounts {
		if m.Name == "lockfile" {
			return m.Path
		}
	}
	return ""
}
