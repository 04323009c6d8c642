package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

func TestRefusedThenGranted(t *testing.T) {
	m := mountEmpty(t)
	good := sample(1, 3*hashpipe.UnitSize+12345)
	m.write("acme/langid.bin", good)
	m.refuses("acme/langid.bin", syscall.EACCES, ReasonNoCapability)
	if s := m.stats(); s.Hashed != 0 {
		t.Errorf("%d files hashed although no capability has their size", s.Hashed)
	}
	m.grant("langid.bin", good)
	m.reads("acme/langid.bin", good)
	m.reads("acme/langid.bin", good)
	r := m.lastRecord("acme/langid.bin", Granted)
	if r.Digest != sumOf(good) || r.Tier != TierBlocks || r.Model != "acme/langid" || len(r.Capability) != 64 {
		t.Errorf("record of a grant: %+v", r)
	}
	if s := m.stats(); s.Hashed != 1 {
		t.Errorf("hashed %d times for two opens, want 1", s.Hashed)
	}
}

func TestRefusals(t *testing.T) {
	m := mountEmpty(t)
	good, other := sample(1, 700_000), sample(2, 700_000)
	tampered := bytes.Clone(good)
	tampered[len(tampered)/2] ^= 1
	m.grant("langid.bin", good)
	m.grant("other.bin", other)
	m.grant("empty.cfg", nil)
	m.write("1/langid.bin", tampered)
	m.write("2/langid.bin", good[:len(good)-1])
	m.write("3/langid.bin", append(bytes.Clone(good), 0))
	m.write("4/model.bin", good)
	m.write("5/langid.bin", other)
	m.write("6/__pycache__/x.pyc", []byte("planted"))
	m.write("7/langid.bin", nil)
	m.write("blobs/"+sumOf(good), tampered)
	m.write("blobs/sha256-"+sumOf(tampered), tampered)
	m.write("8/empty.cfg", []byte("x"))
	for _, c := range []struct {
		name string
		why  Reason
	}{
		{"1/langid.bin", ReasonWrongBytes},
		{"2/langid.bin", ReasonWrongSize},
		{"3/langid.bin", ReasonWrongSize},
		{"4/model.bin", ReasonWrongName},
		{"5/langid.bin", ReasonWrongName},
		{"6/__pycache__/x.pyc", ReasonNoCapability},
		{"7/langid.bin", ReasonWrongName}, // the bytes of empty.cfg: none
		{"blobs/" + sumOf(good), ReasonWrongBytes},
		{"blobs/sha256-" + sumOf(tampered), ReasonNoCapability},
		{"8/empty.cfg", ReasonWrongSize},
	} {
		m.refuses(c.name, syscall.EACCES, c.why)
	}
	// What is refused is listed and can be stat'ed all the same.
	if r := m.run("stat", m.at("1/langid.bin")); r.Errno != 0 || r.Size != int64(len(tampered)) {
		t.Errorf("stat of a refused file: %v", r)
	}
	if r := m.run("list", m.at("6/__pycache__")); r.Names != 1 {
		t.Errorf("listing beside a refused file: %v", r)
	}
	// And right beside them the right ones open.
	for name, data := range map[string][]byte{
		"9/langid.bin": good, "9/other.bin": other, "9/empty.cfg": nil,
		"hf/blobs/" + sumOf(good): good, "ollama/blobs/sha256-" + sumOf(other): other,
	} {
		m.write(name, data)
		m.reads(name, data)
	}
}

func TestReadsInEveryWay(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		for _, size := range []int{1, 4096, 4097, hashpipe.UnitSize - 1, hashpipe.UnitSize, hashpipe.UnitSize + 1, 5*hashpipe.UnitSize + 777} {
			data := sample(byte(size), size)
			name := fmt.Sprintf("model-%d.bin", size)
			m.write(name, data)
			m.grant(name, data)
			for _, op := range []string{"read", "pread", "mmap-shared", "mmap-private", "sendfile", "direct"} {
				r := m.run(op, m.at(name))
				if op == "direct" && r.Errno == syscall.EINVAL && r.Call == "open" {
					continue // a file system may do without direct I/O
				}
				if r.Errno != 0 || r.SHA256 != sumOf(data) || r.Size != int64(size) {
					t.Errorf("%s of %s: %v (%s)", op, name, r, r.Text)
				}
			}
		}
		// What a reader must not get from a mapping.
		for op, want := range map[string]syscall.Errno{"mmap-write": syscall.EACCES, "mmap-exec": syscall.EPERM} {
			if r := m.run(op, m.at("model-4096.bin")); r.Errno != want || r.Call != "mmap" {
				t.Errorf("%s: %v, want mmap: %v", op, r, want)
			}
		}
	})
}

