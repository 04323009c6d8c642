package main

import (
	"bufio"
	"context"
	crand "crypto/rand"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

// attack is what one process does to the daemon's socket until ctx ends. It counts
// each thing that it did with did.
type attack struct {
	name string
	run  func(ctx context.Context, sock string, did func())
}

// many runs a client n times at once, again and again.
func many(n int, client func(ctx context.Context, c *net.UnixConn) error) func(context.Context, string, func()) {
	return func(ctx context.Context, sock string, did func()) {
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				for ctx.Err() == nil {
					c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: sock, Net: "unix"})
					if err != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					stop := context.AfterFunc(ctx, func() { c.Close() })
					client(ctx, c)
					did()
					stop()
					c.Close()
				}
			})
		}
		all.Wait()
	}
}

// drip sends text a byte a second.
func drip(ctx context.Context, c *net.UnixConn, text string) error {
	for i := range len(text) {
		if _, err := io.WriteString(c, text[i:i+1]); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return nil
}

// untilClosed reads what comes until the daemon closes the connection.
func untilClosed(c *net.UnixConn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}

var attacks = []attack{
	{"10,000 silent connections", func(ctx context.Context, sock string, did func()) {
		var held []net.Conn
		for range 10_000 {
			if ctx.Err() != nil {
				break
			}
			if c, err := net.Dial("unix", sock); err == nil {
				held = append(held, c)
			}
			did()
		}
		<-ctx.Done()
		for _, c := range held {
			c.Close()
		}
	}},
	{"a byte a second of a header", many(64, func(ctx context.Context, c *net.UnixConn) error {
		return drip(ctx, c, "GET /v1/status HTTP/1.1\r\nHost: clawfs\r\n"+strings.Repeat("X: y\r\n", 1000))
	})},
	{"a byte a second of a body", many(64, func(ctx context.Context, c *net.UnixConn) error {
		fmt.Fprintf(c, "POST /v1/revocations HTTP/1.1\r\nHost: clawfs\r\nContent-Length: 60000\r\n\r\n")
		return drip(ctx, c, strings.Repeat(" ", 60000))
	})},
	{"long bodies that stop before their end", many(64, func(ctx context.Context, c *net.UnixConn) error {
		fmt.Fprintf(c, "POST /v1/records HTTP/1.1\r\nHost: clawfs\r\nContent-Length: %d\r\n\r\n", control.MaxBody)
		if _, err := io.WriteString(c, "\""+strings.Repeat("x", control.MaxBody-2)); err != nil {
			return err
		}
		return untilClosed(c)
	})},
	{"bodies without an end", many(16, func(ctx context.Context, c *net.UnixConn) error {
		fmt.Fprintf(c, "POST /v1/jobs HTTP/1.1\r\nHost: clawfs\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := "10000\r\n" + strings.Repeat("[", 0x10000) + "\r\n"
		for {
			if _, err := io.WriteString(c, chunk); err != nil {
				return err
			}
		}
	})},
	{"headers without an end", many(16, func(ctx context.Context, c *net.UnixConn) error {
		fmt.Fprintf(c, "GET /v1/status HTTP/1.1\r\n")
		line := strings.Repeat("X-Long: "+strings.Repeat("y", 1000)+"\r\n", 64)
		for {
			if _, err := io.WriteString(c, line); err != nil {
				return err
			}
		}
	})},
	{"a byte a second read of the view", many(64, func(ctx context.Context, c *net.UnixConn) error {
		fmt.Fprintf(c, "GET /v1/view HTTP/1.1\r\nHost: clawfs\r\n\r\n")
		b := make([]byte, 1)
		for ctx.Err() == nil {
			if _, err := c.Read(b); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	})},
	{"half-open connections", many(64, func(ctx context.Context, c *net.UnixConn) error {
		if rand.Intn(2) == 0 {
			fmt.Fprintf(c, "GET /v1/view HTTP/1.1\r\nHost: clawfs\r\n\r\n")
		}
		c.CloseWrite()
		return untilClosed(c)
	})},
	{"garbage", many(16, func(ctx context.Context, c *net.UnixConn) error {
		junk := make([]byte, 4096)
		crand.Read(junk)
		for _, start := range []string{"", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x00\x00\x00\x00", "GET / HTTP/9.9\r\n\r\n", "{\"verb\":\"revoke\"}\n"} {
			io.WriteString(c, start)
		}
		c.Write(junk)
		return untilClosed(c)
	})},
	{"floods of descriptors", many(16, func(ctx context.Context, c *net.UnixConn) error {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		fds := make([]int, 253) // SCM_MAX_FD
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		rights := unix.UnixRights(fds...)
		for _, b := range []byte("POST /v1/revocations HTTP/1.1\r\nHost: clawfs\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat(" ", 200)) {
			if _, _, err := c.WriteMsgUnix([]byte{b}, rights, nil); err != nil {
				return err
			}
		}
		time.Sleep(200 * time.Millisecond)
		return nil
	})},
	{"the same question without an end", many(16, func(ctx context.Context, c *net.UnixConn) error {
		fmt.Fprintf(c, "GET /v1/status HTTP/1.1\r\nHost: clawfs\r\n\r\n")
		return untilClosed(c)
	})},
}

// Whatever one process does to the socket, the daemon stays as small as it was, and
// others are answered: they see it, revoke, and the mount obeys.
func TestDaemonUnderAttack(t *testing.T) {
	r := newRig(t)
	var caps []capstore.Capability
	for i := range attacks {
		name := fmt.Sprintf("m%02d.bin", i)
		caps = append(caps, r.admit(map[string]string{name: name}))
		r.file(name, name)
	}
	// A view that does not fit into the buffers of a socket.
	for i := range 8 {
		var many []capstore.Subject
		s := r.measured(map[string]string{"x": "x"})[0]
		for j := range 1000 {
			s.Name = fmt.Sprintf("big/%d/%d.bin", i, j)
			s.Digest = hashpipe.SumBytes([]byte(s.Name)).Claim()
			many = append(many, s)
		}
		r.admitSubjects(many)
	}
	r.ok("mount", r.src, r.mnt)
	pid := r.daemonPID()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 16384, Max: 20000}); err != nil {
		t.Logf("limit of descriptors stays: %v", err)
	}
	r.status()
	before := r.status().Resources
	for i, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			r := &rig{t: t, state: r.state, src: r.src, mnt: r.mnt, bin: r.bin}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var mu sync.Mutex // guards did
			did, ended := 0, make(chan struct{})
			go func() {
				defer close(ended)
				a.run(ctx, r.state.Socket(), func() { mu.Lock(); did++; mu.Unlock() })
			}()
			name := fmt.Sprintf("m%02d.bin", i)
			var most control.Resources
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				s := r.status() // ends the test unless it is answered
				most.Connections = max(most.Connections, s.Resources.Connections)
				most.Descriptors = max(most.Descriptors, s.Resources.Descriptors)
				most.Goroutines = max(most.Goroutines, s.Resources.Goroutines)
				most.ResidentBytes = max(most.ResidentBytes, s.Resources.ResidentBytes)
			}
			if !r.opens(name, name) {
				t.Errorf("the granted file is refused")
			}
			r.ok("revoke", caps[i].ID().String(), "--reason", "tested")
			if r.opens(name, name) {
				t.Errorf("the revoked file opened")
			}
			cancel()
			<-ended
			t.Logf("the attack did %d things; at most %d connections, %d descriptors, %d goroutines, %d MiB (before: %+v)",
				did, most.Connections, most.Descriptors, most.Goroutines, most.ResidentBytes>>20, before)
			if did == 0 {
				t.Error("the attack did nothing")
			}
			// 32 of one process, and a few of the mount and of the verbs.
			if most.Connections > 40 || most.Descriptors > before.Descriptors+80 {
				t.Errorf("at most %d connections and %d descriptors, want them bounded", most.Connections, most.Descriptors)
			}
			bound := int64(192 << 20)
			if raceEnabled {
				bound *= 6 // shadow memory
			}
			if grown := most.ResidentBytes - before.ResidentBytes; grown > bound {
				t.Errorf("the daemon grew by %d MiB", grown>>20)
			}
			var last control.Resources
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
				last = r.status().Resources
				if last.Connections <= before.Connections+1 && last.Descriptors <= before.Descriptors+2 && last.Goroutines <= before.Goroutines+4 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("afterwards the daemon uses %+v, before %+v", last, before)
				}
			}
			if now := r.daemonPID(); now != pid {
				t.Errorf("the daemon is %d, want still %d", now, pid)
			}
		})
	}
}

