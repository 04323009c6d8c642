package metrics

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

var until = time.Date(2027, 3, 4, 5, 6, 7, 500e6, time.UTC)

func full() Seen {
	return Seen{
		Daemon: &control.Status{
			Version: "v1", StartedAt: until.Add(-time.Hour), Revocations: 7, Jobs: map[string]int{"MINTED": 2, "BUILDING": 1},
			Capabilities: control.Counts{Live: 3, Revoked: 4, Disputed: 1}, Rejected: []control.Rejected{{Key: "k", Reason: "r"}},
			Resources: control.Resources{ResidentBytes: 1 << 20, Descriptors: 11, Connections: 2},
		},
		Mounts: []control.Mount{
			{Mountpoint: "/models", State: "live", Restarts: 2, Resumable: true, Report: &control.MountReport{
				Mode: "audit", AuditUntil: until, Tier: "sealed", Seal: "reflink", Version: "v1", At: until, Private: 5, PrivateBytes: 6, PreverifyPending: 8, Unsealed: 9,
				Counters: map[string]int64{"granted": 10, "refused": 20, "auditServed": 30, "errors": 40, "auditDropped": 50, "auditLost": 60, "hashedBytes": 1 << 40, "lateMismatches": 0, "panics": 0},
			}},
			{Mountpoint: "/dead\xff\n", State: "dead"},
		},
		Warnings: 3,
	}
}

