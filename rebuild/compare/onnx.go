package compare

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// protoReader walks the fields of a protobuf message without its schema:
// varints of at most 10 bytes, and lengths that are checked against the message
// around them. It holds one window of the file and skips what nobody asks for.
type protoReader struct {
	r      io.ReaderAt
	size   int64
	window [512]byte
	from   int64 // offset of the window
	held   int64 // bytes in the window
	fields int   // that may still be read
}

// maxFields bounds the fields that are looked at in one file.
const maxFields = 16 * maxParts

func (p *protoReader) byteAt(at int64) (byte, error) {
	if at < p.from || at >= p.from+p.held {
		n := min(p.size-at, int64(len(p.window)))
		if n <= 0 {
			return 0, io.ErrUnexpectedEOF
		}
		if err := readFull(p.r, p.window[:n], at); err != nil {
			return 0, err
		}
		p.from, p.held = at, n
	}
	return p.window[at-p.from], nil
}

func (p *protoReader) varint(at int64) (v uint64, next int64, err error) {
	for shift := 0; shift < 64; shift += 7 {
		b, err := p.byteAt(at)
		if err != nil {
			return 0, 0, err
		}
		at++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, at, nil
		}
	}
	return 0, 0, errors.New("number of more than 10 bytes")
}

// field is one field: value of a varint, or the bytes from at to end.
type field struct {
	number  uint64
	wire    uint64 // 0 varint, 1 and 5 fixed, 2 bytes
	value   uint64
	at, end int64
}

// each calls f for the fields of the message from at to end.
func (p *protoReader) each(at, end int64, f func(field) error) error {
	for at < end {
		if p.fields--; p.fields < 0 {
			return fmt.Errorf("more than %d fields", maxFields)
		}
		tag, next, err := p.varint(at)
		if err != nil {
			return err
		}
		x := field{number: tag >> 3, wire: tag & 7, at: next}
		switch x.wire {
		case 0:
			if x.value, x.end, err = p.varint(next); err != nil {
				return err
			}
		case 1:
			x.end = next + 8
		case 5:
			x.end = next + 4
		case 2:
			n, data, err := p.varint(next)
			if err != nil {
				return err
			}
			if n > uint64(end) || data+int64(n) > end {
				return errors.New("a field is longer than the message around it")
			}
			x.at, x.end = data, data+int64(n)
		default:
			return fmt.Errorf("a field of unknown type %d", x.wire)
		}
		if x.number == 0 || x.end > end {
			return errors.New("a field is longer than the message around it")
		}
		if err := f(x); err != nil {
			return err
		}
		at = x.end
	}
	return nil
}

// text reads a string field of at most maxEntry bytes.
func (p *protoReader) text(x field) (string, error) {
	if x.wire != 2 || x.end-x.at > maxEntry {
		return "", errors.New("a name is too long")
	}
	b := make([]byte, x.end-x.at)
	err := readFull(p.r, b, x.at)
	return string(b), err
}

// The numbers of onnx/onnx.proto that are needed here.
const (
	modelIRVersion   = 1
	modelGraph       = 7
	graphInitializer = 5
	tensorDims       = 1
	tensorType       = 2
	tensorName       = 8
	tensorRaw        = 9
	tensorLocation   = 14 // 1: the values lie in another file
)

// onnxFloats are ONNX's data types that are plain floats.
var onnxFloats = map[uint64]string{1: "F32", 10: "F16", 11: "F64", 16: "BF16"}

// parseONNX finds the initializers of an ONNX model. Their parts are the raw
// values; a tensor that keeps its values in typed fields or in another file has
// none here, and differs with the graph.
func parseONNX(r io.ReaderAt, size int64) (layout, error) {
	p := &protoReader{r: r, size: size, fields: maxFields}
	l := layout{noun: "tensor", parts: map[string]part{}}
	names := 0 // bytes
	err := p.each(0, size, func(model field) error {
		if model.number != modelGraph || model.wire != 2 {
			return nil
		}
		return p.each(model.at, model.end, func(graph field) error {
			if graph.number != graphInitializer || graph.wire != 2 {
				return nil
			}
			var t part
			var name string
			var kind uint64
			var shape []byte
			err := p.each(graph.at, graph.end, func(x field) (err error) {
				switch x.number {
				case tensorDims, tensorLocation:
					shape = binary.AppendUvarint(append(shape, byte(x.number)), x.value)
					if len(shape) > maxEntry {
						return errors.New("a tensor of too many dimensions")
					}
				case tensorType:
					kind = x.value
				case tensorName:
					name, err = p.text(x)
				case tensorRaw:
					t.offset, t.size = x.at, x.end-x.at
				}
				return err
			})
			if err != nil {
				return err
			}
			if names += len(name) + len(shape); names > maxHeader || len(l.order) == maxParts {
				return fmt.Errorf("more than %d tensors, or %d bytes of names", maxParts, maxHeader)
			}
			t.shape = fmt.Sprintf("%d %x", kind, shape)
			t.floats = floatRange{dtype: onnxFloats[kind], end: t.size}
			l.order = append(l.order, name)
			l.parts[name] = t
			return nil
		})
	})
	return l, err
}

// sniffONNX reports whether head begins like an ONNX model: its version of the
// representation, a small number, and then another known field (2 producer_name
// or 7 graph, or 8 opset_import) as bytes.
func sniffONNX(head []byte) bool {
	return len(head) > 3 && head[0] == modelIRVersion<<3 && head[1] > 0 && head[1] < 0x40 &&
		(head[2] == 2<<3|2 || head[2] == modelGraph<<3|2 || head[2] == 8<<3|2)
}
