package rebuild

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// A dispatchVariable tells a numeric library which of its code paths to take
// instead of asking the processor. Its values need features; where the machine
// lacks them the library takes another path without a word, and the bytes are
// others.
//
// Measured with PyTorch 1.13.1: ATEN_CPU_CAPABILITY=default against avx2 and
// ONEDNN_MAX_CPU_ISA=SSE41 against native give other bytes; pinned to the
// lowest, three generations of processors gave the same.
type dispatchVariable struct {
	name   string
	values map[string][]string // features that a value needs; none: it asks for no more than the architecture has
}

var (
	avx512 = []string{"avx512f", "avx512bw", "avx512vl", "avx512dq"}
	oneDNN = map[string][]string{
		"SSE41": {"sse4_1"}, "AVX": {"avx"}, "AVX2": {"avx2"}, "AVX2_VNNI": {"avx2", "avx_vnni"}, "AVX512_CORE": avx512,
		"AVX512_CORE_VNNI": append(slices.Clone(avx512), "avx512_vnni"),
		"AVX512_CORE_BF16": append(slices.Clone(avx512), "avx512_vnni", "avx512_bf16"),
		"AVX512_CORE_AMX":  append(slices.Clone(avx512), "amx_tile", "amx_int8", "amx_bf16"),
	}
	dispatches = []dispatchVariable{
		{"ATEN_CPU_CAPABILITY", map[string][]string{"default": nil, "avx2": {"avx2", "fma"}, "avx512": avx512}},
		{"DNNL_MAX_CPU_ISA", oneDNN},
		{"MKL_CBWR", map[string][]string{"COMPATIBLE": nil, "SSE4_2": {"sse4_2"}, "AVX": {"avx"}, "AVX2": {"avx2"}, "AVX512": avx512}},
		{"ONEDNN_MAX_CPU_ISA", oneDNN},
		{"OPENBLAS_CORETYPE", map[string][]string{
			"Prescott": nil, "Core2": {"ssse3"}, "Penryn": {"sse4_1"}, "Nehalem": {"sse4_2"}, "Sandybridge": {"avx"},
			"Haswell": {"avx2", "fma"}, "Zen": {"avx2", "fma"}, "SkylakeX": avx512, "Cooperlake": append(slices.Clone(avx512), "avx512_bf16"),
			"ARMV8": {"asimd"}, "NEOVERSEN1": {"asimddp"}, "NEOVERSEV1": {"sve"},
		}},
	}
)

// canDispatch says whether this machine has what the dispatch variables of an
// environment ask for. where names the environment.
func canDispatch(where string, env map[string]string, has []string) error {
	for _, v := range dispatches {
		value, set := env[v.name]
		if !set {
			continue
		}
		needs, known := v.value(value)
		if !known {
			return fail(capstore.NotComparable, "%s sets %s=%s, and what processor that stands for is not known here: expected one of %s",
				where, v.name, value, strings.Join(slices.Sorted(maps.Keys(v.values)), ", "))
		}
		if missing := lacking(has, needs); len(missing) > 0 {
			return fail(capstore.NotComparable, "%s sets %s=%s, which needs a processor with %s, and this one lacks %s: the library would silently take another path",
				where, v.name, value, strings.Join(needs, ", "), strings.Join(missing, ", "))
		}
	}
	return nil
}

// value finds a value as the libraries do, whatever its case.
func (v dispatchVariable) value(text string) (needs []string, known bool) {
	for name, needs := range v.values {
		if strings.EqualFold(name, text) {
			return needs, true
		}
	}
	return nil, false
}

// dispatchable checks every environment that a ledger sets, over that of its
// image, which is empty until the image is there.
func dispatchable(st verifier.Statement, image []string, has []string) error {
	for _, g := range st.Predicate.BuildDefinition.ExternalParameters.Stages {
		env := make(map[string]string)
		for _, e := range image {
			if name, value, ok := strings.Cut(e, "="); ok {
				env[name] = value
			}
		}
		maps.Copy(env, st.StageEnv(g))
		if err := canDispatch(fmt.Sprintf("stage %q", g.Name), env, has); err != nil {
			return err
		}
	}
	return nil
}

// exactDispatch says whether the features by which libraries choose their code
// are, on this machine, those that the ledger names and no others.
func exactDispatch(has []string, want verifier.Platform) error {
	if want.CPUDispatch != verifier.ExactDispatch {
		return nil
	}
	var more []string
	for _, f := range dispatched {
		if slices.Contains(has, f) && !slices.Contains(want.CPUFeatures, f) {
			more = append(more, f)
		}
	}
	if len(more) > 0 {
		return fail(capstore.NotComparable, "the ledger's bytes are promised on processors with exactly %s for numeric libraries to choose by (cpuDispatch %q), and this one has %s too",
			strings.Join(want.CPUFeatures, ", "), want.CPUDispatch, strings.Join(more, ", "))
	}
	return nil
}

// lacking returns what of want is not in has.
func lacking(has, want []string) []string {
	var missing []string
	for _, f := range want {
		if !slices.Contains(has, f) {
			missing = append(missing, f)
		}
	}
	return missing
}
