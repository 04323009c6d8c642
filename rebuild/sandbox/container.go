package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// runcTime bounds one call of runc; none of them waits for the build.
const runcTime = time.Minute

// container is one created container. Its first process is a child of this
// process, so its id cannot be reused before wait has returned.
type container struct {
	r    *Runtime
	dir  string // of the run
	id   string
	pid  int
	done chan struct{} // closed when the first process is dead and reaped
	// status and waitErr are valid after done.
	status  syscall.WaitStatus
	waitErr error
}

// create starts a container up to the moment before its first instruction.
// runc exits then; this process becomes the parent because it is the nearest
// subreaper, which it stays.
func (r *Runtime) create(dir, id, bundle string, output *os.File) (*container, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("becoming the parent of containers: %w", err)
	}
	pidFile := filepath.Join(bundle, "pid")
	if err := r.runc(dir, id, output, "create", "--bundle", bundle, "--pid-file", pidFile, id); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	c := &container{r: r, dir: dir, id: id, done: make(chan struct{})}
	if c.pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil || c.pid < 2 {
		return nil, fmt.Errorf("runc create wrote %q as process id", text)
	}
	go c.wait()
	return c, nil
}

func (c *container) wait() {
	defer close(c.done)
	for {
		_, err := syscall.Wait4(c.pid, &c.status, 0, nil)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EINTR) {
			c.waitErr = fmt.Errorf("waiting for process %d of the container: %w", c.pid, err)
			return
		}
	}
}

func (c *container) start() error { return c.r.runc(c.dir, c.id, nil, "start", c.id) }

// kill ends the first process, and with it, by the kernel's rule for pid
// namespaces, every other one. It does not wait.
func (c *container) kill() {
	select {
	case <-c.done:
	default:
		// Not yet reaped, so the id is still this process's.
		unix.Kill(c.pid, unix.SIGKILL)
	}
}

// end kills every process of the container and waits until they are dead. The
// kernel lets nobody reap the first process of a pid namespace before all the
// others are gone, and no new one can come: from then on nothing of the build
// acts. Repeating it is harmless.
func (c *container) end() error {
	c.kill()
	select {
	case <-c.done:
		return c.waitErr
	case <-time.After(killTime):
		return fmt.Errorf("process %d of the container, or one that it started, lives %v after SIGKILL; see /proc/PID/stack for what it waits for", c.pid, killTime)
	}
}

// destroy removes a container by its id, with its cgroup. One that lives is
// killed. A container that runc does not know is no error.
func (r *Runtime) destroy(dir, id string) error {
	// Of a dead container this is the end. Force, beside its kill, would wait
	// 100 ms before it looks whether the container is dead.
	if r.runc(dir, id, nil, "delete", id) == nil {
		return nil
	}
	killed := r.runc(dir, id, nil, "kill", id, "KILL")
	if err := r.runc(dir, id, nil, "delete", "--force", id); err != nil {
		return errors.Join(killed, err)
	}
	return nil
}

// runcError is what runc said when it failed.
type runcError struct {
	verb string
	said string
	err  error
}

func (e *runcError) Error() string { return fmt.Sprintf("runc %s: %v: %s", e.verb, e.err, e.said) }
func (e *runcError) Unwrap() error { return e.err }

// ofBuild tells whether the fault is in the recipe: a command that the image
// does not have, or a work directory that it does not have either and that
// cannot be made in it. runc makes that after everything is mounted.
func (e *runcError) ofBuild(workDir string) bool {
	if e.verb != "create" {
		return false
	}
	if strings.Contains(e.said, "exec: ") || strings.Contains(e.said, "chdir to cwd") {
		return true
	}
	_, made, ok := strings.Cut(e.said, "error during container init: mkdir ")
	for dir := workDir; ok && dir != "" && dir != "/"; dir = path.Dir(dir) {
		if strings.HasPrefix(made, escape([]byte(dir))+": ") {
			return true
		}
	}
	return false
}

// runc runs one command. Not bound to the caller's context: a runc killed
// half-way through create leaves a container that no state describes.
func (r *Runtime) runc(dir, id string, output *os.File, verb string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), runcTime)
	defer cancel()
	log := filepath.Join(dir, id+"."+verb+".log")
	defer os.Remove(log)
	argv := append([]string{"--root", filepath.Join(dir, "runc"), "--log", log, "--log-format", "json", verb}, args...)
	cmd := exec.CommandContext(ctx, r.path, argv...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.WaitDelay = logGrace
	var said bytes.Buffer
	if output != nil { // the container inherits these; nil is /dev/null
		cmd.Stdout, cmd.Stderr = output, output
	} else {
		cmd.Stderr = &said
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v", runcTime)
		}
		return &runcError{verb: verb, said: lastMessage(log, said.String()), err: err}
	}
	return nil
}

// lastMessage finds the reason in runc's JSON log.
func lastMessage(log, fallback string) string {
	f, err := os.Open(log)
	if err != nil {
		return firstLine(fallback)
	}
	defer f.Close()
	message := firstLine(fallback)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Level == "error" && entry.Msg != "" {
			message = entry.Msg
		}
	}
	return escape([]byte(firstLine(message)))
}