func TestEveryWriteIsRefused(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		good := sample(3, 100_000)
		p := m.write("model.bin", good)
		m.grant("model.bin", good)
		if err := os.Mkdir(filepath.Join(m.src, "empty"), 0o755); err != nil {
			t.Fatal(err)
		}
		check := func(when string) {
			t.Helper()
			r := m.run("mutate", m.dir)
			if len(r.Errnos) < 15 {
				t.Fatalf("%s: only %d attempts were made", when, len(r.Errnos))
			}
			for call, got := range r.Errnos {
				if got != syscall.EROFS && !(call == "tmpfile" && got == syscall.EOPNOTSUPP) {
					t.Errorf("%s: %s = %v, want EROFS", when, call, got)
				}
			}
			if data, err := os.ReadFile(p); err != nil || !bytes.Equal(data, good) {
				t.Fatalf("%s: the source was changed: %v", when, err)
			}
			if _, err := os.Stat(filepath.Join(m.src, "new")); err == nil {
				t.Errorf("%s: a file was created in the source", when)
			}
		}
		check("as mounted")
		// Root may take the kernel's read-only flag off; the daemon refuses by itself.
		if err := unix.Mount("", m.dir, "", unix.MS_REMOUNT, ""); err != nil {
			t.Fatalf("remounting writable: %v", err)
		}
		check("remounted writable")
		m.reads("model.bin", good)
	})
}

func TestMountFlags(t *testing.T) {
	m := mountEmpty(t)
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if !strings.Contains(line, " "+m.dir+" ") {
			continue
		}
		for _, want := range []string{"ro,", "nosuid", "nodev", "noexec", "default_permissions", "allow_other", "fuse.clawfs clawfs"} {
			if !strings.Contains(line, want) {
				t.Errorf("mount has no %q: %s", want, line)
			}
		}
		return
	}
	t.Fatalf("%s is not mounted", m.dir)
}

func TestStat(t *testing.T) {
	m := mountEmpty(t)
	data := sample(4, 5000)
	p := m.write("model.bin", data)
	m.grant("model.bin", data)
	at := time.Date(2026, 11, 20, 9, 0, 0, 123456789, time.UTC)
	if err := os.Chtimes(p, at, at); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("mode=100644 ino=%d blksize=4096 mtime=%d.%09d nlink=1 readonly=true", st.Ino, at.Unix(), at.Nanosecond())
	before := m.run("stat", m.at("model.bin"))
	m.reads("model.bin", data)
	after := m.run("stat", m.at("model.bin"))
	if before.Text != want || after.Text != want {
		t.Errorf("stat before and after open:\n%s\n%s, want\n%s", before.Text, after.Text, want)
	}
	// The mode decides who reads, and a change of it is seen at the next open.
	if err := os.Chmod(p, 0); err != nil {
		t.Fatal(err)
	}
	if r := m.run("read-as-nobody", m.at("model.bin")); r.Errno != syscall.EACCES {
		t.Errorf("nobody reading a file of mode 0: %v, want EACCES", r)
	}
	if err := os.Chmod(p, 0o644); err != nil {
		t.Fatal(err)
	}
	// The kernel refuses by itself for as long as it believes the last lookup.
	time.Sleep(nameTimeout + 100*time.Millisecond)
	if r := m.run("read-as-nobody", m.at("model.bin")); r.SHA256 != sumOf(data) {
		t.Errorf("nobody reading a file of mode 0644: %v", r)
	}
}

