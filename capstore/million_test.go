package capstore

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"golang.org/x/sys/unix"
)

// many is how many capabilities, and how many revocations, TestMany makes. The answers
// are the same for any number; `go test -run TestMany -many 1000000 -v -timeout 2h`
// says what they cost (docs/performance.md).
var (
	many    = flag.Int("many", 2000, "capabilities and revocations of TestMany")
	manyDir = flag.String("many-dir", "", "where TestMany keeps its store for another run; default: nowhere")
)

// manyMount turns the test binary into the process of a mount: it takes a snapshot
// from its standard input, and says what that cost and what it answers.
const manyMount = "CAPSTORE_TEST_MANY_MOUNT"

func contentOf(i int) hashpipe.Digest { return digestOf(fmt.Sprintf("content %d", i)) }
func manyRevoked(i int) bool          { return i%2 == 0 }
func manyName(i int) string           { return fmt.Sprintf("adapters/a%d/adapter.safetensors", i) }
func manyTarget(i int) hashpipe.Digest {
	if manyRevoked(i) {
		return contentOf(i)
	}
	return digestOf(fmt.Sprintf("nobody's %d", i))
}

// fillStore writes n capabilities and n revocations as Admit and Revoke would, without
// waiting for each: real ones, signed one by one.
func fillStore(t *testing.T, w world, dir string, n int) {
	t.Helper()
	closeStore(t, openStore(t, dir, w.trust())) // which makes its key
	k := keyOf(t, dir)
	template := string(payloadOf(t, w.statement(t, "", manyName(0))))
	st := w.statement(t, "", manyName(0))
	revocation := w.revocation(t, KindFile, contentOf(0).String())
	signed, err := dsse.Parse(revocation)
	if err != nil {
		t.Fatal(err)
	}
	revTemplate := string(signed.UnverifiedPayload())
	type made struct {
		f        fact
		envelope []byte
	}
	results := make([]chan made, 2*runtime.GOMAXPROCS(0))
	var making sync.WaitGroup
	for g := range results {
		results[g] = make(chan made, 64)
		making.Go(func() {
			for i := g; i < 2*n; i += len(results) {
				var m made
				if i < n {
					verity, err := hashpipe.ParseVerityDigest(digestOf(fmt.Sprintf("verity %d", i)).String())
					if err != nil {
						panic(err)
					}
					s := Subject{Name: manyName(i), Digest: contentOf(i), Verity: verity, Size: st.subjects()[0].Size}
					sba := digestOf(fmt.Sprintf("ledger %d", i))
					claim := Claim(sba, st.Predicate.Publisher.KeyID, []Subject{s})
					payload := strings.NewReplacer(
						manyName(0), s.Name, st.Subject[0].Digest.SHA256.String(), s.Digest.String(),
						st.Predicate.Outputs[0].FSVerity.String(), verity.String(),
						st.Predicate.SBA.Digest.SHA256.String(), sba.String(), st.Predicate.Claim.String(), claim.String(),
					).Replace(template)
					m.envelope = sign(t, []byte(payload), w.mint)
					m.f = newFact(RecordCapability, digestOf(payload), m.envelope, entry{
						signer: keyDigest(w.mint.Public().ID()), claim: tagOf(claim), sba: tagOf(sba),
						outputs: []outputTags{{tagOf(s.Digest), nameTag("adapter.safetensors"), verityTag(verity), s.Size}},
						paths:   []tag{nameTag(s.Name), nameTag(filepath.Dir(s.Name)), nameTag("adapters")},
					})
				} else {
					d := manyTarget(i - n)
					payload := strings.ReplaceAll(revTemplate, contentOf(0).String(), d.String())
					m.envelope = sign(t, []byte(payload), w.revoker)
					m.f = newFact(RecordRevocation, digestOf(payload), m.envelope, entry{signer: keyDigest(w.revoker.Public().ID()), target: target{KindFile, d}})
				}
				results[g] <- m
			}
		})
	}
	db, err := badger.Open(badger.DefaultOptions(filepath.Join(dir, "db")).WithLogger(nil).WithValueThreshold(1<<20 - 1).WithBlockCacheSize(0).WithCompression(0).WithMetricsEnabled(false))
	if err != nil {
		t.Fatal(err)
	}
	batch := db.NewWriteBatch()
	at := firstHead(k)
	for i := range 2 * n {
		m := <-results[i%len(results)]
		m.f.at = 1764000000
		next, content := at.follow(m.f)
		at = next
		for _, r := range []row{
			k.seal(recordKey(m.f.kind, m.f.id), at.n, m.envelope), k.seal(logKey(at.n), at.n, content),
		} {
			if err := batch.Set(r.key, r.value); err != nil {
				t.Fatal(err)
			}
		}
	}
	making.Wait()
	if err := batch.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := writeHead(memoryOf(dir), k, at); err != nil {
		t.Fatal(err)
	}
}

