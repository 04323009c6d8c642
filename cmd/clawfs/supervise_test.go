package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// The socket answers before the mounts are watched: who asks for one in that moment
// waits.
func TestMountAskedForAtTheStart(t *testing.T) {
	s := newSupervisor(config.State(t.TempDir()), slog.New(slog.DiscardHandler), func(...string) (*exec.Cmd, error) {
		return nil, errors.New("nothing is started in a test")
	})
	answer := make(chan error, 1)
	go func() {
		_, err := s.add(mountRecord{ID: "a628655aadc0", Source: t.TempDir(), Mountpoint: t.TempDir()})
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("it is answered before anything runs: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	if err := <-answer; err == nil || strings.Contains(err.Error(), "still starting") {
		t.Errorf("add = %v, want that nothing could be started", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// scripted is a supervisor whose mount processes are a shell's: descriptor 3 is the
// daemon.
func scripted(t *testing.T, script string) (*supervisor, mountRecord) {
	t.Helper()
	r := newRig(t)
	if err := r.state.MakeRun(); err != nil {
		t.Fatal(err)
	}
	s := newSupervisor(r.state, slog.New(slog.DiscardHandler), func(...string) (*exec.Cmd, error) {
		return exec.Command("sh", "-c", script), nil
	})
	return s, newRecord(r.src, r.mnt, false, control.MountOptions{})
}

// A mount process may take as long as it likes if it says how far it is, and no longer
// than the patience if it does not.
func TestSlowMountProcess(t *testing.T) {
	const patience = 2 * time.Second
	for _, tt := range []struct{ name, script, want string }{
		{"silent", `sleep 60`, "does not get ready"},
		{"silent in the end", `echo '{"starting":true,"records":5}' >&3; sleep 60`, "does not get ready"},
		{"half a line", `printf '{"starting":' >&3; sleep 60`, "does not get ready"},
		{"dead", `exit 1`, "ended before it was ready"},
		{"dead in the middle", `echo '{"starting":true,"records":5}' >&3; echo why >&2; exit 1`, "why"},
		{"no report", `echo ready >&3`, "ended before it was ready"},
		{"a long line", `head -c 100000 /dev/zero | tr '\0' x >&3`, "ended before it was ready"},
		{"refused", `echo '{"error":"the policy is gone"}' >&3`, "the policy is gone"},
		{"refused at last", `echo '{"starting":true}' >&3; echo '{"error":"the policy is gone"}' >&3`, "the policy is gone"},
		{"live", `echo '{}' >&3`, ""},
		{"live at last", `for i in 1 2 3 4 5 6 7 8; do echo "{\"starting\":true,\"records\":$i}" >&3; sleep 0.5; done; echo '{}' >&3`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, r := scripted(t, tt.script)
			s.readyPatience = patience
			err := s.start(t.Context(), r)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start = %v, want %q", err, tt.want)
			}
		})
	}
}

// Who asks for a mount whose process has millions of records to read is answered that
// it starts, and can see how far it is and what becomes of it.
func TestSlowMountIsAnswered(t *testing.T) {
	s, r := scripted(t, `echo '{"starting":true,"records":7}' >&3; sleep 4; echo '{"error":"no room for the index"}' >&3`)
	s.addPatience = 2 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	m, err := s.add(r)
	if err != nil || m.State != mountStarting || m.Records != 7 || m.LastError != "" {
		t.Fatalf("add = %+v, %v, want a mount that starts and has 7 records", m, err)
	}
	if _, err := s.add(r); err == nil || !strings.Contains(err.Error(), "is mounted already") {
		t.Errorf("again: %v", err)
	}
	for end := time.Now().Add(20 * time.Second); !strings.Contains(s.one(r.ID).LastError, "no room for the index"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nobody is told why: %+v", s.one(r.ID))
		}
	}
	if _, err := readRecord(s.state, r.ID); err != nil {
		t.Errorf("the wish was answered and is gone: %v", err)
	}
}

// clawfs mount waits for a mount that starts, says how far it is, and what went wrong.
func TestMountIsAwaited(t *testing.T) {
	m := control.Mount{ID: "a628655aadc0", Mountpoint: "/models", State: mountStarting}
	with := func(change func(*control.Mount)) []control.Mount {
		m := m
		change(&m)
		return []control.Mount{{ID: "another", State: mountLive}, m}
	}
	starts := with(func(m *control.Mount) { m.Records = 5 })
	for _, tt := range []struct {
		name, want string
		then       []control.Mount
	}{
		{"live", "", with(func(m *control.Mount) { m.State, m.PID = mountLive, 77 })},
		{"refused", "no room for the index; next: clawfs", with(func(m *control.Mount) { m.LastError = "no room for the index" })},
		{"taken back", "somebody has taken back", nil},
		{"interrupted", "goes on starting; next: clawfs", starts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var asked atomic.Int32
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Clawfs-Protocol", control.Protocol()) // as a daemon of this version
				if asked.Add(1) < 3 {
					control.Reply(w, http.StatusOK, starts)
					return
				}
				control.Reply(w, http.StatusOK, tt.then)
				if tt.name == "interrupted" {
					cancel()
				}
			})}
			go srv.Serve(l)
			defer srv.Close()
			var said bytes.Buffer
			a := &app{stderr: &said}
			got, err := a.awaitServed(ctx, control.NewClient(path), m)
			if text := said.String(); !strings.Contains(text, "the mount at /models reads the store: 5 records\n") {
				t.Errorf("it said %q", text)
			}
			if err == nil && (got.State != mountLive || got.PID != 77) {
				t.Errorf("%+v", got)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err != nil && exitCode(err) != codeMount {
				t.Errorf("exit code %d, want %d", exitCode(err), codeMount)
			}
		})
	}
}

