package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// settingsText is the clawfs.toml of a new state directory: every setting with
// its default, none of them set.
const settingsText = `# clawfs.toml: where programs are and how much of this machine clawfs may use.
# Nothing here weakens a check. Who is trusted is in policy.json.

[build]
# The OCI runtime. Default: the runc beside clawfs, else the one on PATH.
#runtime = "/usr/local/sbin/runc"
# Rebuilds at the same time; 0 is as many as memory and processors hold, each
# with the limits of policy.json.
#concurrency = 0
# Where the builds of jobs run: "local", or "slurm" (docs/operations.md, Building on
# a cluster).
#executor = "local"

[build.slurm]
# A directory that all nodes have under this path and where only root writes.
#shared_dir = "/shared/clawfs"
# clawfs on the nodes.
#clawfs = "/usr/local/libexec/clawfs/clawfs"
# Default: the cluster's.
#partition = "build"
# More options of sbatch: --account, --qos, --constraint, --reservation, --nice, --nodelist.
#sbatch_args = ["--account=models"]
# Where sbatch is. Default: on PATH.
#commands = "/usr/bin"
# Default: where sbatch looks.
#conf = "/etc/slurm/slurm.conf"

[fetch]
# Fetched inputs that are kept for the next job; the least recently used go first.
#cache_bytes = "100GiB"
# Where. Default: the directory cache in the state directory.
#cache_dir = "/srv/clawfs-cache"
# Hosts that a ledger may name though their addresses are private, and by http.
#hosts = ["data.internal", "*.build.internal"]
# Directories below which a ledger may name local files; [] for nowhere.
#local_roots = ["/"]
# Tried before the places that begin so.
#mirrors = [{prefix = "https://data.example/", urls = ["https://mirror.internal/data/"]}]
# Credentials for registries, and registries without TLS.
#docker_config = "/etc/clawfs/docker.json"
#plain_http = ["registry.internal:5000"]
# git: authorities of https hosts (default: the system's); key and hosts of ssh.
#git_ca = "/etc/clawfs/ca.pem"
#ssh_key = "/etc/clawfs/deploy"
#ssh_known_hosts = "/etc/clawfs/known_hosts"

[capability]
# How long a minted capability opens files.
#lifetime = "2160h"

[mount]
# Let other users read the files. Default: true for root, else false.
#allow_other = true
# Hashing threads; 0 is one for each core.
#hash_workers = 0
# How an approved file is kept safe from its writers while the kernel serves it:
# "reflink" (shares blocks: xfs, btrfs), "copy" (any file system; every model is
# on the disk twice), "off" (each read is hashed again). Where the machine cannot,
# it is as with "off", and status says why. Default: reflink for root, else off.
#seal = "reflink"
# Where those files are, which have no names. Default: for reflink the source's
# file system, for copy the directory private in the state directory.
#private_dir = "/srv/clawfs-private"
# How much they may hold for each mount. Default: half of what is free at the start.
#private_bytes = "200GiB"
# What the name of a file demands. "name": that its capability gives it this name;
# "release": and that all files of one model come from one release of it.
#bind = "name"
# Refuse new opens once the daemon, which tells of revocations, has been silent for
# this long, from 10s on. What is open stays open. Default: no bound.
#max_daemon_age = "15m"
# Hash new files in the background, so that the first open seldom waits.
#preverify = true
`

// defaultBuilds are the bounds of a build on a machine whose owner has said
// nothing: one build may use all cores for an hour. The variables are those
// that make numeric programs repeat their bytes.
func defaultBuilds() verifier.Builds {
	return verifier.Builds{
		Env: []string{
			"ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_MAX_CPU_ISA", "LANG", "LC_ALL", "MKL_CBWR",
			"MKL_NUM_THREADS", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS",
			"PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "SOURCE_DATE_EPOCH", "TZ",
		},
		Limits: verifier.Limits{
			MemoryBytes: 4 << 30,
			Processes:   512,
			CPUs:        float64(runtime.NumCPU()),
			WallSeconds: 3600,
			OutputBytes: 8 << 30,
			LogBytes:    16 << 20,
		},
	}
}

func newInitCommand(a *app) *cobra.Command {
	var operator string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make the state directory: keys, policy, settings",
		Long: `Makes the state directory, which only its owner may enter, with

  policy.json  who is trusted; nobody yet, so every ledger is refused
  mint.key     signs capabilities; only rebuild workers read it
  mint.pub     its public half, for the policies of others
  revoke.key   signs revocations; only clawfs revoke reads it
  clawfs.toml  settings, all commented out

It appears whole or not at all, and an existing one is never changed. Whoever
can write it decides what opens: keep it away from the directories that you
mount, and back up the keys.`,
		Example: "  clawfs init\n  clawfs init --state ./state",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			mint, revoker, err := a.initState(operator)
			if err != nil {
				return err
			}
			result := struct {
				State   string     `json:"state"`
				Mint    dsse.KeyID `json:"mint"`
				Revoker dsse.KeyID `json:"revoker"`
			}{a.state, mint, revoker}
			return a.print(result, func() {
				a.printf("made %s\n", a.state)
				a.printf("mint key id     %s\n", mint)
				a.printf("revoker key id  %s\n", revoker)
				a.printf("next: %s --models 'owner/*'\n", a.command("publisher", "trust", "KEYFILE", "--name", "NAME"))
				a.printf("      %s\n", a.command("mount", "SOURCE", "MOUNTPOINT"))
			})
		},
	}
	c.Flags().StringVar(&operator, "operator", "local", "`name` under which this machine's capabilities count")
	return c
}

// initState makes the state directory beside its place and moves it there, so
// that an interrupted init leaves no half of one.
func (a *app) initState(operator string) (mint, revoker dsse.KeyID, err error) {
	if names, err := os.ReadDir(a.state); err == nil && len(names) > 0 {
		return "", "", fmt.Errorf("%s exists already and is not changed; next: choose another --state, or use it as it is", a.state)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("state directory: %w", err)
	}
	parent := filepath.Dir(a.state)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", "", fmt.Errorf("state directory: %w", err)
	}
	dir, err := os.MkdirTemp(parent, "."+filepath.Base(a.state)+".new-") // mode 0700
	if err != nil {
		return "", "", fmt.Errorf("state directory: %w", err)
	}
	defer os.RemoveAll(dir) // does nothing after the rename
	state := config.State(dir)
	mintKey, err := rebuild.NewMintKey(state.MintKey())
	if err != nil {
		return "", "", err
	}
	revokeKey, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		return "", "", err
	}
	revokeText, err := revokeKey.PEM()
	if err != nil {
		return "", "", err
	}
	policy, err := verifier.NewPolicy(operator, mintKey, revokeKey.Public(), defaultBuilds())
	if err != nil {
		return "", "", err
	}
	policyText, err := policy.Encode()
	if err != nil {
		return "", "", err
	}
	err = errors.Join(
		durable.Create(state.MintPublic(), mintKey.PEM(), 0o644),
		durable.Create(state.RevokeKey(), revokeText, 0o600),
		durable.Create(state.Policy(), policyText, 0o600),
		durable.Create(state.Settings(), []byte(settingsText), 0o600),
	)
	if err != nil {
		return "", "", err
	}
	if err := memory.Dir(state.Memory()).Create(); err != nil {
		return "", "", err
	}
	// rename(2) replaces an empty directory and refuses any other; os.Rename
	// refuses both.
	if err := unix.Rename(dir, a.state); err != nil {
		return "", "", fmt.Errorf("state directory %s: %w", a.state, err)
	}
	return mintKey.ID(), revokeKey.Public().ID(), durable.SyncDir(parent)
}
