package fs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

func bindRelease(s *serverSpec) { s.Bind = BindRelease }

// files are those of one release, by name.
type files map[string][]byte

func (fs files) subjects(t testing.TB) []capstore.Subject {
	var out []capstore.Subject
	for name, data := range fs {
		out = append(out, subject(t, name, data))
	}
	return out
}

// release admits one capability for all the files.
func (m *mounted) release(version string, fs files, change ...func(*terms)) []byte {
	m.t.Helper()
	change = append(change, func(w *terms) { w.version = version })
	e := signed(m.t, m.mint, fs.subjects(m.t), change...)
	m.do(request{Op: "admit", Envelope: e})
	return e
}

// put writes files into a directory of the source.
func (m *mounted) put(dir string, fs files) {
	m.t.Helper()
	for name, data := range fs {
		m.write(filepath.Join(dir, name), data)
	}
}

func (m *mounted) link(target, name string) {
	m.t.Helper()
	p := filepath.Join(m.src, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Symlink(target, p); err != nil {
		m.t.Fatal(err)
	}
}

// model makes a release of shards, an index and a tokenizer in a directory of its own.
func model(seed byte) files {
	return files{
		"model-1.bin":         sample(seed, 5000),
		"model-2.bin":         sample(seed+1, 5000),
		"index.json":          sample(seed+2, 300),
		"tokenizer/vocab.txt": sample(seed+3, 900),
	}
}

func names(fs files) []string {
	var out []string
	for name := range fs {
		out = append(out, name)
	}
	return out
}

// mixed checks that a path is refused because of another, which is named.
func (m *mounted) mixed(path, because string) {
	m.t.Helper()
	m.refuses(path, syscall.EACCES, ReasonMixedRelease)
	rec := m.lastRecord(path, Refused)
	if !strings.Contains(rec.Detail, because) || !strings.Contains(rec.Detail, "acme/langid 1") || rec.Capability == "" ||
		!strings.Contains(rec.Next, "clawfs why "+m.at(because)) {
		m.t.Errorf("refusal of %s: %q, next %q; want both to name %s", path, rec.Detail, rec.Next, because)
	}
}

func TestReleaseOfShards(t *testing.T) {
	one, two := model(1), model(11)
	for _, bind := range []Bind{BindName, BindRelease} {
		t.Run(fmt.Sprint("bind ", bind), func(t *testing.T) {
			m := mountEmpty(t, func(s *serverSpec) { s.Bind = bind })
			m.release("1.0", one)
			m.release("2.0", two)
			m.put("m", one)
			m.put("whole", two)
			m.write("m/model-2.bin", two["model-2.bin"])
			if bind == BindName { // every file is approved under its name
				for name := range one {
					want := one[name]
					if name == "model-2.bin" {
						want = two[name]
					}
					m.reads("m/"+name, want)
				}
				return
			}
			m.mixed("m/model-2.bin", "m/index.json")
			for _, name := range []string{"index.json", "tokenizer/vocab.txt", "model-1.bin"} {
				m.mixed("m/"+name, "m/model-2.bin")
			}
			if rec := m.lastRecord("m/model-1.bin", Refused); !strings.Contains(rec.Detail, sumOf(one["model-2.bin"])) || !strings.Contains(rec.Detail, sumOf(two["model-2.bin"])+" of model-2.bin in acme/langid 2.0") {
				t.Errorf("detail %q: want what was expected, and which release's file is there", rec.Detail)
			}
			for name, data := range two { // another model, another directory
				m.reads("whole/"+name, data)
			}
			m.write("m/model-2.bin", one["model-2.bin"])
			for name, data := range one {
				m.reads("m/"+name, data)
			}
			m.put("m", two)
			for name, data := range two {
				m.reads("m/"+name, data)
			}
		})
	}
}

func TestReleaseTamperedOrMissing(t *testing.T) {
	one := model(1)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.put("m", one)
	bad := sample(99, len(one["index.json"]))
	for what, spoil := range map[string]func(p string) error{
		"other bytes":  func(p string) error { return os.WriteFile(p, bad, 0o644) },
		"another size": func(p string) error { return os.WriteFile(p, bad[1:], 0o644) },
		"a directory":  func(p string) error { return os.Mkdir(p, 0o755) },
		"a FIFO":       func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"a link out":   func(p string) error { return os.Symlink("/etc/passwd", p) },
		"a loop":       func(p string) error { return os.Symlink("index.json", p) },
		"another file": func(p string) error { return os.Symlink("model-1.bin", p) },
	} {
		p := filepath.Join(m.src, "m/index.json")
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		if err := spoil(p); err != nil {
			t.Fatal(err)
		}
		if r := m.run("read", m.at("m/model-1.bin")); r.Errno != syscall.EACCES {
			t.Errorf("with %s as index.json: %v, want EACCES", what, r)
		} else {
			m.mixed("m/model-1.bin", "m/index.json")
		}
	}
	p := filepath.Join(m.src, "m/index.json")
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	m.reads("m/model-1.bin", one["model-1.bin"])
	if err := os.RemoveAll(filepath.Join(m.src, "m/tokenizer")); err != nil {
		t.Fatal(err)
	}
	m.write("m/tokenizer", []byte("a file where the names want a directory"))
	m.reads("m/model-1.bin", one["model-1.bin"])
	if err := os.Link(filepath.Join(m.src, "m/model-1.bin"), p); err != nil { // one inode, two names
		t.Fatal(err)
	}
	m.mixed("m/model-2.bin", "m/index.json")
}

// A file of another release under a name that this one does not know.
func TestReleaseStranger(t *testing.T) {
	one := model(1)
	extra, deep := sample(40, 700), sample(41, 701)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.release("1.7", files{"extra.py": extra, "acme/v1/deep.py": deep})
	m.put("acme/v1", one)
	m.put("other", one)
	m.write("acme/v1/extra.py", sample(42, 700)) // nothing that opens
	m.reads("acme/v1/index.json", one["index.json"])
	m.write("acme/v1/extra.py", extra)
	m.mixed("acme/v1/index.json", "acme/v1/extra.py")
	m.mixed("acme/v1/extra.py", "acme/v1/index.json") // it is alone in its own release
	if err := os.Remove(filepath.Join(m.src, "acme/v1/extra.py")); err != nil {
		t.Fatal(err)
	}
	m.reads("acme/v1/index.json", one["index.json"])
	// It carries its name with directories above the root.
	m.write("acme/v1/deep.py", deep)
	m.mixed("acme/v1/index.json", "acme/v1/deep.py")
	m.reads("other/index.json", one["index.json"])
	// The same in a directory below belongs to a root of its own.
	if err := os.Remove(filepath.Join(m.src, "acme/v1/deep.py")); err != nil {
		t.Fatal(err)
	}
	m.write("acme/v1/plugins/extra.py", extra)
	m.reads("acme/v1/index.json", one["index.json"])
	m.reads("acme/v1/plugins/extra.py", extra)
}

// Two releases with one file: the one that lies there whole counts. A renewed
// capability, or another mint's, is the same release.
func TestReleaseSharedFile(t *testing.T) {
	one, two := model(1), model(11)
	two["tokenizer/vocab.txt"] = one["tokenizer/vocab.txt"]
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.release("2.0", two)
	m.put("a", one)
	m.put("b", two)
	for _, dir := range []string{"a", "b"} {
		m.reads(dir+"/tokenizer/vocab.txt", one["tokenizer/vocab.txt"])
	}
	m.write("b/index.json", one["index.json"])
	m.refuses("b/tokenizer/vocab.txt", syscall.EACCES, ReasonMixedRelease)

	m.release("1.0", one, func(w *terms) { w.notAfter = w.notAfter.Add(24 * time.Hour) })
	m.reads("a/index.json", one["index.json"])
	m.do(request{Op: "clock", Shift: 2 * 3600}) // the first ones have expired
	m.reads("a/index.json", one["index.json"])
	m.refuses("b/model-1.bin", syscall.EACCES, ReasonExpired)
}

// The release is the claim's, however its files are taken back one by one.
func TestReleaseRevoked(t *testing.T) {
	one := model(1)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.put("m", one)
	m.reads("m/index.json", one["index.json"])
	m.revoke(capstore.KindFile, hashpipe.SumBytes(one["model-1.bin"]).Claim())
	m.refuses("m/model-1.bin", syscall.EACCES, ReasonRevoked)
	m.reads("m/index.json", one["index.json"])
	m.write("m/model-1.bin", sample(77, 5000))
	m.mixed("m/index.json", "m/model-1.bin")
}

// Who has a file open keeps it when the one beside it is exchanged; the next open
// is refused. A view that changes does not make him lose it either.
func TestReleaseHeld(t *testing.T) {
	one, two := model(1), model(11)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.put("m", one)
	h := m.hold("m/model-1.bin")
	m.write("m/model-2.bin", two["model-2.bin"])
	m.release("2.0", two)
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(one["model-1.bin"]) {
		t.Errorf("reading an open file: %v", r)
	}
	m.mixed("m/model-1.bin", "m/model-2.bin")
}

// hub lays a release out as the cache of Hugging Face does.
func (m *mounted) hub(revision string, fs files) {
	m.t.Helper()
	for name, data := range fs {
		m.write("hub/blobs/"+sumOf(data), data)
		up := strings.Repeat("../", 2+strings.Count(name, "/"))
		m.link(up+"blobs/"+sumOf(data), "hub/snapshots/"+revision+"/"+name)
	}
}

func TestReleaseInHuggingFaceCache(t *testing.T) {
	one, two := model(1), model(11)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.release("2.0", two)
	m.hub("r1", one)
	m.hub("r2", two)
	m.hub("mix", files{"model-1.bin": one["model-1.bin"], "model-2.bin": two["model-2.bin"], "index.json": one["index.json"]})
	for _, name := range []string{"model-1.bin", "model-2.bin", "index.json"} {
		m.refuses("hub/snapshots/mix/"+name, syscall.EACCES, ReasonMixedRelease)
	}
	m.mixed("hub/snapshots/mix/index.json", "hub/snapshots/mix/model-2.bin")
	if s := m.stats(); s.Hashed != 0 {
		t.Errorf("%d files hashed to tell which blobs links name", s.Hashed)
	}
	for name := range one {
		m.reads("hub/snapshots/r1/"+name, one[name])
		m.reads("hub/snapshots/r2/"+name, two[name])
		m.reads("hub/blobs/"+sumOf(one[name]), one[name]) // no name, no demand
	}
	// A plain file beside links is measured.
	m.write("hub/snapshots/r1/tokenizer/vocab.tmp", two["tokenizer/vocab.txt"])
	m.reads("hub/snapshots/r1/index.json", one["index.json"])
	if err := os.Rename(filepath.Join(m.src, "hub/snapshots/r1/tokenizer/vocab.tmp"), filepath.Join(m.src, "hub/snapshots/r1/tokenizer/vocab.txt")); err != nil {
		t.Fatal(err)
	}
	m.mixed("hub/snapshots/r1/index.json", "hub/snapshots/r1/tokenizer/vocab.txt")
}

// Links to named files, and of whole directories, mix as well.
func TestReleaseByNamedLinks(t *testing.T) {
	one, two := model(1), model(11)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.release("2.0", two)
	m.put("one", one)
	m.put("two", two)
	m.link("../one/model-1.bin", "mix/model-1.bin")
	m.link("../two/model-2.bin", "mix/model-2.bin")
	m.link("../one/model-1.bin", "dirs/model-1.bin")
	m.link("../two/tokenizer", "dirs/tokenizer")
	m.link("one", "latest")
	m.link("../one/model-1.bin", "good/model-1.bin")
	m.link("step1", "good/model-2.bin") // followable refuses its name, so it is no way
	m.link("../one/tokenizer", "good/tokenizer")
	m.link("../foreign/tokenizer", "unrelated/tokenizer")
	m.write("foreign/tokenizer/vocab.txt", sample(60, 12))

	m.mixed("mix/model-1.bin", "mix/model-2.bin")
	m.mixed("mix/model-2.bin", "mix/model-1.bin")
	m.mixed("dirs/model-1.bin", "dirs/tokenizer/vocab.txt")
	if r := m.run("read", m.at("dirs/tokenizer/vocab.txt")); r.Errno != syscall.EACCES {
		t.Errorf("through a link to a directory of another release: %v, want EACCES", r)
	}
	m.reads("latest/model-1.bin", one["model-1.bin"])
	m.reads("good/model-1.bin", one["model-1.bin"])
	m.reads("good/tokenizer/vocab.txt", one["tokenizer/vocab.txt"])
	m.refuses("good/model-2.bin", syscall.EACCES, ReasonWrongName)
	if r := m.run("list", m.at("unrelated/tokenizer")); r.Errno != 0 || r.Names != 1 {
		t.Errorf("through a link to a directory of no release: %v", r)
	}
}

// Attributes tell without hashing; "why" hashes.
func TestReleaseXattrs(t *testing.T) {
	one := model(1)
	m := mountEmpty(t, bindRelease)
	m.release("1.0", one)
	m.put("m", one)
	want := func(attr, value string) {
		t.Helper()
		if r := m.run("getxattr", m.at("m/index.json"), attr); r.Text != value {
			t.Errorf("%s is %q, want %q", attr, r.Text, value)
		}
	}
	want(xattrStatus, "unknown")
	m.write("m/model-1.bin", sample(70, 5000))
	var e Explanation
	r := m.run("getxattr", m.at("m/index.json"), xattrWhy)
	if err := json.Unmarshal([]byte(r.Text), &e); err != nil || e.Allowed || e.Reason != ReasonMixedRelease || !strings.Contains(e.Detail, "m/model-1.bin") || e.Model == "" {
		t.Errorf("%s is %s (%v)", xattrWhy, r.Text, err)
	}
	want(xattrStatus, "refused")
	want(xattrReason, string(ReasonMixedRelease))
	m.write("m/model-1.bin", one["model-1.bin"])
	m.reads("m/index.json", one["index.json"])
	want(xattrStatus, "granted")
}

// A release of many shards, opened by many clients at once, costs one hash for
// each file.
func TestReleaseHashesEachFileOnce(t *testing.T) {
	const shards, clients = 200, 16
	m := mountEmpty(t, bindRelease)
	all := make(files)
	for i := range shards {
		all[fmt.Sprintf("model-%05d.bin", i)] = sample(byte(i), 20_000+i)
	}
	m.release("1.0", all)
	m.put("m", all)
	list := names(all)
	time.Sleep(settled + 100*time.Millisecond) // a younger file is measured again after a second, until it was granted
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for j := range 4 {
				name := list[(i*13+j*50)%shards]
				if r := m.run("read", m.at("m/"+name)); r.SHA256 != sumOf(all[name]) {
					t.Errorf("%s: %v", name, r)
				}
			}
		})
	}
	running.Wait()
	s := m.stats()
	if s.Hashed != shards {
		t.Errorf("hashed %d times, want %d", s.Hashed, shards)
	}
	t.Logf("%+v", s)
}