// manyWorld has Ed25519 keys alone: signing a million with another kind would measure that.
func manyWorld(t *testing.T, dir string) world {
	if w, err := readWorld(filepath.Join(dir, "keys")); err == nil {
		return w
	}
	w := newWorld(t)
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	w.revoker = key
	if err := os.Rename(writeWorld(t, w), filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	return w
}

// costs is what a view's answers cost.
type costs struct {
	P50, P99, Max time.Duration // of a Lookup of a content that was not asked for before
	Alone         time.Duration // its p99 in processor time of its thread: what it takes where nobody else runs
	Warm          time.Duration // p99 of asking again
	Resident      int64         // bytes of the process, at the end
	Peak          int64
	Index         int // bytes
}

// lookAt asks for some contents, and is an error if an answer is not what was recorded.
func lookAt(v *View, n int) (c costs, err error) {
	rng := rand.New(rand.NewPCG(1, 2))
	var cold, warm, alone []time.Duration
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range min(n, 2000) {
		i := rng.IntN(n)
		began, spent := time.Now(), ownTime()
		first := v.Lookup(contentOf(i))
		cold, alone = append(cold, time.Since(began)), append(alone, ownTime()-spent)
		began = time.Now()
		g := v.Lookup(contentOf(i))
		warm = append(warm, time.Since(began))
		if len(first) != 1 || len(g) != 1 || g[0].Subjects()[0].Name != manyName(i) {
			return c, fmt.Errorf("content %d: %d grants", i, len(g))
		}
		if by, revoked := g[0].Revoked(); revoked != manyRevoked(i) || revoked && by.Target() != contentOf(i).String() {
			return c, fmt.Errorf("content %d: revoked %v by %q, want %v", i, revoked, by.Target(), manyRevoked(i))
		}
		if g := v.Lookup(digestOf(fmt.Sprintf("stranger %d", i))); len(g) != 0 {
			return c, fmt.Errorf("a stranger is granted %d times", len(g))
		}
		if !v.Names(filepath.Dir(manyName(i))) || !v.HasSize(g[0].Subjects()[0].Size) || v.Names("adapters/none") {
			return c, fmt.Errorf("the names or sizes of %d are not what they are", i)
		}
	}
	if got := len(v.ByName("adapter.safetensors")); got != min(n, maxNamed) {
		return c, fmt.Errorf("%d by name", got)
	}
	if a, b := v.Count(); a != n || b != n || len(v.Rejected()) != 0 {
		return c, fmt.Errorf("%d capabilities, %d revocations, rejected %v", a, b, v.Rejected())
	}
	slices.Sort(cold)
	slices.Sort(warm)
	slices.Sort(alone)
	c.Alone = alone[len(alone)*99/100]
	c.P50, c.P99, c.Max, c.Warm = cold[len(cold)/2], cold[len(cold)*99/100], cold[len(cold)-1], warm[len(warm)*99/100]
	c.Index = v.index.bytes()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(string(status)) {
		for name, to := range map[string]*int64{"VmRSS:": &c.Resident, "VmHWM:": &c.Peak} {
			if f := strings.Fields(line); f[0] == name {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return c, err
				}
				*to = kib << 10
			}
		}
	}
	return c, nil
}

