// Package sandbox runs the stages of a build recipe in OCI containers and
// hands back what they wrote.
//
// A recipe is hostile input to a machine that signs. Each stage therefore gets
// a fresh container with its own user, pid, mount, network, ipc, uts, cgroup
// and (where the kernel has them) time namespaces: no network but its own
// loopback, the image and the inputs read-only, no capability, no new
// privilege, a system-call filter, and limits on memory, processes, CPU, time,
// disk and log. A limit that this host cannot enforce is an error of Find,
// never a build without it.
//
// Runtime runs a recipe on this machine. Remote has a Launcher run it on
// another one of the operator's, by the same code.
//
// What the build sees:
//
//	/                   the image, read-only
//	/in/<input>         the inputs, read-only
//	/in/stages/<stage>  what earlier stages left in their /out, read-only
//	/out                the only writable disk: an own ext4 file system of
//	                    limited size and inode count, fresh for each stage
//	/tmp, /dev/shm and  tmpfs, counted into the memory limit, fresh for each
//	the work directory  stage
//
// Everything a run makes on the host outside Spec.Dir (containers, cgroups,
// mounts, loop devices, a directory below StateDir) is gone when Run returns.
// Where the worker died before that, the next Run or Sweep removes it.
package sandbox

import (
	"io"
	"os"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// Limits bounds one Run. Every field that is not called optional is required:
// a zero refuses.
type Limits struct {
	// MemoryBytes bounds memory of all processes of a stage together, tmpfs
	// and page cache included. Swap does not add to it.
	MemoryBytes int64
	// OutputBytes bounds what all stages together may leave in their /out.
	OutputBytes int64
	// LogBytes bounds standard output and standard error of all stages.
	LogBytes int64
	// Processes bounds processes and threads alive at the same time.
	Processes int64
	// CPUs is CPU time for each second of wall clock.
	CPUs float64
	// Wall bounds all stages together.
	Wall time.Duration
	// CPUTime bounds what all processes of all stages together may spend on
	// processors; optional, zero is as much as Wall and CPUs allow. A build is
	// stopped within pollInterval after it.
	CPUTime time.Duration
	// OpenFiles bounds the descriptors of each process; optional, zero is 1024.
	// It is never above this process's own hard limit.
	OpenFiles int64
}

// StageLimits bounds one stage more narrowly than the Run's Limits. A zero
// field takes what the Limits say; a field above them refuses.
type StageLimits struct {
	MemoryBytes int64
	Processes   int64
	// CPUTime is of all processes of the stage together.
	CPUTime     time.Duration
	OutputBytes int64
}

// Spec is one run of one recipe.
type Spec struct {
	// Recipe is the digest of the ledger payload; Outputs carry it.
	Recipe hashpipe.Digest
	// Rootfs is the directory of the unpacked environment image. Builds run as
	// an unprivileged user, so its files need read permission for others.
	Rootfs string
	Inputs []Input
	Stages []Stage
	// Outputs are looked up in the /out of the last stage. All are required.
	Outputs []Wanted
	Limits  Limits
	// Env is for every stage; a Stage's own Env wins. PATH, HOME and TMPDIR
	// have defaults. Nothing of the worker's environment is passed on.
	Env       map[string]string
	Variation Variation
	// Dir is a directory for the files of this run; the caller removes it when
	// the outputs are no longer needed.
	Dir string
	// Log gets what the build prints, at most Limits.LogBytes bytes, in lines
	// of at most MaxLine bytes. It is the build's text: escape it before
	// showing it. nil drops it. Writes come from one goroutine at a time.
	Log io.Writer `json:"-"`
	// Progress, if not nil, is told the name of each stage before it starts.
	Progress func(stage string) `json:"-"`
	// Needs is what the machine that runs this must have.
	Needs Needs
}

// Input is a file tree, or one file, that the build finds at /in/<Name>.
type Input struct{ Name, Path string }

// Stage is one command. Argv[0] is looked up in the image's PATH.
type Stage struct {
	Name string
	Argv []string
	Env  map[string]string
	// WorkDir is an absolute path in the container; empty means the work
	// directory of the Variation.
	WorkDir string
	// Wall bounds this stage; zero means what is left of Limits.Wall.
	Wall   time.Duration
	Limits StageLimits
	// Artifacts are paths below this stage's /out that are kept and measured
	// when the stage has ended. All are required. Their lengths and those of
	// the outputs count against OutputBytes together; a file that is both counts
	// once.
	Artifacts []string
}

// Wanted names one output and where the last stage leaves it, relative to /out.
type Wanted struct{ Name, Path string }

// Variation is what may differ between two runs of one recipe without
// changing what a deterministic build writes. Zero fields take defaults.
type Variation struct {
	// Hostname defaults to "build".
	Hostname string
	// WorkDir defaults to "/work".
	WorkDir string
	// UID is the first of 65536 host ids that the container's ids map to;
	// the default is 1<<30. Ids below 1<<20 are refused: they may belong to
	// people of this host.
	UID uint32
	// CPUs are the processors the build may run on; empty means all.
	CPUs []int
	// OneCPULess keeps the build off the first of the processors that the
	// machine which runs it offers, where there are at least two.
	OneCPULess bool
	// NotOn names machines where this recipe has run already. An executor that
	// has several avoids them; a Runtime has one.
	NotOn []string
	// ReverseEnv hands the environment over in descending order.
	ReverseEnv bool
	// ReverseInputs shows the build the directories of its inputs in the
	// reverse of their order, by copies in memory. Inputs of more than 256 MiB
	// or 100,000 files together stay as they are.
	ReverseInputs bool
	// Uptime shifts the monotonic and boot-time clocks forward.
	Uptime time.Duration
}

// Result is a run whose every stage exited with status 0 within the limits and
// whose every wanted output was found.
type Result struct {
	// Run identifies this run; no other run has it.
	Run     string
	Outputs []Output
	Stages  []StageRecord
	Wall    time.Duration
	// Varied lists every part of Spec.Variation with the value that it had in
	// this run, or, after "not varied: ", why it could not be carried out.
	Varied []string
	// Host is the machine that ran it, by its own account.
	Host Host
}

// StageRecord is what one stage used, and the artifacts that it declared, in
// the order of Stage.Artifacts.
type StageRecord struct {
	Name       string
	Wall       time.Duration
	CPU        time.Duration // of all its processes
	PeakMemory int64         // bytes; 0 where the kernel does not tell
	OutBytes   int64         // bytes allocated in /out at the end
	LogBytes   int64
	Artifacts  []Artifact
}

// file is what a run of a recipe wrote, measured while no process of that run
// lived, or what a node brought back from such a run, measured again here.
// Only the two Run make one; the zero file belongs to no recipe and no run.
type file struct {
	recipe      hashpipe.Digest
	run         string
	measurement hashpipe.Measurement
	kept        string
}

// Output is a file that the recipe promises. The zero Output belongs to no
// recipe and no run.
type Output struct {
	file
	name string
}

// Artifact is a file that a stage left for later ones. It is no Output, and
// none can be made of it. The zero Artifact belongs to no recipe and no run.
type Artifact struct {
	file
	stage, path string
}

// Name is the name the recipe gives the output.
func (o Output) Name() string { return o.name }

// Stage is the name of the stage that wrote the artifact.
func (a Artifact) Stage() string { return a.stage }

// Path is where the artifact lay, relative to the stage's /out.
func (a Artifact) Path() string { return a.path }

// Recipe is the digest of the ledger payload that was run.
func (f file) Recipe() hashpipe.Digest { return f.recipe }

// Run identifies the run that wrote the file.
func (f file) Run() string { return f.run }

// Measurement is of the bytes that Open's file had when they were kept.
func (f file) Measurement() hashpipe.Measurement { return f.measurement }

// Open opens the kept file below Spec.Dir. Its bytes may have been changed
// since they were measured: whoever passes them on measures again.
func (f file) Open() (*os.File, error) { return os.Open(f.kept) }
