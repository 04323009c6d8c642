package fs

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// A shared machine makes times meaningless. So every number here is a ratio of two
// things that were done in one round, the order of a round is turned around in
// every second one, and what is shown is the median of all rounds and the span.
// Beside the time stands the CPU time of the client and of the process that serves
// it. Everybody is a process of its own, and nothing but clients touches a mount.
//
//	sudo make bench                     all of it, 20 minutes
//	sudo make bench BENCHFLAGS=-short   small files and three rounds, 3 minutes
//
// A missed target is printed and fails nothing. Wrong bytes, a missing peer, and a
// mount process of more than maxPeak fail.
var (
	benchOut     = flag.String("bench-out", "", "directory for every ratio (ratios.jsonl) and for profiles")
	benchProfile = flag.String("bench-profile", "", "TIER: do its two worst rows once more under profilers, into -bench-out; TIER/TEXT: the rows with that text")
	benchLarge   = flag.Int64("bench-large", 4096, "MiB of the file of the first open")
)

// maxPeak bounds what a mount process may ever have in memory, in MiB.
const maxPeak = 128

func BenchmarkMount(b *testing.B) {
	needPeers(b)
	needOut(b)
	size, large, rounds := int64(256<<20), *benchLarge<<20, 5
	if testing.Short() {
		size, large, rounds = 128<<20, min(large, 512<<20), 3
	}
	t := &table{load: firstLine("/proc/loadavg")}
	for _, name := range []string{"ext4", "xfs"} {
		b.Run(name, func(db *testing.B) {
			d := newDisk(db, name, size)
			db.Setenv("TMPDIR", d.dir)
			c := &contest{table: t, disk: d, rounds: rounds}
			c.start(db)
			for _, g := range c.file() {
				db.Run(g.rows[0].name, func(b *testing.B) { c.run(b, g) })
			}
			c.stop()
			db.Run("names", func(b *testing.B) { c.run(b, c.names(b)) })
			db.Run("first open", func(b *testing.B) {
				big := &disk{name: d.name, dir: d.dir, source: tempDir(db)}
				big.subject = bigFile(b, filepath.Join(big.source, "model.bin"), large)
				c.run(b, c.firstWarm(big))
				c.run(b, c.firstCold(big))
			})
			c.profile(db)
		})
	}
	t.print(b)
}

// taken is one measurement: seconds, CPU seconds, and a sum over what was seen.
type taken struct{ wall, cpu, sum float64 }

// row is something to measure, and what is said about it.
type row struct {
	name      string
	reference string             // the kind that is 1; or in words, see group.refer
	bytes     int64              // of one measurement
	times     int                // or how often it does what it does
	want      map[string]float64 // of the kinds that begin so, at least
	inMiB     bool               // no ratio: MiB, at most as many as wanted
	do        func(testing.TB, *peer) taken
}

// group is rows that are measured in one visit of a peer.
type group struct {
	disk    *disk
	rows    []row
	kinds   []kind
	lasting bool                     // visits are to the lasting peers, else to new ones
	rounds  int                      // 0: as many as the contest has
	before  func(testing.TB)         // each visit
	refer   func(testing.TB) []taken // what is 1 in this round, for each row
}

// contest is the benchmark of one disk.
type contest struct {
	table  *table
	disk   *disk
	rounds int
	kinds  []kind           // that work on this disk
	peers  map[string]*peer // by kind
}

// start makes the peers, and compares their bytes.
func (c *contest) start(b *testing.B) {
	c.peers = make(map[string]*peer)
	for _, k := range kinds() {
		p := k.make(b, c.disk)
		want := c.disk.subject.Digest.String()
		if got := p.client(b, "read", p.model()); got.Errno != 0 || got.SHA256 != want {
			b.Fatalf("%s on %s: %v, want %d bytes of %.16s", k.name, c.disk.name, got, c.disk.subject.Size, want)
		}
		if k.tier != "" {
			if tier := p.tier(b); tier != k.tier {
				c.table.note("%s: not on %s, where files are served in tier %s", k.name, c.disk.name, tier)
				p.end()
				continue
			}
		}
		if cached := p.times(b, p.model(), "cached")["cached"].sum; k.name == "passthrough" && cached != 0 {
			b.Fatalf("the loopback with passthrough on %s keeps %.0f bytes in a page cache of its own: it is without", c.disk.name, cached)
		}
		c.kinds, c.peers[k.name] = append(c.kinds, k), p
	}
}

func (c *contest) stop() {
	for _, p := range c.peers {
		p.end()
	}
	c.peers = nil
}

