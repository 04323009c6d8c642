package compare

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	began  = time.Date(2026, 11, 27, 6, 48, 48, 0, time.UTC)
	firstE = Environment{Began: began, Varied: []string{"hostname=build", "workdir=/work", "uidmap=1073741824", "cpus=0-1", "outdirorder=random"}}
	second = Environment{Began: began.Add(3 * time.Second), Varied: []string{"hostname=rebuilder-2", "workdir=/again/work", "uidmap=1074790400", "cpus=1", "outdirorder=random", "uptime=+899h0m0s"}}
)

// TestTrace puts what surrounds a build into outputs, in the forms in which
// programs write it, and demands the one hint for it. Every other hint is a
// false one.
func TestTrace(t *testing.T) {
	le, be := binary.LittleEndian, binary.BigEndian
	noise := bytes.Repeat([]byte{0x3c, 0xa1, 0, 0x7f}, 500)
	put := func(text func(e Environment) []byte) [2][]byte {
		var out [2][]byte
		for i, e := range []Environment{firstE, second} {
			out[i] = append(append(bytes.Clone(noise), text(e)...), noise...)
		}
		return out
	}
	written := func(layout string) func(Environment) []byte {
		return func(e Environment) []byte { return []byte(e.Began.Format(layout)) }
	}
	const clock = "SOURCE_DATE_EPOCH, or leave it out"
	for _, c := range []struct {
		name string
		pair [2][]byte
		want string // in the only hint; none if empty
	}{
		{"seconds in digits", put(func(e Environment) []byte { return fmt.Appendf(nil, "built=%d;", e.Began.Unix()) }), clock},
		{"milliseconds", put(func(e Environment) []byte { return fmt.Appendf(nil, "%d", e.Began.UnixMilli()) }), clock},
		{"time.time()", put(func(e Environment) []byte { return fmt.Appendf(nil, "%d.0123", e.Began.Unix()) }), clock},
		{"RFC 3339", put(written(time.RFC3339)), clock},
		{"ISO with a space", put(written("2006-01-02 15:04:05")), clock},
		{"ctime", put(written(time.ANSIC)), clock},
		{"mail", put(written(time.RFC1123)), clock},
		{"__DATE__ and __TIME__", put(written("Jan _2 2006\x0015:04:05")), clock},
		{"file name", put(written("run-20060102_150405")), clock},
		{"32 bits", put(func(e Environment) []byte { return le.AppendUint32(nil, uint32(e.Began.Unix())) }), clock},
		{"32 bits, big-endian", put(func(e Environment) []byte { return be.AppendUint32(nil, uint32(e.Began.Unix())) }), clock},
		{"64 bits", put(func(e Environment) []byte { return le.AppendUint64(nil, uint64(e.Began.Unix())) }), clock},
		{"nanoseconds", put(func(e Environment) []byte { return le.AppendUint64(nil, uint64(e.Began.UnixNano())) }), clock},
		{"a double", put(func(e Environment) []byte { return le64(float64(e.Began.Unix()) + 0.25) }), clock},
		{"another day", put(func(e Environment) []byte { return fmt.Appendf(nil, "%d", e.Began.Add(-72*time.Hour).Unix()) }), ""},
		{"host", put(func(e Environment) []byte { return []byte("on " + e.value("hostname") + "!") }), "host name"},
		{"directory", put(func(e Environment) []byte { return []byte(e.value("workdir") + "/a.c") }), "working directory"},
		{"uid", put(func(e Environment) []byte { return []byte("uid=" + e.value("uidmap")) }), "user's id"},
		{"uuid", put(func(e Environment) []byte {
			return fmt.Appendf(nil, "run 6f9619ff-8b86-4011-b42d-%012x", e.Began.Unix()%1000)
		}), "UUID"},
		{"a key", put(func(e Environment) []byte {
			sum := sha256.Sum256([]byte(e.Began.String()))
			return sum[:]
		}), "drawn at random"},
		{"a key in hex", put(func(e Environment) []byte { return fmt.Appendf(nil, "%x", sha256.Sum256([]byte(e.Began.String()))) }), "drawn at random"},
		{"another word", put(func(e Environment) []byte { return fmt.Appendf(nil, "seconds: %02d", e.Began.Second()) }), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := c.pair[0], c.pair[1]
			d := files(t, a, b, "out")
			if err := d.Trace(context.Background(), bytes.NewReader(a), bytes.NewReader(b), firstE, second); err != nil {
				t.Fatal(err)
			}
			hints := d.Hints(Build{})
			if c.want == "" {
				if len(hints) > 0 {
					t.Errorf("Hints() = %q, want none", hints)
				}
				return
			}
			if len(hints) != 1 || !strings.Contains(hints[0], c.want) {
				t.Errorf("Hints() = %q, want %q; %q", hints, c.want, d)
			}
			// Without knowledge of the surroundings nothing is claimed about them.
			d = files(t, a, b, "out")
			if err := d.Trace(context.Background(), bytes.NewReader(a), bytes.NewReader(b), Environment{}, Environment{}); err != nil {
				t.Fatal(err)
			}
			if hints := d.Hints(Build{}); len(hints) > 0 && c.name != "uuid" && !strings.Contains(hints[0], "drawn at random") {
				t.Errorf("of unknown surroundings: %q", hints)
			}
		})
	}
	d := files(t, []byte{0, 1}, []byte{0, 2}, "x")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Trace(ctx, bytes.NewReader([]byte{0, 1}), bytes.NewReader([]byte{0, 2}), firstE, second); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled search: %v", err)
	}
}

