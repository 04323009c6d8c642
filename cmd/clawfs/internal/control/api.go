package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The requests. No request carries a hash to be granted: a capability comes of a
// rebuild, which Submission asks for, or signed by a mint that the policy pins, in
// a RecordSubmission.
//
//	GET    /v1/status              Status
//	GET    /v1/jobs                []capstore.Job, oldest first
//	POST   /v1/jobs                Submission -> capstore.Job
//	GET    /v1/jobs/{id}           capstore.Job
//	POST   /v1/jobs/{id}/cancel    capstore.Job
//	POST   /v1/jobs/{id}/priority  Priority -> capstore.Job
//	GET    /v1/jobs/{id}/log       text; ?follow=1 until the job has ended
//	GET    /v1/jobs/{id}/record    Envelope
//	GET    /v1/jobs/{id}/events    lines of the worker's progress; ?follow=1
//	GET    /v1/capabilities        []Capability; ?logged=1 with Logged
//	GET    /v1/capabilities/{id}/envelope  Envelope
//	GET    /v1/revocations         []Revocation
//	POST   /v1/revocations         Envelope -> Revocation
//	POST   /v1/records             RecordSubmission -> RecordAnswer
//	GET    /v1/revocation-lists    []List that no later one repeats whole, the one in force last
//	POST   /v1/affected            AffectedRequest -> Affected
//	GET    /v1/view                stream of ViewLine
//	GET    /v1/store/check         stream of StoreLine; ?head= one to contain
//	GET    /v1/store/records       stream of ViewLine, also of jobs, and then a snapshot line
//	POST   /v1/store/open          Status, after another try to open a store that could not be
//	GET    /v1/mounts              []Mount
//	POST   /v1/mounts              MountRequest -> Mount
//	POST   /v1/mounts/{id}/report  MountReport

// Submission asks for the rebuild of a signed build attestation.
type Submission struct {
	SBA []byte `json:"sba"` // the envelope as it was published
	// Proof is its log proof; nil: none. Consistency connects the proof's
	// checkpoint with the newest one that the daemon has seen, where they differ.
	Proof       []byte             `json:"proof,omitzero"`
	Consistency []byte             `json:"consistency,omitzero"`
	Locations   capstore.Locations `json:"locations"`
	Priority    int                `json:"priority,omitzero"`
	Terms       capstore.Terms     `json:"terms,omitzero"` // of the capability that is to be earned
}

// Priority asks for another place of a pending job.
type Priority struct {
	Priority int `json:"priority"`
}

// Envelope carries a signed record.
type Envelope struct {
	Envelope []byte `json:"envelope"`
}

// RecordSubmission hands over a record that was published elsewhere. It grants
// nothing that its signatures do not.
type RecordSubmission struct {
	Kind     string `json:"kind"` // a registry.Kind; what the envelope says is compared with it
	Envelope []byte `json:"envelope"`
}

// RecordAnswer is what became of a record that was not refused.
type RecordAnswer struct {
	Kind    string          `json:"kind"`
	ID      hashpipe.Digest `json:"id"`
	Outcome string          `json:"outcome"`         // one of the outcomes below
	Reason  string          `json:"reason,omitzero"` // of RecordSkipped, and of a list that is not newer than the one in force
}

// The outcomes of a RecordSubmission.
const (
	RecordAdmitted = "admitted" // it is in force, on stable storage
	RecordKnown    = "known"    // it, or a newer list, was already
	RecordSkipped  = "skipped"  // a capability of a mint that is not pinned here: nobody's fault, and nothing was kept
)

// AffectedRequest asks what would change if something were taken back.
type AffectedRequest struct {
	Kind   capstore.Kind   `json:"kind"`
	Target hashpipe.Digest `json:"target"`
}

// Affected is what would change. Nothing was changed.
type Affected struct {
	Kind    capstore.Kind   `json:"kind"`
	Target  hashpipe.Digest `json:"target"`
	Changed []Consequence   `json:"changed"` // capabilities whose state would be another
	// Built are the capabilities, not among Changed, that were built from a model
	// which would be lost. They would open all the same.
	Built []Consequence `json:"built"`
}

// Consequence is what would become of a capability.
type Consequence struct {
	ID       hashpipe.Digest `json:"id"`
	Model    string          `json:"model"`
	Version  string          `json:"version"`
	Claim    hashpipe.Digest `json:"claim"`
	Operator string          `json:"operator"`
	Before   string          `json:"before"` // states of a Capability
	After    string          `json:"after"`
	Agreed   []string        `json:"agreed,omitempty"` // operators that would still agree
	Needed   int             `json:"needed,omitzero"`
	Files    []File          `json:"files"`
}

