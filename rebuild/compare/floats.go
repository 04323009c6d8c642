package compare

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"strconv"
)

// Floats says how far apart the differing values of one data type are.
type Floats struct {
	DType  string  // "F16", "BF16", "F32", "F64"
	Values int64   // values whose bits differ
	Signs  int64   // of those, pairs of numbers of which one is below zero
	NaNs   int64   // of those, pairs with a NaN; they have no distance
	Max    uint64  // largest distance in units of the last place; +0 and -0 have none
	Tensor string  // where that is
	Index  int64   // and the index of the value in the tensor, from 0
	A, B   float64 // and the two values

	lengths [65]int64 // differing pairs by the bits that their distance needs
}

// Half is a bound in units of the last place, a power of two: at least half of
// the differing values are less than that apart. Near zero a small step is
// many units, so one value may lie far above it.
func (f Floats) Half() uint64 {
	var sum int64
	for n, count := range f.lengths {
		if sum += count; count > 0 && 2*sum >= f.Values-f.NaNs {
			if n == 64 {
				return math.MaxUint64
			}
			return 1 << n
		}
	}
	return 0
}

// floatType is an IEEE 754 format, or bfloat16.
type floatType struct {
	width    int // bytes
	mantissa int // bits
}

var floatTypes = map[string]floatType{
	"F16": {2, 10}, "BF16": {2, 7}, "F32": {4, 23}, "F64": {8, 52},
}

// floats returns the counter of one data type, or nil for one that is not a
// float.
func (d *Difference) floats(dtype string) *Floats {
	if _, ok := floatTypes[dtype]; !ok {
		return nil
	}
	for i := range d.Floats {
		if d.Floats[i].DType == dtype {
			return &d.Floats[i]
		}
	}
	d.Floats = append(d.Floats, Floats{DType: dtype})
	return &d.Floats[len(d.Floats)-1]
}

// add counts the floats of two buffers of one tensor. The first byte of the
// buffers is byte at of the tensor, a multiple of the width; end is where the
// tensor ends, so that padding behind it is no value.
func (f *Floats) add(a, b []byte, at, end int64, tensor string) {
	t := floatTypes[f.DType]
	n := int64(len(a))
	if n = min(n, end-at); n < int64(t.width) {
		return
	}
	for i := 0; i+t.width <= int(n); i += t.width {
		x, y := t.load(a[i:]), t.load(b[i:])
		if x == y {
			continue
		}
		f.Values++
		if t.isNaN(x) || t.isNaN(y) {
			f.NaNs++
			continue
		}
		ox, oy := t.order(x), t.order(y)
		if ox < 0 != (oy < 0) {
			f.Signs++
		}
		distance := uint64(max(ox, oy)) - uint64(min(ox, oy))
		f.lengths[bits.Len64(distance)]++
		if distance > f.Max {
			f.Max, f.Tensor, f.Index = distance, tensor, (at+int64(i))/int64(t.width)
			f.A, f.B = t.value(x), t.value(y)
		}
	}
}

func (t floatType) load(b []byte) uint64 {
	switch t.width {
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}

// magnitude is the value without its sign.
func (t floatType) magnitude(bits uint64) uint64 { return bits &^ (1 << (8*t.width - 1)) }

func (t floatType) isNaN(bits uint64) bool {
	infinity := uint64(1)<<(8*t.width-1) - 1<<t.mantissa
	return t.magnitude(bits) > infinity
}

// order maps the values to integers in their order, neighbours to neighbours,
// both zeros to 0.
func (t floatType) order(bits uint64) int64 {
	m := int64(t.magnitude(bits))
	if m != int64(bits) {
		return -m
	}
	return m
}

func (t floatType) value(bits uint64) float64 {
	switch {
	case t.width == 8:
		return math.Float64frombits(bits)
	case t.width == 4:
		return float64(math.Float32frombits(uint32(bits)))
	case t.mantissa == 7:
		return float64(math.Float32frombits(uint32(bits) << 16))
	}
	sign, exponent, fraction := 1.0, int(bits>>10&0x1f), float64(bits&0x3ff)
	if bits>>15 != 0 {
		sign = -1
	}
	switch exponent {
	case 0:
		return sign * math.Ldexp(fraction, -24)
	case 0x1f:
		return sign * math.Inf(1) // no NaN comes here
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

func (f Floats) String() string {
	s := fmt.Sprintf("%d %s values differ", f.Values, f.DType)
	if f.Values == 1 {
		s = fmt.Sprintf("1 %s value differs", f.DType)
	}
	switch {
	case f.Max > 0:
		s += fmt.Sprintf(", by up to %d ULP (%s[%d]: %s and %s)", f.Max, shorten(f.Tensor), f.Index, f.print(f.A), f.print(f.B))
		if f.Values-f.NaNs > 1 {
			s += fmt.Sprintf(", half of them by less than %d", f.Half())
		}
	case f.Values > f.NaNs:
		s += " in the sign of zero"
	}
	if f.NaNs > 0 {
		s += fmt.Sprintf(", %d with a NaN", f.NaNs)
	}
	return s
}

func (f Floats) print(v float64) string {
	bits := 32
	if f.DType == "F64" {
		bits = 64
	}
	return strconv.FormatFloat(v, 'g', -1, bits)
}

// unrelated reports whether the values have so little in common that no
// rounding explains it: of numbers around zero, half differ in sign.
func (f Floats) unrelated() bool { return f.Values >= 16 && f.Signs*8 >= f.Values }
