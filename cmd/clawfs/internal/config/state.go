// Package config knows the state directory: the name of every file in it, who
// may own it, and which modes are refused. Everything below cmd gets its
// settings as values; only this package reads files for them.
package config

import "path/filepath"

// State is the absolute path of a state directory.
//
//	policy.json     who is trusted; writable by its owner only
//	policy.dsse     the signed policy whose text policy.json is, if it has a root
//	memory/         0700: the newest of what must never be older again
//	mint.key        0600, read by workers only
//	mint.pub        its public half, which says which operator of the policy this is
//	revoke.key      0600, read by `clawfs revoke` only
//	clawfs.toml     optional settings; writable by its owner only
//	store/          Badger, 0700
//	kept/           0700: every acknowledged record once more, as text (capstore/kept)
//	jobs/<id>/      one directory for each rebuild
//	work/           scratch of rebuilds
//	cache/          0700: fetched inputs, shared by rebuilds
//	private/        0700, made on demand: where `seal = "copy"` keeps contents, in files without a name
//	log/            daemon.log, mount-<id>.log
//	run/            0700: clawfs.sock, daemon.lock, mounts/<id>.json
type State string

func (s State) Policy() string     { return s.join("policy.json") }
func (s State) MintKey() string    { return s.join("mint.key") }
func (s State) MintPublic() string { return s.join("mint.pub") }
func (s State) RevokeKey() string  { return s.join("revoke.key") }
func (s State) Settings() string   { return s.join("clawfs.toml") }
func (s State) Store() string      { return s.join("store") }
func (s State) Kept() string       { return s.join("kept") }
func (s State) Jobs() string       { return s.join("jobs") }
func (s State) Work() string       { return s.join("work") }
func (s State) Cache() string      { return s.join("cache") }
func (s State) Private() string    { return s.join("private") }
func (s State) Log() string        { return s.join("log") }
func (s State) DaemonLog() string  { return s.join("log", "daemon.log") }

// MountLog is the audit log of the mount with that id.
func (s State) MountLog(id string) string { return s.join("log", "mount-"+id+".log") }

func (s State) Run() string    { return s.join("run") }
func (s State) Socket() string { return s.join("run", "clawfs.sock") }
func (s State) Lock() string   { return s.join("run", "daemon.lock") }
func (s State) Mounts() string { return s.join("run", "mounts") }

// Mount is the record of the mount with that id.
func (s State) Mount(id string) string { return s.join("run", "mounts", id+".json") }

// MountLock is held by the process that serves the mount with that id.
func (s State) MountLock(id string) string { return s.join("run", "mounts", id+".lock") }

// MountSession is the socket where that process hands over what a successor needs.
func (s State) MountSession(id string) string { return s.join("run", "mounts", id+".sock") }

// Job is the directory of the job with that id.
func (s State) Job(id string) string { return s.join("jobs", id) }

func (s State) join(names ...string) string {
	return filepath.Join(append([]string{string(s)}, names...)...)
}