// List is a revocation list as a person reads it.
type List struct {
	ID         hashpipe.Digest `json:"id"`
	Sequence   int64           `json:"sequence"`
	Operator   string          `json:"operator"` // whose revoker signed it
	IssuedAt   time.Time       `json:"issuedAt"`
	ValidUntil time.Time       `json:"validUntil"`
	Entries    int             `json:"entries"`
	InForce    bool            `json:"inForce"` // it is the newest
	// Serves is until when files open under it, by the rules of the policy that ask
	// for a list; of the one in force.
	Serves []Serves `json:"serves,omitempty"`
}

// Serves is until when files of some models open under a revocation list.
type Serves struct {
	Models        []string  `json:"models"`
	MaxAgeSeconds int64     `json:"maxAgeSeconds"`
	Until         time.Time `json:"until"` // zero: there is no list
}

// Status is what the daemon knows of itself.
type Status struct {
	Version      string         `json:"version"`
	Protocol     string         `json:"protocol"`
	PID          int            `json:"pid"`
	State        string         `json:"state"` // the state directory
	StartedAt    time.Time      `json:"startedAt"`
	Store        *StoreTrouble  `json:"store,omitempty"` // nil: the store is open
	Warnings     []string       `json:"warnings,omitempty"`
	Jobs         map[string]int `json:"jobs"` // by state
	Capabilities Counts         `json:"capabilities"`
	Revocations  int            `json:"revocations"`
	Rejected     []Rejected     `json:"rejected,omitempty"`
	Resources    Resources      `json:"resources"`
	Generation   uint64         `json:"generation"` // Extent of the store's view; a mount that reports it has everything
	Mounts       []Mount        `json:"mounts"`
}

// StoreTrouble says why a daemon works without its store: nothing new is granted,
// and what it would know of the store is not known.
type StoreTrouble struct {
	Cause   string    `json:"cause"` // locked, full, damaged, foreign, older, crashed, slow, failed
	Error   string    `json:"error"`
	Next    string    `json:"next"` // what a person should do
	Since   time.Time `json:"since"`
	RetryAt time.Time `json:"retryAt"` // when the daemon tries to open it again
	Waiting int       `json:"waiting"` // revocations and lists that were acknowledged without it
}

// Resources are what the daemon's process uses now.
type Resources struct {
	Goroutines    int   `json:"goroutines"`
	Descriptors   int   `json:"descriptors"`
	Connections   int   `json:"connections"`
	ResidentBytes int64 `json:"residentBytes"`
	HeapLiveBytes int64 `json:"heapLiveBytes"` // after the last collection of garbage
}

// Counts are the capabilities by what they are good for now.
type Counts struct {
	Live    int `json:"live"`
	Expired int `json:"expired"` // or not begun
	Revoked int `json:"revoked"`

	Waiting  int `json:"waiting,omitzero"`
	Disputed int `json:"disputed,omitzero"`
	Stale    int `json:"stale,omitzero"`
}

// Rejected is a row of the store that did not verify and grants nothing.
type Rejected struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// Capability is a capability as a person reads it. It is not evidence.
type Capability struct {
	ID        hashpipe.Digest `json:"id"`
	State     string          `json:"state"` // live, pending, expired, revoked, waiting, disputed, stale
	Model     string          `json:"model"`
	Version   string          `json:"version"`
	Sequence  int64           `json:"sequence"`
	Claim     hashpipe.Digest `json:"claim"`
	SBA       hashpipe.Digest `json:"sba"`
	Publisher dsse.KeyID      `json:"publisher"`
	Minter    dsse.KeyID      `json:"minter"`
	Operator  string          `json:"operator"`
	Level     string          `json:"level"`             // rebuilt, or reproduced-<n> by n operators; "" if none of them is valid
	Agreed    []string        `json:"agreed,omitempty"`  // operators with this result
	Needed    int             `json:"needed"`            // of them
	Missing   []string        `json:"missing,omitempty"` // who could still agree
	Conflict  *Conflict       `json:"conflict,omitempty"`
	// Restrictions are what the capability and those that it derives from are
	// narrowed to, in words.
	Restrictions []string          `json:"restrictions,omitempty"`
	DelegatedBy  []dsse.KeyID      `json:"delegatedBy,omitempty"`
	DerivedFrom  []hashpipe.Digest `json:"derivedFrom,omitempty"` // what it narrows; the mint's first
	Delegates    []dsse.KeyID      `json:"delegates,omitempty"`   // who may hand it on
	Environment  hashpipe.Digest   `json:"environment"`           // manifest of the image
	NotBefore    time.Time         `json:"notBefore"`
	NotAfter     time.Time         `json:"notAfter"`
	Files        []File            `json:"files"`
	Bases        []Base            `json:"bases,omitempty"`
	Revoked      *Revocation       `json:"revoked,omitempty"`

	// Logged is where the SBA lies, by the job's row, if that was asked for.
	Logged capstore.Logged `json:"logged,omitzero"`
}

