package soak

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backPatience is how long a mount may be away that nobody wants to be away, and
// how long a daemon may take to end that was told to.
const backPatience = time.Minute

// wreck does one thing after the other to the processes of a world until the soak
// ends, and leaves everything running.
func (w *world) wreck() {
	things := []struct {
		name string
		do   func() error
	}{
		{"daemon SIGTERM", func() error { return w.restart(syscall.SIGTERM) }},
		{"daemon kill -9", func() error { return w.restart(syscall.SIGKILL) }},
		{"daemon kill -9", func() error { return w.restart(syscall.SIGKILL) }},
		{"mount process kill -9", func() error { return w.killMount(w.someMount()) }},
		{"daemon and mount process kill -9", w.killBoth},
		{"daemon stopped", func() error { return w.pause(func(s status) int { return s.PID }) }},
		{"mount process stopped", func() error { m := w.someMount(); return w.pause(m.pid) }},
		{"umount and mount", func() error { return w.remount(w.someMount()) }},
		{"policy changed", w.changePolicy},
		{"reader kill -9", func() error { w.run.readers[rand.IntN(len(w.run.readers))].kill(); return nil }},
	}
	var took time.Duration
	for {
		// Each of them once before any of them twice. Where a start takes long, on a busy
		// machine, whoever wants something of the daemon gets as long.
		for _, i := range w.run.rand.Perm(len(things)) {
			w.run.sleep(max(w.run.phase/2+rand.N(2*w.run.phase), took))
			if !w.run.goesOn() {
				return
			}
			begin := time.Now()
			if err := things[i].do(); err != nil {
				w.run.fail("world %s: %s: %v", w.name, things[i].name, err)
				return
			}
			took = time.Since(begin)
			w.run.count.add("did: "+things[i].name, 1)
		}
	}
}

func (w *world) someMount() *mountpoint { return w.mounts[rand.IntN(len(w.mounts))] }

// pid is the mount's process according to a status; 0 if it says none.
func (m *mountpoint) pid(s status) int {
	for _, of := range s.Mounts {
		if of.Mountpoint == m.dir {
			return of.PID
		}
	}
	return 0
}

// settled returns a status that tells of the daemon and of a live process for each
// mount.
func (w *world) settled() (status, error) {
	var s status
	var err error
	for end := time.Now().Add(backPatience); ; time.Sleep(50 * time.Millisecond) {
		if s, err = w.status(); err == nil {
			live := 0
			for _, m := range s.Mounts {
				if m.State == "live" && m.PID != 0 {
					live++
				}
			}
			if live == len(w.mounts) {
				return s, nil
			}
		}
		if time.Now().After(end) {
			return s, fmt.Errorf("not all of %d mounts are live after %v: %v, %+v", len(w.mounts), backPatience, err, s.Mounts)
		}
	}
}

func (w *world) signalDaemon(sig syscall.Signal) error {
	s, err := w.settled()
	if err != nil {
		return err
	}
	if err := syscall.Kill(s.PID, sig); err != nil {
		return fmt.Errorf("daemon %d: %w", s.PID, err)
	}
	return awaitEnd(s.PID)
}

// awaitEnd waits until a process is gone, or is nobody's but its parent's.
func awaitEnd(pid int) error {
	for end := time.Now().Add(backPatience); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d lives %v after its signal", pid, backPatience)
		}
	}
}

func (w *world) restart(sig syscall.Signal) error {
	defer w.daemon.away(sig.String())()
	if err := w.signalDaemon(sig); err != nil {
		return err
	}
	time.Sleep(rand.N(w.run.phase))
	return w.startDaemon()
}

// killMount kills a mount process. Mostly it waits until the daemon holds the mount's
// session, and then nobody who reads may notice: a successor goes on with everything.
func (w *world) killMount(m *mountpoint) error {
	s, err := w.settled()
	if err != nil {
		return err
	}
	how := outage{what: "kill -9", unnoticed: m.held(s)}
	for end := time.Now().Add(3 * w.run.phase); !how.unnoticed && rand.IntN(20) > 0 && time.Now().Before(end); how.unnoticed = m.held(s) {
		time.Sleep(100 * time.Millisecond)
	}
	if how.unnoticed {
		w.run.count.add("mount process killed, its session held", 1)
	}
	defer m.gone(how)()
	return m.killed(m.pid(s))
}

// held reports whether the daemon of a status has said that it holds the session of
// the mount's process.
func (m *mountpoint) held(s status) bool {
	text, err := os.ReadFile(filepath.Join(m.world.state, "log", "daemon.log"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		var said struct {
			Msg         string
			PID, Holder int
		}
		if strings.Contains(line, "outlives its process now") && json.Unmarshal([]byte(line), &said) == nil && said.PID == s.PID && said.Holder == m.pid(s) {
			return true
		}
	}
	return false
}

// killed kills a mount's process and waits for another one.
func (m *mountpoint) killed(pid int) error {
	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("mount process %d: %w", pid, err)
	}
	if err := m.back(pid); err != nil {
		return err
	}
	m.world.run.count.slowest("mount back after kill -9", time.Since(begin))
	return nil
}

