package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Many processes together take all connections and ask for nothing: whoever asks is
// answered, and a stream that somebody reads goes on.
func TestManyProcesses(t *testing.T) {
	mux := who().(*http.ServeMux)
	gone := make(chan struct{})
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, r *http.Request) {
		s, err := NewStream(w)
		if err != nil {
			t.Error(err)
			return
		}
		defer close(gone)
		for kind := LineSnapshot; ; kind = LineHeartbeat {
			if s.Send(ViewLine{Kind: kind}) != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(Heartbeat / 4):
			}
		}
	})
	sock := serve(t, runDir(t), mux, nil)
	goroutines := runtime.NumGoroutine()
	reading, enough := make(chan struct{}), make(chan struct{})
	stream := make(chan error, 1)
	stop := errors.New("enough")
	go func() {
		stream <- NewClient(sock).View(t.Context(), func(l ViewLine) error {
			if l.Kind == LineSnapshot {
				close(reading)
			}
			select {
			case <-enough:
				return stop
			default:
				return nil
			}
		})
	}()
	<-reading
	var holders []*exec.Cmd
	for range 12 { // with 32 each: half as many again as there is room for
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), "CONTROL_TEST_HOLD="+sock)
		in, _ := c.StdinPipe()
		defer in.Close()
		out, _ := c.StdoutPipe()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		holders = append(holders, c)
		if line, err := bufio.NewReader(out).ReadString('\n'); line != fmt.Sprintf("held %d\n", MaxConnections/8) {
			t.Fatalf("child said %q, %v", line, err)
		}
		if out := child(t, "CONTROL_TEST_DIAL="+sock); !strings.HasPrefix(out, "HTTP/1.1 200 ") {
			t.Errorf("beside %d processes with %d connections each: %q, want 200", len(holders), MaxConnections/8, out)
		}
	}
	select {
	case <-gone:
		t.Error("the stream was cut off for connections that ask for nothing")
	default:
	}
	close(enough)
	if err := <-stream; !errors.Is(err, stop) {
		t.Errorf("the stream ended with %v", err)
	}
	for _, c := range holders {
		c.Process.Kill()
		c.Wait()
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines+2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines afterwards, before %d", runtime.NumGoroutine(), goroutines)
		}
	}
}

// admitted is a connection of a peer that the kernel did not vouch for.
func admitted(t *testing.T, g *guarded, p Peer) (*conn, error) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	f := os.NewFile(uintptr(fds[0]), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return g.admit(c.(*net.UnixConn), p)
}

// The bounds, with users and processes that are not here.
func TestAdmit(t *testing.T) {
	g := &guarded{uid: 1000, limits: limits{total: 8, user: 6, process: 3}, users: map[uint32]int{}, process: map[uint32]int{}}
	var all []*conn
	take := func(p Peer, want string) *conn {
		t.Helper()
		c, err := admitted(t, g, p)
		switch {
		case want == "" && err != nil:
			t.Errorf("%+v: %v, want it admitted", p, err)
		case want != "" && (!errors.Is(err, errFull) || !strings.Contains(err.Error(), want)):
			t.Errorf("%+v: %v, want %q", p, err, want)
		case err == nil:
			all = append(all, c)
		}
		return c
	}
	busy := func() {
		for _, c := range all {
			c.asks(true)
		}
	}
	for range 3 {
		take(Peer{UID: 1000, PID: 1}, "")
	}
	take(Peer{UID: 1000, PID: 1}, "process 1 has 3 open already")
	for range 3 {
		take(Peer{UID: 1000, PID: 2}, "")
	}
	busy()
	take(Peer{UID: 1000, PID: 3}, "user 1000 has 6 open already")
	take(Peer{UID: 0, PID: 4}, "")
	take(Peer{UID: 0, PID: 5}, "")
	busy()
	take(Peer{UID: 0, PID: 6}, "8 are open already")
	// One that asks for nothing goes, once, and is not counted twice when it closes.
	all[0].asks(false)
	take(Peer{UID: 0, PID: 6}, "")
	if _, err := all[0].Write([]byte("x")); err == nil {
		t.Error("the connection that had to go is open")
	}
	all[0].Close()
	all[0].Close()
	if len(g.open) != 8 || g.process[1] != 2 || g.users[1000] != 5 {
		t.Errorf("%d open, %d of process 1, %d of user 1000; want 8, 2 and 5", len(g.open), g.process[1], g.users[1000])
	}
	busy()
	take(Peer{UID: 1000, PID: 7}, "8 are open already")
	for _, c := range all {
		c.Close()
	}
	if len(g.open) != 0 || len(g.process) != 0 || len(g.users) != 0 {
		t.Errorf("after all were closed: %+v", g)
	}
}