// Conflict is what another operator got from the same attestation.
type Conflict struct {
	Operator   string          `json:"operator"`
	Capability hashpipe.Digest `json:"capability"`
	Claim      hashpipe.Digest `json:"claim,omitzero"` // zero: the capability cannot be read any more
}

// Base is a model that a capability's files were built from.
type Base struct {
	Claim hashpipe.Digest `json:"claim"`
	Lost  *Revocation     `json:"lost,omitempty"` // what took it back, or one of its own bases
}

// Lost reports whether something that the files were built from was taken back.
// They open all the same until they are revoked themselves.
func (c Capability) Lost() bool {
	return slices.ContainsFunc(c.Bases, func(b Base) bool { return b.Lost != nil })
}

// LostFiles counts the files that were taken back by their content.
func (c Capability) LostFiles() (n int) {
	for _, f := range c.Files {
		if f.Revoked != nil {
			n++
		}
	}
	return n
}

// File is one output that a capability opens.
type File struct {
	Name    string          `json:"name"`
	SHA256  hashpipe.Digest `json:"sha256"`
	Size    int64           `json:"size"`
	Revoked *Revocation     `json:"revoked,omitempty"` // of a Capability: this content, under every one
}

// Revocation is a revocation as a person reads it.
type Revocation struct {
	ID       hashpipe.Digest `json:"id"`
	Kind     capstore.Kind   `json:"kind"`
	Target   string          `json:"target"`
	Reason   string          `json:"reason"`
	IssuedAt time.Time       `json:"issuedAt"`
	Operator string          `json:"operator"` // whose revoker signed it
	// List is the newest revocation list that names the target; 0: none does.
	List int64 `json:"list,omitzero"`
	// Alone says that it came as a record of its own, and not in lists only.
	Alone bool `json:"alone"`
}

// Kinds of ViewLine beside those of capstore.Record.
const (
	LineSnapshot  = "snapshot"  // the records before this one are the whole store
	LineHeartbeat = "heartbeat" // nothing new
	// LineNoStore comes first, and no snapshot line and no capability, from a daemon
	// whose store cannot be opened: what follows takes something back.
	LineNoStore = "no-store"
	// LineError ends a stream that cannot go on; its envelope is the reason.
	LineError = "error"
)

// ViewLine is one line of the stream that keeps a mount process's view: all
// revocations, all capabilities, one snapshot line, and then each new record
// as it is stored, with heartbeats between. The receiver checks every envelope
// itself, against the keys that it pinned itself.
type ViewLine struct {
	Kind     string `json:"kind"`
	Envelope []byte `json:"envelope,omitempty"`
	Entry    []byte `json:"entry,omitzero"`  // of a record of the snapshot: see capstore.View.Apply
	Extent   uint64 `json:"extent,omitzero"` // of the store, with this line and all before it; zero within the snapshot
}

// MountRequest asks for a mount process. The paths are absolute.
type MountRequest struct {
	Source     string `json:"source"`
	Mountpoint string `json:"mountpoint"`
	MountOptions
}

// MountOptions are what the flags of `clawfs mount` said. What is empty is as
// clawfs.toml says each time the mount process starts.
type MountOptions struct {
	Seal         string `json:"seal,omitzero"`         // reflink, copy or off
	PrivateDir   string `json:"privateDir,omitzero"`   // absolute
	PrivateBytes int64  `json:"privateBytes,omitzero"` // bound of the private files
	Bind         string `json:"bind,omitzero"`         // name or release
	Preverify    *bool  `json:"preverify,omitempty"`

	// AuditUntil is when audit mode ends; zero: enforcement. No setting stands in
	// for it.
	AuditUntil time.Time `json:"auditUntil,omitzero"`
}

