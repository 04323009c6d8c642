package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/rebuild/lock"
)

func newLedgerLockCommand(a *app) *cobra.Command {
	var image, format, out string
	c := &cobra.Command{
		Use:   "lock --image DIR --format FORMAT",
		Short: "Write a lockfile of what an environment image has installed",
		Long: `Unpacks an image, reads what it has installed without running anything of it, and
writes the list in a format that a ledger's lockfile may have: pip-freeze for
Python packages, dpkg for Debian's. Each rebuild then compares the image with it:

  clawfs ledger lock --image ./image --format pip-freeze --out requirements.lock
  clawfs ledger new … --lockfile requirements.lock --lock-format pip-freeze --lock-extras refused`,
		Example: `  clawfs ledger lock --image ./image --format dpkg`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ecosystem, ok := map[string]string{"pip-freeze": lock.PyPI, "dpkg": lock.Deb}[format]
			if !ok {
				return exitf(codeUsage, "--format %q: want pip-freeze or dpkg", format)
			}
			text, err := a.lockImage(c.Context(), image, ecosystem)
			if err != nil {
				return err
			}
			return a.writeResult(out, text)
		},
	}
	f := c.Flags()
	f.StringVar(&image, "image", "", "OCI image layout `DIR[@sha256:…]`")
	f.StringVar(&format, "format", "", "pip-freeze or dpkg")
	f.StringVar(&out, "out", "-", "`file` to write, - for standard output")
	c.MarkFlagRequired("image")
	c.MarkFlagRequired("format")
	return c
}

func (a *app) lockImage(ctx context.Context, image, ecosystem string) (text []byte, err error) {
	d, err := imageDependency(ctx, image, "", rebuild.HostPlatform())
	if err != nil {
		return nil, err
	}
	layout, _ := splitAt(image)
	scratch, err := os.MkdirTemp("", "clawfs-lock-")
	if err != nil {
		return nil, err
	}
	defer removeTree(scratch)
	rootfs := filepath.Join(scratch, "rootfs")
	bar := a.progress("unpacking " + image)
	_, err = rebuild.UnpackImage(ctx, layout, d.Digest.SHA256, rootfs)
	bar.done()
	if err != nil {
		return nil, fmt.Errorf("--image %s: %w", image, err)
	}
	have, err := lock.Installed(ctx, rootfs)
	if err == nil && len(have) == 0 {
		err = errors.New("it has no packages that are known here: neither dist-info, nor conda-meta, nor a dpkg database")
	}
	if err == nil {
		text, err = lock.Write(have, ecosystem)
	}
	if err != nil {
		return nil, exitf(codeRefused, "--image %s: %w", image, err)
	}
	return text, nil
}
