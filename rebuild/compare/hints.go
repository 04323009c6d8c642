package compare

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Hints names the known causes that fit this difference and this build, the
// likeliest first. They are guesses for a person, never a verdict.
func (d Difference) Hints(b Build) []string {
	if d.Equal() {
		return nil
	}
	var hints []string
	add := func(fits bool, hint string) {
		if fits {
			hints = append(hints, hint)
		}
	}
	f := d.found
	numeric := d.numeric() && !d.HeaderOnly

	// What was found in the bytes.
	add(f.time, "the output holds the time of its build: take it from SOURCE_DATE_EPOCH, or leave it out")
	add(f.host, "the output holds the host name: leave it out")
	add(f.workDir, "the output holds the working directory: build in a fixed directory (workdir of the stage), or write relative paths")
	add(f.uid, "the output holds the user's id on the host: leave it out")
	add(f.uuid, "the output holds a random UUID, another one in each run: derive it from the content, or leave it out")
	add(f.zipTimes, "zip members carry the time of the build: write them with a fixed date (SOURCE_DATE_EPOCH)")
	add(f.gzipTime, "the gzip header carries the time of the build: gzip -n, or mtime=0 in Python")
	add(f.tarTime, "tar members carry times: tar --mtime=@$SOURCE_DATE_EPOCH --sort=name --owner=0 --group=0 --numeric-owner")
	add(f.recompressed, "the same contents were compressed to other bytes: another zlib or level; store without compression, or pin the library")

	// What is known of the format.
	switch d.Format {
	case TorchLegacy:
		add(true, "the legacy format of torch.save stores heap addresses: save with _use_new_zipfile_serialization=True or as safetensors")
	case Safetensors:
		add(f.reorderedHeader, "the order of __metadata__ or of the tensors follows a hash map: save without metadata or sort the keys")
	case HDF5:
		add(true, "HDF5 keeps the times of its objects: create them with track_times=False (h5py)")
	case BerkeleyDB:
		add(true, "a Berkeley DB file holds a random file id and unwritten memory (bogofilter's word lists are one): export it as text, as db_dump or bogoutil -d do")
	case Bytecode:
		add(true, "Python bytecode holds the time of its source: PYTHONDONTWRITEBYTECODE=1, or compile with --invalidation-mode unchecked-hash")
	case ELF:
		add(true, "a linked program may hold a build id, __DATE__ and paths: set SOURCE_DATE_EPOCH, -Wl,--build-id=none and -ffile-prefix-map")
	case XGBoostJSON, XGBoostUBJ:
		add(true, "an XGBoost model follows its seed (subsample and colsample draw from it), the order of the rows and nthread: give seed and nthread=1")
	case Pickle:
		add(true, "a pickle follows the identity and order of objects: save arrays with numpy or safetensors, and sort what comes from a set")
	}

	// What is known of the build.
	unrelated := slices.ContainsFunc(d.Floats, Floats.unrelated)
	h := threads(b)
	add(h != "" && !d.HeaderOnly, h)
	add(unrelated && h == "", "the values have nothing in common, so no rounding is the cause: seed every random generator (torch.manual_seed, numpy.random.seed, random.seed), and the workers of a data loader")
	if h == "" && numeric && !unrelated {
		add(unbounded(b), "the builds may use different numbers of processors and nothing bounds the threads of the numeric libraries: set OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1 and MKL_NUM_THREADS=1")
		computed := slices.ContainsFunc(d.Floats, func(f Floats) bool { return f.Values > 0 })
		add(computed && len(b.Stages) > 0 && otherMachine(b) && len(unpinned(b)) > 0, "numeric libraries choose their code by the processor: pin "+strings.Join(unpinned(b), ", "))
	}
	add(len(hints) == 0 && d.drawn(), "all bytes differ where any do, as in what is drawn at random or is a digest of that (a key, a nonce, os.urandom): derive it from the content or from a fixed seed")
	add((python(b) || d.Format == Pickle || f.reorderedLines) && !set(b, "PYTHONHASHSEED"), "PYTHONHASHSEED is not set: the order of Python sets changes with each run")
	return hints
}

// numeric reports whether the file holds floats that were computed.
func (d Difference) numeric() bool {
	switch d.Format {
	case Safetensors, GGUF, ONNX, ONNXData, TorchZip, TorchLegacy, NPZ, NPY, HDF5, XGBoostJSON, XGBoostUBJ:
		return true
	}
	return len(d.Floats) > 0
}

