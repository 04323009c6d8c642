package config

import (
	"fmt"
	"path/filepath"
)

// Fetch is the table [fetch]: where the inputs of rebuilds may come from, and
// how many of them are kept.
type Fetch struct {
	// CacheBytes bounds what is kept of fetched inputs, for the next job that
	// needs them.
	CacheBytes Bytes `toml:"cache_bytes"`
	// CacheDir is where, an absolute path; empty: State.Cache, or below the
	// shared directory of a cluster.
	CacheDir string `toml:"cache_dir"`
	// Hosts may be reached for a ledger whatever their addresses are, and by
	// http; all others by https and at public addresses alone. A name, an
	// address, or "*." and the end of a name.
	Hosts []string `toml:"hosts"`
	// LocalRoots are the directories below which a ledger may name local files.
	LocalRoots []string `toml:"local_roots"`
	// Mirrors are tried before the places that they mirror.
	Mirrors []Mirror `toml:"mirrors"`
	// DockerConfig is the path of a Docker configuration with credentials for
	// registries; empty: none are used.
	DockerConfig string `toml:"docker_config"`
	// PlainHTTP are registries ("host:port") without TLS.
	PlainHTTP []string `toml:"plain_http"`
	// GitCA has the authorities of git's https hosts (PEM); empty: the system's.
	GitCA string `toml:"git_ca"`
	// SSHKey and SSHKnownHosts are what git over ssh uses; it needs both.
	SSHKey        string `toml:"ssh_key"`
	SSHKnownHosts string `toml:"ssh_known_hosts"`
}

// Mirror is one entry of fetch.mirrors: what begins with Prefix is looked for at
// each of URLs first.
type Mirror struct {
	Prefix string   `toml:"prefix"`
	URLs   []string `toml:"urls"`
}

// minCache is the least that CacheBytes may be.
const minCache = 1 << 20

func (f Fetch) check() error {
	if f.CacheBytes < minCache {
		return fmt.Errorf("cache_bytes %d: want at least 1MiB, such as \"200GiB\"", f.CacheBytes)
	}
	paths := map[string]string{
		"cache_dir": f.CacheDir, "docker_config": f.DockerConfig, "git_ca": f.GitCA, "ssh_key": f.SSHKey, "ssh_known_hosts": f.SSHKnownHosts,
	}
	for _, name := range []string{"cache_dir", "docker_config", "git_ca", "ssh_key", "ssh_known_hosts"} {
		if p := paths[name]; p != "" && (!filepath.IsAbs(p) || filepath.Clean(p) != p) {
			return fmt.Errorf("%s %q: want an absolute, clean path", name, p)
		}
	}
	if (f.SSHKey == "") != (f.SSHKnownHosts == "") {
		return fmt.Errorf("ssh_key and ssh_known_hosts: want both or neither")
	}
	for _, m := range f.Mirrors {
		if m.Prefix == "" || len(m.URLs) == 0 {
			return fmt.Errorf("mirrors: want a prefix and urls in each, got %q and %q", m.Prefix, m.URLs)
		}
	}
	return nil
}