// text is what a scrape of s prints, line by line, without comments.
func text(t *testing.T, s Seen) map[string]string {
	t.Helper()
	families, err := Registry(func() (Seen, error) { return s, nil }).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	samples := make(map[string]string)
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "#") {
			i := strings.LastIndex(line, " ")
			samples[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return samples
}

func TestMetrics(t *testing.T) {
	got := text(t, full())
	for name, want := range map[string]string{
		`clawfs_up`:                             "1",
		`clawfs_warnings`:                       "3",
		`clawfs_build_info{version="v1"}`:       "1",
		`clawfs_start_time_seconds`:             "1.8041331675e+09",
		`clawfs_store_open`:                     "1",
		`clawfs_resident_memory_bytes`:          "1.048576e+06",
		`clawfs_open_descriptors`:               "11",
		`clawfs_connections`:                    "2",
		`clawfs_capabilities{state="live"}`:     "3",
		`clawfs_capabilities{state="expired"}`:  "0",
		`clawfs_capabilities{state="revoked"}`:  "4",
		`clawfs_capabilities{state="disputed"}`: "1",
		`clawfs_revocations`:                    "7",
		`clawfs_rejected_rows`:                  "1",
		`clawfs_jobs{state="MINTED"}`:           "2",
		`clawfs_jobs{state="BUILDING"}`:         "1",

		`clawfs_mount_resumable{mount="/models"}`:                                                   "1",
		`clawfs_mount_live{mount="/models"}`:                                                        "1",
		`clawfs_mount_audit_mode{mount="/models"}`:                                                  "1",
		`clawfs_mount_audit_until_seconds{mount="/models"}`:                                         "1.8041367675e+09",
		`clawfs_mount_restarts_total{mount="/models"}`:                                              "2",
		`clawfs_mount_info{mode="audit",mount="/models",seal="reflink",tier="sealed",version="v1"}`: "1",
		`clawfs_mount_connected{mount="/models"}`:                                                   "1",
		`clawfs_mount_private_files{mount="/models"}`:                                               "5",
		`clawfs_mount_private_bytes{mount="/models"}`:                                               "6",
		`clawfs_mount_preverify_pending{mount="/models"}`:                                           "8",
		`clawfs_unsealed_files_total{mount="/models"}`:                                              "9",
		`clawfs_opens_total{mount="/models",result="granted"}`:                                      "10",
		`clawfs_opens_total{mount="/models",result="refused"}`:                                      "20",
		`clawfs_opens_total{mount="/models",result="audited"}`:                                      "30",
		`clawfs_opens_total{mount="/models",result="error"}`:                                        "40",
		`clawfs_audit_records_lost_total{mount="/models",why="busy"}`:                               "50",
		`clawfs_audit_records_lost_total{mount="/models",why="disk"}`:                               "60",
		`clawfs_verified_bytes_total{mount="/models"}`:                                              "1.099511627776e+12",

		"clawfs_mount_live{mount=\"/dead\uFFFD\\n\"}":                "0",
		"clawfs_mount_audit_mode{mount=\"/dead\uFFFD\\n\"}":          "0",
		"clawfs_mount_audit_until_seconds{mount=\"/dead\uFFFD\\n\"}": "0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
	// Nobody reported of a mount that is dead.
	for name := range got {
		if strings.Contains(name, "/dead") && !regexp.MustCompile(`^clawfs_mount_(live|resumable|audit_mode|audit_until_seconds|restarts_total)`).MatchString(name) {
			t.Errorf("%s: want no sample", name)
		}
	}
}

// What is not known is not zero.
func TestUnknownHasNoSample(t *testing.T) {
	stricken, gone, older := full(), full(), full()
	delete(older.Mounts[0].Report.Counters, "auditServed")
	delete(older.Mounts[0].Report.Counters, "lateMismatches")
	stricken.Daemon.Store = &control.StoreTrouble{Cause: "damaged"}
	gone.Daemon = nil
	for name, test := range map[string]struct {
		seen    Seen
		want    map[string]string
		without []string
	}{
		"without the store": {stricken, map[string]string{"clawfs_up": "1", "clawfs_store_open": "0"}, []string{"clawfs_capabilities", "clawfs_revocations", "clawfs_jobs", "clawfs_rejected_rows"}},
		"of an older mount": {older, map[string]string{`clawfs_opens_total{mount="/models",result="refused"}`: "20"}, []string{`clawfs_opens_total{mount="/models",result="audited"`, "clawfs_late_mismatches_total", "clawfs_quarantined_files"}},
		"without a daemon":  {gone, map[string]string{"clawfs_up": "0"}, []string{"clawfs_store_open", "clawfs_build_info", "clawfs_capabilities", "clawfs_revocations", "clawfs_jobs", "clawfs_rejected_rows"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := text(t, test.seen)
			test.want[`clawfs_mount_audit_mode{mount="/models"}`] = "1"
			for name, want := range test.want {
				if got[name] != want {
					t.Errorf("%s is %q, want %s", name, got[name], want)
				}
			}
			for _, name := range slices.Sorted(maps.Keys(got)) {
				for _, unknown := range test.without {
					if strings.HasPrefix(name, unknown) {
						t.Errorf("%s: want no sample", name)
					}
				}
			}
		})
	}
}

func TestFailedLook(t *testing.T) {
	r := Registry(func() (Seen, error) { return full(), errors.New("permission denied") })
	if got, err := r.Gather(); err == nil || !strings.Contains(err.Error(), "permission denied") || len(got) != 0 {
		t.Errorf("%d families, %v, want none and the error", len(got), err)
	}
}

// The rules for alerts ask for metrics and labels that are there.
func TestAlertsNameMetrics(t *testing.T) {
	families, err := Registry(func() (Seen, error) { return full(), nil }).Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) != 0 {
		t.Errorf("names: %v, %v", problems, err)
	}
	rules, err := os.ReadFile("../../../../deploy/clawfs-alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for name := range text(t, full()) {
		name, labels, _ := strings.Cut(name, "{")
		known[name] = true
		for _, label := range regexp.MustCompile(`\w+="\w+"`).FindAllString(labels, -1) {
			known[name+"{"+label] = true
		}
	}
	found := 0
	for _, expr := range regexp.MustCompile(`(?m)^ +expr: (.*)$`).FindAllStringSubmatch(string(rules), -1) {
		for _, m := range regexp.MustCompile(`(clawfs_\w+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(expr[1], -1) {
			found++
			if !known[m[1]] {
				t.Errorf("%s: no such metric", m[1])
			}
			if m[2] != "" && !known[m[1]+"{"+m[2]] {
				t.Errorf("%s{%s}: no such sample", m[1], m[2])
			}
		}
	}
	// A daemon that hangs has no samples, and every other rule would be silent.
	if !strings.Contains(string(rules), " unless clawfs_up\n") {
		t.Error("no rule for an instance whose samples have gone")
	}
	if found < 8 {
		t.Errorf("%d metrics in the rules, want at least 8", found)
	}
}