// Mount is one mount that the daemon remembers.
type Mount struct {
	ID         string       `json:"id"`
	Source     string       `json:"source"`
	Mountpoint string       `json:"mountpoint"`
	State      string       `json:"state"` // live, starting, dead
	PID        int          `json:"pid,omitzero"`
	Foreground bool         `json:"foreground,omitzero"` // not restarted by the daemon
	Restarts   int          `json:"restarts,omitzero"`   // by this daemon
	Resumable  bool         `json:"resumable,omitzero"`  // the daemon has its session: it outlives its process
	AuditUntil time.Time    `json:"auditUntil,omitzero"` // in the future: the mount refuses nothing until then
	Records    int64        `json:"records,omitzero"`    // of the store, that a mount which starts has
	LastError  string       `json:"lastError,omitzero"`
	Report     *MountReport `json:"report,omitempty"`
}

// AuditEnd is when audit mode ends, by what the mount process says or was told; zero
// if the mount enforces.
func (m Mount) AuditEnd() time.Time {
	if m.Report != nil && m.Report.Mode == "audit" {
		return m.Report.AuditUntil
	}
	return m.AuditUntil
}

// MountReport is what a mount process says of itself every few seconds.
type MountReport struct {
	PID              int       `json:"pid"`
	Version          string    `json:"version,omitzero"`          // of the program that serves
	Protocol         string    `json:"protocol,omitzero"`         // which it speaks with the daemon
	Mode             string    `json:"mode,omitzero"`             // enforce, audit
	AuditUntil       time.Time `json:"auditUntil,omitzero"`       // when audit mode ends
	Tier             string    `json:"tier"`                      // the best that a file of it can have: blocks, sealed, verity
	TierReason       string    `json:"tierReason,omitzero"`       // why it is not a better one
	Seal             string    `json:"seal,omitzero"`             // how it was told to seal: reflink, copy, off
	Private          int64     `json:"private,omitzero"`          // private files, now
	PrivateBytes     int64     `json:"privateBytes,omitzero"`     // of them
	Unsealed         int64     `json:"unsealed,omitzero"`         // contents served in tier blocks because sealing failed
	PreverifyPending int64     `json:"preverifyPending,omitzero"` // files that are to be measured ahead, now
	Generation       uint64    `json:"generation"`                // how far it follows the store: the Extent of the last line that it has applied; 0: it does not
	Stale            bool      `json:"stale"`                     // not connected to the daemon's stream
	// MaxDaemonAgeSeconds is how long the daemon may have been silent for files to
	// open; 0: no bound.
	MaxDaemonAgeSeconds int64            `json:"maxDaemonAgeSeconds,omitzero"`
	OldKeys             bool             `json:"oldKeys,omitzero"` // the policy names other keys or rules than it goes by
	At                  time.Time        `json:"at"`
	Counters            map[string]int64 `json:"counters,omitempty"`
}

func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// StoreLine is a line of the answer to a check of the store: how far it is, what it
// found, or, as the last one, what it looked at or why it ended.
type StoreLine struct {
	Rows    int               `json:"rows,omitzero"`
	Finding *capstore.Finding `json:"finding,omitempty"`
	Checked *capstore.Checked `json:"checked,omitempty"`
	Error   string            `json:"error,omitzero"`
}

// CheckStore hands each line of a check of the daemon's store to each. If want is
// not zero, the store is to contain that head, and the last line says whether.
func (c *Client) CheckStore(ctx context.Context, want capstore.Head, each func(StoreLine) error) error {
	path := "/v1/store/check"
	if !want.IsZero() {
		text, err := json.Marshal(want)
		if err != nil {
			return err
		}
		path += "?head=" + url.QueryEscape(string(text))
	}
	return c.stream(ctx, path, func(line []byte) error {
		var l StoreLine
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("check of the store: %w", err)
		}
		return each(l)
	})
}

// StoreRecords hands everything that a backup has of the daemon's store to each, and
// then a snapshot line.
func (c *Client) StoreRecords(ctx context.Context, each func(ViewLine) error) error {
	return c.stream(ctx, "/v1/store/records", func(line []byte) error {
		var l ViewLine
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("records of the store: %w", err)
		}
		return each(l)
	})
}

// OpenStore lets a daemon without a store try to open it now, and returns after that.
func (c *Client) OpenStore(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodPost, "/v1/store/open", struct{}{}, &s)
}

func (c *Client) Jobs(ctx context.Context) (l []capstore.Job, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/jobs", nil, &l)
}

func (c *Client) Submit(ctx context.Context, s Submission) (j capstore.Job, err error) {
	return j, c.do(ctx, http.MethodPost, "/v1/jobs", s, &j)
}

func (c *Client) Job(ctx context.Context, id string) (j capstore.Job, err error) {
	return j, c.do(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(id), nil, &j)
}

func (c *Client) Cancel(ctx context.Context, id string) (j capstore.Job, err error) {
	return j, c.do(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(id)+"/cancel", nil, &j)
}

