package compare

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf8"
)

// Format is a file format as the diagnosis names it.
type Format string

// The formats that are told apart. Those without a part list (FastText,
// TorchLegacy, Pickle, Bytes) are counted as plain bytes.
const (
	Bytes       Format = "plain bytes"
	Safetensors Format = "safetensors"
	GGUF        Format = "GGUF"
	TorchZip    Format = "torch zip"
	TorchLegacy Format = "legacy torch.save"
	NPZ         Format = "npz"
	Zip         Format = "zip"
	Pickle      Format = "pickle"
	FastText    Format = "fastText model"
	Text        Format = "text"
)

// maxText bounds in bytes a file that is compared by lines.
const maxText = 1 << 20

// torchLegacyMagic is how a pickle (protocol 2) of torch's legacy magic
// number 0x1950a86a20f9469cfc6c begins; see torch/serialization.py.
var torchLegacyMagic = []byte{0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19}

// fastTextMagic is FASTTEXT_FILEFORMAT_MAGIC_INT32 (793712314) of
// fastText's src/fasttext.cc as x86 and arm64 write it.
var fastTextMagic = []byte{0xba, 0x16, 0x4f, 0x2f}

// alike returns the format of both files, or Bytes when they differ in it.
func alike(a, b io.ReaderAt, sizeA, sizeB int64, name string) (Format, error) {
	fa, err := sniff(a, sizeA, name)
	if err != nil {
		return "", err
	}
	fb, err := sniff(b, sizeB, name)
	if err != nil {
		return "", err
	}
	if fa != fb {
		return Bytes, nil
	}
	return fa, nil
}

// sniff looks at the content; the name decides only between kinds of zip.
func sniff(r io.ReaderAt, size int64, name string) (Format, error) {
	head := make([]byte, min(size, 4096))
	if err := readFull(r, head, 0); err != nil {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head, []byte("GGUF")):
		return GGUF, nil
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return sniffZip(head, name), nil
	case bytes.HasPrefix(head, torchLegacyMagic):
		return TorchLegacy, nil
	case bytes.HasPrefix(head, fastTextMagic):
		return FastText, nil
	case len(head) >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5:
		return Pickle, nil
	case len(head) >= 9 && head[8] == '{' && binary.LittleEndian.Uint64(head) <= uint64(size)-8:
		return Safetensors, nil
	}
	if size > maxText || bytes.IndexByte(head, 0) >= 0 {
		return Bytes, nil
	}
	whole := make([]byte, size)
	if err := readFull(r, whole, 0); err != nil {
		return "", err
	}
	if utf8.Valid(whole) && bytes.IndexByte(whole, 0) < 0 {
		return Text, nil
	}
	return Bytes, nil
}

// sniffZip looks at the first member's name (its length is at offset 26 of
// the local header, the name at 30): torch.save begins with <stem>/data.pkl,
// numpy.savez with <array>.npy.
func sniffZip(head []byte, name string) Format {
	if len(head) >= 30 {
		n := int(binary.LittleEndian.Uint16(head[26:]))
		if len(head) >= 30+n {
			first := string(head[30 : 30+n])
			switch {
			case strings.HasSuffix(first, "/data.pkl"):
				return TorchZip
			case strings.HasSuffix(first, ".npy"):
				return NPZ
			}
		}
	}
	if strings.HasSuffix(name, ".npz") {
		return NPZ
	}
	return Zip
}
