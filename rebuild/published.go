package rebuild

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/openclaw/clawfs/rebuild/compare"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

// Differs says in what a file that somebody publishes, of size bytes, differs
// from the output that the rebuild of its ledger made: findings and hints, one
// a line, in which the file is the first build and the output the second. The
// file is hostile; so that the answer may be shown, it is escaped. An error
// means that one of them could not be read, or that they are equal.
func Differs(ctx context.Context, file io.ReaderAt, size int64, made sandbox.Output, st verifier.Statement) (string, error) {
	rebuilt, err := made.Open()
	if err != nil {
		return "", err
	}
	defer rebuilt.Close()
	d, err := compare.Files(ctx, file, rebuilt, size, made.Measurement().Size(), made.Name())
	if err != nil {
		return "", err
	}
	if d.Equal() {
		return "", fmt.Errorf("comparing %q: no byte differs; was the file changed meanwhile?", made.Name())
	}
	lines := []string{"the file (first) and its rebuild (second) differ", d.String()}
	for _, h := range d.Hints(buildOf(st)) {
		lines = append(lines, "hint: "+h)
	}
	return escape(strings.Join(lines, "\n")), nil
}