// drawn reports whether the difference looks like random bytes: few stretches of
// some length, or the whole file, and hardly an equal byte in them. A tail that
// only one file has tells nothing.
func (d Difference) drawn() bool {
	if d.Format != Bytes && d.Format != Text && d.Format != Pickle || d.SizeA != d.SizeB || d.found != (finding{}) {
		return false
	}
	if d.Differing >= 16 && d.Differing*10 >= 9*d.SizeA {
		return true
	}
	var total int64
	for _, r := range d.regions {
		if r.n < 8 || r.n > maxRegion/2 {
			return false
		}
		total += r.n
	}
	return len(d.regions) <= 4 && total > 0 && d.Differing*10 >= 8*total
}

// python reports whether a stage runs Python, or may run it from a script.
func python(b Build) bool {
	for _, s := range b.Stages {
		for _, arg := range s.Argv {
			if strings.Contains(arg, "python") || strings.HasSuffix(arg, ".py") {
				return true
			}
		}
	}
	return false
}

// dispatchVariables are those by which ATen, oneDNN and OpenBLAS, and MKL choose
// code by the processor, with values that every x86-64 of this century runs.
var dispatchVariables = []struct{ names, pin string }{
	{"ATEN_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY=default"},
	{"ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA=SSE41"},
	{"OPENBLAS_CORETYPE", "OPENBLAS_CORETYPE=Nehalem"},
}

// unpinned lists the settings that the build lacks.
func unpinned(b Build) []string {
	var lacks []string
	for _, v := range dispatchVariables {
		if !slices.ContainsFunc(strings.Fields(v.names), func(name string) bool { return set(b, name) }) {
			lacks = append(lacks, v.pin)
		}
	}
	return lacks
}

// otherMachine reports whether the two builds ran on other processors, or may
// have: nobody said on which.
func otherMachine(b Build) bool {
	return b.Runs[0].Features == nil || !slices.Equal(b.Runs[0].Features, b.Runs[1].Features)
}

// unbounded reports whether the builds had different processors, and no
// variable says how many threads to use.
func unbounded(b Build) bool {
	if set(b, "OMP_NUM_THREADS") {
		return false
	}
	return b.Runs[0].value("cpus") != b.Runs[1].value("cpus")
}

// threads looks for a thread count above one in the stages.
func threads(b Build) string {
	for _, s := range b.Stages {
		if what, fix := Threads(s, b.Env); what != "" {
			return fmt.Sprintf("stage %q %s: %s", s.Name, what, fix)
		}
	}
	return ""
}

// Threads says in what a stage runs on several threads, as far as its command
// line and environment tell (env is the build's, the stage's own outranks it),
// and what to do about it. Both are empty for a stage that does not.
func Threads(s Stage, env map[string]string) (what, fix string) {
	words := strings.Fields(strings.Join(s.Argv, " "))
	trains, counted := false, false
	for i, w := range words {
		if i > 0 && path.Base(words[i-1]) == "fasttext" {
			trains = trains || slices.Contains([]string{"supervised", "skipgram", "cbow"}, w)
		}
		option, value, found := strings.Cut(strings.Trim(w, `'";`), "=")
		if !isThreadOption(option) {
			continue
		}
		if !found && i+1 < len(words) {
			value = strings.Trim(words[i+1], `'";`)
		}
		counted = true
		if n, err := strconv.Atoi(value); err == nil && n > 1 {
			return fmt.Sprintf("runs on several threads (%s %d), which add their results in the order in which they finish", shorten(option), n), "use one thread"
		}
	}
	if trains && !counted {
		return "leaves fasttext its default of 12 threads", "use -thread 1"
	}
	for _, name := range []string{"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} {
		value := cmp.Or(s.Env[name], env[name])
		if n, err := strconv.Atoi(value); err == nil && n > 1 {
			return fmt.Sprintf("runs with %s=%d: sums of floats depend on how work is split", name, n), "use 1"
		}
	}
	return "", ""
}

func isThreadOption(option string) bool {
	switch strings.ReplaceAll(strings.TrimLeft(option, "-"), "_", "-") {
	case "thread", "threads", "num-threads", "nthreads", "n-threads", "nthread", "jobs", "n-jobs", "num-workers", "workers":
		return strings.HasPrefix(option, "-") || strings.Contains(option, "thread")
	case "j":
		return option == "-j"
	}
	return false
}

func set(b Build, name string) bool {
	if _, ok := b.Env[name]; ok {
		return true
	}
	for _, s := range b.Stages {
		if _, ok := s.Env[name]; ok {
			return true
		}
	}
	return false
}