// visit measures all rows of a group once.
func (c *contest) visit(tb testing.TB, g *group, k kind, do func(i int, p *peer)) {
	tb.Helper()
	if g.before != nil {
		g.before(tb)
	}
	p := c.peers[k.name]
	if p == nil || !g.lasting {
		s := &scope{TB: tb}
		defer s.end()
		p = k.make(s, g.disk)
		if g.lasting {
			p.times(tb, p.model(), "read", "read")
		}
	}
	for i := range g.rows {
		do(i, p)
	}
}

// run measures a group in all rounds. One more at the beginning warms up what
// lasts.
func (c *contest) run(b *testing.B, g *group) {
	first := len(c.table.lines)
	for i, w := range g.rows {
		c.table.lines = append(c.table.lines, &line{row: w, disk: c.disk.name, columns: make(map[string][]ratio),
			again: func(tb testing.TB, k kind, around func(*peer, func(*peer))) {
				c.visit(tb, g, k, func(j int, p *peer) {
					if j == i {
						around(p, func(p *peer) { w.do(tb, p) })
					} else {
						g.rows[j].do(tb, p)
					}
				})
			}})
	}
	round, rounds := 0, cmp.Or(g.rounds, c.rounds)
	if g.lasting {
		round = -1
	}
	for ; round < rounds; round++ {
		var refer []taken
		if g.refer != nil {
			refer = g.refer(b)
		}
		got := make([]map[string]taken, len(g.rows))
		for i := range got {
			got[i] = make(map[string]taken)
		}
		turns := slices.Clone(g.kinds)
		if round%2 == 1 {
			slices.Reverse(turns)
		}
		for _, k := range turns {
			c.visit(b, g, k, func(i int, p *peer) { got[i][k.name] = g.rows[i].do(b, p) })
		}
		if round < 0 {
			continue
		}
		for i, w := range g.rows {
			one := got[i][w.reference]
			if refer != nil {
				one = refer[i]
			}
			c.table.lines[first+i].add(b, one, got[i])
		}
	}
	b.ReportMetric(0, "ns/op")
}

// dropping says whose pages of model.bin go before a measurement.
type dropping int

const (
	dropNothing dropping = iota
	dropMount            // the mount's, but not those of the file behind it
	dropAll
)

// on does one thing to model.bin.
func on(what string, drop dropping) func(testing.TB, *peer) taken {
	return func(tb testing.TB, p *peer) taken {
		if drop != dropNothing && p.pid != 0 {
			p.bare().times(tb, p.model(), "drop")
		}
		if drop == dropAll {
			for _, file := range p.stored() {
				if err := dropPages(file); err != nil {
					tb.Fatal(err)
				}
			}
		}
		return p.times(tb, p.model(), what)[what]
	}
}

// file is about a file that was verified before, each row for itself.
func (c *contest) file() (groups []*group) {
	const touched, touchedCold, opens = 1 << 14, 1 << 9, 2000
	size := c.disk.subject.Size
	faults, faultsCold, reopen := fmt.Sprint("faults-", touched), fmt.Sprint("faults-", touchedCold), fmt.Sprint("reopen-", opens)
	sealed := map[string]float64{"sealed": 0.95}
	mapped := map[string]float64{"sealed": 0.95, "blocks": 0.6}
	faulted := map[string]float64{"sealed": 0.9}
	reopened := map[string]float64{"sealed": 1 / 1.2, "blocks": 1 / 1.2}
	for _, w := range []row{
		{name: "read(2), warm", bytes: size, want: sealed, do: on("read", dropNothing)},
		{name: "mapping, warm", bytes: size, want: mapped, do: on("mmap", dropNothing)},
		{name: "4 KiB faults, warm", times: touched, want: faulted, do: on(faults, dropNothing)},
		{name: "open and close", times: opens, want: reopened, do: on(reopen, dropNothing), reference: "loopback"},
		{name: "read(2), mount cold", bytes: size, want: sealed, do: on("read", dropMount)},
		{name: "mapping, mount cold", bytes: size, want: sealed, do: on("mmap", dropMount)},
		{name: "4 KiB faults, mount cold", times: touchedCold, want: faulted, do: on(faultsCold, dropMount)},
		{name: "read(2), all cold", bytes: size, want: sealed, do: on("read", dropAll)},
		{name: "mapping, all cold", bytes: size, want: sealed, do: on("mmap", dropAll)},
	} {
		w.reference = cmp.Or(w.reference, "native")
		g := &group{disk: c.disk, rows: []row{w}, kinds: c.kinds, lasting: true}
		if strings.HasSuffix(w.name, "warm") || w.times == opens {
			g.rounds = c.rounds + 2 // they are short
		}
		groups = append(groups, g)
	}
	return groups
}

