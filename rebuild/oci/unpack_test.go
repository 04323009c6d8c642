package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestUnpack(t *testing.T) {
	exec := file("usr/bin/tool", "#!/bin/sh\n")
	exec.Mode = 0o6710
	secret := file("etc/shadow", "root:*\n")
	secret.Mode, secret.Uid = 0o600, 42
	lower := archive(t, dir("./"), dir("usr/"), dir("usr/lib"), link("lib", "usr/lib"), link("abs", "/usr/lib"),
		file("lib/a", "1"), file("abs/b", "2"), exec, secret, hard("usr/bin/same", "usr/bin/tool"),
		file("deep/er/est", "3"), odd(tar.TypeChar, "dev/null"), file("gone", "x"), file("opaque/old", "x"), file("opaque/sub/old", "x"),
		link("away", "/etc"), file("etc/passwd", "lower"))
	upper := archive(t, file(".wh.gone", ""), file("opaque/sub/new", "n"), file("opaque/.wh..wh..opq", ""), file("opaque/new", "n"),
		file("lib/a", "replaced"), file("away/passwd", "upper"), link("etc/link", "../../../../etc/passwd"), file("etc/link", "a file now"), file(".wh.never", ""))
	want := `drwxr-xr-x . 
Lrwxrwxrwx abs /usr/lib
Lrwxrwxrwx away /etc
drwxr-xr-x deep 
drwxr-xr-x deep/er 
-rw-r--r-- deep/er/est 3
drwxr-xr-x etc 
-rw-r--r-- etc/link a file now
-rw-r--r-- etc/passwd upper
-rw-r--r-- etc/shadow root:*

Lrwxrwxrwx lib usr/lib
drwxr-xr-x opaque 
-rw-r--r-- opaque/new n
drwxr-xr-x opaque/sub 
-rw-r--r-- opaque/sub/new n
drwxr-xr-x usr 
drwxr-xr-x usr/bin 
-rwxr-xr-x usr/bin/same #!/bin/sh

-rwxr-xr-x usr/bin/tool #!/bin/sh

drwxr-xr-x usr/lib 
-rw-r--r-- usr/lib/a replaced
-rw-r--r-- usr/lib/b 2
`
	for _, c := range []Compression{Plain, Gzip, Zstd} {
		img := amd64
		img.Compression = c
		layout, d := image(t, img, lower, upper)
		dest := filepath.Join(t.TempDir(), "rootfs")
		cfg, err := Unpack(t.Context(), layout, d, dest, roomy)
		if err != nil {
			t.Errorf("Unpack %q: %v", c, err)
			continue
		}
		if got := list(t, dest); got != want {
			t.Errorf("Unpack %q:\n%s\nwant:\n%s", c, got, want)
		}
		if cfg.Platform() != "linux/amd64" || !slices.Equal(cfg.Env, amd64.Env) || cfg.WorkingDir != "/w" {
			t.Errorf("Unpack %q: configuration %+v", c, cfg)
		}
		for _, p := range []string{".", "usr/lib", "usr/lib/a", "lib"} {
			st, err := os.Lstat(filepath.Join(dest, p))
			if err != nil || !st.ModTime().Equal(day) {
				t.Errorf("Unpack %q: %s has time %v, %v", c, p, st.ModTime(), err)
			}
		}
		only(t, filepath.Dir(dest), "rootfs")
	}
}

