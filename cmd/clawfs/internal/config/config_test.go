package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newState is a state directory as `clawfs init` makes it.
func newState(t *testing.T) State {
	t.Helper()
	s := State(filepath.Join(t.TempDir(), "state"))
	if err := os.Mkdir(string(s), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{s.Policy(): 0o644, s.MintKey(): 0o600, s.RevokeKey(): 0o600, s.Settings(): 0o644} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.MakeRun(); err != nil {
		t.Fatalf("MakeRun of a fresh state directory: %v", err)
	}
	return s
}

func TestCheck(t *testing.T) {
	chmod := func(mode os.FileMode, path func(State) string) func(*testing.T, State) {
		return func(t *testing.T, s State) {
			if err := os.Chmod(path(s), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	self := func(s State) string { return string(s) }
	replace := func(path func(State) string, with func(string) error) func(*testing.T, State) {
		return func(t *testing.T, s State) {
			if err := os.RemoveAll(path(s)); err != nil {
				t.Fatal(err)
			}
			if err := with(path(s)); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(p string) error { return os.Symlink("/etc/passwd", p) }
	fifo := func(p string) error { return unix.Mkfifo(p, 0o600) }
	dir := func(p string) error { return os.Mkdir(p, 0o700) }
	file := func(p string) error { return os.WriteFile(p, nil, 0o600) }
	foreign := func(path func(State) string) func(*testing.T, State) {
		return func(t *testing.T, s State) {
			if err := os.Chown(path(s), 65534, 65534); err != nil {
				t.Fatalf("%v; run as root", err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		make func(*testing.T, State)
		want string // "" is accepted
	}{
		{"fresh", func(*testing.T, State) {}, ""},
		{"readable state", chmod(0o755, self), ""},
		{"private policy", chmod(0o600, State.Policy), ""},
		{"without settings", func(t *testing.T, s State) { os.Remove(s.Settings()) }, ""},
		{"without mint key", func(t *testing.T, s State) { os.Remove(s.MintKey()) }, ""},

		{"state writable by group", chmod(0o770, self), "mode 0770"},
		{"state writable by all", chmod(0o777, self), "mode 0777"},
		{"parent writable by all", chmod(0o777, func(s State) string { return filepath.Dir(string(s)) }), "others can change"},
		{"policy writable by group", chmod(0o664, State.Policy), "mode 0664"},
		{"policy writable by all", chmod(0o666, State.Policy), "chmod 0644"},
		{"settings writable by all", chmod(0o646, State.Settings), "mode 0646"},
		{"mint key readable by group", chmod(0o640, State.MintKey), "mode 0640"},
		{"mint key readable by all", chmod(0o604, State.MintKey), "chmod 0600"},
		{"revoke key readable by all", chmod(0o644, State.RevokeKey), "mode 0644"},
		{"run open to others", chmod(0o755, State.Run), "chmod 0700"},
		{"run searchable by others", chmod(0o711, State.Run), "mode 0711"},
		{"store readable by others", chmod(0o750, State.Store), "mode 0750"},
		{"log writable by others", chmod(0o733, State.Log), "mode 0733"},
		{"jobs writable by others", chmod(0o707, State.Jobs), "mode 0707"},

		{"cache open to others", func(t *testing.T, s State) {
			if err := os.Mkdir(s.Cache(), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.Cache(), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "mode 0755"},

		{"foreign state", foreign(self), "uid 65534"},
		{"foreign policy", foreign(State.Policy), "uid 65534"},
		{"foreign mint key", foreign(State.MintKey), "uid 65534"},
		{"foreign run", foreign(State.Run), "uid 65534"},

		{"policy is a link", replace(State.Policy, link), "is a symbolic link"},
		{"policy is a pipe", replace(State.Policy, fifo), "is a named pipe"},
		{"policy is a directory", replace(State.Policy, dir), "is a directory"},
		{"mint key is a link", replace(State.MintKey, link), "is a symbolic link"},
		{"run is a link", replace(State.Run, link), "is a symbolic link"},
		{"store is a file", replace(State.Store, file), "is a regular file"},
		{"state is a file", replace(self, file), "is a regular file"},
		{"state is a link", replace(self, link), "is a symbolic link"},
		{"no state", func(t *testing.T, s State) { os.RemoveAll(string(s)) }, "clawfs init"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newState(t)
			tt.make(t, s)
			err := s.Check()
			if tt.want == "" {
				if err != nil {
					t.Fatalf("Check = %v, want nil", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Check = %v, want an error with %q", err, tt.want)
			}
		})
	}
	if err := State("relative").Check(); err == nil {
		t.Error("Check of a relative path succeeded")
	}
	if err := State("").Check(); err == nil {
		t.Error("Check of the zero State succeeded")
	}
	if err := State("/nonexistent/x").Check(); !errors.Is(err, ErrNoState) {
		t.Errorf("Check of a missing directory = %v, want ErrNoState", err)
	}
}

// The open file is checked, not the name.
func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(mode os.FileMode, size int) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, make([]byte, size), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // past the umask
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		mode           os.FileMode
		size           int
		public, secret bool
	}{
		{0o600, 10, true, true},
		{0o400, 10, true, true},
		{0o644, 10, true, false},
		{0o640, 10, true, false},
		{0o620, 10, false, false},
		{0o602, 10, false, false},
		{0o600, MaxFile, true, true},
		{0o600, MaxFile + 1, false, false},
	} {
		write(tt.mode, tt.size)
		if _, err := ReadPublic(path); (err == nil) != tt.public {
			t.Errorf("ReadPublic, mode %o, %d bytes: %v, want accepted %v", tt.mode, tt.size, err, tt.public)
		}
		if _, err := ReadSecret(path); (err == nil) != tt.secret {
			t.Errorf("ReadSecret, mode %o, %d bytes: %v, want accepted %v", tt.mode, tt.size, err, tt.secret)
		}
	}
	write(0o600, 1)
	if err := os.Chown(path, 65534, -1); err != nil {
		t.Fatalf("%v; this test changes owners: run it as root", err)
	}
	for name, read := range map[string]func(string) ([]byte, error){"ReadPublic": ReadPublic, "ReadSecret": ReadSecret} {
		if _, err := read(path); err == nil || !strings.Contains(err.Error(), "belongs to uid 65534") {
			t.Errorf("%s of another user's file: %v, want a refusal that names the owner", name, err)
		}
	}
	write(0o600, 1)
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	pipe := path + ".pipe"
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{link, pipe, filepath.Dir(path), path + ".none", "/dev/zero"} {
		done := make(chan error, 1)
		go func() {
			_, err := ReadPublic(bad)
			if err != nil {
				_, err = ReadSecret(bad)
			}
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("ReadPublic or ReadSecret of %s succeeded", bad)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("ReadPublic or ReadSecret of %s hangs", bad)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
	}{
		{"empty", "", ""},
		{"all", "[build]\nruntime = \"/usr/sbin/runc\"\nconcurrency = 2\n[capability]\nlifetime = \"24h\"\n[mount]\nallow_other = false\nhash_workers = 4\nseal = \"copy\"\nprivate_dir = \"/srv/private\"\nprivate_bytes = \"200GiB\"\nbind = \"release\"\npreverify = false\nmax_daemon_age = \"15m\"\n", ""},
		{"bytes as a number", "[mount]\nprivate_bytes = 1073741824\n", ""},
		{"unknown table", "[buidl]\nconcurrency = 1\n", "unknown setting buidl"},
		{"misspelt key", "[mount]\nseel = \"off\"\n", "unknown setting mount.seel; want one of build.runtime, build.concurrency, build.executor, build.slurm.shared_dir, build.slurm.clawfs, build.slurm.partition, build.slurm.sbatch_args, build.slurm.commands, build.slurm.conf, fetch.cache_bytes, fetch.cache_dir, fetch.hosts, fetch.local_roots, fetch.mirrors, fetch.docker_config, fetch.plain_http, fetch.git_ca, fetch.ssh_key, fetch.ssh_known_hosts, capability.lifetime, mount.allow_other, mount.hash_workers, mount.seal, mount.private_dir"},
		{"unknown key", "[build]\nskip_verify = true\n", "unknown setting build.skip_verify"},
		{"key twice", "[build]\nconcurrency = 1\nconcurrency = 2\n", "concurrency"},
		{"other case is another key", "[build]\nRuntime = \"/x\"\n", "unknown setting build.Runtime"},
		{"both cases", "[build]\nruntime = \"/x\"\nRUNTIME = \"/y\"\n", "unknown setting build.RUNTIME"},
		{"wrong type", "[build]\nconcurrency = \"2\"\n", "concurrency"},
		{"concurrency of the machine", "[build]\nconcurrency = 0\n", ""},
		{"negative concurrency", "[build]\nconcurrency = -1\n", "want 0 to 64"},
		{"too much concurrency", "[build]\nconcurrency = 65\n", "want 0 to 64"},
		{"relative runtime", "[build]\nruntime = \"runc\"\n", "not an absolute path"},
		{"unknown executor", "[build]\nexecutor = \"kubernetes\"\n", "build.executor \"kubernetes\": want local or slurm"},
		{"empty executor", "[build]\nexecutor = \"\"\n", "want local or slurm"},
		{"slurm", "[build]\nexecutor = \"slurm\"\n[build.slurm]\nshared_dir = \"/shared\"\nclawfs = \"/opt/clawfs\"\npartition = \"cpu\"\nsbatch_args = [\"--account=x\"]\ncommands = \"/opt/slurm/bin\"\nconf = \"/etc/slurm.conf\"\n", ""},
		{"slurm without a directory", "[build]\nexecutor = \"slurm\"\n[build.slurm]\nclawfs = \"/opt/clawfs\"\n", "build.slurm.shared_dir is missing"},
		{"slurm without a program", "[build]\nexecutor = \"slurm\"\n[build.slurm]\nshared_dir = \"/shared\"\n", "build.slurm.clawfs is missing"},
		{"slurm with a relative directory", "[build.slurm]\nshared_dir = \"shared\"\n", "build.slurm.shared_dir \"shared\": want an absolute"},
		{"slurm with one text of options", "[build.slurm]\nsbatch_args = \"--account=x\"\n", "sbatch_args"},
		{"unknown key of slurm", "[build.slurm]\nexport = \"ALL\"\n", "unknown setting build.slurm.export"},
		{"no lifetime", "[capability]\nlifetime = \"0s\"\n", "want 1h"},
		{"negative lifetime", "[capability]\nlifetime = \"-1h\"\n", "want 1h"},
		{"endless lifetime", "[capability]\nlifetime = \"99999h\"\n", "want 1h"},
		{"lifetime without unit", "[capability]\nlifetime = \"90\"\n", "not a duration"},
		{"lifetime as number", "[capability]\nlifetime = 90\n", "lifetime"},
		{"negative workers", "[mount]\nhash_workers = -1\n", "want 0 to 1024"},
		{"unknown seal", "[mount]\nseal = \"verity\"\n", "seal \"verity\": want reflink, copy or off"},
		{"empty seal", "[mount]\nseal = \"\"\n", "want reflink, copy or off"},
		{"relative private directory", "[mount]\nprivate_dir = \"private\"\n", "want an absolute, clean path"},
		{"private directory with dots", "[mount]\nprivate_dir = \"/srv/../private\"\n", "want an absolute, clean path"},
		{"too few private bytes", "[mount]\nprivate_bytes = \"200\"\n", "at least 1MiB"},
		{"negative private bytes", "[mount]\nprivate_bytes = \"-200GiB\"\n", "not a number of bytes"},
		{"private bytes without end", "[mount]\nprivate_bytes = \"9999999EiB\"\n", "not a number of bytes"},
		{"private bytes in words", "[mount]\nprivate_bytes = \"half\"\n", "not a number of bytes"},
		{"unknown bind", "[mount]\nbind = \"digest\"\n", "bind \"digest\": want name or release"},
		{"silence of the daemon", "[mount]\nmax_daemon_age = \"10s\"\n", ""},
		{"no bound for the silence of the daemon", "[mount]\nmax_daemon_age = \"0s\"\n", ""},
		{"silence shorter than a restart", "[mount]\nmax_daemon_age = \"9s\"\n", "max_daemon_age 9s: want 0s, for no bound, or 10s to 8784h"},
		{"silence below zero", "[mount]\nmax_daemon_age = \"-1h\"\n", "max_daemon_age"},
		{"silence of years", "[mount]\nmax_daemon_age = \"10000h\"\n", "max_daemon_age"},
		{"silence as a number", "[mount]\nmax_daemon_age = 60\n", "max_daemon_age"},
		{"preverify as text", "[mount]\npreverify = \"yes\"\n", "preverify"},
		{"audit mode is no setting", "[mount]\nmode = \"audit\"\n", "unknown setting mount.mode"},
		{"nor is its end", "[mount]\naudit_until = \"72h\"\n", "unknown setting mount.audit_until"},
		{"no room for inputs", "[fetch]\ncache_bytes = \"1KiB\"\n", "fetch.cache_bytes"},
		{"a relative cache", "[fetch]\ncache_dir = \"cache\"\n", "fetch.cache_dir"},
		{"a key for hosts that nobody names", "[fetch]\nssh_key = \"/k\"\n", "both or neither"},
		{"a mirror of nothing", "[fetch]\nmirrors = [{urls = [\"https://a.example/\"]}]\n", "want a prefix and urls"},
		{"a mirror with another key", "[fetch]\nmirrors = [{prefix = \"https://a.example/\", urls = [\"https://b.example/\"], trust = true}]\n", "unknown setting fetch.mirrors.trust"},
		{"mirrors and hosts", "[fetch]\nhosts = [\"*.internal\"]\nmirrors = [{prefix = \"https://a.example/\", urls = [\"https://b.example/\"]}]\n", ""},
		{"not TOML", "{\"build\":{}}", "toml"},
	} {
		v, err := ParseSettings([]byte(tt.text), 0)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: ParseSettings = %v, want nil", tt.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: ParseSettings = %+v, %v, want an error with %q", tt.name, v, err, tt.want)
		}
	}
	v, err := ParseSettings([]byte("[build]\nconcurrency = 3\n[mount]\nprivate_bytes = \"1.5GiB\"\n"), 1000)
	if err != nil || v.Build.Concurrency != 3 || v.Mount.PrivateBytes != 3<<29 || v.Mount.Seal != "off" || time.Duration(v.Capability.Lifetime) != 90*24*time.Hour || v.Mount.AllowOther {
		t.Errorf("ParseSettings = %+v, %v, want concurrency 3, 1.5 GiB, and the defaults of a user: 90 days, not for others, nothing sealed", v, err)
	}
	if m := Defaults(0).Mount; !m.AllowOther || m.Seal != "reflink" || m.Bind != "name" || !m.Preverify || m.MaxDaemonAge != 0 {
		t.Errorf("a mount of root is by default %+v, want it for others, sealed by reflink, bound by name, verified ahead", m)
	}
}

func TestLoadSettingsRefusesLooseFile(t *testing.T) {
	s := newState(t)
	if _, err := s.LoadSettings(0); err != nil {
		t.Fatalf("LoadSettings of an empty file: %v", err)
	}
	if err := os.Chmod(s.Settings(), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadSettings(0); err == nil {
		t.Error("LoadSettings read a file that everybody can write")
	}
}

func TestLoadPolicyRefusesLooseFile(t *testing.T) {
	s := newState(t)
	if err := os.Chmod(s.Policy(), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadPolicy(); err == nil || !strings.Contains(err.Error(), "mode 0666") {
		t.Errorf("LoadPolicy of a file that everybody can write = %v, want it refused by its mode", err)
	}
}
