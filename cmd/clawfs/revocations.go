package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newRevocationsCommand(a *app) *cobra.Command {
	return group("revocations", "Show what is taken back, and sign and fetch the fleet's list of it",
		`A revocation that is withheld is not missed. A revocation list has a sequence
number and an end: it says that at a time nothing else was taken back. A machine
whose policy asks for a list of some age (maxListAgeSeconds) opens no file of those
models without one, so that it notices when it is cut off.

What one list took back stays so, whether or not a later list names it.`,
		newRevocationsListCommand(a), newRevocationsIssueCommand(a), newRevocationsImportCommand(a))
}

// inForce is what `revocations list` reports.
type inForce struct {
	Revocations []control.Revocation `json:"revocations"`
	Lists       []control.List       `json:"lists"`
}

func newRevocationsListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show what is taken back, and by which list",
		Long: `list shows everything that is in force: what was revoked alone, and what a list
names. LIST is the newest list with it. Below stand the newest list, and until when
files open under it, for each rule of the policy that asks for one.`,
		Example: "  clawfs revocations list\n  clawfs revocations list -o json | jq .lists[-1].sequence",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var v inForce
			var err error
			if v.Revocations, err = a.client().Revocations(c.Context()); err != nil {
				return a.answered(err)
			}
			if v.Lists, err = a.client().Lists(c.Context()); err != nil {
				return a.answered(err)
			}
			return a.print(v, func() { a.showInForce(v, time.Now()) })
		},
	}
}

func (a *app) showInForce(v inForce, now time.Time) {
	var rows [][]string
	for _, r := range v.Revocations {
		list := "-"
		if r.List > 0 {
			list = strconv.FormatInt(r.List, 10)
		}
		rows = append(rows, []string{string(r.Kind), r.Target, stamp(r.IssuedAt), r.Operator, list, r.Reason})
	}
	a.table([]string{"KIND", "TARGET", "ISSUED", "BY", "LIST", "REASON"}, rows)
	if len(v.Lists) == 0 {
		a.printf("no revocation list; next: %s\n", a.command("revocations", "issue"))
		return
	}
	l := v.Lists[len(v.Lists)-1]
	a.printf("list %d by %s, issued %s, %d entries, ends %s\n", l.Sequence, printable(l.Operator), stamp(l.IssuedAt), l.Entries, stamp(l.ValidUntil))
	for _, s := range l.Serves {
		over := ""
		if !now.Before(s.Until) {
			over = ": STALE, nothing of them opens"
		}
		a.printf("  %s: at most %v old, serves until %s%s\n", printable(strings.Join(s.Models, ", ")), time.Duration(s.MaxAgeSeconds)*time.Second, stamp(s.Until), over)
	}
}

// issued is what `revocations issue` reports.
type issued struct {
	ID         hashpipe.Digest `json:"id"`
	Sequence   int64           `json:"sequence"`
	Entries    int             `json:"entries"`
	IssuedAt   time.Time       `json:"issuedAt"`
	ValidUntil time.Time       `json:"validUntil"`
	File       string          `json:"file,omitzero"`
}

func newRevocationsIssueCommand(a *app) *cobra.Command {
	var valid, out, keyRef string
	c := &cobra.Command{
		Use:   "issue",
		Short: "Sign the next revocation list",
		Long: `issue signs the next list: one more than the highest sequence that was seen here,
with everything that is in force, single revocations and earlier lists alike. It
signs with the revocation key, here and not in the daemon, brings the list into
force here, and with --out writes it to a file for the other machines.

What it signs it has checked itself, by the keys of the policy.`,
		Example: `  clawfs revocations issue
  clawfs revocations issue --valid 30d --out fleet.revocations`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			life, err := parseLife(valid)
			if err != nil {
				return exitf(codeUsage, "--valid %q: %w", valid, err)
			}
			if keyRef == "" {
				keyRef = "file:" + a.config().RevokeKey()
			}
			return a.issueList(c.Context(), life, keyRef, out)
		},
	}
	f := c.Flags()
	f.StringVar(&valid, "valid", "7d", "`time` that the list serves at most, such as 36h or 7d")
	f.StringVar(&out, "out", "", "write the signed list to this `file`, - for standard output")
	f.StringVar(&keyRef, "key", "", keyHelp+" (default revoke.key in the state directory)")
	return c
}

// parseLife reads a duration of Go's, or whole days.
func parseLife(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 1 || n > 3660 {
			return 0, fmt.Errorf("want 1d to 3660d, or a time such as 36h")
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("want a time of at least 1s, such as 36h, or days such as 7d")
	}
	return d, nil
}