// names is about 10,000 names, on new mounts.
func (c *contest) names(tb testing.TB) *group {
	look := func(dir, what string) func(testing.TB, *peer) taken {
		return func(tb testing.TB, p *peer) taken {
			return p.times(tb, filepath.Join(p.dir, dir), what)[what]
		}
	}
	stat, list := look("stat", fmt.Sprint("stat-", many)), look("list", "list")
	c.table.note("native names are always warm: nothing makes the kernel forget those of one directory")
	native := startNative(tb, c.disk)
	stat(tb, native)
	list(tb, native)
	return &group{disk: c.disk, kinds: c.kinds, rows: []row{
		{name: "stat of 10,000, first", reference: "native", times: many, do: stat},
		{name: "stat of 10,000, again", reference: "native", times: many, do: stat},
		{name: "readdir of 10,000, first", reference: "native", times: many, do: list},
		{name: "readdir of 10,000, again", reference: "native", times: many, do: list},
	}}
}

// tiersOnly: nobody else verifies.
func (c *contest) tiersOnly() []kind {
	return slices.DeleteFunc(slices.Clone(c.kinds), func(k kind) bool { return k.tier == "" })
}

// firstOpen opens the file of a new mount, which is when it is verified.
func firstOpen(tb testing.TB, p *peer) taken {
	const open = "reopen-1"
	t := p.times(tb, p.model(), open)[open]
	if tier := p.tier(tb); tier != p.kind.tier {
		tb.Fatalf("%s, size %d, is served in tier %q, want %s", p.kind.name, p.disk.subject.Size, tier, p.kind.tier)
	}
	return t
}

// firstWarm is about a file that is in the page cache.
func (c *contest) firstWarm(d *disk) *group {
	native := startNative(nil, d)
	size := d.subject.Size
	each := func(n float64) map[string]float64 { return map[string]float64{"blocks": n, "sealed": n} }
	return &group{
		disk: d, kinds: c.tiersOnly(),
		before: func(tb testing.TB) { d.keepWarm(tb) },
		refer: func(tb testing.TB) []taken {
			d.keepWarm(tb)
			t := native.times(tb, native.model(), "sha256", "mmap")
			return []taken{t["sha256"], t["mmap"], {}}
		},
		rows: []row{
			{name: "first open, page-cached, " + mib(size), reference: "one SHA-256 stream in memory", bytes: size,
				want: each(0.9 * float64(runtime.NumCPU())), do: firstOpen},
			{name: "mapping after it", reference: "native, warm", bytes: size,
				want: map[string]float64{"sealed": 0.95, "blocks": 0.6}, do: on("mmap", dropNothing)},
			{name: "peak memory of the mount process", inMiB: true, want: each(maxPeak),
				do: func(tb testing.TB, p *peer) taken {
					peak := p.peakRSS(tb)
					if peak > maxPeak {
						tb.Errorf("a mount process had %.0f MiB in memory after its first open of %s, want at most %d", peak, mib(size), maxPeak)
					}
					return taken{wall: peak}
				}},
		},
	}
}

// firstCold is about a file that has to come from the disk.
func (c *contest) firstCold(d *disk) *group {
	native := startNative(nil, d)
	size, n := d.subject.Size, float64(runtime.NumCPU())
	return &group{
		disk: d, kinds: c.tiersOnly(),
		before: func(tb testing.TB) { d.drop(tb) },
		refer: func(tb testing.TB) []taken {
			sha := native.times(tb, native.model(), "sha256")["sha256"]
			d.drop(tb)
			disk := native.times(tb, native.model(), "read")["read"]
			return []taken{{wall: max(disk.wall, sha.wall/n), cpu: sha.cpu}}
		},
		rows: []row{{name: "first open, cold, " + mib(size), reference: "the slower of disk and n x SHA-256", bytes: size,
			want: map[string]float64{"blocks": 0.85, "sealed": 0.85}, do: firstOpen}},
	}
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// bigFile writes n random bytes and returns their subject. They are in the page
// cache then.
func bigFile(tb testing.TB, p string, n int64) capstore.Subject {
	tb.Helper()
	f, err := os.Create(p)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	for i := int64(0); i < n; i += 64 << 20 {
		if _, err := f.Write(sample(byte(i>>26)+1, int(min(64<<20, n-i)))); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		tb.Fatal(err)
	}
	// Settled: a grant of a file that was just written is measured again later.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(p, old, old); err != nil {
		tb.Fatal(err)
	}
	if f, err = os.Open(p); err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	got, err := hashpipe.MeasureFile(context.Background(), f, n, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return capstore.Subject{Name: filepath.Base(p), Digest: got.Sum().Claim(), Verity: got.Tree().Claim(), Size: n}
}
