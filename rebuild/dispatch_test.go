package rebuild

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

func TestPlatformClass(t *testing.T) {
	haswell := []string{"ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "tsc"}
	skylake := append(append([]string{}, haswell...), avx512...)
	exact := func(features ...string) verifier.Platform {
		return verifier.Platform{OS: "linux", Arch: "amd64", Accelerator: "none", CPUFeatures: features, CPUDispatch: verifier.ExactDispatch}
	}
	host := verifier.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"}
	atLeast := exact("avx2")
	atLeast.CPUDispatch = ""
	gpu := host
	gpu.Accelerator = "nvidia-h100"
	for _, tc := range []struct {
		name string
		has  []string
		want verifier.Platform
		env  map[string]string
		text string // "" : comparable
	}{
		{"at least avx2, more there", skylake, atLeast, nil, ""},
		{"at least avx2, less there", haswell[:4], atLeast, nil, "this one lacks avx2"},
		{"exactly this", haswell, exact("sse4_2", "avx", "f16c", "fma", "avx2"), nil, ""},
		{"exactly this, in other order and with a feature that nothing chooses by", haswell, exact("avx2", "fma", "f16c", "avx", "sse4_2", "tsc"), nil, ""},
		{"exactly this, more there", skylake, exact("sse4_2", "avx", "f16c", "fma", "avx2"), nil, "this one has avx512f, avx512bw, avx512vl, avx512dq too"},
		{"exactly this, less there", haswell, exact("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f"), nil, "lacks avx512f"},
		{"an accelerator", haswell, gpu, nil, `with accelerator "nvidia-h100"`},
		{"pinned low", haswell[:3], host, map[string]string{"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem", "MKL_CBWR": "COMPATIBLE"}, ""},
		{"pinned to what is there", haswell, host, map[string]string{"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "HASWELL"}, ""},
		{"pinned to what is not there", haswell, host, map[string]string{"ATEN_CPU_CAPABILITY": "avx512"}, "lacks avx512f, avx512bw, avx512vl, avx512dq: the library would silently"},
		{"pinned to what is not there, oneDNN", haswell[:4], host, map[string]string{"DNNL_MAX_CPU_ISA": "AVX2"}, "DNNL_MAX_CPU_ISA=AVX2, which needs"},
		{"pinned to nonsense", skylake, host, map[string]string{"ATEN_CPU_CAPABILITY": "fast"}, "is not known here: expected one of avx2, avx512, default"},
		{"not pinned by an empty value", skylake, host, map[string]string{"OPENBLAS_CORETYPE": ""}, "is not known here"},
	} {
		st := verifier.Statement{}
		st.Predicate.BuildDefinition.ExternalParameters.Stages = []verifier.Stage{{Name: "train", Env: tc.env}}
		err := sameClass(host, tc.has, tc.want)
		if err == nil {
			err = dispatchable(st, nil, tc.has)
		}
		var f *Failure
		switch {
		case tc.text == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.text != "" && (!errors.As(err, &f) || f.Verdict != capstore.NotComparable || !strings.Contains(f.Detail, tc.text)):
			t.Errorf("%s: %v, want NOT_COMPARABLE with %q", tc.name, err, tc.text)
		}
	}
}

// TestImagePins: an image may set such variables as well; a stage outranks it.
func TestImagePins(t *testing.T) {
	st := verifier.Statement{}
	st.Predicate.BuildDefinition.ExternalParameters.Stages = []verifier.Stage{{Name: "train", Env: map[string]string{"MKL_CBWR": "COMPATIBLE"}}}
	has := []string{"sse4_1", "sse4_2", "avx", "fma", "avx2"}
	for env, text := range map[string]string{"PATH=/bin": "", "ATEN_CPU_CAPABILITY=avx2": "", "MKL_CBWR=AVX512": "", "ATEN_CPU_CAPABILITY=avx512": "lacks avx512f", "ONEDNN_MAX_CPU_ISA=new": "is not known here"} {
		err := dispatchable(st, []string{env}, has)
		if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
			t.Errorf("an image with %s: %v, want %q", env, err, text)
		}
	}
	s := newSite(t)
	s.image([]string{"PATH=/bin", "ATEN_CPU_CAPABILITY=other"})
	s.wantFailure(s.config(nil), capstore.NotComparable, "ATEN_CPU_CAPABILITY=other", "is not known here")
}

func TestAccelerators(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("devices/a/class", "0x030200\n")
	write("devices/a/vendor", "0x10de\n")
	write("devices/a/device", "0x2330\n")
	write("modules/nvidia/version", "550.54.15\n")
	if err := os.Symlink("../../modules/nvidia", filepath.Join(dir, "devices/a/driver")); err != nil {
		t.Fatal(err)
	}
	write("devices/disk/class", "0x010802\n")
	write("devices/broken/class", "0x\n")
	got := accelerators(filepath.Join(dir, "devices"), filepath.Join(dir, "modules"))
	if len(got) != 1 || got[0] != "3D controller 10de:2330, driver nvidia 550.54.15" {
		t.Errorf("accelerators = %q", got)
	}
	if got := accelerators(filepath.Join(dir, "none"), ""); got != nil {
		t.Errorf("accelerators of a machine without PCI = %q", got)
	}
}
