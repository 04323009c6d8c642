package compare

import (
	"archive/zip"
	"fmt"
	"io"
)

// budget fails reads after a number of bytes, so that a zip directory of a
// hostile file cannot fill the memory.
type budget struct {
	r    io.ReaderAt
	left int64
}

func (b *budget) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fmt.Errorf("directory of more than %d bytes", maxHeader)
	}
	return b.r.ReadAt(p, off)
}

// parseZip reads the central directory. Members are compared as they are
// stored, compressed or not.
func parseZip(r io.ReaderAt, size int64) (layout, error) {
	limited := &budget{r: r, left: maxHeader}
	z, err := zip.NewReader(limited, size)
	if err != nil {
		return layout{}, err
	}
	if len(z.File) > maxParts {
		return layout{}, fmt.Errorf("%d members, at most %d are compared", len(z.File), maxParts)
	}
	l := layout{noun: "member", parts: make(map[string]part, len(z.File))}
	limited.left = maxHeader + 64*int64(len(z.File)) // local headers
	for _, f := range z.File {
		offset, err := f.DataOffset()
		if err != nil {
			return layout{}, fmt.Errorf("member %s: %w", shorten(f.Name), err)
		}
		stored := int64(f.CompressedSize64)
		if stored < 0 || offset > size || stored > size-offset {
			return layout{}, fmt.Errorf("member %s lies outside the file", shorten(f.Name))
		}
		l.order = append(l.order, f.Name)
		l.parts[f.Name] = part{
			offset: offset, size: stored, shape: fmt.Sprint(f.Method),
			time: fmt.Sprint(f.ModifiedDate, f.ModifiedTime), // the raw DOS fields are what differs
		}
	}
	return l, nil
}
