package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
)

func newJobsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "jobs",
		Short: "List the rebuilds, oldest first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			jobs, err := a.client().Jobs(c.Context())
			if err != nil {
				return a.answered(err)
			}
			return a.print(jobs, func() {
				var rows [][]string
				for _, j := range jobs {
					rows = append(rows, []string{j.ID, string(j.State), dash(string(j.Verdict)), j.Model, j.Version, stamp(j.CreatedAt), took(j)})
				}
				a.table([]string{"ID", "STATE", "VERDICT", "MODEL", "VERSION", "CREATED", "TOOK"}, rows)
			})
		},
	}
}

func newJobCommand(a *app) *cobra.Command {
	var logs, follow, cancel bool
	c := &cobra.Command{
		Use:   "job ID",
		Short: "Show one rebuild, its log, or cancel it",
		Long: `job shows one rebuild: its verdict, the reason in one sentence, and what differed.
--logs prints what the build printed, -f until it has ended. --cancel ends it; a
cancelled job never grants.`,
		Example: `  clawfs job mnq5k2w7ra
  clawfs job mnq5k2w7ra --logs -f`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case follow && !logs:
				return exitf(codeUsage, "-f follows the log: give --logs too")
			case cancel && logs:
				return exitf(codeUsage, "--cancel and --logs are two commands")
			case logs:
				return a.jobLog(c.Context(), args[0], follow)
			}
			ask := a.client().Job
			if cancel {
				ask = a.client().Cancel
			}
			job, err := ask(c.Context(), args[0])
			if err != nil {
				return a.answered(err)
			}
			return a.print(job, func() { a.showJob(job) })
		},
	}
	f := c.Flags()
	f.BoolVar(&logs, "logs", false, "print the log of the build")
	f.BoolVarP(&follow, "follow", "f", false, "with --logs: go on until the job has ended")
	f.BoolVar(&cancel, "cancel", false, "end the job")
	return c
}

func (a *app) jobLog(ctx context.Context, id string, follow bool) error {
	if a.output == "json" {
		var b strings.Builder
		if err := a.client().JobLog(ctx, id, follow, &b); err != nil {
			return a.answered(err)
		}
		return a.print(struct {
			ID  string `json:"id"`
			Log string `json:"log"`
		}{id, strings.ToValidUTF8(b.String(), "\uFFFD")}, nil)
	}
	// The worker escaped it.
	return a.answered(a.client().JobLog(ctx, id, follow, a.stdout))
}

func (a *app) showJob(j capstore.Job) {
	rows := [][]string{
		{"state", string(j.State)},
		{"verdict", dash(string(j.Verdict))},
		{"model", j.Model + " " + j.Version},
		{"attestation", j.SBA.String()},
		{"created", stamp(j.CreatedAt)},
		{"attempts", strconv.Itoa(j.Attempts)},
		{"took", took(j)},
	}
	if j.Verdict.Granted() {
		rows = append(rows, []string{"capability", j.Capability.String()})
	}
	if j.Reason != "" {
		rows = append(rows, []string{"reason", j.Reason})
	}
	a.table([]string{"job", j.ID}, rows)
	if j.Diagnosis != "" {
		a.printf("\n%s\n", printableLines(strings.TrimRight(j.Diagnosis, "\n")))
	}
}

// printableLines is printable for a text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// took is how long a job has been running, or ran.
func took(j capstore.Job) string {
	switch {
	case j.StartedAt.IsZero():
		return "-"
	case j.FinishedAt.IsZero():
		return time.Since(j.StartedAt).Round(time.Second).String()
	}
	return j.FinishedAt.Sub(j.StartedAt).Round(100 * time.Millisecond).String()
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}
