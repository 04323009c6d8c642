package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

// leaf is the record of an SBA of acme/NAME, as the log of the publisher has it.
func (r *rig) leaf(sba, model string) tlog.Leaf {
	r.t.Helper()
	text, err := os.ReadFile(sba)
	if err != nil {
		r.t.Fatal(err)
	}
	e, err := dsse.Parse(text)
	if err != nil {
		r.t.Fatal(err)
	}
	key, err := readPublicKey(filepath.Join(filepath.Dir(sba), "acme.pub"))
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := tlog.LeafOf(tlog.KindSBA, e.UnverifiedPayload(), key, model)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// wantLog makes the policy want proofs from the logs of a tlog-policy.
func (r *rig) wantLog(logs string) {
	r.t.Helper()
	text, err := os.ReadFile(r.state.Policy())
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := verifier.ParsePolicy(text)
	if err != nil {
		r.t.Fatal(err)
	}
	p.Logs, p.Publishers[0].Log = logs, verifier.LogRequired
	if text, err = p.Encode(); err != nil {
		r.t.Fatal(err)
	}
	r.write(r.state.Policy(), text)
}

func (r *rig) write(path string, text []byte) {
	r.t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// beside puts a proof and a consistency proof beside an SBA; nil: none.
func (r *rig) beside(sba string, proof, consistency []byte) {
	r.t.Helper()
	for suffix, text := range map[string][]byte{verifier.ProofSuffix: proof, verifier.ConsistencySuffix: consistency} {
		if os.Remove(sba + suffix); text != nil {
			r.write(sba+suffix, text)
		}
	}
}

// seen is the size that is remembered of a log.
func (r *rig) seen(origin string) int64 {
	r.t.Helper()
	m, err := memory.Dir(r.state.Memory()).Logs()
	if err != nil {
		r.t.Fatal(err)
	}
	size, _, _ := m.Newest(origin)
	return size
}

func TestGrantRefusesLogProofs(t *testing.T) {
	r := newRig(t)
	sba, other := r.publish("counts", "count"), r.publish("other", "count")
	log := tlogtest.New("log.example/models", "alice", "bob")
	log.Fill(t, 3)
	index := log.Add(t, r.leaf(sba, "acme/counts"))
	otherIndex := log.Add(t, r.leaf(other, "acme/other"))
	log.Fill(t, 4)
	size := log.Size()
	r.wantLog(log.Policy(""))
	good := log.Proof(t, index, size)

	fork := tlogtest.New(log.Origin, "alice", "bob")
	fork.Fill(t, int(size))
	mixed := append(bytes.Clone(good[:bytes.Index(good, []byte("\n\n"))+2]), fork.Checkpoint(t, size)...)
	elsewhere := tlogtest.New("log.example/other", "alice", "bob")
	elsewhere.Add(t, r.leaf(sba, "acme/counts"))
	alone := tlogtest.New(log.Origin, "alice")
	alone.Add(t, r.leaf(sba, "acme/counts"))
	twice := tlogtest.New(log.Origin, "alice", "alice")
	twice.Add(t, r.leaf(sba, "acme/counts"))
	flipped := bytes.Clone(good)
	if at := &flipped[len(flipped)-20]; *at == 'A' {
		*at = 'B'
	} else {
		*at = 'A'
	}

	r.beside(sba, nil, nil)
	r.refused(codeRefused, []string{"grant", sba}, "next: clawfs --state "+string(r.state)+" log prove "+sba+", or, if it is in no log yet, clawfs --state "+string(r.state)+" log add "+sba)

	refuse := func(when string) {
		t.Helper()
		for _, tt := range []struct {
			name  string
			proof []byte
			code  int
			want  string
		}{
			{"missing", nil, codeRefused, "expected the file FILE.sba.tlog-proof"},
			{"empty", []byte{}, codeRefused, "tlog-proof@v1"},
			{"a checkpoint alone", log.Checkpoint(t, size), codeRefused, "tlog-proof@v1"},
			{"another leaf", log.Proof(t, index-1, size), codeRefused, "lead elsewhere"},
			{"another model's", log.Proof(t, otherIndex, size), codeRefused, "lead elsewhere"},
			{"another root", mixed, codeRefused, "lead elsewhere"},
			{"wrong origin", elsewhere.Proof(t, 0, 1), codeRefused, `got "log.example/other"`},
			{"index beyond the size", bytes.Replace(good, []byte("index 3\n"), []byte("index 9\n"), 1), codeRefused, "below 9"},
			{"one authority twice", twice.Proof(t, 0, 1), codeRefused, "signs twice"},
			{"a witness missing", alone.Proof(t, 0, 1), codeSignature, "got alice"},
			{"another signature", flipped, codeSignature, "does not verify"},
			{"too long", make([]byte, tlog.MaxProof+1), codeRefused, "at most"},
		} {
			r.beside(sba, tt.proof, nil)
			r.refused(tt.code, []string{"grant", sba}, tt.want)
			// Past the verb, straight to the daemon: it verifies by itself.
			text, err := os.ReadFile(sba)
			if err != nil {
				t.Fatal(err)
			}
			job, err := control.NewClient(r.state.Socket()).Submit(t.Context(), control.Submission{SBA: text, Proof: tt.proof})
			if err == nil || tt.name != "too long" && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s: the daemon answered with job %q and %v, want %q", when, tt.name, job.ID, err, tt.want)
			}
		}
		if jobs := r.jobs(); len(jobs) != 0 {
			t.Errorf("%s: %d jobs, want none", when, len(jobs))
		}
		if n := r.seen(log.Origin); n != 0 {
			t.Errorf("%s: size %d is remembered of what was refused", when, n)
		}
	}
	r.startDaemon()
	refuse("at first")
	r.stopDaemon(syscall.SIGKILL)
	r.startDaemon()
	refuse("after a restart")

	// By hand, without daemon, store and memory.
	r.beside(sba, nil, nil)
	key, logs, file := filepath.Join(filepath.Dir(sba), "acme.pub"), filepath.Join(t.TempDir(), "logs"), filepath.Join(r.src, "counts.txt")
	r.write(logs, []byte(log.Policy("")))
	r.file("counts.txt", "a 2\nb 1\n")
	r.refused(codeRefused, []string{"validate", file, "--sba", sba, "--publisher-key", key, "--log-policy", logs}, "no proof came with this one")
	r.beside(sba, alone.Proof(t, 0, 1), nil)
	r.refused(codeSignature, []string{"validate", file, "--sba", sba, "--publisher-key", key, "--log-policy", logs}, "got alice")
	r.refused(codeSignature, []string{"validate", file, "--sba", sba, "--publisher-key", key}, "got alice")
	r.refused(codeSignature, []string{"ledger", "inspect", sba, "--publisher-key", key}, "got alice")
	r.beside(sba, good, nil)
	var v validation
	r.document(&v, "validate", file, "--sba", sba, "--publisher-key", key, "--log-policy", logs)
	if want := (capstore.Logged{Origin: log.Origin, Index: index, Size: size}); !v.Valid || v.Logged != want {
		t.Errorf("validate: %+v, want it valid and logged at %+v", v, want)
	}
	var in inspection
	r.document(&in, "ledger", "inspect", sba, "--publisher-key", key)
	if in.Log == nil || in.Log.Status != "valid" || in.Log.Index != index || in.Log.Size != size || len(in.Log.Witnesses) != 2 {
		t.Errorf("ledger inspect: log %+v, want it valid with both witnesses", in.Log)
	}
	if out := r.ok("ledger", "inspect", sba); !strings.Contains(out, "log.example/models, index 3 of 9") || strings.Count(out, "NOT CHECKED") != 2 {
		t.Errorf("ledger inspect without a key:\n%s", out)
	}
}

// What was seen of a log outlives the daemon, and decides before a job is queued.
func TestGrantRemembersLogs(t *testing.T) {
	r := newRig(t)
	sba := r.publish("counts", "count")
	log := tlogtest.New("log.example/models", "alice")
	log.Fill(t, 3)
	index := log.Add(t, r.leaf(sba, "acme/counts"))
	fork := log.Clone()
	fork.Add(t, tlog.Leaf{}) // a record of no bytes
	log.Fill(t, 20)
	fork.Fill(t, 20)
	dir := t.TempDir()
	r.wantLog(log.Policy("file://" + dir))
	r.file("counts.txt", "a 2\nb 1\n")
	r.ok("mount", r.src, r.mnt)

	r.beside(sba, log.Proof(t, index, 8), nil)
	if got := r.run("grant", sba, "--wait", "--timeout", "2m"); got.code != codeDone {
		t.Fatalf("grant: exit code %d, %s", got.code, got.stderr)
	}
	want := capstore.Logged{Origin: log.Origin, Index: index, Size: 8}
	if jobs := r.jobs(); len(jobs) != 1 || jobs[0].Logged != want || !strings.Contains(r.ok("job", jobs[0].ID), "in log.example/models at index 3") {
		t.Errorf("jobs = %+v, want one, logged at %+v", jobs, want)
	} else if out := r.ok("record", jobs[0].ID); !strings.Contains(out, `"origin": "log.example/models"`) {
		t.Errorf("the provenance does not name the log:\n%s", out)
	}
	for _, args := range [][]string{{"caps"}, {"why", filepath.Join(r.mnt, "counts.txt")}} {
		if out := r.ok(args...); !strings.Contains(out, "in log.example/models at index 3") {
			t.Errorf("%q does not say where it is logged:\n%s", args, out)
		}
	}
	if n := r.seen(log.Origin); n != 8 {
		t.Fatalf("size %d is remembered, want 8", n)
	}

	const prove = "clawfs log prove "
	step := func(name string, proof, consistency []byte, code int, seen int64, texts ...string) {
		t.Helper()
		r.beside(sba, proof, consistency)
		if code == codeDone {
			r.ok("grant", sba)
		} else {
			r.refused(code, []string{"grant", sba}, texts...)
		}
		// The daemon decides by itself, whatever a client brings.
		text, err := os.ReadFile(sba)
		if err != nil {
			t.Fatal(err)
		}
		_, err = control.NewClient(r.state.Socket()).Submit(t.Context(), control.Submission{SBA: text, Proof: proof, Consistency: consistency})
		if code != codeDone && err == nil {
			t.Errorf("%s: the daemon accepted it", name)
		}
		if n := r.seen(log.Origin); n != seen {
			t.Errorf("%s: size %d is remembered, want %d", name, n, seen)
		}
	}
	for _, restart := range []bool{false, true} {
		if restart {
			r.stopDaemon(syscall.SIGKILL)
			r.startDaemon()
		}
		step("older without consistency", log.Proof(t, index, 5), nil, codeRefused, 8, "size 8 or later", "gave none", prove+sba+" --log file://"+dir)
		step("older with another's", log.Proof(t, index, 5), log.Consistency(t, 6, 8), codeRefused, 8, "lead elsewhere", prove)
		step("older of another tree", fork.Proof(t, index, 6), log.Consistency(t, 6, 8), codeRefused, 8, "lead elsewhere", prove)
		step("older with garbage", log.Proof(t, index, 5), []byte("x\n"), codeRefused, 8, "hash 1", prove)
		step("older", log.Proof(t, index, 5), log.Consistency(t, 5, 8), codeDone, 8)
		step("newer without consistency", log.Proof(t, index, 12), nil, codeRefused, 8, "size 8", "gave none", prove)
		step("newer of another tree", fork.Proof(t, index, 12), fork.Consistency(t, 8, 12), codeRefused, 8, "lead elsewhere", prove)
		step("the same", log.Proof(t, index, 8), nil, codeDone, 8)
	}
	r.refused(codeError, []string{"grant", sba, "--proof", sba + ".none"}, "no such file")

	// From a file that is named, and from the tiles at the policy's URL.
	named := filepath.Join(t.TempDir(), "consistency")
	r.write(named, log.Consistency(t, 8, 12))
	r.beside(sba, log.Proof(t, index, 12), nil)
	r.ok("grant", sba, "--consistency", named)
	r.refused(codeError, []string{"grant", sba, "--proof", sba + verifier.ProofSuffix, "--consistency", named + ".none"}, "no such file")
	log.WriteTiles(t, dir)
	r.beside(sba, log.Proof(t, index, log.Size()), log.Consistency(t, 8, 12))
	r.ok("grant", sba)
	if n := r.seen(log.Origin); n != log.Size() {
		t.Errorf("size %d is remembered, want %d by the log's tiles", n, log.Size())
	}
	r.beside(sba, log.Proof(t, index, 9), nil)
	r.ok("grant", sba)

	// The same over HTTP: of a log that went on, and of one that went another way.
	var asked int
	served := http.FileServer(http.Dir(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked++
		served.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	r.wantLog(log.Policy(srv.URL))
	log.Fill(t, 300)
	log.WriteTiles(t, dir)
	r.beside(sba, log.Proof(t, index, log.Size()), nil)
	r.ok("grant", sba)
	if n := r.seen(log.Origin); n != log.Size() || asked == 0 {
		t.Errorf("size %d is remembered after %d requests, want %d", n, asked, log.Size())
	}
	away := t.TempDir()
	fork.Fill(t, 700)
	fork.WriteTiles(t, away)
	r.wantLog(log.Policy("file://" + away))
	r.beside(sba, fork.Proof(t, index, fork.Size()), nil)
	r.refused(codeRefused, []string{"grant", sba}, "SHOWS TWO TREES", "memory show log.example/models")
	if n := r.seen(log.Origin); n != log.Size() {
		t.Errorf("size %d is remembered of another tree", n)
	}

	// Two trees of one size: kept, loud, and the end of this log here.
	r.beside(sba, fork.Proof(t, index, log.Size()), nil)
	r.refused(codeRefused, []string{"grant", sba}, "got two", "next: clawfs --state "+string(r.state)+" memory show log.example/models")
	for range 2 {
		r.beside(sba, log.Proof(t, index, log.Size()), nil)
		r.refused(codeRefused, []string{"grant", sba}, "got two")
		if w := strings.Join(r.status().Warnings, "\n"); !strings.Contains(w, "LOG FORK: log.example/models signed two trees") {
			t.Errorf("status does not warn of the fork: %q", w)
		}
		r.stopDaemon(syscall.SIGTERM)
		if got := r.run("status"); !strings.Contains(got.stdout, "LOG FORK") {
			t.Errorf("status without a daemon does not warn of the fork:\n%s", got.stdout)
		}
		r.startDaemon()
	}
	shown := r.refused(codeRefused, []string{"memory", "show", log.Origin})
	for _, note := range [][]byte{log.Checkpoint(t, log.Size()), fork.Checkpoint(t, log.Size())} {
		if !strings.Contains(shown.stdout, string(note)) {
			t.Errorf("memory show lacks a checkpoint of the fork:\n%s", shown.stdout)
		}
	}

	// A memory that is lost refuses, until somebody says that it may begin anew.
	r.refused(codeUsage, []string{"memory", "reset"}, "memory reset --yes")
	if err := os.Remove(filepath.Join(r.state.Memory(), "logs")); err != nil {
		t.Fatal(err)
	}
	r.refused(codeError, []string{"grant", sba}, "what was seen before is lost", "clawfs --state "+string(r.state)+" memory reset --yes")
	text, err := os.ReadFile(sba)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.NewClient(r.state.Socket()).Submit(t.Context(), control.Submission{SBA: text, Proof: log.Proof(t, index, log.Size())}); err == nil || !strings.Contains(err.Error(), "is lost") {
		t.Errorf("the daemon without a memory answered %v", err)
	}
	if w := strings.Join(r.status().Warnings, "\n"); !strings.Contains(w, "what was seen before is lost") {
		t.Errorf("status does not warn of the lost memory: %q", w)
	}
	if out := r.ok("memory", "reset", "--yes"); !strings.Contains(out, "FORGOTTEN") {
		t.Errorf("memory reset printed %q", out)
	}
	r.ok("grant", sba)
	if n := r.seen(log.Origin); n != log.Size() || len(r.status().Warnings) != 0 {
		t.Errorf("after the reset size %d is remembered, warnings %q", n, r.status().Warnings)
	}
	if jobs := r.jobs(); len(jobs) != 1 {
		t.Errorf("%d jobs, want the one that was granted", len(jobs))
	}
}

// Several at once, each with another checkpoint: whoever comes late asks for
// another consistency proof.
func TestGrantRemembersLogsAtOnce(t *testing.T) {
	r := newRig(t)
	sba := r.publish("counts", "count")
	log := tlogtest.New("log.example/models", "alice")
	index := log.Add(t, r.leaf(sba, "acme/counts"))
	dir := t.TempDir()
	r.wantLog(log.Policy("file://" + dir))
	const many = 6
	var proofs []string
	for i := range many {
		log.Fill(t, 3)
		log.WriteTiles(t, dir)
		proofs = append(proofs, filepath.Join(t.TempDir(), strconv.Itoa(i)))
		r.write(proofs[i], log.Proof(t, index, log.Size()))
	}
	r.startDaemon()
	results := make([]result, many)
	var all sync.WaitGroup
	for i, proof := range proofs {
		all.Go(func() { results[i] = r.run("grant", sba, "--proof", proof) })
	}
	all.Wait()
	for i, got := range results {
		if got.code != codeDone {
			t.Errorf("grant %d: exit code %d, %s", i, got.code, got.stderr)
		}
	}
	if n := r.seen(log.Origin); n != log.Size() || len(r.jobs()) != 1 {
		t.Errorf("size %d is remembered and there are %d jobs, want %d and 1", n, len(r.jobs()), log.Size())
	}
	if got := r.run("grant", sba, "--proof", proofs[many-1], "--wait", "--timeout", "2m"); got.code != codeDone {
		t.Errorf("grant --wait: exit code %d, %s", got.code, got.stderr)
	}
}
