package lint

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/openclaw/clawfs/rebuild/compare"
	"github.com/openclaw/clawfs/rebuild/lock"
	"github.com/openclaw/clawfs/verifier"
)

// program is a stage that is being looked at.
type program struct {
	where    string
	stage    verifier.Stage
	env      map[string]string
	commands []command
	script   string
	python   bool
	opaque   bool // it runs a file of the inputs, which nobody reads here
}

func (c *checker) stage(g verifier.Stage) {
	p := program{where: "stage " + show(g.Name), stage: g, env: c.st.StageEnv(g)}
	p.commands, p.script = commands(g.Argv)
	for _, x := range p.commands {
		p.python = p.python || isPython(x.name) || strings.HasSuffix(x.name, ".py") || slices.Contains([]string{"torchrun", "accelerate"}, x.name)
		p.opaque = p.opaque || strings.HasPrefix(x.path, "/in/") || slices.Contains(shells, x.name) && strings.HasPrefix(x.verb(), "/in/")
	}
	c.threads(p)
	c.dispatch(p)
	c.interpreter(p)
	for _, x := range p.commands {
		c.archive(p, x)
		c.surprises(p, x)
		c.network(p, x)
	}
	c.scripts(p)
	if g.TimeoutSeconds == 0 {
		c.add(RuleTimeout, p.where, "no timeoutSeconds, so a build that hangs costs every rebuilder as long as their policy allows", "set it to a few times what the stage takes")
	}
}

// set reports whether a variable is set for the stage, or for a command in it.
func (p program) set(names ...string) bool {
	for _, name := range names {
		if p.env[name] != "" {
			return true
		}
		for _, x := range p.commands {
			if slices.ContainsFunc(x.env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
				return true
			}
		}
		if strings.Contains(p.script, "export "+name+"=") {
			return true
		}
	}
	return false
}

func (c *checker) threads(p program) {
	if what, fix := compare.Threads(compare.Stage{Name: p.stage.Name, Argv: p.stage.Argv, Env: p.env}, nil); what != "" {
		c.add(RuleThreads, p.where, "it "+what, fix)
		return
	}
	for _, x := range p.commands {
		// The command lines of gradient boosting take a configuration file and
		// NAME=value; without a count they use all processors.
		option := map[string]string{"xgboost": "nthread", "lightgbm": "num_threads"}[x.name]
		if option != "" && !slices.ContainsFunc(x.args, func(arg string) bool { return strings.HasPrefix(arg, option+"=") }) {
			c.add(RuleThreads, p.where, x.name+" takes as many threads as there are processors", "use "+option+"=1")
		}
	}
	if p.set("OMP_NUM_THREADS") {
		return // OpenBLAS and MKL read it too
	}
	hint := "set OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1 and MKL_NUM_THREADS=1"
	switch libs := c.numeric(); {
	case len(libs) > 0 && (p.python || p.opaque):
		c.add(RuleThreads, p.where, fmt.Sprintf("nothing bounds the threads of %s, and sums of floats depend on how work is split", list(libs)), hint)
	case c.have == nil && p.python:
		c.add(RuleThreads, p.where, "nothing bounds the threads of numeric libraries, if it uses any, and sums of floats depend on how work is split", hint)
	}
}

// numericNames are packages that compute on several threads.
var numericNames = regexp.MustCompile(`^(torch|pytorch|python3-torch|libtorch.*|numpy|python3-numpy|scipy|python3-scipy|scikit-learn|python3-sklearn|` +
	`tensorflow.*|jax|jaxlib|onnxruntime.*|xgboost|python3-xgboost|libxgboost.*|lightgbm|faiss.*|python3-faiss|libopenblas.*|openblas|mkl|intel-mkl.*|libmkl.*|libdnnl.*|onednn)$`)