// A hundred refusals are one line in the log and a number in the next.
func TestRefusalsAreSummedUp(t *testing.T) {
	var told []string
	g := &guarded{refused: func(_ Peer, err error) { told = append(told, err.Error()) }}
	for range 100 {
		g.report(Peer{}, errFull)
	}
	if len(told) != 1 {
		t.Fatalf("%d refusals were told at once, want 1", len(told))
	}
	g.told = g.told.Add(-time.Second)
	g.report(Peer{}, errForeign)
	if len(told) != 2 || !strings.Contains(told[1], "and 99 more before that") || !strings.Contains(told[1], errForeign.Error()) {
		t.Errorf("told %q, want the 99 that were not told", told)
	}
}

func TestVersions(t *testing.T) {
	mux := who().(*http.ServeMux)
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, `{"kind":"snapshot","more":1}`) })
	mux.HandleFunc("POST /v1/mounts/{id}/report", func(w http.ResponseWriter, r *http.Request) {
		var in MountReport
		if err := ReadReport(r, &in); err != nil || in.PID != 7 {
			ReplyError(w, fmt.Errorf("%+v, %w", in, err))
			return
		}
		Reply(w, 200, struct{}{})
	})
	sock := serve(t, runDir(t), mux, nil)
	for _, tt := range []struct {
		request, version string
		want             string
	}{
		{"GET /v1/who", "", "200"},
		{"GET /v1/who", protocol, "200"},
		{"GET /v1/who", protocol + "0", "426"},
		{"GET /v1/who", "nonsense", "426"},
		{"GET /v1/who/../view", protocol + "0", "426"},
		{"POST /v1/size", protocol + "0", "426"},
		{"GET /v1/view", protocol + "0", "200"},
		{"POST /v1/mounts/x/report", protocol + "0", "200"},
		{"POST /v1/mounts", protocol + "0", "426"},
	} {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		body, header := `{"pid":7,"of":"the next version"}`, ""
		if tt.version != "" {
			header = protocolHeader + ": " + tt.version + "\r\n"
		}
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: clawfs\r\n%sContent-Length: %d\r\n\r\n%s", tt.request, header, len(body), body)
		got, _ := io.ReadAll(c)
		c.Close()
		if !strings.HasPrefix(string(got), "HTTP/1.1 "+tt.want+" ") || !strings.Contains(string(got), protocolHeader+": "+protocol+"\r\n") {
			t.Errorf("%s of version %q: %q, want status %s and the daemon's version", tt.request, tt.version, got, tt.want)
		}
	}
	// A daemon of before there were versions, and one of another.
	for _, header := range []string{"", protocolHeader + ": 0\r\n"} {
		old := strings.TrimSuffix(sock, "clawfs.sock") + "old" + fmt.Sprint(len(header))
		l, err := net.Listen("unix", old)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				http.ReadRequest(bufio.NewReader(c))
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: 5\r\nConnection: close\r\n\r\n\"you\"", header)
				c.Close()
			}
		}()
		var s string
		err = NewClient(old).do(t.Context(), "GET", "/v1/who", nil, &s)
		if err == nil || s != "" || !strings.Contains(err.Error(), "of another version") || !strings.Contains(err.Error(), "run/daemon.lock") {
			t.Errorf("a daemon with %q: %q, %v, want words", header, s, err)
		}
	}
}
