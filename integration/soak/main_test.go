package soak

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var (
	soakTime = flag.Duration("soak.time", 25*time.Second, "how long the soak runs")
	soakOut  = flag.String("soak.out", "", "directory for curves.csv and summary.txt (default: a temporary one)")
	soakSeed = flag.Uint64("soak.seed", 0, "seed of what goes wrong when (default: the time)")
	stress   = flag.Bool("soak.stress-ng", false, "let Debian's stress-ng work in the source, too")
)

// readerVariable makes this binary a reader process; its value bounds the pause
// between two opens.
const readerVariable = "CLAWFS_SOAK_READER"

func TestMain(m *testing.M) {
	if text := os.Getenv(readerVariable); text != "" {
		pause, err := time.ParseDuration(text)
		if err == nil {
			err = readerMain(pause)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "reader:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if program.dir != "" {
		os.RemoveAll(program.dir)
	}
	os.Exit(code)
}

// program is the built clawfs, with the race detector if the test has it.
var program struct {
	once sync.Once
	dir  string
	path string
	err  error
}

func build(t *testing.T) string {
	t.Helper()
	p := &program
	p.once.Do(func() {
		if p.dir, p.err = os.MkdirTemp("", "clawfs-soak-program-"); p.err != nil {
			return
		}
		p.path = filepath.Join(p.dir, "clawfs")
		// clawfs looks for the runtime beside itself.
		runc, err := filepath.Abs("../../bin/runc")
		if err == nil {
			_, err = os.Stat(runc)
		}
		if err != nil {
			p.err = fmt.Errorf("%w; next: sudo make bin/runc", err)
			return
		}
		if p.err = os.Symlink(runc, filepath.Join(p.dir, "runc")); p.err != nil {
			return
		}
		args := []string{"build", "-trimpath", "-buildvcs=false", "-o", p.path}
		if raceEnabled {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "../../cmd/clawfs")...).CombinedOutput(); err != nil {
			p.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.path
}