// back waits until a process that is not the old one serves the mount.
func (m *mountpoint) back(old int) error {
	for end := time.Now().Add(backPatience); ; time.Sleep(20 * time.Millisecond) {
		s, err := m.world.status()
		if pid := m.pid(s); err == nil && pid != 0 && pid != old && m.answers() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the mount %s is not back after %v: %v, %+v", m.dir, backPatience, err, s.Mounts)
		}
	}
}

// fuseMagic is FUSE_SUPER_MAGIC of statfs(2).
const fuseMagic = 0x65735546

// answers asks the mount, which may hang for a moment.
func (m *mountpoint) answers() bool {
	ok := make(chan bool, 1)
	go func() {
		var st unix.Statfs_t
		ok <- unix.Statfs(m.dir, &st) == nil && st.Type == fuseMagic
	}()
	select {
	case yes := <-ok:
		return yes
	case <-time.After(5 * time.Second):
		return false
	}
}

// killBoth is what is left of a machine's crash: daemon and mount process end
// together, in either order.
func (w *world) killBoth() error {
	s, err := w.settled()
	if err != nil {
		return err
	}
	m := w.someMount()
	defer m.away("kill -9 of both")()
	defer w.daemon.away("kill -9 of both")()
	pids := []int{s.PID, m.pid(s)}
	rand.Shuffle(2, func(i, j int) { pids[i], pids[j] = pids[j], pids[i] })
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	for _, pid := range pids {
		if err := awaitEnd(pid); err != nil {
			return err
		}
	}
	time.Sleep(rand.N(w.run.phase))
	if err := w.startDaemon(); err != nil {
		return err
	}
	return m.back(m.pid(s))
}

// pause stops a process for a moment. Nothing that is asked of it fails: it is
// late.
func (w *world) pause(of func(status) int) error {
	s, err := w.settled()
	if err != nil {
		return err
	}
	pid := of(s)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	time.Sleep(rand.N(3 * w.run.phase))
	return syscall.Kill(pid, syscall.SIGCONT)
}

// remount takes a mount away, by force if it is in use, and mounts again.
func (w *world) remount(m *mountpoint) error {
	if _, err := w.settled(); err != nil {
		return err
	}
	defer m.away("umount")()
	args := []string{"umount", m.dir}
	if rand.IntN(4) > 0 {
		args = []string{"umount", "--lazy", m.dir}
	}
	r, err := w.verb(args...)
	if err == nil && r.code == 8 && strings.Contains(r.stderr, "in use") {
		w.run.count.add("umount: in use", 1)
		r, err = w.verb("umount", "--lazy", m.dir)
	}
	if err != nil || r.code != 0 {
		return fmt.Errorf("clawfs %q: %v, exit code %d: %s", args, err, r.code, r.stderr)
	}
	for end := time.Now().Add(backPatience); ; time.Sleep(100 * time.Millisecond) {
		if r, err = w.verb("mount", "--seal", m.seal, w.src, m.dir); err == nil && r.code == 0 {
			return m.back(0)
		}
		if time.Now().After(end) {
			return fmt.Errorf("mounting %s again: %v, exit code %d: %s", m.dir, err, r.code, r.stderr)
		}
		w.run.count.add("mount: "+cause(fmt.Errorf("%s", r.stderr)), 1)
	}
}

// changePolicy adds a mint and a revoker that sign nothing, or takes them away: the
// store and every mount go through all of their records again.
func (w *world) changePolicy() error {
	policy := filepath.Join(w.state, "policy.json")
	kept := filepath.Join(w.run.dir, w.name+"-policy.json")
	if _, err := os.Stat(kept); err == nil {
		return os.Rename(kept, policy)
	}
	key := filepath.Join(w.run.dir, w.name+"-spare")
	if _, err := os.Stat(key); err != nil {
		if r, err := w.verb("keygen", "--out", key); err != nil || r.code != 0 {
			return fmt.Errorf("keygen: %v, exit code %d: %s", err, r.code, r.stderr)
		}
	}
	old, err := os.ReadFile(policy)
	if err != nil {
		return err
	}
	next := policy + ".next"
	os.Remove(next)
	if r, err := w.verb("policy", "new", "--from", policy, "--mint", "spare="+key+".pub", "--revoker", "spare="+key+".pub", "--out", next); err != nil || r.code != 0 {
		return fmt.Errorf("policy new: %v, exit code %d: %s", err, r.code, r.stderr)
	}
	if err := os.WriteFile(kept, old, 0o600); err != nil {
		return err
	}
	return os.Rename(next, policy)
}
