package soak

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// late stands between a mount process and the daemon. It hands revocations on late,
// and says of the mount that it has them: a mount that confirms before it obeys. Late
// by nothing, it says what the mount itself has reported.
type late struct {
	daemon string // socket
	by     time.Duration
	mount  string

	reported atomic.Uint64 // generation
}

// confirmed is how far the mount is said to be, of a store of that generation.
func (l *late) confirmed(generation any) any {
	if l.by > 0 {
		return generation
	}
	return l.reported.Load()
}

// listen notes what the mount reports on its way to the daemon.
func (l *late) listen(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/report") {
			text, err := io.ReadAll(r.Body)
			var report struct{ Generation uint64 }
			if err != nil || json.Unmarshal(text, &report) != nil {
				http.Error(w, "no report", http.StatusBadRequest)
				return
			}
			l.reported.Store(report.Generation)
			r.Body = io.NopCloser(bytes.NewReader(text))
		}
		next.ServeHTTP(w, r)
	})
}

func (l *late) serve(t *testing.T, socket string) {
	to := &url.URL{Scheme: "http", Host: "daemon"}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", l.daemon)
			},
			DisableKeepAlives: true,
		},
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			switch r.Request.URL.Path {
			case "/v1/view":
				body := r.Body
				out, in := io.Pipe()
				go func() {
					lines := bufio.NewReader(body)
					for {
						line, err := lines.ReadBytes('\n')
						if bytes.Contains(line, []byte(`"kind":"revocation"`)) {
							time.Sleep(l.by)
						}
						if _, broken := in.Write(line); broken != nil || err != nil {
							in.CloseWithError(err)
							return
						}
					}
				}()
				r.Body = struct {
					io.Reader
					io.Closer
				}{out, body}
			case "/v1/status":
				text, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err != nil {
					return err
				}
				var s map[string]any
				if err := json.Unmarshal(text, &s); err != nil {
					return err
				}
				s["mounts"] = []any{map[string]any{
					"mountpoint": l.mount, "state": "live", "pid": 1, "report": map[string]any{"generation": l.confirmed(s["generation"])},
				}}
				if text, err = json.Marshal(s); err != nil {
					return err
				}
				r.Body = io.NopCloser(bytes.NewReader(text))
				r.ContentLength = int64(len(text))
				r.Header.Set("Content-Length", strconv.Itoa(len(text)))
			}
			return nil
		},
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: l.listen(proxy)}
	go srv.Serve(listener)
	t.Cleanup(func() { srv.Close() })
}

// A mount that obeys a revocation later than it says is found out by the histories,
// and by nothing else; the same mount without the fault is not.
func TestPlantedLateRevocation(t *testing.T) {
	for _, tt := range []struct {
		name  string
		by    time.Duration
		found bool
	}{{"in time", 0, false}, {"late", 4 * time.Second, true}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSoak(t, time.Hour)
			var told []string
			s.sink = func(text string) { told = append(told, text) }
			// The daemon's state directory, and that of the mount, whose socket is the fault.
			w := newWorld(t, s, "daemon")
			between := filepath.Join(s.dir, "between")
			if out, err := exec.Command("cp", "-a", w.state, between).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v\n%s", err, out)
			}
			for _, left := range []string{"run", "store"} {
				if err := os.RemoveAll(filepath.Join(between, left)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(filepath.Join(between, "run", "mounts"), 0o700); err != nil {
				t.Fatal(err)
			}
			m := &mountpoint{world: w, seal: "off", dir: filepath.Join(s.dir, "mount")}
			l := &late{daemon: filepath.Join(w.state, "run", "clawfs.sock"), by: tt.by, mount: m.dir}
			l.serve(t, filepath.Join(between, "run", "clawfs.sock"))
			if err := os.Mkdir(m.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(w.bin, "--state", between, "mount", "--foreground", "--seal", "off", w.src, m.dir)
			cmd.Env = w.environment()
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cmd.Process.Signal(syscall.SIGTERM)
				cmd.Wait()
				if t.Failed() {
					t.Logf("mount: %s", errs.String())
				}
			})
			w.mounts = []*mountpoint{m}
			for end := time.Now().Add(backPatience); !m.answers(); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the mount does not come up:\n%s", errs.String())
				}
			}
			// The soak's own eyes: the status that the fault has touched.
			w.client = socketClient(filepath.Join(between, "run", "clawfs.sock"))
			w.socketOnly = true
			defer s.start(2)()
			if err := w.live(0, false, false); err != nil {
				t.Fatal(err)
			}
			for _, r := range s.readers {
				r.stop()
			}
			s.parts.Wait()
			found := slices.ContainsFunc(told, func(text string) bool {
				return strings.Contains(text, "no order explains") && strings.Contains(text, "revoke")
			})
			if found != tt.found || len(told) > 1 {
				t.Errorf("revocations %v late: told %q, want the history refused: %v", tt.by, told, tt.found)
			}
			for _, needed := range []string{"open off: ok", "open off: " + unix.EACCES.Error()} {
				if s.count.get(needed) == 0 {
					t.Errorf("%s: 0", needed)
				}
			}
		})
	}
}