// runManyMount is the other process.
func runManyMount(dir, keys string) error {
	debug.SetMemoryLimit(200 << 20) // as a mount process has it
	w, err := readWorld(keys)
	if err != nil {
		return err
	}
	v, err := NewViewIn(dir, w.trust())
	if err != nil {
		return err
	}
	in := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	for {
		var r Record
		if err := in.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if err := v.Apply(r); err != nil {
			return err
		}
	}
	n, _ := v.Count()
	c, err := lookAt(v, n)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(c)
}

// Very many capabilities and revocations: what was revoked is refused and what was not
// is granted, in the store and in the process of a mount.
func TestMany(t *testing.T) {
	n := *many
	base := *manyDir
	if base == "" {
		base = t.TempDir()
	}
	w := manyWorld(t, base)
	dir := filepath.Join(base, "store")
	if _, err := os.Stat(dir); err != nil {
		began := time.Now()
		fillStore(t, w, dir, n)
		t.Logf("made %d + %d records in %v", n, n, time.Since(began).Round(time.Millisecond))
	}
	// Without the journal of kept records, which is written when it is not there.
	source := new(database)
	view, err := viewOf(w.trust(), source)
	if err != nil {
		t.Fatal(err)
	}
	view.stored = true
	s := &Store{dir: dir, memory: memoryOf(dir), view: view, subs: make(map[chan Record]struct{}), unsaved: make(map[hashpipe.Digest]bool), unkept: make(map[hashpipe.Digest]uint32), source: source}
	before, began := processor(t), time.Now()
	if s.db, err = openBadger(filepath.Join(dir, "db")); err != nil {
		t.Fatal(err)
	}
	opened := time.Since(began)
	if err := s.identify(); err != nil {
		t.Fatal(err)
	}
	source.open(s.db, s.key)
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	t.Logf("opened in %v and %v of processor time, of which Badger %v", time.Since(began).Round(time.Millisecond), processor(t)-before, opened.Round(time.Millisecond))
	t.Cleanup(func() { s.shut() })
	c, err := lookAt(s.View(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("store: %v", c)
	verifying, hashing := measureUnits(t, w)
	t.Logf("units: an Ed25519 verification of an envelope %v, SHA-256 of it %v", verifying, hashing)

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), manyMount+"="+base, crashKeys+"="+filepath.Join(base, "keys"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	began = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.endSweep() // which would be measured, too
	before = processor(t)
	snapshot, _, cancel := s.Subscribe(1)
	defer cancel()
	buffered := bufio.NewWriterSize(in, 1<<20)
	lines := json.NewEncoder(buffered)
	sent := 0
	for r, err := range snapshot {
		if err == nil {
			err = lines.Encode(r)
		}
		if err != nil {
			t.Fatal(err)
		}
		sent++
	}
	if err := buffered.Flush(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	took := time.Since(began)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var m costs
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	if sent != 2*n {
		t.Errorf("the snapshot has %d records, want %d", sent, 2*n)
	}
	t.Logf("mount: %v after a snapshot of %v, %v of processor time to send", m, took.Round(time.Millisecond), processor(t)-before)
}

func (c costs) String() string {
	return fmt.Sprintf("lookup p50 %v, p99 %v (%v of processor time), max %v, again p99 %v; %d MiB resident, %d MiB at most, index of %d MiB", c.P50, c.P99, c.Alone, c.Max, c.Warm, c.Resident>>20, c.Peak>>20, c.Index>>20)
}

// ownTime is the processor time of this thread so far.
func ownTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// processor is the processor time of this process so far: what it takes on a machine
// that others use, too.
func processor(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Round(time.Millisecond)
}

// measureUnits is what the others are measured against.
func measureUnits(t *testing.T, w world) (verifying, hashing time.Duration) {
	t.Helper()
	envelope := w.capability(t, "unit", manyName(1))
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 200
	began := time.Now()
	for range rounds {
		if _, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{w.mint.Public()}, 1); err != nil {
			t.Fatal(err)
		}
	}
	verifying = time.Since(began) / rounds
	began = time.Now()
	for range rounds {
		hashpipe.SumBytes(envelope)
	}
	return verifying, time.Since(began) / rounds
}