func TestHostileArchives(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	deep := strings.Repeat("d/", 2000) + "f" // [3600:] is 200 directories and a file
	good := archive(t, file("a", "1"))
	for _, tt := range []struct {
		name  string
		layer []byte
		want  string // in the error; "" means it unpacks, harmlessly
	}{
		{"climbing name", archive(t, file("../x", "1")), "leaves the image"},
		{"climbing in the middle", archive(t, file("a/../../x", "1")), "leaves the image"},
		{"climbing inside", archive(t, file("a/b/../x", "1")), "leaves the image"},
		{"absolute name", archive(t, file("/x", "1")), "absolute"},
		{"absolute directory", archive(t, dir("/")), "absolute"},
		{"name of dots", archive(t, dir("..")), "leaves the image"},
		{"file over the root", archive(t, file(".", "1")), "root directory"},
		{"link over the root", archive(t, link("./", "/etc")), "root directory"},
		{"write through absolute link", archive(t, link("l", filepath.Dir(outside)), file("l/victim", "x")), ""},
		{"write through climbing link", archive(t, link("l", strings.Repeat("../", 20)+filepath.Dir(outside)[1:]), file("l/victim", "x")), ""},
		{"write through a chain of links", archive(t, dir("s"), link("s/up", ".."), link("up2", "s/up/.."), file("up2/etc/x", "x")), ""},
		{"write onto a link", archive(t, link("l", outside), file("l", "x")), ""},
		{"directory onto a link", archive(t, link("l", filepath.Dir(outside)), dir("l"), file("l/victim", "x")), ""},
		{"hard link out", archive(t, hard("h", "../../../../etc/passwd")), "leaves the image"},
		{"absolute hard link", archive(t, hard("h", "/etc/passwd")), "absolute"},
		{"hard link through a link", archive(t, link("l", filepath.Dir(outside)), hard("h", "l/victim")), "no such file"},
		{"hard link to a link, then write", archive(t, link("l", outside), hard("h", "l"), file("h", "x")), ""},
		{"hard link to a directory", archive(t, dir("d"), hard("h", "d")), "no file"},
		{"hard link to itself", archive(t, file("h", "x"), hard("h", "h")), "itself"},
		{"hard link to nothing", archive(t, hard("h", "nothing")), "no such file"},
		{"link loop", archive(t, link("a", "b"), link("b", "a"), file("a/x", "1")), "too many levels"},
		{"below a file", archive(t, file("a", "1"), file("a/b", "1")), "not a directory"},
		{"device", archive(t, odd(tar.TypeBlock, "sda")), "device node"},
		{"device below dev", archive(t, odd(tar.TypeChar, "dev/sub/mem")), "device node"},
		{"overlay whiteout device", archive(t, odd(tar.TypeChar, "a")), "device node"},
		{"fifo", archive(t, odd(tar.TypeFifo, "p")), "FIFO"},
		{"unknown type", archive(t, odd('Z', "z")), "unknown type"},
		{"whiteout of parent", archive(t, file(".wh...", "")), "whiteout"},
		{"whiteout of self", archive(t, file("d/.wh..", "")), "whiteout"},
		{"whiteout of nothing", archive(t, file(".wh.", "")), "whiteout"},
		{"whiteout through link", archive(t, link("l", filepath.Dir(outside)), file("l/.wh.victim", ""), file("l/.wh..wh..opq", "")), ""},
		{"2000 directories deep", archive(t, file(deep, "1")), "2001 directories deep"},
		{"1000 directories in 5 entries", archive(t, file("1/"+deep[3600:], "1"), file("2/"+deep[3600:], "1"), file("3/"+deep[3600:], "1"),
			file("4/"+deep[3600:], "1"), file("5/"+deep[3600:], "1")), "larger than allowed: directories"},
		{"too many entries", archive(t, slices.Repeat([]tar.Header{dir("d")}, 1001)...), "larger than allowed: archive entries"},
		{"too many bytes", archive(t, file("a", strings.Repeat("x", 1<<20)), file("b", strings.Repeat("x", 1<<20))), "larger than allowed"},
		{"sparse bomb", sparse(t, 1<<40), "larger than allowed"},
		{"padding bomb", append(bytes.Clone(good), make([]byte, 4<<20)...), "larger than allowed"},
		{"truncated in a file", archive(t, file("a", strings.Repeat("x", 4096)))[:2048], "unexpected EOF"},
		{"truncated in a header", good[:100], "unexpected EOF"},
		{"no archive", []byte(strings.Repeat("no", 512)), "archive/tar"},
		{"garbage after the end", append(bytes.Clone(good), "garbage"...), "after the end"},
		{"second archive after the end", append(bytes.Clone(good), good...), "after the end"},
		{"empty layer", nil, ""},
		{"padding after the end", append(bytes.Clone(good), make([]byte, 10240)...), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layout, d := image(t, amd64, tt.layer)
			parent := t.TempDir()
			_, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), Limits{Bytes: 2 << 20, Entries: 1000})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("Unpack: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("Unpack: %v, want an error with %q", err, tt.want)
			}
			if strings.Contains(tt.want, "larger than allowed") != errors.Is(err, errBudget) {
				t.Errorf("Unpack: %v is not about the limits", err)
			}
			if err != nil {
				only(t, parent)
			} else {
				only(t, parent, "rootfs")
			}
			if text, err := os.ReadFile(outside); err != nil || string(text) != "untouched" {
				t.Fatalf("file outside the image: %q, %v", text, err)
			}
			only(t, filepath.Dir(outside), "victim")
		})
	}
}

