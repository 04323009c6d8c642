package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is its own child: TestMain turns into a client of another
// user, or into a holder of a lock, when it is told so.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("CONTROL_TEST_DIAL") != "":
		c, err := net.Dial("unix", os.Getenv("CONTROL_TEST_DIAL"))
		if err != nil {
			fmt.Println("dial:", err)
			os.Exit(1)
		}
		fmt.Fprint(c, "GET /v1/who HTTP/1.1\r\nHost: clawfs\r\nConnection: close\r\n\r\n")
		io.Copy(os.Stdout, c)
		os.Exit(0)
	case os.Getenv("CONTROL_TEST_PLACE") != "":
		fmt.Println("ready")
		bufio.NewReader(os.Stdin).ReadByte()
		if _, err := TakePlace(os.Getenv("CONTROL_TEST_PLACE")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case os.Getenv("CONTROL_TEST_HOLD") != "":
		var held []net.Conn
		for range MaxConnections / 8 {
			if c, err := net.Dial("unix", os.Getenv("CONTROL_TEST_HOLD")); err == nil {
				held = append(held, c)
			}
		}
		fmt.Println("held", len(held))
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case os.Getenv("CONTROL_TEST_WATCH") != "":
		watchSocket(os.Getenv("CONTROL_TEST_WATCH"))
	case os.Getenv("CONTROL_TEST_LOCK") != "":
		if _, err := TakeLock(os.Getenv("CONTROL_TEST_LOCK")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func lockIn(t *testing.T, dir string) *Lock {
	t.Helper()
	l, err := TakeLock(filepath.Join(dir, "daemon.lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Release() })
	return l
}

// serve runs a server in dir and returns the socket's path.
func serve(t *testing.T, dir string, h http.Handler, refused func(Peer, error)) string {
	t.Helper()
	sock := filepath.Join(dir, "clawfs.sock")
	l, err := Listen(lockIn(t, dir), sock, refused)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return sock
}

func who() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/who", func(w http.ResponseWriter, r *http.Request) { Reply(w, 200, "you") })
	mux.HandleFunc("POST /v1/size", func(w http.ResponseWriter, r *http.Request) {
		var v any
		if err := ReadBody(r, &v); err != nil {
			ReplyError(w, err)
			return
		}
		Reply(w, 200, "read")
	})
	return mux
}

func TestSocketIsPrivate(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := runDir(t)
	sock := serve(t, dir, who(), nil)
	fi, err := os.Lstat(sock)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket under umask 0 = %v, want 0600", fi.Mode())
	}
	if got := syscall.Umask(0); got != 0 {
		t.Errorf("umask after Listen = %o, want the 0 of before", got)
	}
	var s string
	if err := NewClient(sock).do(t.Context(), "GET", "/v1/who", nil, &s); err != nil || s != "you" {
		t.Errorf("GET /v1/who = %q, %v, want you", s, err)
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), "run")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sock := serve(t, dir, who(), nil)
	if len(sock) <= maxSunPath {
		t.Fatalf("path of %d bytes does not test anything", len(sock))
	}
	var s string
	if err := NewClient(sock).do(t.Context(), "GET", "/v1/who", nil, &s); err != nil || s != "you" {
		t.Errorf("GET over %d bytes of path = %q, %v, want you", len(sock), s, err)
	}
}

// The modes of directory and socket are opened up, as by an administrator's
// mistake: the kernel's credentials have to refuse alone.
func TestForeignUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root to become another user; run: sudo go test")
	}
	base, err := os.MkdirTemp("/tmp", "clawfs-peer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refused := make(chan Peer, 1)
	sock := serve(t, dir, who(), func(p Peer, _ error) { refused <- p })
	if out := dialAs(t, sock, 65534); !strings.Contains(out, "permission denied") {
		t.Errorf("uid 65534 through a 0700 directory: %q, want permission denied", out)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o755, sock: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	out := dialAs(t, sock, 65534)
	if !strings.HasPrefix(out, "HTTP/1.1 403 ") || strings.Contains(out, "you") {
		t.Errorf("uid 65534 got %q, want 403 and nothing of the handler", out)
	}
	select {
	case p := <-refused:
		if p.UID != 65534 {
			t.Errorf("refused peer = %+v, want uid 65534", p)
		}
	case <-time.After(5 * time.Second):
		t.Error("the refusal was not reported")
	}
	if out := dialAs(t, sock, 0); !strings.HasPrefix(out, "HTTP/1.1 200 ") {
		t.Errorf("root got %q, want 200", out)
	}
}

func dialAs(t *testing.T, sock string, uid uint32) string {
	t.Helper()
	// The test binary lies where only root may look.
	exe := filepath.Join(filepath.Dir(filepath.Dir(sock)), "client")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Dir = "/"
	c.Env = []string{"CONTROL_TEST_DIAL=" + sock}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, _ := c.CombinedOutput()
	return string(out)
}

func TestBodies(t *testing.T) {
	c := NewClient(serve(t, runDir(t), who(), nil))
	for _, tt := range []struct {
		name string
		body any
		want int
	}{
		{"small", "x", 0},
		{"just below the bound", strings.Repeat("x", MaxBody-2), 0},
		{"one byte too long", strings.Repeat("x", MaxBody-1), http.StatusRequestEntityTooLarge},
		{"ten times too long", strings.Repeat("x", 10*MaxBody), http.StatusRequestEntityTooLarge},
	} {
		err := c.do(t.Context(), "POST", "/v1/size", tt.body, nil)
		var e *Error
		switch {
		case tt.want == 0 && err != nil:
			t.Errorf("%s: %v, want accepted", tt.name, err)
		case tt.want != 0 && (!errors.As(err, &e) || e.Status != tt.want):
			t.Errorf("%s: %v, want status %d", tt.name, err, tt.want)
		}
	}
	for _, body := range []string{"", "{", `{"a":1}{"a":2}`, `{"a":1,"a":2}`, "nil", "\xff"} {
		req, _ := http.NewRequest("POST", "http://clawfs/v1/size", strings.NewReader(body))
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("body %q: status %d, want 400", body, resp.StatusCode)
		}
	}
}