// Random bytes must not look like a time: 2 MiB of them do not.
func TestTraceFindsNothingInNoise(t *testing.T) {
	noise := func(seed uint64) []byte {
		b := make([]byte, 0, 2<<20)
		for x := seed; len(b) < cap(b); {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			b = binary.LittleEndian.AppendUint64(b, x)
		}
		b[0] = 0
		return b
	}
	a, b := noise(88172645463325252), noise(362436069362436069)
	d := files(t, a, b, "w.bin")
	if err := d.Trace(context.Background(), bytes.NewReader(a), bytes.NewReader(b), firstE, second); err != nil {
		t.Fatal(err)
	}
	if len(d.Notes) > 0 {
		t.Errorf("Notes = %q", d.Notes)
	}
}

// TestArchiveTimes writes real gzip and tar files at two times.
func TestArchiveTimes(t *testing.T) {
	zipped := func(when time.Time) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.ModTime = when
		fmt.Fprint(z, "hello")
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	tarred := func(when time.Time) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, name := range []string{"a", "b"} {
			if err := w.WriteHeader(&tar.Header{Name: name, Size: 5, ModTime: when, Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(w, "hello")
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for _, c := range []struct {
		name   string
		a, b   []byte
		format Format
		hint   string
	}{
		{"m.gz", zipped(began), zipped(began.Add(time.Hour)), Gzip, "gzip -n"},
		{"m.tar", tarred(began), tarred(began.Add(time.Hour)), Tar, "tar --mtime"},
	} {
		d := files(t, c.a, c.b, c.name)
		hints := d.Hints(Build{})
		if d.Format != c.format || len(hints) != 1 || !strings.Contains(hints[0], c.hint) {
			t.Errorf("%s: %q, Hints() = %q, want %q", c.name, d, hints, c.hint)
		}
	}
	// The content differs, the time does not.
	a, b := tarred(began), tarred(began)
	b[512] ^= 1
	if hints := files(t, a, b, "m.tar").Hints(Build{}); len(hints) != 0 {
		t.Errorf("Hints() = %q, want none", hints)
	}
}

func TestFormatHints(t *testing.T) {
	db := append(make([]byte, 12), 0x62, 0x31, 5, 0)
	for _, c := range []struct {
		name, head string
		format     Format
		hint       string
	}{
		{"m.h5", "\x89HDF\r\n\x1a\n", HDF5, "track_times=False"},
		{"wordlist.db", string(db), BerkeleyDB, "Berkeley DB"},
		{"m.pyc", "\xa7\r\r\n\x00\x00\x00\x00", Bytecode, "unchecked-hash"},
		{"prog", "\x7fELF\x02\x01\x01\x00", ELF, "build id"},
		{"m.ubj", "{L\x00\x00\x00\x00\x00\x00\x00\x07learner", XGBoostUBJ, "give seed"},
		{"m.pkl", "\x80\x04\x95", Pickle, "sort what comes from a set"},
	} {
		d := files(t, []byte(c.head+"\x00a"), []byte(c.head+"\x00b"), c.name)
		if d.Format != c.format || len(d.Hints(Build{})) == 0 || !strings.Contains(d.Hints(Build{})[0], c.hint) {
			t.Errorf("%s: %q, Hints() = %q, want %q", c.name, d.Format, d.Hints(Build{}), c.hint)
		}
	}
}

func TestDelta(t *testing.T) {
	a, b := firstE, second
	a.Features, b.Features = []string{"avx2", "fma"}, []string{"avx2", "avx512f"}
	got := strings.Join(Delta(a, b), "\n")
	want := strings.Join([]string{
		"hostname: build in the first build and rebuilder-2 in the second",
		"workdir: /work in the first build and /again/work in the second",
		"uidmap: 1073741824 in the first build and 1074790400 in the second",
		"cpus: 0-1 in the first build and 1 in the second",
		"outdirorder: drawn at random for each",
		"uptime: unset in the first build and +899h0m0s in the second",
		"processor features of the first build's machine alone: fma",
		"processor features of the second build's machine alone: avx512f",
		"start: 2026-11-27T06:48:48Z in the first build and 2026-11-27T06:48:51Z in the second",
	}, "\n")
	if got != want {
		t.Errorf("Delta:\n%s\nwant\n%s", got, want)
	}
	if lines := Delta(Environment{}, Environment{}); len(lines) != 0 {
		t.Errorf("Delta of nothing = %q", lines)
	}
	evil := Environment{Varied: []string{"hostname=\x1b[2J" + strings.Repeat("x", 1000)}}
	if lines := Delta(evil, Environment{}); len(lines) != 1 || strings.Contains(lines[0], "\x1b") || len(lines[0]) > 200 {
		t.Errorf("Delta = %q", lines)
	}
}
