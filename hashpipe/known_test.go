package hashpipe

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/known.txt from the tools sha256sum and fsverity")

// knownSizes has both sides of every edge: block, unit, and the 128 units
// after which the tree grows a level.
var knownSizes = []int{
	0, 1, 63, 64, 4095, 4096, 4097, 8191, 8192, 8193,
	UnitSize - 4096, UnitSize - 1, UnitSize, UnitSize + 1, UnitSize + 4096, UnitSize + 4097,
	2*UnitSize - 1, 2 * UnitSize, 2*UnitSize + 1,
	5<<20 + 12345, 8 << 20,
	128*UnitSize - 1, 128 * UnitSize, 128*UnitSize + 1,
}

const knownHeader = `# size, SHA-256, fs-verity digest (SHA-256, 4096-byte blocks, no salt) of the
# first size bytes of SHA-256(be64(0)) SHA-256(be64(1)) SHA-256(be64(2)) ...
# Written by the tools sha256sum (coreutils) and fsverity digest (fsverity):
#   apt-get install -y coreutils fsverity && go test -run TestKnownAnswersOfTools -update ./hashpipe
`

// content returns the first n bytes of one pattern; it is not to be changed.
func content(n int) []byte { return longest()[:n] }

var longest = sync.OnceValue(func() []byte { return pattern(130 * UnitSize) })

type known struct {
	size        int
	sum, verity string
}

// The golden table needs no tool, so an emulated processor can check it.
func TestKnownAnswers(t *testing.T) {
	f, err := os.Open("testdata/known.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var sizes []int
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		var k known
		if _, err := fmt.Sscanf(s.Text(), "%d %64s %64s", &k.size, &k.sum, &k.verity); err != nil {
			t.Fatalf("known.txt: %q: %v", s.Text(), err)
		}
		sizes = append(sizes, k.size)
		k.check(t)
	}
	if !slices.Equal(sizes, knownSizes) {
		t.Errorf("known.txt has sizes %d, want %d: run with -update", sizes, knownSizes)
	}
}

// The tools still print what the golden table holds.
func TestKnownAnswersOfTools(t *testing.T) {
	golden := bytes.NewBufferString(knownHeader)
	name := filepath.Join(t.TempDir(), "content")
	for _, size := range knownSizes {
		if err := os.WriteFile(name, content(size), 0o600); err != nil {
			t.Fatal(err)
		}
		sum := tool(t, "coreutils", "sha256sum", name)
		verity := strings.TrimPrefix(tool(t, "fsverity", "fsverity", "digest", name), "sha256:")
		fmt.Fprintln(golden, size, sum, verity)
	}
	if *update {
		if err := os.WriteFile("testdata/known.txt", golden.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile("testdata/known.txt"); err != nil || !bytes.Equal(golden.Bytes(), want) {
		t.Errorf("testdata/known.txt is not what the tools print (%v): run with -update", err)
	}
}

// check measures the content of that size in every way there is.
func (k known) check(t *testing.T) {
	t.Helper()
	data := content(k.size)
	sum, verity := parsedPair(t, k.sum, k.verity)
	ctx := context.Background()
	if got := SumBytes(data); !got.Is(sum) {
		t.Errorf("SumBytes of %d bytes = %v, want %v", k.size, got, sum)
	}
	if got, n, err := SumReader(ctx, bytes.NewReader(data), nil); err != nil || n != int64(k.size) || !got.Is(sum) {
		t.Errorf("SumReader of %d bytes = %v, %d, %v, want %v", k.size, got, n, err, sum)
	}
	m, err := Measure(ctx, bytes.NewReader(data), nil)
	k.same(t, "Measure", m.Sum().Is(sum), m.Tree(), verity, err)
	m, err = MeasureFile(ctx, bytes.NewReader(data), int64(k.size), nil)
	k.same(t, "MeasureFile", m.Sum().Is(sum), m.Tree(), verity, err)
	for _, workers := range workersFor(k.size) {
		tree, err := MeasureTree(ctx, bytes.NewReader(data), int64(k.size), workers, nil)
		k.same(t, "MeasureTree on "+strconv.Itoa(workers), true, tree, verity, err)
		if tree != nil && !slices.Equal(tree.units, m.Tree().units) {
			t.Errorf("MeasureTree of %d bytes on %d workers is not the tree of MeasureFile", k.size, workers)
		}
	}
	got, err := io.ReadAll(io.NewSectionReader(NewCheckedReader(bytes.NewReader(data), m.Tree()), 0, 1<<40))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("checked read of %d bytes: got %d bytes, %v", k.size, len(got), err)
	}
}

// workersFor spares an emulated processor most rounds over the long contents.
func workersFor(size int) []int {
	if size > 8<<20 {
		return []int{3}
	}
	return []int{1, 2, 3, 7}
}

func (k known) same(t *testing.T, what string, sumOK bool, tree *Tree, want VerityDigest, err error) {
	t.Helper()
	if err != nil || !sumOK || !tree.Is(want) || tree.Claim() != want || tree.Size() != int64(k.size) {
		t.Errorf("%s of %d bytes: %v, sum right: %v, tree %v of %d bytes, want %v", what, k.size, err, sumOK, tree.Claim(), tree.Size(), want)
	}
	if units := int64((k.size + 524287) / 524288); tree.Units() != units {
		t.Errorf("%s of %d bytes: %d units, want %d", what, k.size, tree.Units(), units)
	}
}

// tool returns the first word that the program prints.
func tool(t *testing.T, pkg, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v: apt-get install -y %s", name, err, pkg)
	}
	word, _, _ := strings.Cut(string(out), " ")
	return word
}

// The accelerated SHA-256 must be the one that ran: without the processor's
// SHA-2 instructions sha256-simd hands out crypto/sha256 instead.
func TestAccelerated(t *testing.T) {
	pkg := reflect.TypeOf(newHasher().h).Elem().PkgPath()
	t.Logf("%s: SHA-256 by %s", runtime.GOARCH, pkg)
	if !hasSHA2(t) {
		t.Logf("no SHA-2 instructions in /proc/cpuinfo")
		return
	}
	if pkg != "github.com/minio/sha256-simd" {
		t.Errorf("this processor has SHA-2 instructions, and SHA-256 runs in %s", pkg)
	}
}

// hasSHA2 reads the processor's flags as the kernel (or an emulator) shows them.
func hasSHA2(t *testing.T) bool {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range strings.Fields(string(info)) {
		if word == "sha2" || word == "sha_ni" {
			return true
		}
	}
	return false
}

func parsedPair(t *testing.T, sum, verity string) (Digest, VerityDigest) {
	t.Helper()
	d, _ := parsed(t, sum)
	_, v := parsed(t, verity)
	return d, v
}