// sparse is an archive of one file of a terabyte that holds nothing (PAX
// format 1.0 of GNU tar).
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	content := make([]byte, 512)
	copy(content, fmt.Sprintf("1\n%d\n0\n", size))
	var b bytes.Buffer
	record := func(k, v string) string {
		for n := len(k) + len(v) + 3; ; n++ {
			if r := fmt.Sprintf("%d %s=%s\n", n, k, v); len(r) == n {
				return r
			}
		}
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "big") + record("GNU.sparse.realsize", fmt.Sprint(size))
	block := func(kind byte, name string, n int) {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00        %c", 0o644, 0, 0, n, 0, kind))
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(h)
	}
	block('x', "pax", len(pax))
	b.WriteString(pax + strings.Repeat("\x00", 512-len(pax)%512))
	block('0', "big", len(content))
	b.Write(content)
	b.Write(make([]byte, 1024))
	h, err := tar.NewReader(bytes.NewReader(b.Bytes())).Next()
	if err != nil || h.Size != size {
		t.Fatalf("the sparse archive reads as %+v, %v", h, err)
	}
	return b.Bytes()
}

func TestBombs(t *testing.T) {
	zeros := archive(t, file("zeros", strings.Repeat("\x00", 32<<20)))
	for _, c := range []Compression{Gzip, Zstd} {
		img := amd64
		img.Compression = c
		layout, d := image(t, img, zeros)
		parent := t.TempDir()
		_, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), Limits{Bytes: 1 << 20, Entries: 10})
		if !errors.Is(err, errBudget) {
			t.Errorf("Unpack of a %s bomb: %v, want %v", c, err, errBudget)
		}
		only(t, parent)
	}
	// Many layers of one small blob: the limits are of the image.
	small := archive(t, file("a", strings.Repeat("x", 100<<10)))
	layout, d := image(t, amd64, slices.Repeat([][]byte{small}, 20)...)
	if _, err := Unpack(t.Context(), layout, d, filepath.Join(t.TempDir(), "rootfs"), Limits{Bytes: 1 << 20, Entries: 100}); !errors.Is(err, errBudget) {
		t.Errorf("Unpack of 20 layers: %v, want %v", err, errBudget)
	}
}

// Entries whose names compress to nothing would fill the memory.
func TestNamesBounded(t *testing.T) {
	root, err := openRoot(t.TempDir(), 10)
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	if root.names != maxNames {
		t.Errorf("names are bounded by %d bytes, want %d", root.names, maxNames)
	}
	root.names = 10
	left := Limits{Bytes: 1 << 20, Entries: 100}
	err = applyEntries(bytes.NewReader(archive(t, file("12345", "1"), file("67890", "1"), file("x", "1"))), root, &left)
	if !errors.Is(err, errBudget) || !strings.Contains(err.Error(), "paths of more than") {
		t.Errorf("11 bytes of names where 10 are allowed: %v", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	layout, d := image(t, amd64, archive(t, file("a", "1")))
	dest := t.TempDir()
	if _, err := Unpack(t.Context(), layout, d, dest, roomy); !errors.Is(err, os.ErrExist) {
		t.Errorf("Unpack over a directory: %v, want %v", err, os.ErrExist)
	}
	for _, lim := range []Limits{{}, {Bytes: 1}, {Entries: 1}, {Bytes: -1, Entries: 1}} {
		if _, err := Unpack(t.Context(), layout, d, filepath.Join(dest, "x"), lim); err == nil {
			t.Errorf("Unpack with %+v was allowed", lim)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, layout, d, filepath.Join(dest, "x"), roomy); !errors.Is(err, context.Canceled) {
		t.Errorf("Unpack after cancel: %v", err)
	}
	only(t, dest)
	// A blob that is a link or a FIFO is no blob.
	blob := filepath.Join(layout, "blobs/sha256", d.String())
	os.Rename(blob, blob+"x")
	os.Symlink(blob+"x", blob)
	if _, err := Unpack(t.Context(), layout, d, filepath.Join(dest, "x"), roomy); err == nil {
		t.Error("Unpack followed a link")
	}
}
