package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/fs"
)

// maxLogFile bounds a mount's audit log in bytes. A full one is kept as FILE.1,
// and the FILE.1 of before is lost: whoever opens a refused file in a loop must
// not fill the disk.
const maxLogFile = 64 << 20

// logFile appends whole lines to a file of bounded size.
type logFile struct {
	path string
	lost atomic.Int64 // lines that could not be written

	// mu guards f and size, and keeps lines whole.
	mu   sync.Mutex
	f    *os.File
	size int64
}

func newLogFile(path string) (*logFile, error) {
	f, err := openLog(path)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("log: %w", err)
	}
	return &logFile{path: path, f: f, size: fi.Size()}, nil
}

// Write appends one line, which p has to be.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > maxLogFile {
		if err := os.Rename(l.path, l.path+".1"); err != nil {
			return 0, err
		}
		f, err := openLog(l.path)
		if err != nil {
			return 0, err
		}
		l.f.Close()
		l.f, l.size = f, 0
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// auditLine is one decision of a mount in its log.
type auditLine struct {
	Time       time.Time `json:"time"`
	Event      string    `json:"event"` // "audit", to tell it from other lines of the log
	Decision   string    `json:"decision"`
	Reason     string    `json:"reason,omitempty"`
	Path       string    `json:"path"` // absolute, below the mount point
	PID        uint32    `json:"pid"`
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	Comm       string    `json:"comm,omitempty"`
	Exe        string    `json:"exe,omitempty"`
	Cgroup     string    `json:"cgroup,omitempty"`
	Digest     string    `json:"sha256,omitempty"`
	Capability string    `json:"capability,omitempty"`
	Model      string    `json:"model,omitempty"`
	Tier       string    `json:"tier,omitempty"`
	Detail     string    `json:"detail,omitempty"`
	Next       string    `json:"next,omitempty"`
}

// auditTrail writes the records of one mount: all of them as JSON lines, and
// what was not granted as a sentence too, where a person may be looking. until is
// when audit mode ends, if the mount began in it.
func auditTrail(mountpoint string, until time.Time, lines *logFile, sentences io.Writer) func(fs.Record) {
	return func(r fs.Record) {
		line := auditLine{
			Time: r.Time.UTC(), Event: "audit", Decision: string(r.Decision), Reason: string(r.Reason),
			Path: strings.TrimSuffix(mountpoint+"/"+r.Path, "/"), PID: r.PID, UID: r.UID, GID: r.GID,
			Comm: r.Comm, Exe: r.Exe, Cgroup: r.Cgroup, Digest: r.Digest, Capability: r.Capability, Model: r.Model,
			Tier: r.Tier, Detail: r.Detail, Next: r.Next,
		}
		// Names are bytes to the kernel; JSON wants UTF-8.
		for _, s := range []*string{&line.Path, &line.Comm, &line.Exe, &line.Cgroup, &line.Detail, &line.Next} {
			*s = strings.ToValidUTF8(*s, "\uFFFD")
		}
		b, err := json.Marshal(line)
		if err != nil {
			b = fmt.Appendf(nil, `{"event":"audit","decision":%q,"detail":"the record could not be encoded"}`, r.Decision)
		}
		if _, err := lines.Write(append(b, '\n')); err != nil {
			lines.lost.Add(1) // a full disk must not stop the mount; status tells
		}
		if sentences != nil && r.Decision != fs.Granted {
			fmt.Fprintln(sentences, line.sentence(until))
		}
	}
}

func (l auditLine) sentence(until time.Time) string {
	verb := l.Decision
	if l.Decision == string(fs.Audited) {
		verb = fmt.Sprintf("would refuse (audit mode until %s)", until.UTC().Format(time.RFC3339))
	}
	caller := fmt.Sprintf("%s(%d)", l.Comm, l.PID)
	if l.PID == 0 {
		caller = "a process outside this PID namespace"
	}
	s := fmt.Sprintf("clawfs: %s: %s by %s", verb, l.Path, caller)
	if l.Detail != "" {
		s += ": " + l.Detail
	}
	if l.Next != "" {
		s += ". Next: " + l.Next
	}
	return printable(s)
}
