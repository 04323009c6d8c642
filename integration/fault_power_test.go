package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// image is a file system in a file, on a loop device.
type image struct {
	t              *testing.T
	kind, file, at string
	options        string
	mounts         int
}

// newImage makes and mounts a file system of some MiB. What mkfs gets beside it
// is more.
func newImage(t *testing.T, kind string, size int, options string, more ...string) *image {
	t.Helper()
	dir, err := os.MkdirTemp("", "clawfs-"+kind+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	i := &image{t: t, kind: kind, file: filepath.Join(dir, "image"), at: filepath.Join(dir, "at"), options: strings.TrimSuffix("loop,"+options, ",")}
	f, err := os.Create(i.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size) << 20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(i.at, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs."+kind, append(append([]string{"-q"}, more...), i.file)...)
	i.mount()
	t.Cleanup(i.unmount)
	return i
}

// mount mounts what is on the disk. After the first time that is a copy of it: a
// mount namespace that somebody made meanwhile, as each container is one, keeps the
// file system alive as it was, and the kernel would give that one again.
func (i *image) mount(more ...string) {
	i.t.Helper()
	if i.mounts++; i.mounts > 1 {
		next := fmt.Sprintf("%s.%d", strings.TrimRight(i.file, ".0123456789"), i.mounts)
		command(i.t, "cp", "--sparse=always", i.file, next)
		if err := os.Remove(i.file); err != nil {
			i.t.Fatal(err)
		}
		i.file = next
	}
	command(i.t, "mount", "-o", strings.Join(append([]string{i.options}, more...), ","), i.file, i.at)
	if err := os.Chmod(i.at, 0o700); err != nil && !strings.Contains(err.Error(), "read-only") {
		i.t.Fatal(err)
	}
}

func (i *image) unmount() {
	i.t.Helper()
	for try := 0; ; try++ {
		err := syscall.Unmount(i.at, 0)
		if err == nil || err == syscall.EINVAL {
			return
		}
		if try == 200 {
			i.t.Errorf("unmounting %s: %v", i.at, err)
			syscall.Unmount(i.at, syscall.MNT_DETACH)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// free is how many bytes are free for anybody but root.
func (i *image) free() int64 {
	i.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(i.at, &st); err != nil {
		i.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// The power goes while the daemon grants and revokes: whatever the file system
// had not written by then is gone, and what was acknowledged is there.
//
// The file system is shut down without its log being written
// (FS_IOC_SHUTDOWN), so this shows that everything was synced before it was
// acknowledged. It does not show what a disk does that lies about that.
func TestFaultPowerLoss(t *testing.T) {
	rng := dice(t)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			i := newImage(t, kind, 400, "")
			h := newHost(t, i.at)
			var starts longest
			starts = append(starts, h.mustStart())
			var last found
			for round := range *faultFlags.power {
				h.losePower(rng, i, fmt.Sprintf("p%d", round))
				i.mount()
				starts = append(starts, h.mustStart())
				last = h.wantAll(fmt.Sprintf("round %d", round))
			}
			h.kill()
			t.Logf("%s: %d power losses; %v; %v", kind, *faultFlags.power, last, starts)
		})
	}
}

// losePower lets two clients work, shuts the file system down at a random
// moment, and takes it away from under the daemon.
func (h *host) losePower(rng *rand.Rand, i *image, tag string) {
	h.t.Helper()
	gone := make(chan error, 2)
	begun := make(chan struct{}, 2)
	for client := range 2 {
		go func() { gone <- h.work(fmt.Sprintf("%sc%d", tag, client), func() { begun <- struct{}{} }) }()
	}
	for range 2 {
		select {
		case <-begun:
		case err := <-gone:
			h.t.Fatalf("the work ended before the power: %v\n%s", err, h.tail())
		}
	}
	time.Sleep(time.Duration(rng.IntN(60_000)) * time.Microsecond)
	command(h.t, "xfs_io", "-x", "-c", "shutdown", i.at)
	for range 2 {
		// Of two, one may meet the store that is being closed for the other's error.
		if err := <-gone; asRefusal(err) != nil && !strings.Contains(err.Error(), "the daemon has just let go of its store") {
			h.inWords(err, "input/output error")
		}
	}
	h.kill()
	i.unmount()
}
