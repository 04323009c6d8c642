package compare

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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
	if err := checkRecords(r, size); err != nil {
		return layout{}, err
	}
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
		p := part{
			offset: offset, size: stored, shape: fmt.Sprint(f.Method),
			time: fmt.Sprint(f.ModifiedDate, f.ModifiedTime), // the raw DOS fields are what differs
		}
		if f.Method == zip.Deflate && f.UncompressedSize64 <= maxInflate {
			p.deflated = int64(f.UncompressedSize64)
		}
		l.parts[f.Name] = p
	}
	if err := l.check(size); err != nil {
		return layout{}, err
	}
	return l, l.nameTensors(r)
}

// nameTensors says of the stored members of a numpy or torch zip what tensors
// they hold. Each member is read at most once, and only its header.
func (l *layout) nameTensors(r io.ReaderAt) error {
	for _, name := range slices.Sorted(maps.Keys(l.parts)) { // not order: it may hold one name often
		p := l.parts[name]
		if p.deflated > 0 || p.size == 0 {
			continue
		}
		dir, pickled := strings.CutSuffix(name, "/data.pkl")
		switch {
		case strings.HasSuffix(name, ".npy"):
			head := make([]byte, min(p.size, maxNPYHeader))
			if err := readFull(r, head, p.offset); err != nil {
				return err
			}
			if h, err := npyHeader(head, p.size); err == nil {
				p.floats = h.floats
				p.shape += h.text
				l.parts[name] = p
			}
		case pickled && p.size <= maxHeader:
			pickle := make([]byte, p.size)
			if err := readFull(r, pickle, p.offset); err != nil {
				return err
			}
			for key, s := range torchStorages(pickle) {
				member, ok := l.parts[dir+"/data/"+key]
				if !ok {
					continue
				}
				member.tensor, member.floats = s.tensor, floatRange{dtype: s.dtype, end: member.size}
				l.parts[dir+"/data/"+key] = member
			}
		}
	}
	return nil
}

// checkRecords refuses a directory that claims more than maxParts members:
// archive/zip makes room for as many as would fit into the file, a quarter of
// its size in memory, before it reads the first. Layout: APPNOTE.TXT 4.3.14 to
// 4.3.16.
func checkRecords(r io.ReaderAt, size int64) error {
	const endLen, locatorLen, end64Len = 22, 20, 56
	tail := make([]byte, min(size, endLen+1<<16+locatorLen))
	if err := readFull(r, tail, size-int64(len(tail))); err != nil {
		return err
	}
	at := bytes.LastIndex(tail[:max(len(tail)-endLen+4, 0)], []byte("PK\x05\x06"))
	if at < locatorLen {
		return nil // no directory, or one of 16-bit counts at the very start
	}
	locator := tail[at-locatorLen : at]
	if !bytes.HasPrefix(locator, []byte("PK\x06\x07")) {
		return nil // 16-bit counts
	}
	offset := binary.LittleEndian.Uint64(locator[8:])
	if size < end64Len || offset > uint64(size-end64Len) {
		return nil // archive/zip refuses it
	}
	end := make([]byte, end64Len)
	if err := readFull(r, end, int64(offset)); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(end[32:]); n > maxParts {
		return fmt.Errorf("%d members, at most %d are compared", n, maxParts)
	}
	return nil
}