// slowDaemon answers on the socket of a state directory with a real supervisor, and
// sends a mount process three records, so slowly that they take longer than its patience.
func slowDaemon(t *testing.T, r *rig) *supervisor {
	t.Helper()
	if err := r.state.MakeRun(); err != nil {
		t.Fatal(err)
	}
	s := newSupervisor(r.state, slog.New(slog.DiscardHandler), func(args ...string) (*exec.Cmd, error) {
		return exec.Command(r.bin, append([]string{"--state", string(r.state)}, args...)...), nil
	})
	s.addPatience, s.readyPatience = time.Second, 6*time.Second
	var lines []control.ViewLine
	for _, content := range []string{"a", "b", "c"} {
		lines = append(lines, control.ViewLine{Kind: capstore.RecordCapability, Envelope: r.capability(r.measured(map[string]string{content + ".bin": content}))})
	}
	lines = append(lines, control.ViewLine{Kind: control.LineSnapshot, Extent: 3})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, req *http.Request) {
		stream, err := control.NewStream(w)
		if err != nil {
			t.Error(err)
			return
		}
		for _, l := range lines {
			if stream.Send(l) != nil {
				return
			}
			wait(req.Context(), time.After(2500*time.Millisecond))
		}
		follow(req.Context(), stream, nil, nil)
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		control.Reply(w, http.StatusOK, control.Status{Mounts: s.list()})
	})
	mux.HandleFunc("GET /v1/mounts", func(w http.ResponseWriter, _ *http.Request) { control.Reply(w, http.StatusOK, s.list()) })
	mux.HandleFunc("POST /v1/mounts", func(w http.ResponseWriter, req *http.Request) {
		var in control.MountRequest
		if err := control.ReadBody(req, &in); err != nil {
			t.Error(err)
		}
		m, err := s.add(newRecord(in.Source, in.Mountpoint, false, in.MountOptions))
		if err != nil {
			control.ReplyError(w, &control.Error{Status: http.StatusConflict, Code: codeMount, Message: err.Error()})
			return
		}
		control.Reply(w, http.StatusOK, m)
	})
	mux.HandleFunc("POST /v1/mounts/{id}/report", func(w http.ResponseWriter, _ *http.Request) { control.Reply(w, http.StatusOK, struct{}{}) })
	l, err := net.Listen("unix", r.state.Socket())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Clawfs-Protocol", control.Protocol()) // as a daemon of this version
		mux.ServeHTTP(w, req)
	})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go srv.Serve(l)
	go func() { ended <- s.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		srv.Close()
	})
	return s
}

// A mount whose process reads longer than anybody's patience comes up.
func TestMountOfALargeStore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	slowDaemon(t, r)
	r.file("a.bin", "a")
	got := r.run("mount", "-o", "json", r.src, r.mnt)
	var m mounted
	if err := json.Unmarshal([]byte(got.stdout), &m); err != nil || got.code != 0 {
		t.Fatalf("%v: %+v", err, got)
	}
	if !strings.Contains(got.stderr, "the mount at "+r.mnt+" reads the store: ") {
		t.Errorf("mount said %q", got.stderr)
	}
	if m.PID == 0 || m.PID != r.serverPID() {
		t.Errorf("mount says pid %d, and %d serves", m.PID, r.serverPID())
	}
	if !r.opens("a.bin", "a") {
		t.Error("a granted file was refused")
	}
	r.ok("umount", r.mnt)
}

// A mount that starts is unmounted like any other: nothing comes up later, and the
// place is free.
func TestUmountOfAMountThatStarts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := slowDaemon(t, r)
	id := mountID(r.mnt)
	mount := exec.Command(r.bin, "--state", string(r.state), "mount", r.src, r.mnt)
	var said strings.Builder
	mount.Stderr = &said
	if err := mount.Start(); err != nil {
		t.Fatal(err)
	}
	r.eventually("the process reads the store", func() bool { return s.one(id).Records > 0 })
	r.ok("umount", r.mnt)
	mount.Wait()
	if code := mount.ProcessState.ExitCode(); code != codeMount || !strings.Contains(said.String(), "somebody has taken back the mount at "+r.mnt) {
		t.Errorf("mount: exit code %d, %s", code, said.String())
	}
	r.eventually("nobody serves it", func() bool { return r.serverPID() == 0 && !r.hasRecord() && !r.isMounted() })
	r.file("a.bin", "a")
	r.ok("mount", r.src, r.mnt)
	if !r.opens("a.bin", "a") {
		t.Error("a granted file was refused")
	}
	r.ok("umount", r.mnt)
}

// umount says that a mount is gone when its process is: until then it may still come.
func TestUmountWaitsForAStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.state.MakeRun(); err != nil {
		t.Fatal(err)
	}
	id := mountID(r.mnt)
	if err := newRecord(r.src, r.mnt, false, control.MountOptions{}).write(r.state); err != nil {
		t.Fatal(err)
	}
	lock, err := control.TakeLock(r.state.MountLock(id)) // as a process that starts
	if err != nil {
		t.Fatal(err)
	}
	umount := exec.Command(r.bin, "--state", string(r.state), "umount", r.mnt)
	var said strings.Builder
	umount.Stderr = &said
	if err := umount.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- umount.Wait() }()
	r.eventually("the record is gone", func() bool { return !r.hasRecord() })
	select {
	case err := <-ended:
		t.Fatalf("umount ended (%v) before the process that starts: %s", err, said.String())
	case <-time.After(500 * time.Millisecond):
	}
	lock.Release()
	if err := <-ended; err != nil {
		t.Errorf("umount: %v: %s", err, said.String())
	}
}
