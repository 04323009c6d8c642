package fs

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// tierCase is a way in which this machine can serve a content.
type tierCase struct {
	name   string
	tier   string                        // as the mount says it
	change func(testing.TB, *serverSpec) // makes a mount choose it
}

var tiers = []tierCase{
	{"blocks", TierBlocks, func(testing.TB, *serverSpec) {}},
	{"sealed-copy", TierSealed, func(_ testing.TB, s *serverSpec) { s.Seal, s.SealFrom = SealCopy, 1 }},
	{"sealed-reflink", TierSealed, func(tb testing.TB, s *serverSpec) {
		onXFS(tb, s.Source)
		s.Seal, s.SealFrom = SealReflink, 1
	}},
}

// everyTier runs a test once on each tier. The test makes its mounts with
// mountEmpty(t, choose).
func everyTier(t *testing.T, run func(t *testing.T, choose func(*serverSpec))) {
	t.Helper()
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			run(t, func(s *serverSpec) { tier.change(t, s) })
		})
	}
}

// onXFS mounts a fresh file system that can share blocks at dir.
func onXFS(tb testing.TB, dir string) {
	tb.Helper()
	image := filepath.Join(tempDir(tb), "xfs.img")
	f, err := os.Create(image)
	if err != nil {
		tb.Fatal(err)
	}
	err = f.Truncate(16 << 30)
	f.Close()
	if err != nil {
		tb.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.xfs", "-q", "-m", "reflink=1", image},
		{"mount", "-o", "loop", image, dir},
		{"chmod", "755", dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			tb.Fatalf("%q: %v: %s (apt-get install xfsprogs mount)", args, err, out)
		}
	}
	tb.Cleanup(func() {
		err := syscall.Unmount(dir, 0)
		for range 50 {
			if err != syscall.EBUSY {
				break
			}
			// The kernel lets go of a backing file some time after its last reader.
			time.Sleep(100 * time.Millisecond)
			err = syscall.Unmount(dir, 0)
		}
		if err != nil {
			syscall.Unmount(dir, syscall.MNT_DETACH)
			tb.Errorf("unmounting the source: %v", err)
		}
	})
}

// noVault is that of a mount that does not seal.
func noVault(t *testing.T) *vault {
	t.Helper()
	v, err := newVault(Config{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
