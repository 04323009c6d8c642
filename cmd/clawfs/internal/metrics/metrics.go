// Package metrics tells what clawfs status shows in the terms of Prometheus. What
// is not known has no sample: a daemon without its store does not tell of zero
// capabilities.
package metrics

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// Seen is what one look at a state directory found.
type Seen struct {
	Daemon   *control.Status // nil: no daemon answers
	Mounts   []control.Mount
	Warnings int // as many as status prints
}

// Registry has the metrics of what look finds, which is asked for each gathering. An
// error of look is the gathering's.
func Registry(look func() (Seen, error)) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(collector{look})
	return r
}

type collector struct{ look func() (Seen, error) }

// family is a metric, and where its samples come from.
type family[T any] struct {
	desc    *prometheus.Desc
	kind    prometheus.ValueType
	samples func(T) []sample
}

type sample struct {
	value  float64
	labels []string // as the description has them; of a mount, those after the mount
}

const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue

// one is a family that has one sample, and no labels of its own.
func one[T any](v func(T) float64) func(T) []sample {
	return func(t T) []sample { return []sample{{value: v(t)}} }
}

// by is a family of counts, with one label.
func by[T any](counts func(T) map[string]int) func(T) []sample {
	return func(t T) (list []sample) {
		m := counts(t)
		for _, k := range slices.Sorted(maps.Keys(m)) {
			list = append(list, sample{float64(m[k]), []string{k}})
		}
		return list
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is a point in time as Prometheus has it; zero for none.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1e3
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("clawfs_"+name, help, labels, nil)
}

// ofMount is desc for what there is of each mount.
func ofMount(name, help string, labels ...string) *prometheus.Desc {
	return desc(name, help, append([]string{"mount"}, labels...)...)
}

var ofAny = []family[Seen]{
	{desc("up", "Whether a daemon answers for the state directory."), gauge,
		one(func(s Seen) float64 { return truth(s.Daemon != nil) })},
	{desc("warnings", "Warnings that clawfs status prints now."), gauge,
		one(func(s Seen) float64 { return float64(s.Warnings) })},
}

var ofDaemon = []family[control.Status]{
	{desc("build_info", "The daemon's version.", "version"), gauge,
		func(s control.Status) []sample { return []sample{{1, []string{s.Version}}} }},
	{desc("start_time_seconds", "When the daemon started, in seconds since 1970."), gauge,
		one(func(s control.Status) float64 { return seconds(s.StartedAt) })},
	{desc("store_open", "Whether the daemon has its store; without it nothing new is granted."), gauge,
		one(func(s control.Status) float64 { return truth(s.Store == nil) })},
	{desc("resident_memory_bytes", "Memory of the daemon."), gauge,
		one(func(s control.Status) float64 { return float64(s.Resources.ResidentBytes) })},
	{desc("open_descriptors", "Open descriptors of the daemon."), gauge,
		one(func(s control.Status) float64 { return float64(s.Resources.Descriptors) })},
	{desc("connections", "Connections at the daemon's socket."), gauge,
		one(func(s control.Status) float64 { return float64(s.Resources.Connections) })},
}

var ofStore = []family[control.Status]{
	{desc("capabilities", "Capabilities by what they are good for now.", "state"), gauge,
		by(func(s control.Status) map[string]int {
			c := s.Capabilities
			return map[string]int{"live": c.Live, "expired": c.Expired, "revoked": c.Revoked, "waiting": c.Waiting, "disputed": c.Disputed, "stale": c.Stale}
		})},
	{desc("revocations", "Revocations that the daemon goes by."), gauge,
		one(func(s control.Status) float64 { return float64(s.Revocations) })},
	{desc("rejected_rows", "Rows of the store that do not verify and grant nothing."), gauge,
		one(func(s control.Status) float64 { return float64(len(s.Rejected)) })},
	{desc("jobs", "Rebuilds by state.", "state"), gauge,
		by(func(s control.Status) map[string]int { return s.Jobs })},
}

var ofMounts = []family[control.Mount]{
	{ofMount("mount_live", "Whether a process serves the mount."), gauge,
		one(func(m control.Mount) float64 { return truth(m.State == "live") })},
	{ofMount("mount_resumable", "Whether what is open outlives the mount's process."), gauge,
		one(func(m control.Mount) float64 { return truth(m.Resumable) })},
	{ofMount("mount_audit_mode", "Whether the mount serves what the rules refuse."), gauge,
		one(func(m control.Mount) float64 { return truth(!m.AuditEnd().IsZero()) })},
	{ofMount("mount_audit_until_seconds", "When audit mode ends, in seconds since 1970; 0: it is off."), gauge,
		one(func(m control.Mount) float64 { return seconds(m.AuditEnd()) })},
	{ofMount("mount_restarts_total", "How often this daemon started the mount's process again."), counter,
		one(func(m control.Mount) float64 { return float64(m.Restarts) })},
}

// ofReport is what a mount process says itself.
var ofReport = []family[control.MountReport]{
	{ofMount("mount_info", "How the mount serves.", "mode", "tier", "seal", "version"), gauge,
		func(r control.MountReport) []sample {
			return []sample{{1, []string{r.Mode, r.Tier, r.Seal, r.Version}}}
		}},
	{ofMount("mount_connected", "Whether the mount hears of revocations from the daemon."), gauge,
		one(func(r control.MountReport) float64 { return truth(!r.Stale) })},
	{ofMount("mount_report_time_seconds", "When the mount's process last told of itself, in seconds since 1970."), gauge,
		one(func(r control.MountReport) float64 { return seconds(r.At) })},
	{ofMount("mount_private_files", "Private files that the kernel serves."), gauge,
		one(func(r control.MountReport) float64 { return float64(r.Private) })},
	{ofMount("mount_private_bytes", "Size of the private files."), gauge,
		one(func(r control.MountReport) float64 { return float64(r.PrivateBytes) })},
	{ofMount("mount_preverify_pending", "Files that are to be verified ahead of an open."), gauge,
		one(func(r control.MountReport) float64 { return float64(r.PreverifyPending) })},
	{ofMount("unsealed_files_total", "Contents that could not be sealed and are served in tier blocks."), counter,
		one(func(r control.MountReport) float64 { return float64(r.Unsealed) })},
	{ofMount("opens_total", "Opens by how they ended; audited ones were served and would have been refused.", "result"), counter,
		by(counts(map[string]string{"granted": "granted", "refused": "refused", "audited": "auditServed", "error": "errors"}))},
	{ofMount("verified_files_total", "Whole files that were hashed."), counter, count("hashed")},
	{ofMount("verified_bytes_total", "Bytes of the whole files that were hashed."), counter, count("hashedBytes")},
	{ofMount("verifying_files", "Files that are being hashed or wait for it."), gauge, count("verifying")},
	{ofMount("checked_units_total", "Units that were hashed for a read."), counter, count("unitsChecked")},
	{ofMount("late_mismatches_total", "Units that were no longer what open had approved."), counter, count("lateMismatches")},
	{ofMount("quarantined_files", "Source files that are refused since a late mismatch."), gauge, count("quarantined")},
	{ofMount("revoked_handles_total", "Open files that a revocation cut off."), counter, count("revoked")},
	{ofMount("held_handles", "Open files of revoked contents that the kernel goes on serving."), gauge, count("held")},
	{ofMount("open_handles", "Open files."), gauge, count("handles")},
	{ofMount("panics_total", "Requests that were answered with an error because of a defect of clawfs."), counter, count("panics")},
	{ofMount("audit_records_lost_total", "Decisions that are not in the mount's log, by why.", "why"), counter,
		by(counts(map[string]string{"busy": "auditDropped", "disk": "auditLost"}))},
}

// count is a counter of a report by its name there. A mount process of an older
// version than the daemon does not tell of all of them.
func count(name string) func(control.MountReport) []sample {
	return func(r control.MountReport) []sample {
		n, known := r.Counters[name]
		if !known {
			return nil
		}
		return []sample{{value: float64(n)}}
	}
}

// counts are some counters of a report, by the value of a label.
func counts(names map[string]string) func(control.MountReport) map[string]int {
	return func(r control.MountReport) map[string]int {
		m := make(map[string]int)
		for label, name := range names {
			if n, known := r.Counters[name]; known {
				m[label] = int(n)
			}
		}
		return m
	}
}

func describe[T any](ch chan<- *prometheus.Desc, list []family[T]) {
	for _, f := range list {
		ch <- f.desc
	}
}

func collect[T any](ch chan<- prometheus.Metric, list []family[T], from T, labels ...string) {
	for _, f := range list {
		for _, s := range f.samples(from) {
			values := slices.Concat(labels, s.labels)
			for i, v := range values {
				values[i] = strings.ToValidUTF8(v, "\uFFFD") // anything else is a panic there
			}
			ch <- prometheus.MustNewConstMetric(f.desc, f.kind, s.value, values...)
		}
	}
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, ofAny)
	describe(ch, ofDaemon)
	describe(ch, ofStore)
	describe(ch, ofMounts)
	describe(ch, ofReport)
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	seen, err := c.look()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(ofAny[0].desc, err)
		return
	}
	collect(ch, ofAny, seen)
	if s := seen.Daemon; s != nil {
		collect(ch, ofDaemon, *s)
		if s.Store == nil {
			collect(ch, ofStore, *s)
		}
	}
	for _, m := range seen.Mounts {
		collect(ch, ofMounts, m, m.Mountpoint)
		if m.Report != nil {
			collect(ch, ofReport, *m.Report, m.Mountpoint)
		}
	}
}
