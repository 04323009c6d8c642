package fs

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// attackers are client processes that do what no loader of models does. Each
// takes its arguments and returns what it saw.
var attackers = map[string]func(args []string) sight{"force": force, "peek": peek, "storm": storm, "answers": answers, "handles": useHandles, "maponly": mapsOnly}

// sight is what an attacker saw.
type sight struct {
	Errnos  map[string]syscall.Errno // of the calls that were tried
	Results map[string]result
	Opened  int // opens
	Good    int // reads of approved bytes
	Refused int // opens that were refused
	Late    int // reads that failed after an open
	Bad     int // reads of other bytes
	Text    string

	Sealed, LateSealed, BadSealed int // of Opened, Late and Bad, in tier "sealed"
}

// add counts what another saw.
func (s *sight) add(o sight) {
	s.Opened, s.Good, s.Refused, s.Late, s.Bad = s.Opened+o.Opened, s.Good+o.Good, s.Refused+o.Refused, s.Late+o.Late, s.Bad+o.Bad
	s.Sealed, s.LateSealed, s.BadSealed = s.Sealed+o.Sealed, s.LateSealed+o.LateSealed, s.BadSealed+o.BadSealed
	s.Text += o.Text
}

func show(s sight) int {
	if err := json.MarshalWrite(os.Stdout, s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Stdout.Write([]byte("\n"))
	return 0
}

func attacker(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVariable+"=liar", quickExit)
	cmd.Stderr = os.Stderr
	return cmd
}

// attack runs an attacker. One that hangs is a failure.
func (m *mounted) attack(args ...string) sight {
	m.t.Helper()
	cmd := attacker(args...)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	stuck := time.AfterFunc(60*time.Second+raceTime(m.t), func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !stuck.Stop() {
		m.t.Fatalf("attacker %q hangs", args)
	}
	var s sight
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &s)
	}
	if err != nil {
		m.t.Fatalf("attacker %q: %v\n%s", args, err, out.Bytes())
	}
	return s
}

// become gives up root for ever.
func become(uid string) {
	n, err := strconv.Atoi(uid)
	if err != nil {
		panic(err)
	}
	if n == 0 {
		return
	}
	for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(n), syscall.Setuid(n)} {
		if err != nil {
			panic(err)
		}
	}
}

// storm reads a file in every way from several threads for a while: args are the
// file, the approved sum, the seconds and the number of threads. Each thread
// opens, reads again and again through its descriptor and its mapping, drops the
// pages in between, and closes.
func storm(args []string) sight {
	p, approved := args[0], args[1]
	seconds, _ := strconv.ParseFloat(args[2], 64)
	threads, _ := strconv.Atoi(args[3])
	deadline := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	var mu sync.Mutex
	var out sight
	var all sync.WaitGroup
	note := func(change func()) {
		mu.Lock()
		defer mu.Unlock()
		change()
	}
	for i := range threads {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for time.Now().Before(deadline) {
				fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					note(func() {
						out.Refused++
						switch err {
						case unix.EACCES, unix.ESTALE, unix.ENOENT:
						default:
							out.Text = "open: " + err.Error()
						}
					})
					continue
				}
				tier := make([]byte, 32)
				n, _ := unix.Fgetxattr(fd, xattrTier, tier)
				sealed := string(tier[:max(n, 0)]) == TierSealed
				note(func() {
					out.Opened++
					if sealed {
						out.Sealed++
					}
				})
				var st unix.Stat_t
				unix.Fstat(fd, &st)
				data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
				if err != nil {
					note(func() { out.Text = "mmap: " + err.Error() })
				}
				for range 1 + random.IntN(6) {
					var r result
					switch random.IntN(3) {
					case 0:
						unix.Seek(fd, 0, io.SeekStart)
						r = readFD(fd)
					case 1:
						r = touch(data)
					case 2:
						unix.Madvise(data, unix.MADV_PAGEOUT)
						unix.Madvise(data, unix.MADV_DONTNEED)
						unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
						continue
					}
					note(func() {
						if r.Errno != 0 && sealed {
							out.LateSealed++
						}
						switch {
						case r.Errno == syscall.EIO || r.Errno == syscall.EFAULT:
							out.Late++
						case r.Errno != 0:
							out.Late++
							out.Text = r.String()
						case r.SHA256 == approved:
							out.Good++
						default:
							out.Bad++
							if sealed {
								out.BadSealed++
							}
						}
					})
				}
				unix.Munmap(data)
				unix.Close(fd)
			}
		})
	}
	all.Wait()
	return out
}

// answers opens and reads every file of a directory: args are the directory and
// how many files at one time.
func answers(args []string) sight {
	entries, err := os.ReadDir(args[0])
	if err != nil {
		return sight{Text: err.Error()}
	}
	n, _ := strconv.Atoi(args[1])
	turn := make(chan struct{}, n)
	out := sight{Results: make(map[string]result)}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, e := range entries {
		all.Go(func() {
			turn <- struct{}{}
			r := readAll(filepath.Join(args[0], e.Name()), unix.O_RDONLY)
			<-turn
			mu.Lock()
			defer mu.Unlock()
			out.Results[e.Name()] = r
		})
	}
	all.Wait()
	return out
}

// useHandles opens and maps a file many times, says so, and reads through
// all of them until it is killed: args are the file and the number.
func useHandles(args []string) sight {
	n, _ := strconv.Atoi(args[1])
	var data [][]byte
	var fds []int
	for range n {
		fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return sight{Text: err.Error()}
		}
		var st unix.Stat_t
		unix.Fstat(fd, &st)
		d, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return sight{Text: err.Error()}
		}
		fds, data = append(fds, fd), append(data, d)
	}
	os.Stdout.Write([]byte("ready\n"))
	for i := range n {
		go func() {
			for {
				touch(data[i])
				unix.Seek(fds[i], 0, io.SeekStart)
				readFD(fds[i])
				unix.Madvise(data[i], unix.MADV_DONTNEED)
				unix.Fadvise(fds[i], 0, 0, unix.FADV_DONTNEED)
			}
		}()
	}
	select {}
}

// stateOf returns the state letter of a process, or "" if it is gone.
func stateOf(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return rest[:1]
}
