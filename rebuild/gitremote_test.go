package rebuild

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
)

// gitHTTP serves the repositories below dir by git's own CGI program over TLS.
func gitHTTP(t *testing.T, dir string) *httptest.Server {
	t.Helper()
	programs := git(t, ".", "--exec-path")
	srv := httptest.NewTLSServer(&cgi.Handler{
		Path: filepath.Join(programs, "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"},
	})
	srv.Config.ErrorLog = nil
	t.Cleanup(srv.Close)
	return srv
}

// authority writes a test server's certificate, which is its own authority.
func authority(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), `odd "name".pem`)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// commits makes a repository whose wanted commit is no branch's tip any more.
func commits(t *testing.T) (repo string, commit verifier.GitCommit) {
	t.Helper()
	repo, commit = repository(t, "sha1", sourceFiles)
	if err := os.WriteFile(filepath.Join(repo, "later"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	commitAll(t, repo)
	return repo, commit
}

// checkOut checks out to a fresh place and checks what is there.
func checkOut(t *testing.T, s Source) error {
	t.Helper()
	scratch, dest := t.TempDir(), filepath.Join(t.TempDir(), "source")
	root, err := CheckOut(t.Context(), s, scratch, dest, nil)
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("%v left in scratch", left)
	}
	if err != nil {
		return err
	}
	if text, err := os.ReadFile(filepath.Join(dest, "lib/a.txt")); err != nil || string(text) != "a\n" || root.Files != 4 {
		t.Errorf("lib/a.txt = %q, %v; root %v", text, err, root)
	}
	return nil
}

func TestCheckOutOverHTTPS(t *testing.T) {
	repo, commit := commits(t)
	srv := gitHTTP(t, filepath.Dir(repo))
	ca := authority(t, srv)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())

	var hits atomic.Int64 // of places that nothing may be asked
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer trap.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/plain/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, trap.URL+strings.TrimPrefix(r.URL.RequestURI(), "/plain"), http.StatusFound)
	})
	mux.HandleFunc("/moved/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, srv.URL+strings.TrimPrefix(r.URL.RequestURI(), "/moved"), http.StatusFound)
	})
	mux.HandleFunc("/private/", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user == "worker" && password == "letmein" {
			http.StripPrefix("/private", srv.Config.Handler).ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="acme"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	mux.HandleFunc("/empty/", func(http.ResponseWriter, *http.Request) {})
	other := httptest.NewTLSServer(mux)
	defer other.Close()

	fixed := func(addr string) func(context.Context, string) ([]netip.Addr, error) {
		return func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(addr)}, nil
		}
	}
	refused := errors.New("a private address")
	withUser := func(u string) string {
		parsed, err := url.Parse(other.URL)
		if err != nil {
			t.Fatal(err)
		}
		return "https://" + u + "@" + parsed.Host + "/private/repo"
	}
	for _, c := range []struct {
		name, location string
		commit         verifier.GitCommit
		trusted        bool
		access         Access
		want           string // or "": it works
	}{
		{"authority given", srv.URL + "/repo", commit, false, Access{CAFile: ca}, ""},
		{"with git+", "git+" + srv.URL + "/repo/.git", commit, false, Access{CAFile: ca}, ""},
		{"moved", other.URL + "/moved/repo", commit, false, Access{CAFile: ca}, ""},
		{"resolved by the caller", "https://example.com:" + port + "/repo", commit, false, Access{CAFile: ca, Resolve: fixed("127.0.0.1")}, ""},
		{"address and resolver", srv.URL + "/repo", commit, false, Access{CAFile: ca, Resolve: fixed("127.0.0.1")}, ""},
		{"operator's password", withUser("worker:letmein"), commit, true, Access{CAFile: ca}, ""},
		{"password in a ledger", withUser("worker:letmein"), commit, false, Access{CAFile: ca}, "no password in a ledger"},
		{"wrong password", withUser("worker:wrong"), commit, true, Access{CAFile: ca}, "Authentication failed"},
		{"password wanted", other.URL + "/private/repo", commit, true, Access{CAFile: ca}, "could not read Username"},
		{"authority not given", srv.URL + "/repo", commit, false, Access{}, "certificate"},
		{"other name", "https://other.example:" + port + "/repo", commit, false, Access{CAFile: ca, Resolve: fixed("127.0.0.1")}, "certificate"},
		{"authority absent", srv.URL + "/repo", commit, false, Access{CAFile: ca + "x"}, "authorities file: stat"},
		{"authority of a relative path", srv.URL + "/repo", commit, false, Access{CAFile: "ca.pem"}, "expected an absolute path"},
		{"authority is a directory", srv.URL + "/repo", commit, false, Access{CAFile: t.TempDir()}, "is no regular file"},
		{"moved, with a resolver", other.URL + "/moved/repo", commit, false, Access{CAFile: ca, Resolve: fixed("127.0.0.1")}, "unable to access"},
		{"resolver refuses", srv.URL + "/repo", commit, false, Access{CAFile: ca, Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, refused }}, "a private address"},
		{"resolver knows nothing", srv.URL + "/repo", commit, false, Access{CAFile: ca, Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, nil }}, "no address"},
		{"resolver leads elsewhere", "https://example.com:" + port + "/repo", commit, false, Access{CAFile: ca, Resolve: fixed("127.0.0.2")}, "unable to access"},
		{"redirect to plain HTTP", other.URL + "/plain/repo", commit, false, Access{CAFile: ca}, "unable to access"},
		{"no repository", srv.URL + "/nothing", commit, false, Access{CAFile: ca}, "not found"},
		{"empty answers", other.URL + "/empty/repo", commit, false, Access{CAFile: ca}, "fetching commit"},
		{"unknown commit", srv.URL + "/repo", verifier.GitCommit(strings.Repeat("1", 40)), false, Access{CAFile: ca}, "does not have this commit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkOut(t, Source{Location: c.location, Commit: c.commit, Trusted: c.trusted, Access: c.access})
			if c.want == "" && err != nil {
				t.Error(err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "letmein") || strings.Contains(err.Error(), "wrong")) {
				t.Errorf("CheckOut: %v, want an error with %q", err, c.want)
			}
			if c.name == "resolver refuses" && !errors.Is(err, refused) {
				t.Errorf("CheckOut: %v, want %v in it", err, refused)
			}
		})
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("plain HTTP was asked %d times", n)
	}
}

