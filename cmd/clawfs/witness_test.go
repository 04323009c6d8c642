package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// signingLog is a log of 400 leaves that signs any size of it.
type signingLog struct {
	t      *testing.T
	key    ed25519.PrivateKey
	hashes []merkle.Hash
}

func (l *signingLog) ReadHashes(indexes []int64) (out []merkle.Hash, err error) {
	for _, i := range indexes {
		if i >= int64(len(l.hashes)) {
			return nil, errors.New("no such hash")
		}
		out = append(out, l.hashes[i])
	}
	return out, nil
}

func newSigningLog(t *testing.T) *signingLog {
	l := &signingLog{t: t, key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))}
	for i := range int64(400) {
		more, err := merkle.StoredHashes(i, fmt.Append(nil, i), l)
		if err != nil {
			t.Fatal(err)
		}
		l.hashes = append(l.hashes, more...)
	}
	return l
}

const logName = "log.example/models"

func (l *signingLog) material() string { return "\x01" + string(l.key.Public().(ed25519.PublicKey)) }

func (l *signingLog) id() []byte {
	sum := hashpipe.SumBytes([]byte(logName + "\n" + l.material())).Bytes()
	return sum[:4]
}

func (l *signingLog) line() string {
	return fmt.Sprintf("log %s+%08x+%s\n", logName, bigendian.BigEndian.Uint32(l.id()), base64.StdEncoding.EncodeToString([]byte(l.material())))
}

func (l *signingLog) note(size int64) string {
	root, err := merkle.TreeHash(size, l)
	if err != nil {
		l.t.Error(err)
	}
	text := fmt.Sprintf("%s\n%d\n%v\n", logName, size, root)
	sig := append(l.id(), ed25519.Sign(l.key, []byte(text))...)
	return text + "\n— " + logName + " " + base64.StdEncoding.EncodeToString(sig) + "\n"
}

func (l *signingLog) request(old, size int64) string {
	body := fmt.Sprintf("old %d\n", old)
	if old > 0 {
		proof, err := merkle.ProveTree(size, old, l)
		if err != nil {
			l.t.Error(err)
		}
		for _, h := range proof {
			body += h.String() + "\n"
		}
	}
	return body + "\n" + l.note(size)
}

// witnessProcess is `clawfs witness serve` as a process.
type witnessProcess struct {
	cmd *exec.Cmd
	url string
}

func startWitness(t *testing.T, bin, dir, logs string) *witnessProcess {
	t.Helper()
	cmd := exec.Command(bin, "witness", "serve", dir, "--listen", "127.0.0.1:0", "--logs", logs)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(stderr)
	line, err := lines.ReadBytes('\n')
	var started struct {
		Msg     string `json:"msg"`
		Address string `json:"address"`
	}
	if err != nil || json.Unmarshal(line, &started) != nil || started.Msg != "witness started" {
		rest, _ := io.ReadAll(lines)
		t.Fatalf("the witness did not start: %v: %s%s", err, line, rest)
	}
	go io.Copy(io.Discard, lines)
	return &witnessProcess{cmd, "http://" + started.Address}
}