// SetPriority changes the priority of a job that has not started.
func (c *Client) SetPriority(ctx context.Context, id string, priority int) (j capstore.Job, err error) {
	return j, c.do(ctx, http.MethodPost, "/v1/jobs/"+url.PathEscape(id)+"/priority", Priority{priority}, &j)
}

// JobLog copies the text of a job's log to w, until the job has ended if
// follow is set.
func (c *Client) JobLog(ctx context.Context, id string, follow bool, w io.Writer) error {
	r, err := c.open(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(id)+"/log"+followQuery(follow), nil)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("reading the log of job %s: %w", id, err)
	}
	return nil
}

// JobRecord returns what the worker signed about a job that has ended.
func (c *Client) JobRecord(ctx context.Context, id string) (envelope []byte, err error) {
	var e Envelope
	err = c.do(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(id)+"/record", nil, &e)
	return e.Envelope, err
}

// JobEvents hands each line of the worker's progress to each until the job has
// ended. The daemon passes the lines on as the worker wrote them.
func (c *Client) JobEvents(ctx context.Context, id string, each func(line []byte) error) error {
	return c.stream(ctx, "/v1/jobs/"+url.PathEscape(id)+"/events"+followQuery(true), func(line []byte) error {
		if len(line) == 0 {
			return nil // a heartbeat
		}
		return each(line)
	})
}

func followQuery(follow bool) string {
	if follow {
		return "?follow=1"
	}
	return ""
}

func (c *Client) Capabilities(ctx context.Context) (l []Capability, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/capabilities", nil, &l)
}

// LoggedCapabilities is Capabilities with Logged, for which the daemon reads the
// rows of all jobs.
func (c *Client) LoggedCapabilities(ctx context.Context) (l []Capability, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/capabilities?logged=1", nil, &l)
}

func (c *Client) Revocations(ctx context.Context) (l []Revocation, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/revocations", nil, &l)
}

// Revoke returns after the revocation is on stable storage.
func (c *Client) Revoke(ctx context.Context, envelope []byte) (r Revocation, err error) {
	return r, c.do(ctx, http.MethodPost, "/v1/revocations", Envelope{envelope}, &r)
}

// SubmitRecord returns after the record is on stable storage. A record that the
// daemon refuses is an *Error with status 403.
func (c *Client) SubmitRecord(ctx context.Context, r RecordSubmission) (a RecordAnswer, err error) {
	return a, c.do(ctx, http.MethodPost, "/v1/records", r, &a)
}

// Records returns the records that the daemon holds now, revocations first.
func (c *Client) Records(ctx context.Context) (l []capstore.Record, err error) {
	whole := errors.New("whole")
	err = c.View(ctx, func(v ViewLine) error {
		switch v.Kind {
		case LineHeartbeat:
		case LineSnapshot:
			return whole
		default:
			l = append(l, capstore.Record(v))
		}
		return nil
	})
	switch {
	case errors.Is(err, whole):
		return l, nil
	case err == nil:
		err = errors.New("the daemon's stream ended before it was whole")
	}
	return nil, err
}

// Lists returns the revocation lists that no later one repeats whole, the one in
// force last.
func (c *Client) Lists(ctx context.Context) (l []List, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/revocation-lists", nil, &l)
}

// Affected asks what would change if something were taken back.
func (c *Client) Affected(ctx context.Context, r AffectedRequest) (a Affected, err error) {
	return a, c.do(ctx, http.MethodPost, "/v1/affected", r, &a)
}

// View hands each line of the view stream to each, until the stream breaks or
// each returns an error. Members that this version does not know are left
// alone: a mount process may be older than the daemon, and what counts is
// signed.
func (c *Client) View(ctx context.Context, each func(ViewLine) error) error {
	return c.stream(ctx, "/v1/view", func(line []byte) error {
		var l ViewLine
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("view stream: %w", err)
		}
		return each(l)
	})
}

func (c *Client) Mounts(ctx context.Context) (l []Mount, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/mounts", nil, &l)
}

// Mount returns when the mount process serves, or with the reason why not. If that
// takes long, the state is "starting", and Mounts tells how it goes on.
func (c *Client) Mount(ctx context.Context, r MountRequest) (m Mount, err error) {
	return m, c.do(ctx, http.MethodPost, "/v1/mounts", r, &m)
}

func (c *Client) Report(ctx context.Context, id string, r MountReport) error {
	return c.do(ctx, http.MethodPost, "/v1/mounts/"+url.PathEscape(id)+"/report", r, nil)
}