// What is no request of ours gets an error, one for each connection, and what is
// sent behind a request nobody answers.
func TestNoSmuggling(t *testing.T) {
	r := newRig(t)
	r.startDaemon()
	const inner = "GET /v1/status HTTP/1.1\r\nHost: clawfs\r\n\r\n"
	for _, tt := range []struct {
		name, text string
		want       string // of the status line; empty: nothing or any
		most       int    // answers
	}{
		{"two requests at once", inner + inner, "200", 1},
		{"length and chunks", "POST /v1/revocations HTTP/1.1\r\nHost: clawfs\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner, "400", 1},
		{"two lengths", "POST /v1/revocations HTTP/1.1\r\nHost: clawfs\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + inner, "400", 1},
		{"a length below zero", "POST /v1/revocations HTTP/1.1\r\nHost: clawfs\r\nContent-Length: -1\r\n\r\n" + inner, "400", 1},
		{"a chunk that lies", "POST /v1/revocations HTTP/1.1\r\nHost: clawfs\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + inner, "400", 1},
		{"a line in a header", "GET /v1/status HTTP/1.1\r\nHost: clawfs\r\nX: a\n\rGET /v1/jobs HTTP/1.1\r\n\r\n", "400", 1},
		{"without a host", "GET /v1/status HTTP/1.1\r\n\r\n", "400", 1},
		{"unknown path", "GET /v2/status HTTP/1.1\r\nHost: clawfs\r\n\r\n", "404", 1},
		{"path with dots", "GET /v1/jobs/../status HTTP/1.1\r\nHost: clawfs\r\n\r\n", "307", 1},
		{"job with dots", "GET /v1/jobs/..%2f..%2fmint.key/log HTTP/1.1\r\nHost: clawfs\r\n\r\n", "404", 1},
		{"unknown verb", "STEAL /v1/status HTTP/1.1\r\nHost: clawfs\r\n\r\n", "405", 1},
		{"verb of another path", "DELETE /v1/revocations HTTP/1.1\r\nHost: clawfs\r\n\r\n", "405", 1},
		{"a proxy's verb", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", "404", 1},
		{"an upgrade", "GET /v1/nothing HTTP/1.1\r\nHost: clawfs\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "404", 1},
		{"another protocol", "GET /v1/status HTTP/1.1\r\nHost: clawfs\r\nClawfs-Protocol: 0\r\n\r\n", "426", 1},
	} {
		c, err := net.Dial("unix", r.state.Socket())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, tt.text)
		c.SetReadDeadline(time.Now().Add(time.Minute))
		got, _ := io.ReadAll(c) // a reset comes after the answer
		c.Close()
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(got))), nil)
		if err != nil || strconv.Itoa(resp.StatusCode) != tt.want {
			t.Errorf("%s: got %.200q, %v; want status %s", tt.name, got, err, tt.want)
		}
		if n := strings.Count(string(got), "HTTP/1.1 "); n > tt.most {
			t.Errorf("%s: %d answers, want at most %d", tt.name, n, tt.most)
		}
	}
	if s := r.status(); s.Revocations != 0 || len(s.Jobs) != 0 {
		t.Errorf("status afterwards = %+v", s)
	}
}

// A daemon with 64 descriptors, and one with none left: it neither ends nor spins,
// tells clients so, and goes on when there are some again.
func TestDescriptorExhaustion(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"m.bin": "m"})
	r.file("m.bin", "m")
	cmd := exec.Command("prlimit", "--nofile=64:64", r.bin, "--state", string(r.state), "daemon")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r.eventually("the daemon answers", func() bool { return r.run("status").code == 0 })
	r.ok("mount", r.src, r.mnt)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var flood sync.WaitGroup
	flood.Go(func() { attacks[0].run(ctx, r.state.Socket(), func() {}) })
	for range 5 {
		if n := r.status().Resources.Descriptors; n > 64 {
			t.Errorf("%d descriptors, want at most 64", n)
		}
	}
	cancel()
	flood.Wait()

	pid := r.daemonPID()
	r.eventually("the flood is over", func() bool { return r.status().Resources.Connections <= 3 })
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 64}, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(3) // what is open stays open, and nothing new
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	flood.Go(func() {
		many(8, func(ctx context.Context, c *net.UnixConn) error {
			fmt.Fprintf(c, "GET /v1/status HTTP/1.1\r\nHost: clawfs\r\n\r\n")
			c.SetDeadline(time.Now().Add(time.Second))
			return untilClosed(c)
		})(ctx, r.state.Socket(), func() {})
	})
	used := processTime(t, pid)
	start := time.Now()
	time.Sleep(3 * time.Second)
	used = processTime(t, pid) - used
	if took := time.Since(start); used > took/2 {
		t.Errorf("without descriptors the daemon used %v of processor time in %v", used, took)
	}
	t.Logf("without descriptors it used %v of processor time in 3 s", used)
	if !r.opens("m.bin", "m") {
		t.Error("the mount does not serve")
	}
	cancel()
	flood.Wait()
	limit(64)
	r.within(30, "the daemon answers again", func() bool { return r.run("status").code == 0 })
	if now := r.daemonPID(); now != pid {
		t.Errorf("the daemon is %d, want still %d", now, pid)
	}
	log, err := os.ReadFile(r.state.DaemonLog())
	if err != nil || !strings.Contains(string(log), "no file descriptors left") {
		t.Errorf("the log does not tell: %v", err)
	}
	if n := strings.Count(string(log), "connection refused"); n > 60 {
		t.Errorf("%d lines in the log for refused connections, want them summed up", n)
	}
}

// processTime is the processor time of a process in proc(5): user and system.
func processTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	words := strings.Fields(rest)
	user, err := strconv.Atoi(words[11])
	if err != nil {
		t.Fatal(err)
	}
	system, err := strconv.Atoi(words[12])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
