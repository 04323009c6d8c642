package oci

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/openclaw/clawfs/hashpipe"
)

// Copy is a file that has the same bytes as something measured elsewhere.
type Copy struct {
	// Path is relative to the directory that was searched.
	Path string
	Sum  hashpipe.Sum
}

// Copies finds the regular files below dir whose bytes equal one of wanted,
// in lexical order. Only files of a wanted size are read; links are not
// followed. It serves images, sources and datasets alike.
func Copies(ctx context.Context, dir string, wanted []hashpipe.Measurement) ([]Copy, error) {
	sizes, sums := map[int64]bool{}, map[hashpipe.Sum]bool{}
	for _, m := range wanted {
		if m.Sum().IsZero() {
			return nil, fmt.Errorf("searching %s for copies: something wanted was never measured", dir)
		}
		sizes[m.Size()], sums[m.Sum()] = true, true
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var found []Copy
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if !sizes[st.Size()] {
			return ctx.Err()
		}
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum, _, err := hashpipe.SumReader(ctx, io.LimitReader(f, st.Size()+1), nil)
		if err != nil {
			return err
		}
		if sums[sum] {
			found = append(found, Copy{Path: path, Sum: sum})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("searching %s for copies: %w", dir, err)
	}
	return found, nil
}
