package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// metric is the value of a sample in the text format; empty: there is none.
func metric(text, sample string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// A scrape says of a mount what happens there, with and without a daemon, in each of
// its forms.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"good.bin": "granted"})
	r.file("good.bin", "granted")
	r.file("bad.bin", "other bytes")
	r.ok("mount", r.src, r.mnt)
	if !r.opens("good.bin", "granted") || r.opens("bad.bin", "other bytes") {
		t.Fatal("want one file granted and the other refused")
	}
	m := func(name string, labels ...string) string {
		return "clawfs_" + name + "{" + strings.Join(append([]string{`mount="` + r.mnt + `"`}, labels...), ",") + "}"
	}
	listener := exec.Command(r.bin, "--state", string(r.state), "metrics", "--listen", "127.0.0.1:0")
	said, err := listener.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	defer listener.Process.Kill()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`http://127\.0\.0\.1:\d+/metrics`).FindString(line)
	if url == "" {
		t.Fatalf("metrics --listen said %q, want where it listens", line)
	}
	scrape := func(url string, code int) string {
		answer, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != code {
			t.Fatalf("%s: %s, %v, want %d", url, answer.Status, err, code)
		}
		return string(b)
	}
	textfile := filepath.Join(t.TempDir(), "clawfs.prom")
	forms := map[string]func() string{
		"printed": func() string { return r.ok("metrics") },
		"scraped": func() string { return scrape(url, 200) },
		"in a file": func() string {
			r.ok("metrics", "--textfile", textfile)
			b, err := os.ReadFile(textfile)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		},
		"as JSON": func() string {
			var list []metricSample
			r.document(&list, "metrics")
			var b bytes.Buffer
			for _, s := range list {
				if s.Name == "clawfs_opens_total" && s.Type == "counter" && s.Labels["mount"] == r.mnt && s.Value == 1 {
					b.WriteString(m("opens_total", `result="`+s.Labels["result"]+`"`) + " 1\n")
				}
				if s.Type == "gauge" && s.Labels == nil {
					b.WriteString(s.Name + " " + strconv.FormatFloat(s.Value, 'g', -1, 64) + "\n")
				}
			}
			return b.String()
		},
	}
	for form, text := range forms {
		r.eventually(form+", the opens are counted", func() bool {
			got := text()
			return metric(got, "clawfs_up") == "1" && metric(got, "clawfs_store_open") == "1" && metric(got, m("opens_total", `result="granted"`)) == "1" && metric(got, m("opens_total", `result="refused"`)) == "1"
		})
	}
	got := scrape(url, 200)
	if metric(got, m("mount_audit_mode")) != "0" || metric(got, m("mount_live")) != "1" || metric(got, `clawfs_capabilities{state="live"}`) != "1" {
		t.Errorf("want a live mount in enforcement, and one live capability:\n%s", got)
	}
	if strings.Contains(got, "good.bin") || strings.Contains(got, "bad.bin") {
		t.Errorf("files are named:\n%s", got)
	}
	scrape(strings.TrimSuffix(url, "metrics"), 404)
	r.stopDaemon(syscall.SIGKILL)
	for form, text := range forms {
		if got := text(); metric(got, "clawfs_up") != "0" || metric(got, "clawfs_store_open") != "" {
			t.Errorf("%s, without a daemon: want clawfs_up 0 and nothing of the store:\n%s", form, got)
		}
	}
	if got := r.ok("metrics"); metric(got, m("mount_audit_mode")) != "0" || strings.Contains(got, "clawfs_opens_total") {
		t.Errorf("without a daemon: want the mount, and no counts of it:\n%s", got)
	}

	listener.Process.Signal(syscall.SIGTERM)
	if err := listener.Wait(); err != nil {
		t.Errorf("metrics --listen after SIGTERM: %v, want exit code 0", err)
	}
	r.refused(codeUsage, []string{"metrics", "--textfile", "clawfs.txt"}, "want a name that ends in .prom")
	r.refused(codeUsage, []string{"metrics", "--textfile", textfile, "--listen", "127.0.0.1:0"}, "--listen and --textfile: want one of them")
	r.refused(codeUsage, []string{"metrics", "--listen="}, "--listen: want an address")
	r.refused(codeUsage, []string{"metrics", "--textfile="}, "--textfile: want a file")
	var written struct {
		Textfile string `json:"textfile"`
	}
	if r.document(&written, "metrics", "--textfile", textfile); written.Textfile != textfile {
		t.Errorf("metrics --textfile as JSON: %+v", written)
	}
	r.refused(codeError, []string{"metrics", "--textfile", filepath.Join(textfile, "x.prom")}, "not a directory")
	r.refused(codeError, []string{"metrics", "--listen", "192.0.2.1:1"}, "192.0.2.1:1")
}

// A daemon that has stopped answering is an error of the scrape, soon, and not a
// mount without trouble.
func TestMetricsOfSilentDaemon(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	pid := r.daemonPID()
	syscall.Kill(pid, syscall.SIGSTOP)
	defer syscall.Kill(pid, syscall.SIGCONT)
	began := time.Now()
	got := r.run("metrics")
	if got.code == 0 || got.stdout != "" || time.Since(began) > 10*lookPatience {
		t.Errorf("exit code %d after %v, %q, want an error and no metrics", got.code, time.Since(began), got.stdout)
	}
}