// A server that never answers is left when the context ends, and so are git's
// own helpers.
func TestCheckOutStopsAtOnce(t *testing.T) {
	_, commit := commits(t)
	came := make(chan struct{}, 8)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		came <- struct{}{}
		<-r.Context().Done()
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("nobody waits")
	go func() { <-came; cancel(gone) }()
	scratch := t.TempDir()
	_, err := CheckOut(ctx, Source{Location: srv.URL + "/repo", Commit: commit, Access: Access{CAFile: authority(t, srv)}}, scratch, filepath.Join(t.TempDir(), "s"), nil)
	if !errors.Is(err, gone) {
		t.Errorf("CheckOut: %v, want %v", err, gone)
	}
	for range 100 { // the kernel takes its time to end a killed group
		if out, _ := exec.Command("pgrep", "-f", scratch).Output(); len(out) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a helper of git is still there")
}

// A server whose first answer has no end fills no memory.
func TestGitMemoryBounded(t *testing.T) {
	const limit = 128 << 20
	var sent atomic.Int64
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		io.WriteString(w, "001e# service=git-upload-pack\n0000000eversion 2\n")
		for line := []byte(strings.Repeat("fff0"+strings.Repeat("a", 0xffec), 16)); r.Context().Err() == nil; {
			n, err := w.Write(line)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	dir := t.TempDir()
	r, err := parseRemote(srv.URL+"/repo", false)
	if err != nil {
		t.Fatal(err)
	}
	g := &gitProgram{dir: dir, repository: filepath.Join(dir, "repo.git"), protocol: r.protocol, memory: limit}
	s := Source{Commit: verifier.GitCommit(strings.Repeat("1", 40)), Access: Access{CAFile: authority(t, srv)}}
	if err := g.prepare(t.Context(), s, r); err != nil {
		t.Fatal(err)
	}
	err = g.fetch(t.Context(), r, string(s.Commit), nil)
	if err == nil || !strings.Contains(err.Error(), "ut of memory") {
		t.Errorf("fetch of an answer without end: %v, want git to run out of memory", err)
	}
	if n := sent.Load(); n < limit/8 || n > 4*limit { // the fetch is tried twice
		t.Errorf("%d bytes were sent, the limit is %d", n, limit)
	}
}

// sshServer is a real sshd on loopback.
type sshServer struct {
	addr, port, known, key string
}

// newSSH runs Debian's sshd, unpacked, in a mount namespace of its own that has
// the user and the directory which its installation would make.
func newSSH(t *testing.T) sshServer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("sshd needs root: run the tests with sudo")
	}
	program, err := filepath.Abs("../build/servers/usr/sbin/sshd")
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		t.Fatalf("Debian's sshd is missing: make servers (%v)", err)
	}
	libs, _ := filepath.Glob(filepath.Join(filepath.Dir(program), "../../*/*/libwrap.so.0"))
	more, _ := filepath.Glob(filepath.Join(filepath.Dir(program), "../lib/*/libwrap.so.0"))
	if libs = append(libs, more...); len(libs) == 0 {
		t.Fatal("libwrap is missing beside Debian's sshd: make servers")
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"host", "key"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(passwd), "\nsshd:") {
		passwd = append(passwd, "sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin\n"...)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	listener.Close()
	config := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nLogLevel VERBOSE\n", addr, path("host"), path("key.pub"))
	if err := errors.Join(os.WriteFile(path("passwd"), passwd, 0o644), os.WriteFile(path("config"), []byte(config), 0o644)); err != nil {
		t.Fatal(err)
	}
	script := `mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && mount --bind "$1" /etc/passwd && exec "$2" -D -e -f "$3"`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script, "sh", path("passwd"), program, path("config"))
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Dir(libs[0]))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	listening := make(chan string, 1)
	go func() {
		var said strings.Builder
		for lines := bufio.NewScanner(out); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "Server listening on") {
				listening <- ""
			}
		}
		select {
		case listening <- "sshd ended: " + said.String():
		default:
		}
	}()
	select {
	case bad := <-listening:
		if bad != "" {
			t.Fatal(bad)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("sshd does not listen")
	}
	host, err := os.ReadFile(path("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s := sshServer{addr: addr, port: port, known: path("known hosts"), key: path("key")}
	if err := os.WriteFile(s.known, []byte("[127.0.0.1]:"+port+" "+string(host)+"[git.example]:"+port+" "+string(host)), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheckOutOverSSH(t *testing.T) {
	repo, commit := commits(t)
	s := newSSH(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	otherKey := filepath.Join(dir, "other key")
	locked := filepath.Join(dir, "locked")
	for name, phrase := range map[string]string{otherKey: "", locked: "a phrase"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", name).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	public, err := os.ReadFile(otherKey + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	open := write("readable", string(private))
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	loopback := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	at := "ssh://root@" + s.addr + repo
	named := "ssh://root@git.example:" + s.port + repo
	good := Access{KeyFile: s.key, KnownHosts: s.known}
	// What a user's own configuration holds is of no use to a ledger.
	t.Setenv("SSH_AUTH_SOCK", "/nowhere")
	t.Setenv("GIT_SSH_COMMAND", "false")
	for _, c := range []struct {
		name, location string
		access         Access
		want           string // or "": it works
	}{
		{"key and host key", at, good, ""},
		{"with git+", "git+" + at, good, ""},
		{"resolved by the caller", named, Access{KeyFile: s.key, KnownHosts: s.known, Resolve: loopback}, ""},
		{"nothing given", at, Access{}, "ssh needs a key and a known_hosts file"},
		{"no known hosts", at, Access{KeyFile: s.key}, "ssh needs a key and a known_hosts file"},
		{"no key", at, Access{KnownHosts: s.known}, "ssh needs a key and a known_hosts file"},
		{"unknown host", at, Access{KeyFile: s.key, KnownHosts: write("empty", "")}, "Host key verification failed"},
		{"another host key", at, Access{KeyFile: s.key, KnownHosts: write("other", "[127.0.0.1]:"+s.port+" "+string(public))}, "Host key verification failed"},
		{"host key of another name", named, Access{KeyFile: s.key, KnownHosts: write("address", "[127.0.0.1]:"+s.port+" "+string(public)), Resolve: loopback}, "Host key verification failed"},
		{"another key", at, Access{KeyFile: otherKey, KnownHosts: s.known}, "Permission denied"},
		{"key with a passphrase", at, Access{KeyFile: locked, KnownHosts: s.known}, "Permission denied"},
		{"key that others may read", at, Access{KeyFile: open, KnownHosts: s.known}, "Permission denied"},
		{"absent key", at, Access{KeyFile: s.key + "x", KnownHosts: s.known}, "key file: stat"},
		{"key of a relative path", at, Access{KeyFile: "key", KnownHosts: s.known}, "expected an absolute path"},
		{"known hosts is a directory", at, Access{KeyFile: s.key, KnownHosts: dir}, "is no regular file"},
		{"user that is an option", "ssh://-oProxyCommand=touch@" + s.addr + repo, good, "begins with a dash"},
		{"no repository", at + "x", good, "fetching commit"},
		{"nobody listens", "ssh://root@127.0.0.1:1" + repo, good, "Connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkOut(t, Source{Location: c.location, Commit: commit, Access: c.access})
			if c.want == "" && err != nil {
				t.Error(err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("CheckOut: %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestPinned: git connects to the addresses that were judged, or not at all.
func TestPinned(t *testing.T) {
	for _, location := range []string{"https://%E2%93%9Bocalhost/x", "https://localhost%E3%80%82/x", "ssh://git.ex%C3%A4mple/x"} {
		if r, err := parseRemote(location, false); err == nil || !strings.Contains(err.Error(), "host name") {
			t.Errorf("parseRemote(%q) = %+v, %v", location, r, err)
		}
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.7")
	if got := joinAddrs([]netip.Addr{mapped, netip.MustParseAddr("2001:db8::1")}); got != "192.0.2.7,[2001:db8::1]" {
		t.Errorf("joinAddrs = %s", got)
	}
	real, err := exec.LookPath("git")
	if err != nil {
		t.Fatal("git is missing: apt-get install git")
	}
	old := t.TempDir()
	script := "#!/bin/sh\n[ \"$1\" = version ] && { echo git version 2.34.1; exit; }\nexec " + real + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(old, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", old+":"+os.Getenv("PATH"))
	s := Source{
		Location: "https://git.example/repo", Commit: verifier.GitCommit(strings.Repeat("1", 40)),
		Access: Access{Resolve: func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{mapped}, nil }},
	}
	if _, err := CheckOut(t.Context(), s, t.TempDir(), filepath.Join(t.TempDir(), "out"), nil); err == nil || !strings.Contains(err.Error(), "needs git 2.37 or newer") {
		t.Errorf("CheckOut with an old git = %v", err)
	}
}
