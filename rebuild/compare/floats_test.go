package compare

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"
)

// TestDistances checks every 16-bit value against its neighbour, and the wider
// types against math.Nextafter.
func TestDistances(t *testing.T) {
	for _, dtype := range []string{"F16", "BF16"} {
		f := floatTypes[dtype]
		for bits := uint64(0); bits < 1<<16-1; bits++ {
			if f.isNaN(bits) || f.isNaN(bits+1) || bits == 1<<15-1 {
				continue
			}
			// Below zero, larger bits are smaller values.
			low, high := bits, bits+1
			if bits>>15 == 1 {
				low, high = high, low
			}
			if f.order(high)-f.order(low) != 1 || !(f.value(low) < f.value(high)) {
				t.Fatalf("%s %#x and %#x: order %d and %d, values %v and %v", dtype, low, high, f.order(low), f.order(high), f.value(low), f.value(high))
			}
		}
		if f.value(0x8000) != 0 || f.order(0x8000) != f.order(0) {
			t.Errorf("%s: the zeros differ in order", dtype)
		}
	}
	for _, x := range []float64{0, 1, -1, 1e-310, -math.MaxFloat64, 0.1} {
		y := math.Nextafter(math.Nextafter(x, math.Inf(1)), math.Inf(1))
		f := Floats{DType: "F64"}
		f.add(le64(x), le64(y), 0, 8, "w")
		if f.Max != 2 || f.Values != 1 || f.A != x || f.B != y {
			t.Errorf("%v and %v: %+v, want 2 ULP", x, y, f)
		}
		f = Floats{DType: "F64"}
		f.add(le64(y), le64(x), 0, 8, "w")
		if f.Max != 2 {
			t.Errorf("%v and %v: %+v, want 2 ULP", y, x, f)
		}
	}
	f := Floats{DType: "F64"}
	f.add(le64(-math.MaxFloat64), le64(math.MaxFloat64), 0, 8, "w")
	if want := 2 * math.Float64bits(math.MaxFloat64); f.Max != want || f.Signs != 1 {
		t.Errorf("the largest distance is %d, want %d", f.Max, want)
	}
}

func le64(v float64) []byte { return binary.LittleEndian.AppendUint64(nil, math.Float64bits(v)) }

func TestFloatsInWords(t *testing.T) {
	le := func(values ...uint32) (b []byte) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	nan, one, minus := uint32(0x7fc00001), math.Float32bits(1), uint32(1<<31)
	for _, c := range []struct {
		a, b []byte
		want string
	}{
		{le(0), le(minus), "1 F32 value differs in the sign of zero"},
		{le(one, one), le(one, nan), "1 F32 value differs, 1 with a NaN"},
		{le(one, nan), le(one+4, one), "2 F32 values differ, by up to 4 ULP (w[0]: 1 and 1.0000005), 1 with a NaN"},
		{le(one, one, one, nan), le(one+1, one+2, one+1000, one), "4 F32 values differ, by up to 1000 ULP (w[2]: 1 and 1.0001192), half of them by less than 4, 1 with a NaN"},
		{le(one, one, one), le(one, one, one|minus), "1 F32 value differs, by up to 2130706432 ULP (w[2]: 1 and -1)"},
	} {
		f := Floats{DType: "F32"}
		f.add(c.a, c.b, 0, int64(len(c.a)), "w")
		if got := f.String(); got != c.want {
			t.Errorf("String() = %q, want %q", got, c.want)
		}
	}
	// Padding behind the tensor is no value, and a name does not move the cursor.
	f := Floats{DType: "F32"}
	f.add(le(one, one), le(one+1, one+9), 0, 4, "a\x1b[2J")
	if f.Values != 1 || strings.Contains(f.String(), "\x1b") {
		t.Errorf("%+v, %q", f, f)
	}
}

// Unseeded values differ in sign, rounded ones do not.
func TestUnrelatedValues(t *testing.T) {
	build := Build{Stages: []Stage{{Name: "train", Argv: []string{"train"}}}}
	header := `{"w":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}}`
	values := func(f func(i int) float32) (b []byte) {
		for i := range 64 {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f(i)))
		}
		return safetensors(header, b...)
	}
	base := values(func(i int) float32 { return float32(i) - 31.5 })
	seeded := files(t, base, values(func(i int) float32 { return math.Nextafter32(float32(i)-31.5, 99) }), "m.safetensors")
	unseeded := files(t, base, values(func(i int) float32 { return float32(i*29%64) - 31.5 }), "m.safetensors")
	const want = "seed every random generator"
	if hints := strings.Join(seeded.Hints(build), "; "); strings.Contains(hints, want) || !strings.Contains(hints, "ATEN_CPU_CAPABILITY=default") {
		t.Errorf("one ULP everywhere: %q, %q", seeded, hints)
	}
	if hints := strings.Join(unseeded.Hints(build), "; "); !strings.Contains(hints, want) {
		t.Errorf("other values: %q, %q", unseeded, hints)
	}
	// Two builds on one machine took one path.
	build.Runs = [2]Environment{{Features: []string{"avx2"}}, {Features: []string{"avx2"}}}
	if hints := seeded.Hints(build); len(hints) > 0 {
		t.Errorf("the same processor: %q", hints)
	}
	build.Runs[1].Features = []string{"avx2", "avx512f"}
	if hints := strings.Join(seeded.Hints(build), "; "); !strings.Contains(hints, "ATEN_CPU_CAPABILITY") {
		t.Errorf("another processor: %q", hints)
	}
	build.Env = map[string]string{"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"}
	build.Runs[1].Varied = []string{"cpus=0"}
	if hints := seeded.Hints(build); len(hints) != 1 || !strings.Contains(hints[0], "OMP_NUM_THREADS=1") {
		t.Errorf("other processors, pinned dispatch: %q", hints)
	}
}