func (c *checker) numeric() []string {
	var names []string
	for _, p := range c.have {
		if name := strings.ToLower(p.Name); numericNames.MatchString(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// dispatching tells which packages bring a library that chooses its code by the
// processor, and the setting that pins it. numpy and scipy of PyPI carry
// OpenBLAS, those of Debian use what is installed beside them.
var dispatching = []struct {
	ecosystem string // any if empty
	name      *regexp.Regexp
	variables []string // one is enough
	pin       string
}{
	{"", regexp.MustCompile(`^(torch|pytorch|python3-torch|libtorch1.*|libtorch2.*)$`), []string{"ATEN_CPU_CAPABILITY"}, "ATEN_CPU_CAPABILITY=default"},
	{"", regexp.MustCompile(`^(torch|pytorch|tensorflow.*|onednn|libdnnl[0-9].*)$`), []string{"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}, "ONEDNN_MAX_CPU_ISA=SSE41"},
	{"", regexp.MustCompile(`^(openblas|libopenblas.*)$`), []string{"OPENBLAS_CORETYPE"}, "OPENBLAS_CORETYPE=Nehalem"},
	{lock.PyPI, regexp.MustCompile(`^(numpy|scipy)$`), []string{"OPENBLAS_CORETYPE"}, "OPENBLAS_CORETYPE=Nehalem"},
	{"", regexp.MustCompile(`^(mkl|intel-mkl.*|libmkl-rt.*)$`), []string{"MKL_CBWR"}, "MKL_CBWR=COMPATIBLE"},
}

func (c *checker) dispatch(p program) {
	platform := c.st.Predicate.Platform
	if platform.Accelerator != "" && platform.Accelerator != "none" && p.python && !p.set("CUBLAS_WORKSPACE_CONFIG") {
		c.add(RuleDispatch, p.where, fmt.Sprintf("on the accelerator %s, matrix products may differ from run to run", quote(platform.Accelerator)), "set CUBLAS_WORKSPACE_CONFIG=:4096:8")
		return
	}
	if platform.CPUDispatch == verifier.ExactDispatch || !p.python && !p.opaque {
		return
	}
	var pins []string
	for _, d := range dispatching {
		if p.set(d.variables...) || slices.Contains(pins, d.pin) {
			continue
		}
		if slices.ContainsFunc(c.have, func(i lock.Package) bool {
			return (d.ecosystem == "" || d.ecosystem == i.Ecosystem) && d.name.MatchString(strings.ToLower(i.Name))
		}) {
			pins = append(pins, d.pin)
		}
	}
	hint := `or promise the bytes for one kind of processor only (cpuDispatch "exact")`
	switch {
	case len(pins) > 0:
		c.add(RuleDispatch, p.where, "its numeric libraries choose their code by the processor, so another machine gets other bytes", "set "+strings.Join(pins, " ")+", "+hint)
	case c.have == nil && p.python && !p.set("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "MKL_CBWR"):
		c.add(RuleDispatch, p.where, "numeric libraries, if it uses any, choose their code by the processor, so another machine gets other bytes",
			"set ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem, "+hint)
	}
}

var pythonName = regexp.MustCompile(`^(python|pypy)[0-9.]*$`)

func isPython(name string) bool { return pythonName.MatchString(name) }

// interpreter checks what Python, and those who honour SOURCE_DATE_EPOCH, read.
func (c *checker) interpreter(p program) {
	if p.python {
		switch seed := p.env["PYTHONHASHSEED"]; {
		case seed == "random":
			c.add(RuleHashSeed, p.where, "PYTHONHASHSEED=random: the order of sets changes with each run", "set PYTHONHASHSEED=0")
		case !p.set("PYTHONHASHSEED"):
			c.add(RuleHashSeed, p.where, "it runs Python without PYTHONHASHSEED: the order of sets changes with each run", "set PYTHONHASHSEED=0")
		}
	}
	epoch, given := p.env["SOURCE_DATE_EPOCH"]
	issued := c.st.Predicate.IssuedAt
	switch n, err := strconv.ParseInt(epoch, 10, 64); {
	case given && (err != nil || n < 0):
		c.add(RuleEpoch, p.where, fmt.Sprintf("SOURCE_DATE_EPOCH is %s and no number of seconds", quote(epoch)), "set it to the seconds since 1970 of the source commit")
	case given && !issued.IsZero() && n > issued.Time().Unix():
		c.add(RuleEpoch, p.where, "SOURCE_DATE_EPOCH is later than the ledger", "set it to the seconds since 1970 of the source commit")
	case p.python && !p.set("SOURCE_DATE_EPOCH"):
		c.add(RuleEpoch, p.where, "it runs Python without SOURCE_DATE_EPOCH: what writes a date takes the clock", "set it to the seconds since 1970 of the source commit")
	}
}

// archive checks programs that put times, names or an order into what they
// write.
func (c *checker) archive(p program, x command) {
	const epoch = "set SOURCE_DATE_EPOCH"
	switch x.name {
	case "zip":
		if !p.set("SOURCE_DATE_EPOCH") {
			c.add(RuleArchive, p.where, "zip stores the times of the files", epoch+`, and before it: touch -d "@$SOURCE_DATE_EPOCH" FILES; zip -X`)
		}
	case "jar", "7z", "7za":
		if !p.set("SOURCE_DATE_EPOCH") {
			c.add(RuleArchive, p.where, x.name+" stores the times of the files", epoch+` and give them that time: touch -d "@$SOURCE_DATE_EPOCH" FILES`)
		}
	case "tar", "bsdtar", "gtar":
		creates := x.has("--create") || x.short("c") || len(x.args) > 0 && !strings.HasPrefix(x.args[0], "-") && strings.Contains(x.args[0], "c") && !strings.Contains(x.args[0], "/")
		if creates && (!x.has("--mtime") || !x.has("--sort")) {
			c.add(RuleArchive, p.where, "tar stores the times of the files, and their order in the directory",
				`use tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner`)
		}
	case "gzip", "pigz":
		if !x.has("--no-name", "--decompress", "--test", "--list", "--help", "--version") && !x.short("ndtl") {
			c.add(RuleArchive, p.where, x.name+" stores the time of the file", "use "+x.name+" -n")
		}
	}
	if isPython(x.name) && !p.set("SOURCE_DATE_EPOCH") {
		for i, arg := range x.args {
			if arg == "-m" && i+1 < len(x.args) && slices.Contains([]string{"zipfile", "zipapp", "tarfile"}, x.args[i+1]) {
				c.add(RuleArchive, p.where, "python -m "+x.args[i+1]+" stores the times of the files", epoch+` and give them that time: touch -d "@$SOURCE_DATE_EPOCH" FILES`)
			}
		}
	}
}

// surprises checks programs whose answer is another each time.
func (c *checker) surprises(p program, x command) {
	switch x.name {
	case "date":
		if !x.has("--date", "--reference") && !x.short("dr") {
			c.add(RuleClock, p.where, "date prints the time of the build", `use date -u -d "@$SOURCE_DATE_EPOCH"`)
		}
	case "uuidgen":
		if !x.has("--sha1", "--md5") && !x.short("sm") {
			c.add(RuleRandom, p.where, "uuidgen draws at random", "derive the name from the content, or write it down")
		}
	case "mktemp":
		c.add(RuleRandom, p.where, "mktemp draws a name at random, which must not get into an output", "use a fixed name below /tmp, which is fresh for each stage")
	case "shuf":
		if !x.has("--random-source") {
			c.add(RuleRandom, p.where, "shuf draws at random", "use --random-source=FILE")
		}
	case "sort":
		if x.has("--random-sort") || x.short("R") {
			c.add(RuleRandom, p.where, "sort -R draws at random", "use --random-source=FILE")
		}
		if !p.set("LC_ALL") {
			c.add(RuleLocale, p.where, "the order of sort follows the language that the image sets", "set LC_ALL=C")
		}
	case "openssl":
		if x.verb() == "rand" {
			c.add(RuleRandom, p.where, "openssl rand draws at random", "write the number down")
		}
	}
	for _, arg := range x.args {
		if arg == "/dev/urandom" || arg == "/dev/random" {
			c.add(RuleRandom, p.where, "it reads "+arg, "take a fixed seed")
		}
	}
}

// hidden are words in a script that ask the clock or draw at random.
var hidden = []struct {
	form             *regexp.Regexp
	rule, text, hint string
}{
	{regexp.MustCompile(`\$\{?(RANDOM|SRANDOM)\b`), RuleRandom, "$RANDOM is drawn at random", "write the number down"},
	{regexp.MustCompile(`\$\{?(EPOCHSECONDS|EPOCHREALTIME|SECONDS)\b`), RuleClock, "it reads the shell's clock", "use SOURCE_DATE_EPOCH"},
	{regexp.MustCompile(`\b(time\.time(_ns)?\(|datetime\.(datetime\.)?(now|utcnow|today)\(|date\.today\(|time\.(strftime|ctime|localtime|gmtime)\()`), RuleClock, "its Python reads the clock", `use int(os.environ["SOURCE_DATE_EPOCH"])`},
	{regexp.MustCompile(`\b(os\.urandom\(|uuid\.uuid[14]\(|secrets\.|random\.SystemRandom)`), RuleRandom, "its Python draws at random", "take a fixed seed"},
}

func (c *checker) scripts(p program) {
	for _, h := range hidden {
		if h.form.MatchString(p.script) {
			c.add(h.rule, p.where, h.text, h.hint)
		}
	}
}

// network checks programs that want what a build does not have.
func (c *checker) network(p program, x command) {
	verb := x.verb()
	what := ""
	switch x.name {
	case "curl", "wget", "aria2c", "ssh", "scp", "sftp", "nc", "telnet", "ftp", "lynx", "huggingface-cli", "gsutil", "s3cmd", "rclone":
		what = x.name
	case "git":
		if slices.Contains([]string{"clone", "fetch", "pull", "push", "ls-remote"}, verb) {
			what = "git " + verb
		}
	case "apt", "apt-get", "yum", "dnf", "apk", "npm", "conda", "mamba", "micromamba", "cargo", "gem", "docker", "podman":
		if slices.Contains([]string{"update", "install", "add", "create", "fetch", "pull", "upgrade", "ci", "run"}, verb) && !x.has("--offline", "--no-index", "--no-network") {
			what = x.name + " " + show(verb)
		}
	case "pip", "pip3", "uv":
		if slices.ContainsFunc(x.args, func(arg string) bool { return arg == "install" || arg == "download" || arg == "sync" }) && !x.has("--no-index", "--offline") {
			what = x.name + " " + show(verb)
		}
	}
	if isPython(x.name) && x.has("-m") && slices.Contains(x.args, "pip") && x.has("install", "download") && !x.has("--no-index") {
		what = "pip install"
	}
	if what != "" {
		c.add(RuleNetwork, p.where, what+" wants the network, and a build has none", "make what it fetches part of the image or a dataset; pip installs from one with --no-index --find-links /in/dataset/NAME")
	}
}
