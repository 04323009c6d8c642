package main

import (
	"context"
	"fmt"
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
		Long: `jobs lists the rebuilds that wait, run or ended in the last 90 days. The last column
says what a job waits for and until when, or why it did not grant.`,
		Example: "  clawfs jobs\n  clawfs jobs -o json | jq -r '.[] | select(.state==\"running\") | .id'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			jobs, err := a.client().Jobs(c.Context())
			if err != nil {
				return a.answered(err)
			}
			return a.print(jobs, func() {
				var rows [][]string
				for _, j := range jobs {
					rows = append(rows, []string{j.ID, string(j.State), strconv.Itoa(j.Priority), dash(string(j.Verdict)), j.Model, j.Version, stamp(j.CreatedAt), took(j), note(j)})
				}
				a.table([]string{"ID", "STATE", "PRIORITY", "VERDICT", "MODEL", "VERSION", "CREATED", "TOOK", "NOTE"}, rows)
			})
		},
	}
}

func newJobCommand(a *app) *cobra.Command {
	var logs, follow, cancel bool
	var priority int
	c := &cobra.Command{
		Use:   "job ID",
		Short: "Show one rebuild, its log, move it in the queue, or cancel it",
		Long: `job shows one rebuild: its verdict, the reason in one sentence, and what differed.
--logs prints what the build printed, -f until it has ended. --priority moves a job
that has not started. --cancel ends it; a cancelled job never grants.`,
		Example: `  clawfs job mnq5k2w7ra
  clawfs job mnq5k2w7ra --logs -f
  clawfs job mnq5k2w7ra --priority 5`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case follow && !logs:
				return exitf(codeUsage, "-f follows the log: give --logs too")
			case cancel && logs, c.Flags().Changed("priority") && (cancel || logs):
				return exitf(codeUsage, "--logs, --priority and --cancel are three commands")
			case capstore.CheckPriority(priority) != nil:
				return exitf(codeUsage, "--%w", capstore.CheckPriority(priority))
			case logs:
				return a.jobLog(c.Context(), args[0], follow)
			}
			ask := a.client().Job
			switch {
			case cancel:
				ask = a.client().Cancel
			case c.Flags().Changed("priority"):
				ask = func(ctx context.Context, id string) (capstore.Job, error) {
					return a.client().SetPriority(ctx, id, priority)
				}
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
	f.IntVar(&priority, "priority", 0, "from -10 to 10: give a waiting job another place in the queue")
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
		{"logged", dash(loggedText(j.Logged))},
		{"created", stamp(j.CreatedAt)},
		{"priority", strconv.Itoa(j.Priority)},
		{"attempts", strconv.Itoa(j.Attempts)},
		{"took", took(j)},
	}
	if only := j.Terms.Restrict.String(); only != "" {
		rows = append(rows, []string{"only", only})
	}
	if !j.Terms.NotAfter.IsZero() {
		rows = append(rows, []string{"not after", stamp(j.Terms.NotAfter)})
	}
	for _, id := range j.Terms.Delegate {
		rows = append(rows, []string{"delegate to", string(id)})
	}
	if j.Verdict.Granted() {
		rows = append(rows, []string{"capability", j.Capability.String()})
	}
	if !j.NotBefore.IsZero() {
		rows = append(rows, []string{"waiting", "until " + stamp(j.NotBefore)})
	}
	if j.Reason != "" {
		rows = append(rows, []string{"reason", oneLine(j.Reason)})
	}
	a.table([]string{"job", j.ID}, rows)
	if j.Diagnosis != "" {
		a.printf("\n%s\n", printableLines(strings.TrimRight(j.Diagnosis, "\n")))
	}
}

// loggedText says where an attestation lies; empty: in no log that was looked at.
func loggedText(l capstore.Logged) string {
	if l.IsZero() {
		return ""
	}
	return fmt.Sprintf("in %s at index %d", l.Origin, l.Index)
}

// printableLines is printable for a text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// maxNote bounds the last column of a list in characters; job ID shows all.
const maxNote = 100

// note says what a job waits for, or why it did not grant.
func note(j capstore.Job) string {
	text := oneLine(j.Reason)
	if !j.NotBefore.IsZero() {
		text = waiting(j)
	}
	return clipped(text, maxNote)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// waiting says of a job with a time before which it does not run until when it
// waits, and why.
func waiting(j capstore.Job) string {
	return "waiting until " + stamp(j.NotBefore) + ": " + oneLine(j.Reason)
}

// took is how long a job has been running, or ran. One that is to run again
// does neither.
func took(j capstore.Job) string {
	switch {
	case j.StartedAt.IsZero(), j.State == capstore.JobPending:
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