func TestHeaderBound(t *testing.T) {
	sock := serve(t, runDir(t), who(), nil)
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /v1/who HTTP/1.1\r\nHost: clawfs\r\nX: %s\r\n\r\n", strings.Repeat("x", 1<<20))
	line, _ := bufio.NewReader(c).ReadString('\n')
	if !strings.Contains(line, " 431 ") {
		t.Errorf("a header of 1 MiB: %q, want 431", line)
	}
}

// A client that sends a byte now and then, or none, loses its connection.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	sock := serve(t, runDir(t), who(), nil)
	for name, first := range map[string]string{
		"silent":    "",
		"in header": "GET /v1/who HTTP/1.1\r\nHost:",
	} {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, first)
		start := time.Now()
		c.SetReadDeadline(start.Add(3 * headerTimeout))
		_, err = io.ReadAll(c)
		if took := time.Since(start); err != nil || took > 2*headerTimeout {
			t.Errorf("%s: connection ended with %v after %v, want closed within %v", name, err, took, 2*headerTimeout)
		}
	}
}

// One process cannot have all connections: others are still answered.
func TestConnectionCap(t *testing.T) {
	most := limitsOf(1 << 20)
	refused := make(chan error, MaxConnections)
	sock := serve(t, runDir(t), who(), func(_ Peer, err error) { refused <- err })
	var held []net.Conn
	for range most.process {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	err := NewClient(sock).do(t.Context(), "GET", "/v1/who", nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || !strings.Contains(e.Message, "too many connections: process") {
		t.Fatalf("connection %d: %v, want status 503", most.process+1, err)
	}
	if err := <-refused; !errors.Is(err, errFull) {
		t.Errorf("reported %v, want %v", err, errFull)
	}
	if out := child(t, "CONTROL_TEST_DIAL="+sock); !strings.HasPrefix(out, "HTTP/1.1 200 ") {
		t.Errorf("another process got %q, want 200", out)
	}
	held[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if err = NewClient(sock).do(t.Context(), "GET", "/v1/who", nil, nil); err == nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("after one connection ended: %v, want served", err)
	}
}

// child runs this test binary as something else and returns what it said.
func child(t *testing.T, env ...string) string {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), env...)
	out, _ := c.CombinedOutput()
	return string(out)
}

func TestStream(t *testing.T) {
	mux := http.NewServeMux()
	gone := make(chan struct{})
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, r *http.Request) {
		s, err := NewStream(w)
		if err != nil {
			t.Error(err)
			return
		}
		s.Send(ViewLine{Kind: "capability", Envelope: []byte("abc")})
		s.Send(ViewLine{Kind: LineSnapshot})
		<-r.Context().Done()
		close(gone)
	})
	c := NewClient(serve(t, runDir(t), mux, nil))
	stop := errors.New("enough")
	var got []ViewLine
	err := c.View(t.Context(), func(l ViewLine) error {
		got = append(got, l)
		if l.Kind == LineSnapshot {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || len(got) != 2 || string(got[0].Envelope) != "abc" {
		t.Errorf("View = %v after %+v, want two lines and %v", err, got, stop)
	}
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the daemon did not notice that the client left")
	}
}

func TestSilentStream(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, r *http.Request) {
		s, _ := NewStream(w)
		s.Send(ViewLine{Kind: LineSnapshot})
		<-r.Context().Done()
	})
	c := NewClient(serve(t, runDir(t), mux, nil))
	start := time.Now()
	err := c.View(t.Context(), func(ViewLine) error { return nil })
	if took := time.Since(start); !errors.Is(err, errSilent) || took > 10*Heartbeat {
		t.Errorf("View of a hung daemon = %v after %v, want %v within %v", err, took, errSilent, 10*Heartbeat)
	}
}