func (p *witnessProcess) post(body string) (status int, answer string, err error) {
	res, err := http.Post(p.url+"/add-checkpoint", "", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// Whatever was cosigned before a kill -9 is remembered after it.
func TestWitnessSurvivesKill(t *testing.T) {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	dir, logs := filepath.Join(base, "w"), filepath.Join(base, "logs")
	out, err := exec.Command(bin, "witness", "init", dir, "--name", "w1").Output()
	if err != nil {
		t.Fatal(err)
	}
	l := newSigningLog(t)
	if err := os.WriteFile(logs, []byte(l.line()), 0o600); err != nil {
		t.Fatal(err)
	}
	policy, err := tlog.ParsePolicy([]byte(l.line() + string(out) + "quorum w1\n"))
	if err != nil {
		t.Fatal(err)
	}
	cosigned := int64(0)
	for round := range 6 {
		p := startWitness(t, bin, dir, logs)
		_, answer, err := p.post(l.request(399, 400))
		stored, perr := strconv.ParseInt(strings.TrimSuffix(answer, "\n"), 10, 64)
		if err != nil || perr != nil || stored < cosigned {
			t.Fatalf("round %d: the witness knows size %q, %v, and cosigned %d before", round, answer, err, cosigned)
		}
		timer := time.AfterFunc(time.Duration(20+15*round)*time.Millisecond, func() { p.cmd.Process.Signal(syscall.SIGKILL) })
		for size := stored; size < 395; size++ {
			status, answer, err := p.post(l.request(size, size+1))
			if err != nil {
				break // killed
			}
			if status != 200 {
				t.Fatalf("round %d: %d %q", round, status, answer)
			}
			if _, err := policy.Checkpoint([]byte(l.note(size+1) + answer)); err != nil {
				t.Fatal(err)
			}
			cosigned = size + 1
		}
		timer.Stop()
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
	if cosigned == 0 {
		t.Fatal("nothing was cosigned between the kills")
	}
	// status reads what is on the disk, and the lock went with the process.
	var s witnessStatus
	b, err := exec.Command(bin, "witness", "status", dir, "-o", "json").Output()
	if err != nil || json.Unmarshal(b, &s) != nil || s.Serving != 0 || len(s.Logs) != 1 || s.Logs[0].Origin != logName || s.Logs[0].Size < cosigned {
		t.Errorf("status = %s, %v, want size %d or more", b, err, cosigned)
	}
}

// SIGTERM ends a witness, also while a client keeps it waiting, and a second
// process waits for nobody.
func TestWitnessEnds(t *testing.T) {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	dir, logs := filepath.Join(base, "w"), filepath.Join(base, "logs")
	if out, err := exec.Command(bin, "witness", "init", dir, "--name", "w1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l := newSigningLog(t)
	if err := os.WriteFile(logs, []byte(l.line()), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startWitness(t, bin, dir, logs)
	out, err := exec.Command(bin, "witness", "serve", dir, "--listen", "127.0.0.1:0", "--logs", logs).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("is served already (pid %d)", p.cmd.Process.Pid)) {
		t.Errorf("a second process: %v: %s", err, out)
	}
	if status, answer, err := p.post(l.request(0, 8)); err != nil || status != 200 {
		t.Fatalf("%d %q, %v", status, answer, err)
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: 100\r\n\r\nold 8\n")
	start := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the witness ended with %v after SIGTERM, want exit code 0", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the witness took %v to end, want less than 10 s", took)
	}
}

// A fork is shown by status, with its own exit code.
func TestWitnessStatusOfFork(t *testing.T) {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	dir, logs := filepath.Join(base, "w"), filepath.Join(base, "logs")
	if out, err := exec.Command(bin, "witness", "init", dir, "--name", "w1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l := newSigningLog(t)
	if err := os.WriteFile(logs, []byte(l.line()), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startWitness(t, bin, dir, logs)
	if status, answer, err := p.post(l.request(0, 8)); err != nil || status != 200 {
		t.Fatalf("%d %q, %v", status, answer, err)
	}
	if out, err := exec.Command(bin, "witness", "status", dir).CombinedOutput(); err != nil || !strings.Contains(string(out), fmt.Sprintf("serving   pid %d", p.cmd.Process.Pid)) {
		t.Errorf("status: %v: %s", err, out)
	}
	fork := *l
	fork.hashes = slices.Clone(l.hashes)
	fork.hashes[merkle.StoredHashIndex(3, 0)] = merkle.Hash{1} // the root at size 8
	if status, answer, err := p.post(fork.request(8, 8)); err != nil || status != 422 {
		t.Errorf("the fork: %d %q, %v, want 422", status, answer, err)
	}
	out, err := exec.Command(bin, "witness", "status", dir).CombinedOutput()
	var failed *exec.ExitError
	if !errors.As(err, &failed) || failed.ExitCode() != codeRefused || !strings.Contains(string(out), "FORKED") ||
		!strings.Contains(string(out), "WARNING: "+logName+" signed two trees of size 8") || !strings.Contains(string(out), filepath.Join(dir, "forks")) {
		t.Errorf("status: %v: %s", err, out)
	}
	var s witnessStatus
	b, _ := exec.Command(bin, "witness", "status", dir, "-o", "json").Output()
	if err := json.Unmarshal(b, &s); err != nil || len(s.Logs) != 1 || !s.Logs[0].Forked || len(s.Logs[0].Evidence) != 2 {
		t.Errorf("status -o json = %s, %v", b, err)
	}
}