// Who waits for a file beside his own can be killed, and the measurement goes on.
func TestReleaseKilledOpener(t *testing.T) {
	m := mountEmpty(t, bindRelease)
	small := sample(1, 5000)
	m.write("model.bin", small)
	big := m.sparse("big.bin", huge, false)
	m.do(request{Op: "admit", Envelope: signed(t, m.mint, []capstore.Subject{subject(t, "model.bin", small), big})})
	cmd := m.command("read", m.at("model.bin"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.waitVerifying()
	time.Sleep(300 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		m.do(request{Op: "abandon"})
		m.gone = true
		t.Fatal("the opener hangs")
	}
	if r := m.lastRecord("model.bin", Failed); r.Reason != ReasonInterrupted {
		t.Errorf("record: %+v", r)
	}
	if s := m.stats(); s.Verifying != 1 {
		t.Errorf("%+v", s)
	}
}

// The limit of a request covers the files beside it too.
func TestReleaseRequestLimit(t *testing.T) {
	dir := t.TempDir()
	small := sample(1, 5000)
	if err := os.WriteFile(filepath.Join(dir, "model.bin"), small, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big.bin"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "big.bin"), huge); err != nil {
		t.Fatal(err)
	}
	src, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	big := subject(t, "big.bin", []byte("other bytes"))
	big.Size = huge
	d.admit([]capstore.Subject{subject(t, "model.bin", small), big})
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1, Bind: BindRelease}, src, noVault(t))
	defer f.shutdown()
	f.limit = 300 * time.Millisecond
	file, st, err := src.open("model.bin")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if a := f.assess(f.lookFor(nil, fuse.Caller{}), "model.bin", identityOf(&st), file, nil); a.verdict.Reason != ReasonTooSlow || a.status != statusTooSlow {
		t.Errorf("assess = %+v, %v; want %s", a.verdict, a.status, ReasonTooSlow)
	}
}

