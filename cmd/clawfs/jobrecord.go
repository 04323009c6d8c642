package main

import (
	"context"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// signedRecord is what `record` reports.
type signedRecord struct {
	Job     string           `json:"job"`
	Type    string           `json:"type"` // predicate type
	Verdict capstore.Verdict `json:"verdict"`
	Signer  dsse.KeyID       `json:"signer"`
	// Revoked is the revocation of the signer's key, if the daemon knows one:
	// whoever stole that key can have signed anything.
	Revoked   *control.Revocation `json:"revoked,omitempty"`
	Statement jsontext.Value      `json:"statement"` // the very bytes that were signed
}

func newRecordCommand(a *app) *cobra.Command {
	var out, file string
	c := &cobra.Command{
		Use:   "record JOB | --file FILE",
		Short: "Show or export what the worker signed about a rebuild",
		Long: `A worker signs what became of each job: SLSA Provenance v1 of one that minted,
with the outputs as subjects, the ledger's build definition as it was signed, each
stage's artifacts, and what the two builds varied; or a failure statement with the
verdict, the reason, and what differed. record checks the signature by the mints
of the policy, warns if that mint was revoked, and shows it. --out writes the signed envelope, a DSSE envelope that
other tools for in-toto read; --file shows one that was written before.

A record grants nothing. Exit code 3: there is none. 4: no mint of the policy
signed it. 6: the job has not ended.`,
		Example: `  clawfs record mnq5k2w7ra
  clawfs record mnq5k2w7ra --out langid.provenance.json
  clawfs record mnq5k2w7ra -o json | jq .statement.subject`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (file != "") {
				return exitf(codeUsage, "want a job's ID, or --file FILE")
			}
			envelope, err := a.recordEnvelope(c.Context(), args, file)
			if err != nil {
				return err
			}
			r, err := a.verifyRecord(envelope)
			if err != nil {
				return err
			}
			switch revocations, err := a.client().Revocations(c.Context()); {
			case err == nil:
				r.Revoked = revokedSigner(revocations, r.Signer)
			case file == "":
				return a.answered(err)
			default:
				a.notef("whether the key that signed it was revoked is not known: %v\n", a.answered(err))
			}
			if r.Revoked != nil {
				a.notef("WARNING: the mint key that signed this was revoked on %s: %s\n", r.Revoked.IssuedAt.Format(time.RFC3339), printable(r.Revoked.Reason))
			}
			if out != "" {
				if err := a.writeResult(out, envelope); err != nil || out == "-" {
					return err
				}
			}
			return a.print(r, func() { a.showRecord(r) })
		},
	}
	c.Flags().StringVar(&out, "out", "", "write the signed envelope to this `file`, - for standard output")
	c.Flags().StringVar(&file, "file", "", "show the record in this `file`")
	return c
}

func (a *app) recordEnvelope(ctx context.Context, args []string, file string) ([]byte, error) {
	if file != "" {
		return readBounded(file, record.MaxSize)
	}
	envelope, err := a.client().JobRecord(ctx, args[0])
	return envelope, a.answered(err)
}

func (a *app) verifyRecord(envelope []byte) (signedRecord, error) {
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return signedRecord{}, err
	}
	var mints []dsse.PublicKey
	for _, o := range policy.Mints {
		mints = append(mints, o.Keys...)
	}
	v, err := record.Read(envelope, mints)
	if err != nil {
		return signedRecord{}, exit(codeSignature, err)
	}
	return signedRecord{Job: v.Job, Type: v.Type, Verdict: v.Verdict, Signer: v.Signer, Statement: v.Payload}, nil
}

func revokedSigner(list []control.Revocation, signer dsse.KeyID) *control.Revocation {
	for i, r := range list {
		if r.Kind == capstore.KindMint && r.Target == string(signer) {
			return &list[i]
		}
	}
	return nil
}

func (a *app) showRecord(r signedRecord) {
	a.table([]string{"job", r.Job}, [][]string{
		{"verdict", string(r.Verdict)},
		{"type", r.Type},
		{"signed by", string(r.Signer)},
	})
	text := jsontext.Value(append([]byte(nil), r.Statement...))
	if err := text.Indent(jsontext.WithIndent("  ")); err == nil {
		a.printf("\n%s\n", printableLines(string(text)))
	}
}
