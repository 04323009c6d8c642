package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci"
)

func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){"clawfs": main, "holdfile": holdFile, "raced": raced})
}

// raceOptions are those of each child under the race detector. A race ends it
// and must not end as a line in a log. By default each child would sleep for a
// second before it exits, and most are over sooner than that.
const raceOptions = "halt_on_error=1 atexit_sleep_ms=10"

// dataRace begins the detector's report.
const dataRace = "WARNING: DATA RACE"

// cleaning runs the tests and removes what buildTools made.
type cleaning struct{ m *testing.M }

func (c cleaning) Run() int {
	os.Setenv("GORACE", raceOptions)
	code := c.m.Run()
	if tools.dir != "" {
		os.RemoveAll(tools.dir)
	}
	return code
}

// TestScript runs the specification of the command line, one file for each
// verb. Scripts say `exits CODE clawfs …` where the code matters.
func TestScript(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts in testdata/script: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Files:               scripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("CLAWFS_STATE", filepath.Join(e.WorkDir, "state"))
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("GIT_CONFIG_NOSYSTEM", "1")
			e.Setenv("GORACE", raceOptions)
			e.Setenv("SSH_AUTH_SOCK", "")
			e.Setenv("PATH", e.Getenv("PATH")+":"+filepath.Join(repository(t), "bin")+":"+filepath.Join(repository(t), "cmd/clawfs/testdata/signer"))
			return os.Mkdir(filepath.Join(e.WorkDir, "home"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  cmdExits,
			"mode":   cmdMode,
			"flip":   cmdFlip,
			"image":  cmdImage,
			"commit": cmdCommit,
			"agent":  cmdAgent,
		},
	})
}

// cmdExits runs a program and wants an exit code: exits CODE PROGRAM ARG...
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("exits: code %q", args[0])
	}
	got := 0
	var failed *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &failed) {
		got = failed.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("exit code of %s = %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// cmdMode wants permission bits: mode 0600 FILE...
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args[1:] {
		fi, err := os.Lstat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", fi.Mode().Perm()); (got == args[0]) == neg {
			ts.Fatalf("mode of %s = %s, want %s", name, got, args[0])
		}
	}
}

// cmdFlip flips the lowest bit of the byte in the middle of a file: flip FILE
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.MkAbs(args[0])
	data, err := os.ReadFile(name)
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(name, data, 0o644))
}

// cmdCommit makes a directory a git repository with all its files in one
// commit: commit DIR
func cmdCommit(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	for _, line := range [][]string{
		{"init", "-q", "-b", "main"},
		{"add", "-A"},
		{"-c", "user.name=acme", "-c", "user.email=ci@acme.example", "commit", "-q", "-m", "recipe"},
	} {
		ts.Check(ts.Exec("git", append([]string{"-C", dir}, line...)...))
	}
}

// cmdImage writes an environment image whose only program is the trainer of
// testdata/trainer, and sees to a real runc in bin: image LAYOUT
func cmdImage(ts *testscript.TestScript, neg bool, args []string) {
	tools.once.Do(buildTools)
	ts.Check(tools.err)
	layer, err := os.Open(tools.layer)
	ts.Check(err)
	defer layer.Close()
	config := oci.Config{OS: "linux", Architecture: hostArch(), Env: []string{"PATH=/bin"}}
	digest, err := oci.AppendImage(context.Background(), ts.MkAbs(args[0]), oci.Image{Config: config}, io.Reader(layer))
	ts.Check(err)
	if digest == (hashpipe.Digest{}) {
		ts.Fatalf("image %s has no digest", args[0])
	}
	ts.Setenv("IMAGE", "sha256:"+digest.String())
}

// cmdAgent starts an ssh-agent that ends with the script: agent
func cmdAgent(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv("SSH_AUTH_SOCK", startAgent(ts.Fatalf, ts.Defer))
}

// startAgent starts an ssh-agent, and returns its socket.
func startAgent(fatalf func(string, ...any), atEnd func(func())) string {
	// Beside the test's directory: the name of a socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "clawfs-agent-")
	if err != nil {
		fatalf("%v", err)
	}
	atEnd(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		fatalf("%v; install it: apt-get install openssh-client", err)
	}
	atEnd(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(socket); err == nil {
			return socket
		} else if time.Now().After(deadline) {
			fatalf("ssh-agent does not listen: %v", err)
		}
	}
}
