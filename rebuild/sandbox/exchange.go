package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

// Names in a shared directory and in an exchange directory.
const (
	runPrefix  = "run-"
	workPrefix = "work-"
	orderFile  = "order.json"
	stagesFile = "stages"
	logFile    = "log"
	answerDir  = "answer"
	resultFile = "result.json"
)

const (
	// The formats change whenever a field does: both sides refuse what they do
	// not know, and nodes must run the clawfs of their attester.
	orderFormat  = "clawfs-build-order/v1"
	answerFormat = "clawfs-build-answer/v1"
	// maxOrder and maxAnswer bound both in bytes.
	maxOrder  = 16 << 20
	maxAnswer = 8 << 20
	// followEvery is how often what the node tells is looked at.
	followEvery = 500 * time.Millisecond
)

// order is what an attester asks a node to do.
type order struct {
	Format string
	Run    string
	Spec   Spec
}

// answer is what a node says it did. One of Failure and Result is there.
type answer struct {
	Format  string
	Run     string
	Recipe  hashpipe.Digest
	Host    Host
	Failure *Failure  `json:",omitzero"`
	Result  *answered `json:",omitzero"`
}

// answered is a Result but for what the attester knows better.
type answered struct {
	Outputs []answeredFile
	Stages  []answeredStage
	Varied  []string
}

// answeredStage is a StageRecord.
type answeredStage struct {
	Name                           string
	Wall, CPU                      time.Duration
	PeakMemory, OutBytes, LogBytes int64
	Artifacts                      []answeredFile
}

// answeredFile is what the node measured; a claim here. The name of an
// artifact is its path.
type answeredFile struct {
	Name   string
	SHA256 hashpipe.Digest
	Verity hashpipe.VerityDigest
	Size   int64
}

// wire are the options for both texts: durations are nanoseconds.
var wire = json.JoinOptions(
	json.RejectUnknownMembers(true),
	json.WithMarshalers(json.MarshalToFunc(func(e *jsontext.Encoder, d time.Duration) error {
		return e.WriteToken(jsontext.Int(int64(d)))
	})),
	json.WithUnmarshalers(json.UnmarshalFromFunc(func(d *jsontext.Decoder, to *time.Duration) error {
		t, err := d.ReadToken()
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(t.String(), 10, 64)
		if err != nil || t.Kind() != '0' {
			return fmt.Errorf("%q is no number of nanoseconds", t.String())
		}
		*to = time.Duration(n)
		return nil
	})),
)

// exchange is a directory in a shared one. Its lock tells a living attester's
// from a dead one's.
type exchange struct {
	run  string // 32 hex digits
	dir  string
	lock *os.File
	// shared is where dir lies.
	shared string
}

func newExchange(ctx context.Context, shared string) (*exchange, error) {
	return newShared(ctx, shared, runPrefix)
}

func newShared(ctx context.Context, shared, prefix string) (*exchange, error) {
	var id [16]byte
	rand.Read(id[:])
	x := &exchange{run: hex.EncodeToString(id[:]), shared: shared}
	x.dir = filepath.Join(shared, prefix+x.run)
	all, err := lockDir(ctx, shared)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	if err := os.Mkdir(x.dir, 0o700); err != nil {
		return nil, err
	}
	if x.lock, err = tryLock(filepath.Join(x.dir, "lock")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(x.dir))
	}
	return x, nil
}

// abandoned takes the locks of all directories that no living process has.
func abandoned(ctx context.Context, shared string) (dead []*exchange, err error) {
	all, err := lockDir(ctx, shared)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	entries, err := os.ReadDir(shared) // by name: runs before the inputs they read
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		run, isRun := strings.CutPrefix(e.Name(), runPrefix)
		if !isRun {
			run, isRun = strings.CutPrefix(e.Name(), workPrefix)
		}
		if id, err := hex.DecodeString(run); !isRun || !e.IsDir() || err != nil || len(id) != 16 {
			continue
		}
		x := &exchange{run: run, dir: filepath.Join(shared, e.Name()), shared: shared}
		x.lock, err = tryLock(filepath.Join(x.dir, "lock"))
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			for _, d := range dead {
				d.lock.Close()
			}
			return nil, err
		}
		dead = append(dead, x)
	}
	return dead, nil
}

