package mint

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier/dsse"
	"golang.org/x/sys/unix"
)

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Fatalf("error is %q, want one with %q", err, p)
		}
	}
}

func TestGenerateAndOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mint.key")
	pub, err := Generate(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Fatalf("key file: %v, %v, want mode 0600", info, err)
	}
	k, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if pub.IsZero() || k.Public() != pub {
		t.Errorf("Open gives key %s, Generate said %s", k.Public().ID(), pub.ID())
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Generate(path)
	wantError(t, err, "writing mint key", "file exists")
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the second Generate touched the first key: %v", err)
	}
	// A dangling link would let somebody else choose where the key goes.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(t.TempDir(), "target"), link); err != nil {
		t.Fatal(err)
	}
	_, err = Generate(link)
	wantError(t, err, "file exists")
	_, err = Generate(filepath.Join(t.TempDir(), "none", "mint.key"))
	wantError(t, err, "no such file")
	if !(*Key)(nil).Public().IsZero() || !(&Key{}).Public().IsZero() {
		t.Error("a key that does not exist has a public half")
	}
}

// Of a key that did not get onto the disk nothing is left, so that the name is
// free for another attempt; half a key would have to be deleted by hand.
func TestGenerateOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatalf("%v (this test runs as root: sudo make test)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	full := filepath.Join(dir, "full")
	if err := os.WriteFile(full, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "mint.key")
	pub, err := Generate(path)
	wantError(t, err, "writing mint key", "no space left")
	if !pub.IsZero() {
		t.Error("a public key came with the error")
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("a key file stayed: %v", err)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if pub, err = Generate(path); err != nil || pub.IsZero() {
		t.Errorf("Generate with space again = %v", err)
	}
}

// A worker has nobody to ask for a passphrase.
func TestOpenEncrypted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mint.key")
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "correct horse", "-f", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v\n%s\nnext: sudo make deps", err, out)
	}
	k, err := Open(path)
	wantError(t, err, "opening mint key", "encrypted", "unencrypted key with mode 0600")
	if k != nil {
		t.Error("a key came with the error")
	}
}

func TestOpenRefusals(t *testing.T) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	text, err := key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	put := func(text []byte, mode os.FileMode) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"nothing there":     {func(*testing.T, string) {}, "no such file"},
		"group may read":    {put(text, 0o640), "chmod 600"},
		"others may read":   {put(text, 0o604), "chmod 600"},
		"group may write":   {put(text, 0o620), "chmod 600"},
		"others may enter":  {put(text, 0o601), "chmod 600"},
		"empty":             {put(nil, 0o600), "opening mint key"},
		"no key":            {put([]byte("hello\n"), 0o600), "opening mint key"},
		"the public half":   {put(key.Public().PEM(), 0o600), "opening mint key"},
		"cut short":         {put(text[:len(text)/2], 0o600), "opening mint key"},
		"too long":          {put(bytes.Repeat([]byte("x"), maxKeyFile+1), 0o600), "more than 16384 bytes"},
		"as long as may be": {put(bytes.Repeat([]byte("x"), maxKeyFile), 0o600), "opening mint key " + "/"},
		"symbolic link": {func(t *testing.T, path string) {
			put(text, 0o600)(t, path+".real")
			if err := os.Symlink(path+".real", path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
		"directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		"FIFO": {func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		"another user's": {func(t *testing.T, path string) {
			put(text, 0o600)(t, path)
			if err := os.Chown(path, 12345, -1); err != nil {
				t.Fatalf("%v (this test runs as root: sudo make test)", err)
			}
		}, "does not belong to user"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mint.key")
			tc.make(t, path)
			k, err := Open(path)
			wantError(t, err, "opening mint key", tc.want)
			if k != nil {
				t.Error("a key came with the error")
			}
		})
	}
}
