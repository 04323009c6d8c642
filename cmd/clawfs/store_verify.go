package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

func newStoreVerifyCommand(a *app) *cobra.Command {
	var file, proof string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check everything that the store has",
		Long: `verify checks the authentication code of every row, the signature of every record
by the keys of the policy, that the chain of what was acknowledged leads to its head,
which is remembered outside of the store, and that the journal in kept has every
record. Each thing that is not so is a line. A running daemon checks its store
itself, and goes on working meanwhile.

Records that a key signed which the policy does not name any more are counted: they
grant and take back nothing. Nothing is changed.

With --head it says, too, whether the store contains that head: one of clawfs store
head, which was kept elsewhere, best in a log. If the whole state directory was put
back to an older copy, nothing else shows it. A mint or a revoker of the policy must
have signed it; where the policy has logs, its proof (clawfs log add) must be there.

Exit code 3: something was found, or FILE is no head, or its proof proves nothing.
4: FILE or its proof is not signed by a key of the policy.`,
		Example: `  clawfs store verify
  clawfs store verify --head /mnt/elsewhere/host7.head
  clawfs store verify -o json | jq -r '.findings[].where'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var want capstore.Head
			if file != "" {
				var err error
				if want, err = a.readHead(file, proof); err != nil {
					return err
				}
			} else if proof != "" {
				return exitf(codeUsage, "--proof is of the file of --head, and that was not given")
			}
			r, err := a.verifyStore(c.Context(), want)
			if err != nil {
				return err
			}
			if err := a.print(r, func() { a.showVerified(r) }); err != nil {
				return err
			}
			if r.Found > 0 {
				return &quietExit{codeRefused}
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "head", "", "signed head in `file` that the store has to contain")
	c.Flags().StringVar(&proof, "proof", "", "`file` with the proof that the head lies in a log (default FILE.tlog-proof, if there is one)")
	return c
}

// verified is the answer of `store verify`.
type verified struct {
	Store    string             `json:"store"`
	By       string             `json:"by"` // "the daemon", or "this process"
	Checked  capstore.Checked   `json:"checked"`
	Found    int                `json:"found"`
	Findings []capstore.Finding `json:"findings"`       // at most maxFindings
	Head     *capstore.Head     `json:"head,omitempty"` // that was to be contained
	Next     string             `json:"next,omitzero"`
}

const maxFindings = 200

func (a *app) verifyStore(ctx context.Context, want capstore.Head) (verified, error) {
	r := verified{Store: a.config().Store(), Findings: []capstore.Finding{}}
	if !want.IsZero() {
		r.Head = &want
	}
	bar := a.progress("checking the store")
	defer bar.done()
	whole := false
	each := func(l control.StoreLine) error {
		switch {
		case l.Error != "":
			return errors.New(l.Error)
		case l.Finding != nil:
			r.found(*l.Finding)
		case l.Checked != nil:
			r.Checked, whole = *l.Checked, true
		default:
			bar.rows(l.Rows)
		}
		return nil
	}
	s, err := a.client().Status(ctx)
	var gone *control.UnreachableError
	switch {
	case err == nil && s.Store == nil:
		r.By = "the daemon"
		err = a.answered(a.client().CheckStore(ctx, want, each))
	case err == nil || errors.As(err, &gone):
		if err := a.config().MakeRun(); err != nil {
			return r, err
		}
		r.By = "this process"
		text := []byte("null") // the zero Head, which has no text
		if !want.IsZero() {
			if text, err = json.Marshal(want); err != nil {
				return r, err
			}
		}
		err = a.child(ctx, []string{"check", string(text)}, func(out io.Reader) error {
			lines := bufio.NewScanner(out)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				var l control.StoreLine
				if err := json.Unmarshal(lines.Bytes(), &l, json.RejectUnknownMembers(true)); err != nil {
					return err
				}
				if err := each(l); err != nil {
					return err
				}
			}
			return lines.Err()
		})
		var died *trouble
		if errors.As(err, &died) {
			r.found(capstore.Finding{Where: r.Store, What: died.Error()})
			whole, err = true, nil
		}
	default:
		err = a.answered(err)
	}
	if err == nil && !whole {
		err = errors.New("the check ended before it was whole")
	}
	if err == nil && !want.IsZero() && !r.Checked.Head && r.Found == 0 {
		err = errors.New("the check did not compare the store with the head: the daemon is of another version; next: end it and start it again")
	}
	if r.Found > 0 {
		r.Next = a.command("store", "rebuild")
	}
	return r, err
}

func (r *verified) found(f capstore.Finding) {
	r.Found++
	if len(r.Findings) < maxFindings {
		r.Findings = append(r.Findings, f)
	}
}

func (a *app) showVerified(r verified) {
	c := r.Checked
	rows := [][]string{
		{"checked by", r.By},
		{"rows", strconv.Itoa(c.Rows)},
		{"facts", strconv.FormatUint(c.Facts, 10)},
		{"signed records", strconv.Itoa(c.Records)},
		{"of other keys", strconv.Itoa(c.Withdrawn)},
		{"jobs", strconv.Itoa(c.Jobs)},
		{"kept", fmt.Sprintf("%d records, %d waiting", c.Kept, c.Waiting)},
		{"findings", strconv.Itoa(r.Found)},
	}
	if h := r.Head; h != nil {
		contained := "NOT CONTAINED"
		if c.Head {
			contained = "contained"
		}
		rows = append(rows, []string{"head", fmt.Sprintf("fact %d of %s: %s", h.Sequence, stamp(h.Newest), contained)})
	}
	a.table([]string{"store", r.Store}, rows)
	for _, f := range r.Findings {
		a.printf("%s: %s\n", printable(f.Where), printable(f.What))
	}
	if more := r.Found - len(r.Findings); more > 0 {
		a.printf("and %d more\n", more)
	}
	if r.Next != "" {
		a.printf("next: %s, or %s FILE with a backup\n", r.Next, a.command("store", "restore"))
	}
}

// checkClosed is what the child of verify does.
func (a *app) checkClosed(ctx context.Context, head string) error {
	var want capstore.Head
	if err := json.Unmarshal([]byte(head), &want, json.RejectUnknownMembers(true)); err != nil {
		return exitf(codeUsage, "%q: want a head: %w", head, err)
	}
	s := a.config()
	policy, err := s.LoadPolicy()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(a.stdout)
	say := func(l control.StoreLine) error {
		b, err := json.Marshal(l)
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", b)
		}
		return err
	}
	checked, err := capstore.CheckClosed(ctx, s.Store(), s.Memory(), policy.Trust(), want,
		func(f capstore.Finding) {
			_ = say(control.StoreLine{Finding: &f})
			out.Flush() // Badger may end the process
		},
		func(rows int) {
			if rows%1000 == 0 {
				_ = say(control.StoreLine{Rows: rows})
			}
		})
	l := control.StoreLine{Checked: &checked}
	if err != nil {
		l = control.StoreLine{Error: err.Error()}
	}
	if err := say(l); err != nil {
		return err
	}
	return out.Flush()
}
