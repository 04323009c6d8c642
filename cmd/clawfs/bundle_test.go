package main

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// importAnswer is what `bundle import -o json` prints.
type importAnswer struct {
	Bundle string         `json:"bundle"`
	DryRun bool           `json:"dryRun"`
	Lines  []imported     `json:"lines"`
	Counts map[string]int `json:"counts"`
}

func TestBundle(t *testing.T) {
	builder, reader := newRig(t), newRig(t)
	sba := builder.publish("counts", "count")
	proof, err := os.ReadFile("../../verifier/tlog/testdata/11.tlog-proof")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sba+proofSuffix, proof, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := builder.run("grant", sba, "--wait", "--timeout", "2m"); got.code != 0 {
		t.Fatalf("grant: %d, %s", got.code, got.stderr)
	}
	builder.ok("revoke", "--kind", "file", strings.Repeat("ab", 32), "--reason", "withdrawn")
	file := filepath.Join(t.TempDir(), "counts.intoto.jsonl")
	var out struct {
		Bundle  string                `json:"bundle"`
		Records map[registry.Kind]int `json:"records"`
		SHA256  string                `json:"sha256"`
	}
	builder.document(&out, "bundle", "export", "--out", file, "--model", "acme/counts", sba)
	for _, k := range []registry.Kind{registry.Revocation, registry.SBA, registry.Provenance, registry.Capability} {
		if out.Records[k] != 1 {
			t.Fatalf("export = %+v, want one %s", out, k)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	if len(lines) != 5 {
		t.Fatalf("%d lines, want 5", len(lines))
	}
	again := filepath.Join(t.TempDir(), "again.jsonl")
	builder.ok("bundle", "export", "--out", again, "--model", "acme/*", sba)
	if other, err := os.ReadFile(again); err != nil || !bytes.Equal(other, text) {
		t.Errorf("a second export differs, %v", err)
	}
	builder.refused(codeUsage, []string{"bundle", "export"}, "out")
	if got := builder.ok("bundle", "export", "--out", "-", sba); got != lines[1]+lines[2] {
		t.Errorf("export of a file alone = %q", got)
	}

	// A stranger takes the revocation for what it is: nobody's.
	var in importAnswer
	got := reader.answer(codeRefused, &in, "bundle", "import", file, "--dry-run")
	if in.Counts[outcomeRefused] != 2 || in.Counts[control.RecordSkipped] != 2 || !strings.Contains(got.stderr, "line 1: refused rev-") {
		t.Errorf("import by one who trusts nobody = %+v, %q", in, got.stderr)
	}
	reader.trusts(builder)
	reader.ok("publisher", "trust", filepath.Join(filepath.Dir(sba), "acme.pub"), "--name", "acme", "--models", "acme/*")

	stranger := newRig(t)
	foreign := string(stranger.capability(stranger.measured(map[string]string{"a.bin": "a"}))) + "\n"
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := dsse.Sign(dsse.PayloadType, []byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.com/x"}`), key)
	if err != nil {
		t.Fatal(err)
	}
	forged := func(line string) string { return strings.Replace(line, `"sig":"`, `"sig":"AAAA`, 1) }
	const whole = "nothing was taken"
	for _, tt := range []struct {
		name  string
		lines []string
		code  int
		text  string         // on standard error
		want  map[string]int // by outcome
	}{
		{"as it was written", lines, 0, "", map[string]int{outcomeWould: 2, outcomeVerified: 2}},
		{"revocation removed", lines[1:], 0, "", map[string]int{outcomeWould: 1, outcomeVerified: 2}},
		{"attestation removed, its proof not", slices.Concat(lines[:1], lines[2:]), codeRefused, whole, nil},
		{"proof removed", slices.Concat(lines[:2], lines[3:]), 0, "", map[string]int{outcomeWould: 2, outcomeVerified: 2}},
		{"in another order", []string{lines[4], lines[3], lines[1], lines[2], lines[0]}, 0, "", map[string]int{outcomeWould: 2, outcomeVerified: 2}},
		{"proof moved to the front", []string{lines[2], lines[0], lines[1]}, codeRefused, whole, nil},
		{"proof moved behind another kind", []string{lines[1], lines[3], lines[2]}, codeRefused, whole, nil},
		{"proof of nothing", []string{lines[0], lines[1], `{"payloadType":"text/vnd.clawfs.tlog-proof","payload":"AAAA","signatures":[]}` + "\n"}, codeRefused, whole, nil},
		{"proof doubled", []string{lines[1], lines[2], lines[2]}, codeRefused, whole, nil},
		{"every line doubled", []string{lines[0], lines[0], lines[1], lines[2], lines[1], lines[2], lines[3], lines[3], lines[4], lines[4]}, 0, "", map[string]int{outcomeWould: 2, outcomeVerified: 2, outcomeDoubled: 4}},
		{"garbage", slices.Concat(lines[:1], []string{"GGUF\x00\x1b[31m\n"}, lines[1:]), codeRefused, whole, nil},
		{"an empty line", slices.Concat(lines[:1], []string{"\n"}, lines[1:]), codeRefused, whole, nil},
		{"a line of more than 4 MiB", append(lines[:5:5], strings.Repeat("A", 5<<20)), codeRefused, whole, nil},
		{"cut", []string{lines[0], lines[4][:100]}, codeRefused, whole, nil},
		{"empty", nil, codeRefused, whole, nil},
		{"a model", []string{"\x93NUMPY"}, codeRefused, whole, nil},
		{"forged revocation", append([]string{forged(lines[0])}, lines[1:]...), codeRefused, "line 1: refused rev-", map[string]int{outcomeWould: 1, outcomeVerified: 2, outcomeRefused: 1}},
		{"forged attestation", []string{lines[0], forged(lines[1]), lines[2]}, codeRefused, "line 2: refused sba-", map[string]int{outcomeWould: 1, outcomeRefused: 1}},
		{"forged capability", []string{lines[0], forged(lines[4])}, codeRefused, "line 2: refused cap-", map[string]int{outcomeWould: 1, outcomeRefused: 1}},
		{"forged provenance", []string{lines[0], forged(lines[3])}, 0, "line 2: skipped rec-", map[string]int{outcomeWould: 1, control.RecordSkipped: 1}},
		{"of a mint that is not pinned", []string{foreign, lines[4]}, 0, "", map[string]int{outcomeWould: 1, control.RecordSkipped: 1}},
		{"unknown kind of record", []string{string(unknown) + "\n", lines[4]}, codeRefused, "line 1: refused", map[string]int{outcomeWould: 1, outcomeRefused: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reader.t = t
			path := filepath.Join(t.TempDir(), "bundle.jsonl")
			if err := os.WriteFile(path, []byte(strings.Join(tt.lines, "")), 0o644); err != nil {
				t.Fatal(err)
			}
			if tt.text == whole {
				reader.refused(tt.code, []string{"bundle", "import", path, "--dry-run"}, tt.text)
				return
			}
			var in importAnswer
			got := reader.answer(tt.code, &in, "bundle", "import", path, "--dry-run")
			if !strings.Contains(got.stderr, tt.text) || len(in.Counts) != len(tt.want) {
				t.Errorf("import = %v, %q; want %v and %q", in.Counts, got.stderr, tt.want, tt.text)
			}
			for outcome, n := range tt.want {
				if in.Counts[outcome] != n {
					t.Errorf("%d %s, want %d: %+v", in.Counts[outcome], outcome, n, in.Lines)
				}
			}
		})
	}
	reader.t = t
	if pid := reader.daemonPID(); pid != 0 {
		t.Error("a dry run started a daemon")
	}

	dir := filepath.Join(t.TempDir(), "trust")
	reader.answer(0, &in, "bundle", "import", file, "--out", dir)
	if in.Counts[control.RecordAdmitted] != 2 || in.Counts[outcomeVerified] != 2 {
		t.Errorf("import = %+v", in)
	}
	if s := reader.status(); s.Revocations != 1 || s.Capabilities.Live != 1 {
		t.Errorf("after the import: %+v", s)
	}
	published, err := readRecordFile(sba)
	if err != nil {
		t.Fatal(err)
	}
	written, err := readRecordFile(filepath.Join(dir, published.Tag()+".sba"))
	if err != nil || written.ID != published.ID || !bytes.Equal(written.Proof, published.Proof) {
		t.Errorf("the attestation that was written: %v", err)
	}
	reader.ok("ledger", "inspect", filepath.Join(dir, published.Tag()+".sba"))
	reader.answer(0, &in, "bundle", "import", file, "--out", dir)
	if in.Counts[control.RecordKnown] != 2 || in.Counts[outcomeVerified] != 2 || slices.ContainsFunc(in.Lines, func(l imported) bool { return l.New }) {
		t.Errorf("a second import = %+v", in)
	}
	reader.refused(codeUsage, []string{"bundle", "import", dir}, "regular file")
}

// A daemon that fails in the middle: what was done and what was not is said of
// each line.
func TestImportIsCutShort(t *testing.T) {
	builder := newRig(t)
	a := &app{stdin: strings.NewReader(""), state: string(builder.state), output: "json"}
	var stdout, stderr bytes.Buffer
	a.stdout, a.stderr = &stdout, &stderr
	var text []byte
	for _, content := range []string{"a", "b", "c"} {
		text = append(append(text, builder.capability(builder.measured(map[string]string{"m.bin": content}))...), '\n')
	}
	file := filepath.Join(t.TempDir(), "bundle.jsonl")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := builder.state.MakeRun(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", builder.state.Socket())
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { control.Reply(w, 200, control.Status{}) })
	mux.HandleFunc("POST /v1/records", func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 2 {
			control.ReplyError(w, capstore.ErrNoSpace)
			return
		}
		var in control.RecordSubmission
		if err := control.ReadBody(r, &in); err != nil {
			t.Error(err)
		}
		rec, err := registry.Identify(in.Envelope)
		if err != nil {
			t.Error(err)
		}
		control.Reply(w, 200, control.RecordAnswer{Kind: in.Kind, ID: rec.ID, Outcome: control.RecordAdmitted})
	})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Clawfs-Protocol", control.Protocol()) // as a daemon of this version
		mux.ServeHTTP(w, r)
	})}
	go srv.Serve(l)
	defer srv.Close()
	err = a.importBundle(t.Context(), file, "", false)
	var quiet *quietExit
	if err == nil || errors.As(err, &quiet) || !strings.Contains(err.Error(), "not enough free space") {
		t.Errorf("importBundle = %v, want the daemon's error", err)
	}
	var in importAnswer
	if err := json.Unmarshal(stdout.Bytes(), &in, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("%v in %s", err, stdout.Bytes())
	}
	if len(in.Lines) != 3 || in.Lines[0].Outcome != control.RecordAdmitted || in.Lines[1].Outcome != outcomeUndone || in.Lines[2].Outcome != outcomeUndone {
		t.Errorf("lines %+v, want one admitted and two not reached", in.Lines)
	}
	for _, line := range []string{"line 2: not reached", "line 3: not reached"} {
		if !strings.Contains(stderr.String(), line) {
			t.Errorf("standard error %q, want %q", stderr.String(), line)
		}
	}
	if asked != 2 {
		t.Errorf("%d records were handed over after the error, want none", asked-2)
	}
}
