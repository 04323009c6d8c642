package main

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
)

func newMemoryCommand(a *app) *cobra.Command {
	return group("memory", "Show what was seen and must not be forgotten, or begin anew",
		`The state directory remembers, outside the store, the newest checkpoint of each
transparency log, and the highest sequence and time that were seen. So an older
log or list is noticed, and a log that shows two trees is refused from then on. A
memory that is missing or damaged refuses everything that has to be compared with
it.`,
		newMemoryShowCommand(a), newMemoryResetCommand(a))
}

// rememberedLog is a log as `memory show` reports it.
type rememberedLog struct {
	Origin string   `json:"origin"`
	Size   int64    `json:"size"`
	Root   string   `json:"root"`
	Forked bool     `json:"forked"`
	Notes  []string `json:"checkpoints,omitempty"` // of a log that forked: both, as they were signed
}

func newMemoryShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show [ORIGIN]",
		Short: "Show the newest that was seen",
		Long: `Shows the newest checkpoint that was seen of each log, or of the log ORIGIN, and
the numbers that only grow. Of a log that forked it prints both checkpoints, each
with its signatures: they prove to everybody that the log signed two trees.

Exit code 3: the log ORIGIN forked, or nothing was seen of it.`,
		Example: "  clawfs memory show\n  clawfs memory show log.example/models",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			d := memory.Dir(a.config().Memory())
			m, err := d.Logs()
			if err != nil {
				return err
			}
			numbers, err := d.Numbers()
			if err != nil {
				return err
			}
			logs := []rememberedLog{}
			for _, origin := range m.Origins() {
				if len(args) > 0 && origin != args[0] {
					continue
				}
				size, root, _ := m.Newest(origin)
				l := rememberedLog{Origin: origin, Size: size, Root: root.String()}
				var first, second []byte
				if first, second, l.Forked = m.Fork(origin); l.Forked {
					l.Notes = []string{string(first), string(second)}
				}
				logs = append(logs, l)
			}
			if len(args) > 0 && len(logs) == 0 {
				return exitf(codeRefused, "nothing was seen of log %q; next: %s", args[0], a.command("memory", "show"))
			}
			result := struct {
				Logs    []rememberedLog       `json:"logs"`
				Numbers map[memory.Kind]int64 `json:"numbers"`
			}{logs, numbers}
			if err := a.print(result, func() { a.showMemory(logs, numbers, len(args) == 0) }); err != nil {
				return err
			}
			if len(args) > 0 && logs[0].Forked {
				return &quietExit{codeRefused}
			}
			return nil
		},
	}
}

func (a *app) showMemory(logs []rememberedLog, numbers map[memory.Kind]int64, all bool) {
	var rows [][]string
	for _, l := range logs {
		note := "-"
		if l.Forked {
			note = "FORKED: refused"
		}
		rows = append(rows, []string{l.Origin, strconv.FormatInt(l.Size, 10), l.Root, note})
	}
	a.table([]string{"LOG", "SIZE", "ROOT", "NOTE"}, rows)
	for _, l := range logs {
		for i, text := range l.Notes {
			a.printf("\ncheckpoint %d of %s:\n%s\n", i+1, printable(l.Origin), printableLines(text))
		}
	}
	if !all {
		return
	}
	rows = nil
	for _, k := range slices.Sorted(maps.Keys(numbers)) {
		value := strconv.FormatInt(numbers[k], 10)
		if k == memory.Time {
			value = stamp(time.Unix(numbers[k], 0))
		}
		rows = append(rows, []string{string(k), value})
	}
	a.table([]string{"KIND", "NEWEST"}, rows)
}

func newMemoryResetCommand(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "reset --yes",
		Short: "Forget what was seen, and begin anew",
		Long: `Begins an empty memory. From then on the first checkpoint of each log is believed,
also an older one, or one of another tree; an older list is taken for a new one;
and a log that forked is used again. Do it when the memory is lost, and when you
know why. What was there is kept in the directory, under other names. The newest
revision of a signed policy is not forgotten.`,
		Example: "  clawfs memory show\n  clawfs memory reset --yes",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if !yes {
				return exitf(codeUsage, "this forgets every log and list that was seen, so that older ones are believed again; next, if that is what you want: %s", a.command("memory", "reset", "--yes"))
			}
			if err := a.config().Check(); err != nil {
				return err
			}
			kept, err := memory.Dir(a.config().Memory()).Reset(time.Now())
			if err != nil {
				return err
			}
			result := struct {
				Memory string   `json:"memory"`
				Kept   []string `json:"kept,omitempty"`
			}{a.config().Memory(), kept}
			return a.print(result, func() {
				a.printf("FORGOTTEN: the next checkpoint of each log, and the next list, are believed whatever was seen before\n")
				for _, path := range kept {
					a.printf("kept %s\n", printable(path))
				}
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "forget; there is no way back")
	return c
}
