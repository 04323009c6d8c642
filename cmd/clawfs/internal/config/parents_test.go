package config

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is above the state directory decides which state directory it is.
func TestCheckParents(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, base string) State // below base, which is 0700
		want []string                              // nil is accepted
	}{
		{"sticky directory of root", func(t *testing.T, base string) State {
			return stateIn(t, makeDir(t, filepath.Join(base, "tmp"), 0o777|os.ModeSticky))
		}, nil},
		{"sticky directory of somebody", func(t *testing.T, base string) State {
			dir := makeDir(t, filepath.Join(base, "tmp"), 0o777|os.ModeSticky)
			s := stateIn(t, dir)
			give(t, dir)
			return s
		}, []string{"others can change", "uid 65534", "chown 0 "}},
		{"directory of somebody", func(t *testing.T, base string) State {
			dir := makeDir(t, filepath.Join(base, "home"), 0o755)
			s := stateIn(t, dir)
			give(t, dir)
			return s
		}, []string{"others can change", "uid 65534", "chown 0 "}},
		{"grandparent that a group can write", func(t *testing.T, base string) State {
			dir := makeDir(t, filepath.Join(base, "srv"), 0o775)
			return stateIn(t, makeDir(t, filepath.Join(dir, "models"), 0o755))
		}, []string{"others can change", "mode 0775", "chmod 0755 "}},
		{"through a link", func(t *testing.T, base string) State {
			s := stateIn(t, makeDir(t, filepath.Join(base, "real"), 0o755))
			makeLink(t, "real", filepath.Join(base, "link"))
			return State(filepath.Join(base, "link", filepath.Base(string(s))))
		}, nil},
		{"through an absolute link and back", func(t *testing.T, base string) State {
			s := stateIn(t, makeDir(t, filepath.Join(base, "real"), 0o755))
			makeLink(t, base+"/real/../real/./", filepath.Join(base, "link"))
			return State(filepath.Join(base, "link", filepath.Base(string(s))))
		}, nil},
		{"through a link that lies where others write", func(t *testing.T, base string) State {
			s := stateIn(t, makeDir(t, filepath.Join(base, "real"), 0o755))
			open := makeDir(t, filepath.Join(base, "open"), 0o777)
			makeLink(t, filepath.Join(base, "real"), filepath.Join(open, "link"))
			return State(filepath.Join(open, "link", filepath.Base(string(s))))
		}, []string{"others can change", "mode 0777", "chmod 0755 "}},
		{"through somebody's link in a sticky directory", func(t *testing.T, base string) State {
			s := stateIn(t, makeDir(t, filepath.Join(base, "real"), 0o755))
			tmp := makeDir(t, filepath.Join(base, "tmp"), 0o777|os.ModeSticky)
			makeLink(t, filepath.Join(base, "real"), filepath.Join(tmp, "link"))
			if err := os.Lchown(filepath.Join(tmp, "link"), 65534, 65534); err != nil {
				t.Fatal(err)
			}
			return State(filepath.Join(tmp, "link", filepath.Base(string(s))))
		}, []string{"others can change", "uid 65534", "chown -h 0 "}},
		{"through a link to what others can write", func(t *testing.T, base string) State {
			s := stateIn(t, makeDir(t, filepath.Join(base, "open"), 0o777))
			makeLink(t, "open", filepath.Join(base, "link"))
			return State(filepath.Join(base, "link", filepath.Base(string(s))))
		}, []string{"others can change", "mode 0777"}},
		{"links in a circle", func(t *testing.T, base string) State {
			makeLink(t, "b", filepath.Join(base, "a"))
			makeLink(t, "a", filepath.Join(base, "b"))
			return State(filepath.Join(base, "a", "state"))
		}, []string{"too many levels of symbolic links"}},
		{"the state directory itself a link", func(t *testing.T, base string) State {
			s := stateIn(t, base)
			makeLink(t, string(s), filepath.Join(base, "link"))
			return State(filepath.Join(base, "link"))
		}, []string{"is a symbolic link, want a directory"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			checked(t, tt.make(t, makeDir(t, filepath.Join(base, "base"), 0o700)).Check(), tt.want)
		})
	}
}

