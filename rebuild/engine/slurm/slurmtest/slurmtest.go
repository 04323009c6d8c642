// Package slurmtest starts a real Slurm cluster of two nodes for a test: munged,
// slurmctld and two slurmd from unpacked Debian packages (make slurm), with a
// key, ports and a loopback of their own in a network namespace. Nothing is
// installed and nothing outside a temporary directory is written.
package slurmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Cluster is a running one.
type Cluster struct {
	// Commands has sbatch, squeue, sinfo, scancel and scontrol, each a script
	// that enters the cluster's network.
	Commands string
	Conf     string   // slurm.conf
	Nodes    []string // names
	t        testing.TB
}

// address is of the namespace's loopback. Not 127.0.0.1: Slurm resolves names
// with AI_ADDRCONFIG, which ignores a machine that has no other.
var address = [4]byte{10, 77, 0, 1}

// Start starts a cluster and ends it with the test. debs is where make slurm
// unpacked the packages.
func Start(t testing.TB, debs string) *Cluster {
	t.Helper()
	debs, err := filepath.Abs(debs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(debs, "usr/sbin/munged")); err != nil {
		t.Fatalf("no Slurm: %v\nnext: make slurm", err)
	}
	// Sockets have short names, and t.TempDir has not.
	dir, err := os.MkdirTemp("", "clawfs-slurm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &Cluster{Commands: filepath.Join(dir, "bin"), Conf: filepath.Join(dir, "slurm.conf"), Nodes: []string{"n1", "n2"}, t: t}
	key := make([]byte, 128)
	rand.Read(key)
	for _, err := range []error{
		os.Mkdir(c.Commands, 0o755), os.Mkdir(filepath.Join(dir, "state"), 0o755), os.Mkdir(filepath.Join(dir, "spool"), 0o755),
		os.WriteFile(filepath.Join(dir, "key"), key, 0o600), os.WriteFile(c.Conf, []byte(conf(dir, debs)), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	libraries := "LD_LIBRARY_PATH=" + filepath.Join(debs, "usr/lib", triplet()) + ":" + plugins(debs)
	sbin := func(name string) string { return filepath.Join(debs, "usr/sbin", name) }
	daemons := [][]string{
		{sbin("munged"), "--foreground", "--force", "--key-file=" + dir + "/key", "--socket=" + dir + "/munge",
			"--pid-file=" + dir + "/munged.pid", "--log-file=" + dir + "/munged.log", "--seed-file=" + dir + "/seed"},
		{sbin("slurmctld-wlm"), "-D", "-f", c.Conf},
	}
	for _, n := range c.Nodes {
		daemons = append(daemons, []string{sbin("slurmd-wlm"), "-D", "-N", n, "-f", c.Conf, "-d", sbin("slurmstepd-wlm")})
	}
	ready, stop, stopped := make(chan error), make(chan struct{}), make(chan struct{})
	go c.keep(dir, libraries, daemons, ready, stop, stopped)
	t.Cleanup(func() { c.end(); close(stop); <-stopped })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	net := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.network(dir))
	for _, name := range []string{"sbatch", "squeue", "sinfo", "scancel", "scontrol"} {
		text := fmt.Sprintf("#!/bin/sh\nexport %s\nexec /usr/bin/nsenter --net=%s %s \"$@\"\n", libraries, net, filepath.Join(debs, "usr/bin", name))
		if err := os.WriteFile(filepath.Join(c.Commands, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.Idle()
	return c
}

// Idle waits until every node is up and has nothing to do.
func (c *Cluster) Idle() {
	c.t.Helper()
	c.wait("all nodes are idle", func() bool { return strings.Count(c.Do("sinfo", "-h", "-N", "-o", "%T"), "idle\n") == len(c.Nodes) })
}

// conf is the shortest slurm.conf for two nodes on one machine, without
// control groups: the sandbox brings its own.
func conf(dir, debs string) string {
	return fmt.Sprintf(`ClusterName=clawfs
SlurmctldHost=localhost(%[3]s)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=%[1]s/munge
PluginDir=%[2]s
StateSaveLocation=%[1]s/state
SlurmdSpoolDir=%[1]s/spool/%%n
SlurmctldPidFile=%[1]s/slurmctld.pid
SlurmdPidFile=%[1]s/slurmd-%%n.pid
SlurmctldLogFile=%[1]s/slurmctld.log
SlurmdLogFile=%[1]s/slurmd-%%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=%[3]s Port=17001 CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=%[3]s Port=17002 CPUs=2 RealMemory=8000
PartitionName=build Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
`, dir, plugins(debs), fmt.Sprintf("%d.%d.%d.%d", address[0], address[1], address[2], address[3]))
}

func plugins(debs string) string { return filepath.Join(debs, "usr/lib", triplet(), "slurm-wlm") }

func triplet() string {
	return map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
}

// keep starts the daemons in a new network namespace and holds them. They die
// with this thread, which is not given back.
func (c *Cluster) keep(dir, libraries string, daemons [][]string, ready chan<- error, stop <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	runtime.LockOSThread()
	if err := newNetwork(); err != nil {
		ready <- fmt.Errorf("a network for the cluster: %w", err)
		return
	}
	net, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		ready <- err
		return
	}
	defer net.Close()
	if err := os.WriteFile(filepath.Join(dir, "net"), fmt.Append(nil, net.Fd()), 0o600); err != nil {
		ready <- err
		return
	}
	var running []*exec.Cmd
	for _, argv := range daemons {
		log, err := os.Create(filepath.Join(dir, filepath.Base(argv[0])+".out"))
		if err != nil {
			ready <- err
			break
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", libraries}
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err = cmd.Start()
		log.Close()
		if err != nil {
			ready <- err
			break
		}
		running = append(running, cmd)
	}
	if len(running) == len(daemons) {
		ready <- nil
	}
	<-stop
	for i := len(running) - 1; i >= 0; i-- {
		running[i].Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { running[i].Process.Kill() })
		running[i].Wait()
		late.Stop()
	}
}

// newNetwork gives this thread a network with a loopback that has address.
func newNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return err
	}
	addr, err := unix.NewIfreq("lo:1")
	if err != nil {
		return err
	}
	if err := addr.SetInet4Addr(address[:]); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, addr)
}

func (c *Cluster) network(dir string) (fd int) {
	text, err := os.ReadFile(filepath.Join(dir, "net"))
	if err == nil {
		_, err = fmt.Sscan(string(text), &fd)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return fd
}

// Do runs a command of Slurm and returns what it printed, also its error.
func (c *Cluster) Do(name string, argv ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.Commands, name), argv...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "SLURM_CONF=" + c.Conf}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(&out, "%s: %v\n", name, err)
	}
	return out.String()
}

func (c *Cluster) wait(what string, done func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Errorf("waited a minute until %s\n%s%s", what, c.Do("sinfo", "-N"), c.Do("squeue", "--states=all"))
			logs, _ := filepath.Glob(filepath.Join(filepath.Dir(c.Conf), "*.out"))
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				c.t.Logf("%s:\n%s", l, text)
			}
			c.t.FailNow()
		}
	}
}

// end lets no job outlive the daemons.
func (c *Cluster) end() {
	if _, err := os.Stat(filepath.Join(c.Commands, "scancel")); err != nil || c.t.Failed() && !strings.Contains(c.Do("sinfo", "-h"), "build") {
		return // it never ran
	}
	c.Do("scancel", "--user=root")
	for deadline := time.Now().Add(time.Minute); strings.TrimSpace(c.Do("squeue", "-h")) != "" && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
}