// remove takes the directory away, under the lock of the shared one: who met
// it half removed would take it for a dead attester's.
func (x *exchange) remove(ctx context.Context) error {
	defer x.lock.Close()
	all, err := lockDir(ctx, x.shared)
	if err != nil {
		return err
	}
	defer all.Close()
	// A node whose job just ended may still have a file appear.
	for try := 0; ; try++ {
		err := os.RemoveAll(x.dir)
		if err == nil || try == 10 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// order writes what the node is to do.
func (x *exchange) order(s Spec) error {
	s.Dir = "" // the node has its own
	text, err := json.Marshal(&order{Format: orderFormat, Run: x.run, Spec: s}, wire, json.Deterministic(true))
	if err == nil && len(text) > maxOrder {
		err = fmt.Errorf("%d bytes, the limit is %d", len(text), maxOrder)
	}
	if err != nil {
		return fmt.Errorf("writing the order: %w", err)
	}
	return durable.WriteNew(filepath.Join(x.dir, orderFile), text, 0o600)
}

// ordered tells whether a job may have been submitted.
func (x *exchange) ordered() bool {
	_, err := os.Lstat(filepath.Join(x.dir, orderFile))
	return err == nil
}

// readOrder reads the file that a node was told of.
func readOrder(path string) (order, error) {
	var o order
	f, err := os.Open(path)
	if err != nil {
		return o, err
	}
	defer f.Close()
	text, err := readAtMost(f, maxOrder)
	if err != nil {
		return o, fmt.Errorf("%s: %w", path, err)
	}
	if err := json.Unmarshal(text, &o, wire); err != nil {
		return o, fmt.Errorf("%s: %w; nodes must run the same clawfs as the worker", path, err)
	}
	if id, err := hex.DecodeString(o.Run); o.Format != orderFormat || err != nil || len(id) != 16 {
		return o, fmt.Errorf("%s is no %s of a run, but %q of run %q", path, orderFormat, o.Format, o.Run)
	}
	return o, nil
}

// answer reads what the node said, which may take until grace to be seen. The
// caller closes root.
func (x *exchange) answer(ctx context.Context, s Spec, grace time.Duration) (a answer, root *os.File, err error) {
	late := time.After(grace)
	for {
		root, err = x.open(answerDir, unix.O_DIRECTORY)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			break
		}
		select {
		case <-ctx.Done():
			return a, nil, context.Cause(ctx)
		case <-late:
			return a, nil, errors.New("no answer: the job ended without writing one")
		case <-time.After(followEvery):
		}
	}
	if err != nil {
		return a, nil, fmt.Errorf("its answer: %w", err)
	}
	if a, err = readAnswer(root); err == nil {
		err = a.check(x.run, s)
	}
	if err != nil {
		root.Close()
		return answer{}, nil, fmt.Errorf("its answer: %w", err)
	}
	return a, root, nil
}

func readAnswer(root *os.File) (a answer, err error) {
	f, size, err := openOutput(root, resultFile)
	if err != nil {
		return a, fmt.Errorf("%s %w", resultFile, err)
	}
	defer f.Close()
	if size > maxAnswer {
		return a, fmt.Errorf("%s is %d bytes, the limit is %d", resultFile, size, maxAnswer)
	}
	text, err := readAtMost(f, maxAnswer)
	if err != nil {
		return a, fmt.Errorf("%s: %w", resultFile, err)
	}
	if err := json.Unmarshal(text, &a, wire); err != nil {
		return a, fmt.Errorf("%s: %s", resultFile, escape([]byte(err.Error())))
	}
	return a, nil
}

// check refuses an answer to another order, or one that no Run could give. It
// makes the node's texts fit for a log.
func (a *answer) check(run string, s Spec) error {
	switch {
	case a.Format != answerFormat:
		return fmt.Errorf("format %q, want %s: nodes must run the same clawfs as the worker", a.Format, answerFormat)
	case a.Run != run:
		return fmt.Errorf("it is for run %q, this is run %s", a.Run, run)
	case a.Recipe != s.Recipe:
		return fmt.Errorf("it is for recipe %s, this is %s", a.Recipe, s.Recipe)
	case (a.Failure == nil) == (a.Result == nil):
		return errors.New("want a failure or a result, one of them")
	}
	if err := a.Host.check(); err != nil {
		return err
	}
	if a.Failure != nil {
		return a.Failure.check(s)
	}
	return a.Result.check(s)
}

// Bounds for what a node may say, in bytes and entries.
const (
	maxSaid     = 4 * (tailBytes + 64) // an escaped byte is four
	maxFeatures = 4096
	maxVaried   = 256
)

func (h *Host) check() error {
	if len(h.CPUFeatures) > maxFeatures {
		return fmt.Errorf("%d processor features, at most %d", len(h.CPUFeatures), maxFeatures)
	}
	for _, s := range append([]string{h.Name, h.OS, h.Arch, h.Processor, h.Kernel, h.Runtime}, h.CPUFeatures...) {
		if len(s) > 256 || escape([]byte(s)) != s {
			return fmt.Errorf("the node describes itself as %.256q", s)
		}
	}
	return nil
}

func (f *Failure) check(s Spec) error {
	known := slices.ContainsFunc(s.Stages, func(st Stage) bool { return st.Name == f.Stage })
	switch f.Kind {
	case BuildFailed, Timeout, LimitExceeded, OutputMissing:
	case NotComparable:
		known = f.Stage == ""
	default:
		return fmt.Errorf("no failure has the kind %.64q", f.Kind)
	}
	switch {
	case !known:
		return fmt.Errorf("a failure (%s) of stage %.64q, which the recipe does not have", f.Kind, f.Stage)
	case len(f.Detail) > maxAnswer/2 || len(f.LogTail) > maxSaid:
		return fmt.Errorf("a failure of %d bytes with %d bytes of log", len(f.Detail), len(f.LogTail))
	}
	f.Detail, f.LogTail = escape([]byte(f.Detail)), escape([]byte(f.LogTail))
	return nil
}

func (a *answered) check(s Spec) error {
	if len(a.Outputs) != len(s.Outputs) || len(a.Stages) != len(s.Stages) {
		return fmt.Errorf("%d outputs of %d stages, the recipe has %d of %d", len(a.Outputs), len(a.Stages), len(s.Outputs), len(s.Stages))
	}
	left := s.Limits.OutputBytes
	said := map[hashpipe.Digest]answeredFile{} // one file, however often it is named
	check := func(what string, f answeredFile, name string) error {
		before, again := said[f.SHA256]
		switch {
		case f.Name != name:
			return fmt.Errorf("%s is %.64q, the recipe's is %q", what, f.Name, name)
		case again && (f.Size != before.Size || f.Verity != before.Verity):
			return fmt.Errorf("%s has the digest of %.64q, but not its size or tree", what, before.Name)
		case again:
			return nil
		case f.Size < 0 || f.Size > left:
			return fmt.Errorf("%s, %s, is said to be %d bytes long, the limit for all is %d", what, f.Name, f.Size, s.Limits.OutputBytes)
		}
		left -= f.Size
		said[f.SHA256] = f
		return nil
	}
	for i, o := range a.Outputs {
		if err := check(fmt.Sprintf("output %d", i+1), o, s.Outputs[i].Name); err != nil {
			return err
		}
	}
	for i, st := range a.Stages {
		want := s.Stages[i]
		if st.Name != want.Name || min(int64(st.Wall), int64(st.CPU), st.PeakMemory, st.OutBytes, st.LogBytes) < 0 {
			return fmt.Errorf("stage %d is told as %.64q, %v; the recipe's is %q", i+1, st.Name, st.Wall, want.Name)
		}
		if len(st.Artifacts) != len(want.Artifacts) {
			return fmt.Errorf("%d artifacts of stage %s, the recipe has %d", len(st.Artifacts), st.Name, len(want.Artifacts))
		}
		for j, f := range st.Artifacts {
			if err := check(fmt.Sprintf("artifact %d of stage %s", j+1, st.Name), f, want.Artifacts[j]); err != nil {
				return err
			}
		}
	}
	if len(a.Varied) > maxVaried {
		return fmt.Errorf("%d variations, at most %d", len(a.Varied), maxVaried)
	}
	for _, v := range a.Varied {
		if len(v) > maxSaid || escape([]byte(v)) != v {
			return fmt.Errorf("a variation %.64q", v)
		}
	}
	return nil
}

// attest copies outputs and artifacts to Spec.Dir and measures what it copies.
// What the node said is only compared.
func (x *exchange) attest(ctx context.Context, s Spec, a answer, root *os.File) (Result, error) {
	wanted := map[string]bool{resultFile: true}
	for _, o := range a.Result.Outputs {
		wanted[o.SHA256.String()] = true
	}
	for _, st := range a.Result.Stages {
		for _, f := range st.Artifacts {
			wanted[f.SHA256.String()] = true
		}
	}
	entries, err := root.ReadDir(len(wanted) + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return Result{}, fmt.Errorf("its answer: %w", err)
	}
	for _, e := range entries {
		if !wanted[e.Name()] {
			return Result{}, fmt.Errorf("its answer has a file %.80q that is no output of the recipe", e.Name())
		}
	}
	dir := filepath.Join(s.Dir, "outputs-"+x.run)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Result{}, err
	}
	taken := map[hashpipe.Digest]file{}
	take := func(said answeredFile) (file, error) {
		if f, ok := taken[said.SHA256]; ok {
			return f, nil
		}
		f := file{recipe: s.Recipe, run: x.run, kept: filepath.Join(dir, strconv.Itoa(len(taken)))}
		f.measurement, err = takeFile(ctx, root, said, f.kept)
		taken[said.SHA256] = f
		return f, err
	}
	res := Result{Varied: variedNodes(a.Result.Varied, a.Host), Host: a.Host}
	for _, said := range a.Result.Outputs {
		f, err := take(said)
		if err != nil {
			return Result{}, errors.Join(fmt.Errorf("output %s: %w", said.Name, err), os.RemoveAll(dir))
		}
		res.Outputs = append(res.Outputs, Output{file: f, name: said.Name})
	}
	for _, st := range a.Result.Stages {
		record := StageRecord{Name: st.Name, Wall: st.Wall, CPU: st.CPU, PeakMemory: st.PeakMemory, OutBytes: st.OutBytes, LogBytes: st.LogBytes}
		for _, said := range st.Artifacts {
			f, err := take(said)
			if err != nil {
				return Result{}, errors.Join(fmt.Errorf("artifact %s of stage %s: %w", said.Name, st.Name, err), os.RemoveAll(dir))
			}
			record.Artifacts = append(record.Artifacts, Artifact{file: f, stage: st.Name, path: said.Name})
		}
		res.Stages = append(res.Stages, record)
	}
	return res, nil
}