// The files of directories that nobody else may enter have modes of their own.
func TestCheckFiles(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, s State)
		want []string
	}{
		{"store.key readable by all", func(t *testing.T, s State) { makeFile(t, filepath.Join(s.Memory(), "store.key"), 0o644) }, []string{"store.key: mode 0644", "chmod 0600 "}},
		{"store.key of somebody", func(t *testing.T, s State) {
			makeFile(t, filepath.Join(s.Memory(), "store.key"), 0o600)
			give(t, filepath.Join(s.Memory(), "store.key"))
		}, []string{"store.key: belongs to uid 65534", "chown 0 "}},
		{"store.key a link", func(t *testing.T, s State) { makeLink(t, "/etc/hostname", filepath.Join(s.Memory(), "store.key")) }, []string{"store.key: is a symbolic link"}},
		{"private memory", func(t *testing.T, s State) { makeFile(t, filepath.Join(s.Memory(), "store.key"), 0o600) }, nil},
		{"memory readable by others", func(t *testing.T, s State) { os.Chmod(s.Memory(), 0o750) }, []string{"memory: mode 0750", "chmod 0700 "}},
		{"kept open to others", func(t *testing.T, s State) { makeDir(t, s.Kept(), 0o711) }, []string{"kept: mode 0711", "chmod 0700 "}},
		{"a kept file writable by group", func(t *testing.T, s State) {
			makeFile(t, filepath.Join(makeDir(t, s.Kept(), 0o700), "00000001"), 0o660)
		}, []string{"00000001: mode 0660", "chmod 0600 "}},
		{"kept a file", func(t *testing.T, s State) { makeFile(t, s.Kept(), 0o600) }, []string{"is a regular file, want a directory"}},
		{"mounts open to others", func(t *testing.T, s State) { os.Chmod(s.Mounts(), 0o755) }, []string{"mounts: mode 0755", "chmod 0700 "}},
		{"a mount record writable by others", func(t *testing.T, s State) { makeFile(t, s.Mount("x"), 0o602) }, []string{"x.json: mode 0602", "chmod 0600 "}},
		{"a mount record that is a pipe's name", func(t *testing.T, s State) { makeLink(t, "/dev/null", s.Mount("x")) }, []string{"x.json: is a symbolic link"}},
		{"a session's socket", func(t *testing.T, s State) { makeSocket(t, s.MountSession("x"), 0o600) }, nil},
		{"a session's socket open to others", func(t *testing.T, s State) { makeSocket(t, s.MountSession("x"), 0o666) }, []string{"x.sock: mode 0666", "chmod 0600 "}},
		{"a socket in memory", func(t *testing.T, s State) { makeSocket(t, filepath.Join(s.Memory(), "x"), 0o600) }, []string{"is a socket, want a regular file"}},
		{"mint.pub writable by others", func(t *testing.T, s State) { makeFile(t, s.MintPublic(), 0o646) }, []string{"mint.pub: mode 0646", "chmod 0644 "}},
		{"signed policy writable by others", func(t *testing.T, s State) { makeFile(t, s.SignedPolicy(), 0o666) }, []string{"policy.dsse: mode 0666", "chmod 0644 "}},
		{"private open to others", func(t *testing.T, s State) { makeDir(t, s.Private(), 0o755) }, []string{"private: mode 0755", "chmod 0700 "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newState(t)
			if err := os.MkdirAll(s.Memory(), 0o700); err != nil {
				t.Fatal(err)
			}
			tt.make(t, s)
			checked(t, s.Check(), tt.want)
		})
	}
}

func checked(t *testing.T, err error, want []string) {
	t.Helper()
	if want == nil {
		if err != nil {
			t.Errorf("Check = %v, want nil", err)
		}
		return
	}
	for _, text := range want {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("Check = %v, want an error with %q", err, text)
		}
	}
}

func stateIn(t *testing.T, dir string) State {
	t.Helper()
	return State(makeDir(t, filepath.Join(dir, "state"), 0o700))
}

// makeDir makes a directory with a mode that the umask does not touch.
func makeDir(t *testing.T, path string, mode os.FileMode) string {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func makeFile(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func makeSocket(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func makeLink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func give(t *testing.T, path string) {
	t.Helper()
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatalf("%v; run as root", err)
	}
}
