package compare

import (
	"bytes"
	"encoding/binary"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Format is a file format as the diagnosis names it.
type Format string

// The formats that are told apart. Safetensors, GGUF, ONNX and the kinds of
// zip have a list of parts, text has lines; the others are counted as plain
// bytes.
const (
	Bytes       Format = "plain bytes"
	Safetensors Format = "safetensors"
	GGUF        Format = "GGUF"
	ONNX        Format = "ONNX"
	ONNXData    Format = "ONNX external data"
	TorchZip    Format = "torch zip"
	TorchLegacy Format = "legacy torch.save"
	NPZ         Format = "npz"
	NPY         Format = "npy"
	Zip         Format = "zip"
	Pickle      Format = "pickle"
	FastText    Format = "fastText model"
	XGBoostUBJ  Format = "XGBoost model (UBJSON)"
	XGBoostJSON Format = "XGBoost model (JSON)"
	HDF5        Format = "HDF5"
	BerkeleyDB  Format = "Berkeley DB"
	Bytecode    Format = "Python bytecode"
	ELF         Format = "ELF"
	Gzip        Format = "gzip"
	Tar         Format = "tar"
	Text        Format = "text"
)

// torchLegacyMagic is how a pickle (protocol 2) of torch's legacy magic
// number 0x1950a86a20f9469cfc6c begins; see torch/serialization.py.
var torchLegacyMagic = []byte{0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19}

// fastTextMagic is FASTTEXT_FILEFORMAT_MAGIC_INT32 (793712314) of
// fastText's src/fasttext.cc as x86 and arm64 write it.
var fastTextMagic = []byte{0xba, 0x16, 0x4f, 0x2f}

// ubjObject is how XGBoost's model begins: a UBJSON object whose first key,
// "learner" or "version", has a length written as int64.
var ubjObject = []byte("{L\x00\x00\x00\x00\x00\x00\x00\x07")

// berkeleyMagic are the numbers at offset 12 of a Berkeley DB file: a B-tree
// and a hash, little-endian.
var berkeleyMagic = [2][]byte{{0x62, 0x31, 0x05, 0x00}, {0x61, 0x15, 0x06, 0x00}}

// onnxData are the names that exporters give to the external data of a model.
var onnxData = regexp.MustCompile(`\.onnx([._]data|\.data\.[0-9]+|_data_[0-9]+)$`)

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

// sniff looks at the content; the name decides between kinds of zip and where
// the content has no mark of its own.
func sniff(r io.ReaderAt, size int64, name string) (Format, error) {
	head := make([]byte, min(size, 4096))
	if err := readFull(r, head, 0); err != nil {
		return "", err
	}
	has := func(at int, mark string) bool { return len(head) >= at && bytes.HasPrefix(head[at:], []byte(mark)) }
	switch {
	case has(0, "GGUF"):
		return GGUF, nil
	case has(0, "PK\x03\x04"):
		return sniffZip(head, name), nil
	case has(0, string(torchLegacyMagic)):
		return TorchLegacy, nil
	case has(0, string(fastTextMagic)):
		return FastText, nil
	case has(0, string(npyMagic)):
		return NPY, nil
	case has(0, "\x89HDF\r\n\x1a\n"):
		return HDF5, nil
	case has(0, "\x7fELF"):
		return ELF, nil
	case has(0, "\x1f\x8b\x08"):
		return Gzip, nil
	case has(257, "ustar"):
		return Tar, nil
	case has(12, string(berkeleyMagic[0])), has(12, string(berkeleyMagic[1])):
		return BerkeleyDB, nil
	case has(2, "\r\n") && strings.HasSuffix(name, ".pyc"):
		return Bytecode, nil
	case has(0, string(ubjObject)+"learner"), has(0, string(ubjObject)+"version"):
		return XGBoostUBJ, nil
	case has(0, `{"learner":{`):
		return XGBoostJSON, nil
	case len(head) >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5:
		return Pickle, nil
	case len(head) >= 9 && head[8] == '{' && binary.LittleEndian.Uint64(head) <= uint64(size)-8:
		return Safetensors, nil
	case onnxData.MatchString(name):
		return ONNXData, nil
	case sniffONNX(head):
		return ONNX, nil
	case isText(head) && size > 0:
		return Text, nil
	}
	return Bytes, nil
}

// isText judges by the beginning of a file: UTF-8 without NUL. What follows
// may be anything, and is escaped where it is shown.
func isText(head []byte) bool {
	if len(head) == 4096 { // the cut may go through a character
		for i := 1; i < utf8.UTFMax; i++ {
			if utf8.RuneStart(head[len(head)-i]) {
				if !utf8.FullRune(head[len(head)-i:]) {
					head = head[:len(head)-i]
				}
				break
			}
		}
	}
	return utf8.Valid(head) && bytes.IndexByte(head, 0) < 0
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