func (a *app) issueList(ctx context.Context, life time.Duration, keyRef, out string) error {
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	view, err := a.known(ctx, c)
	if err != nil {
		return err
	}
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return err
	}
	seen, err := newestListSeen(memory.Dir(a.config().Memory()), policy.Trust().Revokers)
	if err != nil {
		return err
	}
	key, err := a.openRevoker(ctx, keyRef)
	if err != nil {
		return err
	}
	st, err := nextList(view, max(seen, view.List().Sequence())+1, time.Now(), life, key.Public().ID())
	if err != nil {
		return err
	}
	envelope, err := capstore.SignListContext(ctx, st, key)
	if err != nil {
		return signed(err)
	}
	v := issued{Sequence: st.Predicate.Sequence, Entries: len(st.Predicate.Revoked), IssuedAt: st.Predicate.IssuedAt, ValidUntil: st.Predicate.ValidUntil, File: out}
	answer, err := c.SubmitRecord(ctx, control.RecordSubmission{Kind: capstore.RecordList, Envelope: envelope})
	if err == nil && answer.Reason != "" {
		err = exitf(codeRefused, "%s", answer.Reason)
	}
	if err != nil {
		return a.answered(err)
	}
	v.ID = answer.ID
	late := a.awaitMounts(ctx, c)
	if out != "" {
		if err := a.writeResult(out, envelope); err != nil || out == "-" {
			return err
		}
	}
	return a.print(v, func() {
		a.printf("revocation list %d is in force: %d entries, until %s\n", v.Sequence, v.Entries, stamp(v.ValidUntil))
		a.tellLate(late)
		if out != "" {
			a.notef("next, on each other machine: clawfs revocations import %s\n", shellWord(out))
		}
	})
}

// nextList lays out a list of everything that is in force. If it would be too long,
// the reasons are cut, whose whole texts stand in the single revocations.
func nextList(view *capstore.View, sequence int64, now time.Time, life time.Duration, revoker dsse.KeyID) (capstore.ListStatement, error) {
	for _, most := range []int{1024, 256, 100} {
		var entries []capstore.ListEntry
		for _, r := range view.InForce() {
			e := capstore.EntryOf(r)
			if len(e.Reason) > most {
				e.Reason = strings.TrimSpace(strings.ToValidUTF8(e.Reason[:most-len("…")], "")) + "…"
			}
			entries = append(entries, e)
		}
		st, err := capstore.NewList(sequence, now, now.Add(life), entries)
		if err != nil {
			return st, err
		}
		st.Predicate.Revoker.KeyID = revoker
		payload, err := st.Payload()
		if err != nil {
			return st, err
		}
		// Base64, and the signature beside it.
		if len(payload)/3*4+4096 <= capstore.MaxRecord {
			return st, nil
		}
	}
	return capstore.ListStatement{}, fmt.Errorf("a list of the %d things that are in force is longer than %d bytes", len(view.InForce()), capstore.MaxRecord)
}

func (a *app) tellLate(mounts []string) {
	for _, m := range mounts {
		a.notef("the mount at %s has not confirmed it yet; next: %s\n", printable(m), a.command("status"))
	}
}

func newRevocationsImportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE...",
		Short: "Bring signed revocation lists, and single revocations, into force here",
		Long: `import hands signed revocation lists and single revocations to the daemon, which
checks each by the revokers of the policy. It returns after they are on stable
storage. A list that is older than the one in force is refused: what it says is
outgrown.

Exit code 3: an older list, or a file that is none. 4: no revoker of the policy
signed it.`,
		Example: "  clawfs revocations import fleet.revocations",
		Args:    cobra.MatchAll(cobra.MinimumNArgs(1), noEmptyPath),
		RunE: func(c *cobra.Command, args []string) error {
			records := make([]control.RecordSubmission, len(args))
			for i, path := range args {
				var err error
				if records[i], err = readRevocationFile(path); err != nil {
					return err
				}
			}
			client, err := a.daemon(c.Context())
			if err != nil {
				return err
			}
			done := []control.RecordAnswer{}
			for i, r := range records {
				answer, err := client.SubmitRecord(c.Context(), r)
				if err == nil && answer.Reason != "" {
					err = exitf(codeRefused, "%s", answer.Reason)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", args[i], a.answered(err))
				}
				done = append(done, answer)
			}
			late := a.awaitMounts(c.Context(), client)
			return a.print(done, func() {
				for i, d := range done {
					state := "in force"
					if d.Outcome == control.RecordKnown {
						state = "known already"
					}
					a.printf("%s: %s %.16s is %s\n", printable(args[i]), d.Kind, d.ID, state)
				}
				a.tellLate(late)
			})
		},
	}
}

// readRevocationFile tells a list from a single revocation by what it says it is;
// the daemon checks that.
func readRevocationFile(path string) (control.RecordSubmission, error) {
	text, err := readBounded(path, capstore.MaxRecord)
	if err != nil {
		return control.RecordSubmission{}, err
	}
	var head struct {
		PredicateType string `json:"predicateType"`
	}
	e, err := dsse.Parse(text)
	if err == nil {
		err = json.Unmarshal(e.UnverifiedPayload(), &head)
	}
	if err != nil {
		return control.RecordSubmission{}, exitf(codeRefused, "%s: want a signed revocation or revocation list: %w", path, notThat(err, text, anyFile))
	}
	switch head.PredicateType {
	case capstore.ListType:
		return control.RecordSubmission{Kind: capstore.RecordList, Envelope: text}, nil
	case capstore.RevocationType:
		return control.RecordSubmission{Kind: capstore.RecordRevocation, Envelope: text}, nil
	}
	return control.RecordSubmission{}, exitf(codeRefused, "%s: want a signed revocation or revocation list, got a statement of type %.100q", path, head.PredicateType)
}

// shortest cuts a digest for a table.
func shortest(d hashpipe.Digest) string { return d.String()[:shortID] }