func TestDirectories(t *testing.T) {
	m := mountEmpty(t)
	m.write("d/file", []byte("x"))
	if err := os.Mkdir(filepath.Join(m.src, "d/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(m.src, "d/link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(m.src, "d/fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	r := m.run("list", m.at("d"))
	want := "---------- fifo\n---------- file\nL--------- link\nd--------- sub\n"
	if r.Text != want {
		t.Errorf("listing:\n%swant:\n%s", r.Text, want)
	}
	if r := m.run("read", m.at("d/nothing")); r.Errno != syscall.ENOENT {
		t.Errorf("a name that is not there: %v", r)
	}
	if r := m.run("list", m.at("d/file")); r.Errno != syscall.ENOTDIR {
		t.Errorf("listing a file: %v", r)
	}
}

func TestHugeDirectory(t *testing.T) {
	const files = 100_000
	m := mountEmpty(t)
	dir := filepath.Join(m.src, "many")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range files {
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprintf("shard-%05d", i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	if r := m.run("list", m.at("many")); r.Errno != 0 || r.Names != files {
		t.Errorf("listing and lstat: %d names, %v", r.Names, r)
	}
}

// A visible FIFO would be opened by the kernel itself, and its reader would hang.
func TestSpecialFiles(t *testing.T) {
	m := mountEmpty(t)
	m.grant("pipe", nil)
	if err := unix.Mkfifo(filepath.Join(m.src, "pipe"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(m.src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(m.src, "sock")}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "null", "sock"} {
		if r := m.run("stat", m.at(name)); r.Size != 0 || !strings.HasPrefix(r.Text, "mode=100000 ") {
			t.Errorf("stat of %s: %s, want an empty regular file of mode 0", name, r.Text)
		}
		m.refuses(name, syscall.EACCES, ReasonSpecial)
	}
}

func TestSymlinks(t *testing.T) {
	m := mountEmpty(t)
	secret := filepath.Join(tempDir(t), "secret")
	if err := os.WriteFile(secret, []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := sample(5, 60_000)
	m.grant("model.safetensors", good)
	blob := "hf/blobs/" + sumOf(good)
	m.write(blob, good)
	m.write("real/model.safetensors", good)
	link := func(target, name string) {
		t.Helper()
		p := filepath.Join(m.src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
	}
	link("../../blobs/"+sumOf(good), "hf/snapshots/rev/model.safetensors")
	link("../../blobs/"+sumOf(good), "hf/snapshots/rev/tokenizer.json")
	link("../../blobs/"+sumOf(sample(6, 10)), "hf/snapshots/rev/unknown.bin")
	link("real", "alias")
	link("real/model.safetensors", "relative")
	link(secret, "absolute")
	link("../../../../../../../../.."+secret, "up")
	link("/proc/self/root"+secret, "magic")
	link(".", "here")
	link("here/../..", "after-a-link")
	link("loop", "loop")

	m.reads("hf/snapshots/rev/model.safetensors", good)
	m.reads("alias/model.safetensors", good)
	m.reads("relative", good)
	for name, why := range map[string]Reason{
		"absolute": ReasonSymlink, "up": ReasonSymlink, "magic": ReasonSymlink, "after-a-link": ReasonSymlink,
		"hf/snapshots/rev/tokenizer.json": ReasonWrongName,
	} {
		m.refuses(name, syscall.EACCES, why)
	}
	if r := m.run("read", m.at("hf/snapshots/rev/unknown.bin")); r.Errno != syscall.ENOENT {
		t.Errorf("a link to a blob that is not there: %v", r)
	}
	if r := m.run("read", m.at("loop")); r.Errno != syscall.ELOOP {
		t.Errorf("a link to itself: %v", r)
	}
}

// A directory of the source that is exchanged for a link while it is in use
// leads nowhere, however the kernel's caches stand.
func TestDirectoryBecomesLink(t *testing.T) {
	m := mountEmpty(t)
	good := sample(7, 5000)
	m.grant("model.bin", good)
	m.write("d/model.bin", good)
	outside := tempDir(t)
	if err := os.WriteFile(filepath.Join(outside, "model.bin"), good, 0o644); err != nil {
		t.Fatal(err)
	}
	m.reads("d/model.bin", good)
	if err := os.Rename(filepath.Join(m.src, "d"), filepath.Join(m.src, "was")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(m.src, "d")); err != nil {
		t.Fatal(err)
	}
	if r := m.run("read", m.at("d/model.bin")); r.Errno != syscall.EACCES {
		t.Errorf("through a directory that became a link to outside: %v, want EACCES", r)
	}
	m.reads("was/model.bin", good)
}

func TestMountRefusesBadPlaces(t *testing.T) {
	dir := tempDir(t)
	src, inside := filepath.Join(dir, "src"), filepath.Join(dir, "src/mnt")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(inside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	view := newDesk(t).view
	for _, c := range []struct {
		name string
		c    Config
		want string
	}{
		{"no view", Config{Source: src, Mountpoint: dir}, "no view"},
		{"no source", Config{Source: filepath.Join(dir, "nothing"), Mountpoint: dir, View: view}, "no such file"},
		{"no mount point", Config{Source: src, Mountpoint: filepath.Join(dir, "nothing"), View: view}, "no such file"},
		{"a file", Config{Source: src, Mountpoint: filepath.Join(dir, "file"), View: view}, "no directory"},
		{"inside the source", Config{Source: src, Mountpoint: inside, View: view}, "inside the source"},
		{"inside the source by a link", Config{Source: src, Mountpoint: filepath.Join(dir, "link"), View: view}, "inside the source"},
		{"around the source", Config{Source: src, Mountpoint: dir, View: view}, "inside the mount point"},
		{"the source itself", Config{Source: src, Mountpoint: src, View: view}, "source itself"},
		{"negative workers", Config{Source: src, Mountpoint: dir, View: view, HashWorkers: -1}, "hash workers"},
	} {
		s, err := Mount(c.c)
		if err == nil {
			s.Unmount()
			t.Fatalf("%s: mounted", c.name)
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to mention %q", c.name, err, c.want)
		}
	}
}

// A mount that shows up inside its own source would make the daemon wait for
// itself.
func TestOwnMountInsideTheSource(t *testing.T) {
	m := mountEmpty(t)
	good := sample(9, 1000)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	inner := filepath.Join(m.src, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(m.dir, inner, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if r := m.run("stat", m.at("inner")); r.Errno != syscall.EACCES {
		t.Errorf("stat of the mount inside itself: %v, want EACCES", r)
	}
	if r := m.run("read", m.at("inner/model.bin")); r.Errno != syscall.EACCES {
		t.Errorf("reading through the mount inside itself: %v, want EACCES", r)
	}
	m.reads("model.bin", good)
	if err := unix.Unmount(inner, 0); err != nil {
		t.Errorf("umount %s: %v", inner, err)
	}
}

func TestXattrs(t *testing.T) {
	m := mountEmpty(t)
	good := sample(8, 9000)
	evil := bytes.Clone(good)
	evil[0] ^= 1
	m.grant("model.bin", good)
	m.write("a/model.bin", good)
	m.write("b/model.bin", evil)
	m.write("c/unknown.txt", []byte("hello"))
	get := func(name, attr string) string {
		t.Helper()
		r := m.run("getxattr", m.at(name), attr)
		if r.Errno == syscall.ENODATA {
			return "ENODATA"
		}
		if r.Errno != 0 {
			t.Fatalf("getxattr %s %s: %v", name, attr, r)
		}
		return r.Text
	}
	want := func(name, attr, value string) {
		t.Helper()
		if got := get(name, attr); got != value {
			t.Errorf("%s of %s = %q, want %q", attr, name, got, value)
		}
	}
	// Cheap ones do not hash.
	want("a/model.bin", "user.clawfs.status", "unknown")
	want("a/model.bin", "user.clawfs.digest", "ENODATA")
	want("c/unknown.txt", "user.clawfs.status", "refused")
	want("c/unknown.txt", "user.clawfs.reason", "no-capability")
	want("a/model.bin", "user.other", "ENODATA")
	want("a/model.bin", "security.capability", "ENODATA")
	if s := m.stats(); s.Hashed != 0 {
		t.Errorf("%d files hashed by cheap attributes", s.Hashed)
	}
	m.reads("a/model.bin", good)
	want("a/model.bin", "user.clawfs.status", "granted")
	want("a/model.bin", "user.clawfs.digest", sumOf(good))
	want("a/model.bin", "user.clawfs.tier", "blocks")
	want("a/model.bin", "user.clawfs.level", "rebuilt")
	want("a/model.bin", "", "user.clawfs.status user.clawfs.digest user.clawfs.tier user.clawfs.reason user.clawfs.level ")

	var e Explanation
	why := get("b/model.bin", "user.clawfs.why")
	if err := json.Unmarshal([]byte(why), &e, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("user.clawfs.why is %s: %v", why, err)
	}
	if e.Allowed || e.Reason != ReasonWrongBytes || e.SHA256 != sumOf(evil) || e.Size != int64(len(evil)) ||
		e.Path != m.at("b/model.bin") || e.Model != "acme/langid" || !strings.Contains(e.Detail, sumOf(good)) || e.Next == "" {
		t.Errorf("why of a tampered file: %s", why)
	}
	want("b/model.bin", "user.clawfs.status", "refused")
	e = Explanation{}
	why = get("a/model.bin", "user.clawfs.why")
	if err := json.Unmarshal([]byte(why), &e); err != nil || !e.Allowed || e.Tier != "blocks" || e.NotAfter == nil || len(e.Claim) != 64 || len(e.Publisher) != 64 {
		t.Errorf("why of a granted file: %s (%v)", why, err)
	}
	e = Explanation{}
	why = get("c/unknown.txt", "user.clawfs.why")
	if err := json.Unmarshal([]byte(why), &e); err != nil || e.Reason != ReasonNoCapability || !strings.Contains(e.Next, "clawfs grant") {
		t.Errorf("why of an unknown file: %s (%v)", why, err)
	}
}