// The rule itself, on data alone.
func TestDecideRelease(t *testing.T) {
	now := time.Now().UTC()
	good := []byte("the rebuilt bytes")
	d := newDesk(t)
	one := d.admit([]capstore.Subject{subject(t, "v1/model.bin", good), subject(t, "other.bin", []byte("other"))})
	two := d.admit([]capstore.Subject{subject(t, "model.bin", good), subject(t, "third.bin", []byte("third"))})
	q := Query{Path: "a/v1/model.bin", Size: int64(len(good)), Sum: hashpipe.SumBytes(good), Now: now, Bind: BindRelease}
	grants := d.view.Lookup(hashpipe.SumBytes(good).Claim())
	rootOne, rootTwo := Root{"a", one.Claim()}, Root{"a/v1", two.Claim()}
	for name, c := range map[string]struct {
		roots map[Root]Finding
		path  string
		bind  Bind
		want  Reason
		by    hashpipe.Digest
	}{
		"nobody looked":              {bind: BindRelease, want: ReasonMixedRelease},
		"a zero finding":             {bind: BindRelease, roots: map[Root]Finding{rootOne: {}, rootTwo: {}}, want: ReasonMixedRelease},
		"a finding with words alone": {bind: BindRelease, roots: map[Root]Finding{rootOne: {Detail: "x", Next: "y"}}, want: ReasonMixedRelease},
		"another root":               {bind: BindRelease, roots: map[Root]Finding{{"b", one.Claim()}: {whole: true}}, want: ReasonMixedRelease},
		"another claim's root":       {bind: BindRelease, roots: map[Root]Finding{{"a", two.Claim()}: {whole: true}, {"a/v1", one.Claim()}: {whole: true}}, want: ReasonMixedRelease},
		"an unknown way to bind":     {bind: 7, want: ReasonMixedRelease},
		"one release whole":          {bind: BindRelease, roots: map[Root]Finding{rootOne: {whole: true}, rootTwo: {}}, want: ReasonGranted, by: one.ID()},
		"the other one":              {bind: BindRelease, roots: map[Root]Finding{rootTwo: {whole: true}}, want: ReasonGranted, by: two.ID()},
		"a content address":          {bind: BindRelease, path: "blobs/" + sumOf(good), want: ReasonGranted},
		"by name alone":              {bind: BindName, want: ReasonGranted},
	} {
		q := q
		q.Roots, q.Bind = c.roots, c.bind
		if c.path != "" {
			q.Path = c.path
		}
		v := Decide(q, grants)
		if v.Reason != c.want || v.Allowed() != (c.want == ReasonGranted) || v.Detail == "" || v.Allowed() == (v.Next != "") {
			t.Errorf("%s: %+v, want %s", name, v, c.want)
		}
		if !c.by.IsZero() && v.Capability.ID() != c.by {
			t.Errorf("%s: granted by %s", name, v.Capability.ID())
		}
	}
	if root := rootOf("model.bin", two, "model.bin"); root.Dir != "" {
		t.Errorf("root of a file at the top: %q", root.Dir)
	}
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a/b/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	sum := sumOf(nil)
	for name, target := range map[string]string{
		"up": "a", "a/side": "b", "a/b/back": "../side/file", "blob": "a/" + sum, "far": "up/side/file",
		"out": "..", "abs": dir, "self": "self", "dot": "./a/./b", "after": "up/../a", "dangling": "nothing/at/all",
		"x0": "a/b/file", "x1": "x0", "x2": "x1", "x3": "x2", "x4": "x3", "x5": "x4", "x6": "x5", "x7": "x6", "x8": "x7",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for p, want := range map[string]string{
		"a/b/file": "a/b/file", "up/b/file": "a/b/file", "up/side/back": "a/b/file", "far": "a/b/file", "dot/file": "a/b/file",
		"blob": sum, "x7": "a/b/file", "up": "a",
		"x8": "more than 8 links", "self": "more than 8 links", "out": "leaves the mount", "out/x": "leaves the mount", "abs/a": "absolute",
		"after": `".." after a name`, "dangling": "no such file", "blob/x": "no such file", "up/none": "no such file", "a/b/file/x": "not a directory",
	} {
		got, err := s.follow(p)
		text := got.end
		if !got.address.IsZero() {
			text = got.address.String()
		}
		if err != nil {
			text = err.Error()
		}
		if text != want && (err == nil || !strings.Contains(text, want)) {
			t.Errorf("follow(%q) = %q, want %q", p, text, want)
		}
	}
}

// The limit of a request covers all that a link waits for: what it leads to, and
// then the files around it.
func TestReleaseLinkLimit(t *testing.T) {
	dir := t.TempDir()
	small := sample(1, 5000)
	id := gitIDOf(small)
	if err := os.WriteFile(filepath.Join(dir, id), small, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(id, filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big.bin"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "big.bin"), huge); err != nil {
		t.Fatal(err)
	}
	src, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	big := subject(t, "big.bin", []byte("other bytes"))
	big.Size = huge
	d.admit([]capstore.Subject{subject(t, "config.json", small), big})
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1, Bind: BindRelease}, src, noVault(t))
	defer f.shutdown()
	f.limit = 2 * time.Second
	st, err := src.stat("config.json")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // both workers are busy for most of it
		f.measure.submit(&task{step: func(context.Context) (bool, error) {
			time.Sleep(f.limit * 3 / 4)
			return false, nil
		}, end: func(error) {}})
	}
	began := time.Now()
	_, status := f.Readlink(nil, &fuse.InHeader{NodeId: f.nodes.lookup("config.json", &st).id})
	took := time.Since(began)
	if status != statusTooSlow || took < f.limit/2 {
		t.Fatalf("answered %v after %v; want %v at the limit", status, took, statusTooSlow)
	}
	if took > f.limit*3/2 {
		t.Errorf("the limit is %v, and the answer took %v", f.limit, took)
	}
}
