// Package ocitest runs the distribution registry, as Debian packages it, for
// tests.
package ocitest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// Distribution runs the registry as a process until the test ends and returns
// its address, and the directory that it keeps blobs in. more is added to its
// configuration.
func Distribution(t testing.TB, more string) (addr, data string) {
	t.Helper()
	program := program(t)
	dir := t.TempDir()
	data = filepath.Join(dir, "data")
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: '127.0.0.1:0'}\n%s", data, more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	listens := make(chan string, 1)
	go func() {
		listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				listens <- m[1]
			}
		}
		close(listens)
	}()
	select {
	case addr, ok := <-listens:
		if !ok {
			t.Fatal("the registry ended before it listened")
		}
		return addr, data
	case <-time.After(30 * time.Second):
		t.Fatal("the registry does not listen")
	}
	return "", ""
}

// program finds the registry below the repository that the test is in.
func program(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("the test is not below a go.mod")
		}
	}
	name := filepath.Join(dir, "build/servers/usr/bin/docker-registry")
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("the registry of Debian is missing: make servers (%v)", err)
	}
	return name
}
