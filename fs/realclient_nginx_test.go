package fs

import (
	"fmt"
	"io"
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

// nginxModes are the ways in which nginx sends a file.
var nginxModes = map[string]string{
	"sendfile":         "sendfile on;",
	"read":             "sendfile off;",
	"directio":         "sendfile off; directio 4k;",
	"threads":          "sendfile off; aio threads; output_buffers 2 64k;",
	"threads sendfile": "sendfile on; aio threads;",
}

// nginx serves the directories in all modes, and a model is fetched in each.
func nginx(t *testing.T, _ string, dirs ...string) (out []map[string]answer) {
	t.Helper()
	for _, dir := range dirs {
		out = append(out, fetch(t, startNginx(t, dir)))
	}
	return out
}

func fetch(t *testing.T, port int) map[string]answer {
	t.Helper()
	web := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	got := make(map[string]answer)
	for mode := range nginxModes {
		r, err := web.Get(fmt.Sprintf("http://127.0.0.1:%d/%s/raw.bin", port, strings.ReplaceAll(mode, " ", "-")))
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		switch {
		case err != nil:
			t.Fatalf("%s: %v after %d bytes", mode, err, len(body))
		case r.StatusCode == http.StatusOK:
			got[mode] = answer{Value: sumOf(body)}
		case r.StatusCode == http.StatusForbidden:
			got[mode] = answer{Error: r.Status}
		default:
			t.Fatalf("%s: %s, want 200 or 403", mode, r.Status)
		}
	}
	return got
}

// startNginx runs Debian's nginx on a loopback port until the test ends. It
// inherits the listening socket, as at an upgrade of the running program, so
// nobody else can take the port and nobody waits for the start.
func startNginx(t *testing.T, dir string) (port int) {
	t.Helper()
	program := installed(t, "nginx/usr/sbin/nginx")
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port = listener.Addr().(*net.TCPAddr).Port
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	home := tempDir(t)
	var conf strings.Builder
	fmt.Fprintf(&conf, "daemon off;\nuser nobody nogroup;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp {\n access_log off;\n", home)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&conf, " %s_temp_path %s/%s;\n", kind, home, kind)
	}
	fmt.Fprintf(&conf, " server {\n  listen 127.0.0.1:%d;\n", port)
	for mode, directives := range nginxModes {
		fmt.Fprintf(&conf, "  location /%s/ { alias %s/; %s }\n", strings.ReplaceAll(mode, " ", "-"), dir, directives)
	}
	conf.WriteString(" }\n}\n")
	file := filepath.Join(home, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf.String()), 0o644); err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command(program, "-c", file, "-p", home)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = append(os.Environ(), "NGINX=3;")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		stuck := time.AfterFunc(20*time.Second, func() {
			t.Error("nginx does not end")
			cmd.Process.Kill()
		})
		defer stuck.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("nginx: %v", err)
		}
		if strings.Contains(stderr.String(), "exited on signal") { // a worker
			t.Errorf("nginx said:\n%s", stderr.String())
		}
	})
	return port
}