// variedNodes adds what differs between runs because machines do, in place of
// what a machine says about itself: that it has one kernel and one processor.
func variedNodes(varied []string, h Host) []string {
	list := slices.DeleteFunc(slices.Clone(varied), func(v string) bool {
		return strings.HasPrefix(v, "kernel=") || strings.HasPrefix(v, "processor=")
	})
	return append(list, "kernel="+h.Kernel, "processor="+h.Processor, "node="+h.Name)
}

// takeFile copies one file of an answer and measures the copy's bytes.
func takeFile(ctx context.Context, root *os.File, said answeredFile, to string) (hashpipe.Measurement, error) {
	f, size, err := openOutput(root, said.SHA256.String())
	if err != nil {
		return hashpipe.Measurement{}, fmt.Errorf("the file %s of its answer %w", said.SHA256, err)
	}
	defer f.Close()
	if size != said.Size {
		return hashpipe.Measurement{}, fmt.Errorf("%d bytes came back, the node said %d", size, said.Size)
	}
	m, err := copyMeasured(ctx, io.LimitReader(f, said.Size+1), to)
	if err != nil {
		return hashpipe.Measurement{}, err
	}
	if m.Size() != said.Size || !m.Sum().Is(said.SHA256) || !m.Tree().Is(said.Verity) {
		return hashpipe.Measurement{}, fmt.Errorf("%d bytes with SHA-256 %s and fs-verity %s were measured, the node said %d, %s and %s",
			m.Size(), m.Sum(), m.Tree().Claim(), said.Size, said.SHA256, said.Verity)
	}
	return m, nil
}

// open opens one entry of the exchange directory without following links.
func (x *exchange) open(name string, flags int) (*os.File, error) {
	dir, err := unix.Open(x.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: x.dir, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   uint64(unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "openat2", Path: filepath.Join(x.dir, name), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(x.dir, name)), nil
}

// jobTail is the end of what the job printed, as the end of an error.
func (x *exchange) jobTail() string {
	f, err := x.open(JobLog, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return ""
	}
	text, _ := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-tailBytes), tailBytes))
	if text := strings.TrimSpace(escape(text)); text != "" {
		return "; it printed: " + text
	}
	return ""
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("longer than %d bytes", limit)
	}
	return text, err
}
