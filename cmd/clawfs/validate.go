package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// validation is the result of `clawfs validate`.
type validation struct {
	File      string     `json:"file"`
	Valid     bool       `json:"valid"`
	Publisher dsse.KeyID `json:"publisher"`
	SBA       string     `json:"sba"`
	Model     string     `json:"model"`
	Version   string     `json:"version"`
	Output    string     `json:"output"`
	Expected  string     `json:"expected"` // what the rebuild produced
	Got       string     `json:"got"`      // what the file is
	Size      int64      `json:"size"`

	// Logged is where the SBA lies, if a log proof was verified.
	Logged capstore.Logged `json:"logged,omitzero"`
}

func newValidateCommand(a *app) *cobra.Command {
	var v rebuildFlags
	var sbaFile, keyFile, output, proof, logPolicy string
	c := &cobra.Command{
		Use:   "validate FILE --sba FILE.sba --publisher-key KEYFILE",
		Short: "Rebuild and compare one file, without mount or store",
		Long: `Does the whole protocol once for one file and prints each step:

  1 verify   the SBA is signed by the key in --publisher-key, and lies in a log
             if --log-policy is given, or if it has a proof and policy.json names logs
  2 rebuild  the build runs twice in the sandbox
  3 agree    both builds gave the same bytes
  4 derive   the digest of the output with FILE's name is taken from the rebuild
  5 compare  FILE has that digest

Nothing is granted and nothing is stored. If the bytes differ, it says where:
how many, in which tensors of a known format, and which known causes fit.

Exit code 0: FILE is what the recipe produces. 4: the signature or the signer is
not acceptable. 5: the builds differ from each other, or FILE differs from them.
3: the ledger is refused, or its build does not run.`,
		Example: `  clawfs validate langid.bin --sba langid.sba --publisher-key acme.pub
  clawfs validate ~/downloads/model.bin --output langid.bin --sba langid.sba \
      --publisher-key acme.pub --source ./recipe --dataset corpus=./corpus --image ./image`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			result, err := a.validate(c.Context(), args[0], sbaFile, keyFile, proof, logPolicy, output, v)
			if err != nil {
				return err
			}
			return a.print(result, func() {
				a.printf("%s is what the recipe of %s %s produces\n", printable(result.File), printable(result.Model), printable(result.Version))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&sbaFile, "sba", "", "the publisher's signed attestation")
	f.StringVar(&keyFile, "publisher-key", "", "the publisher's public `keyfile`")
	f.StringVar(&output, "output", "", "`name` of the ledger's output that FILE should be (default FILE's own name)")
	registerProof(c, &proof)
	registerLogPolicy(c, &logPolicy)
	v.register(c)
	c.MarkFlagRequired("sba")
	c.MarkFlagRequired("publisher-key")
	return c
}

// step reports one step of a validation on standard error.
func (a *app) step(n int, name, format string, args ...any) {
	a.notef("%d %-8s %s\n", n, name, printable(fmt.Sprintf(format, args...)))
}

func (a *app) validate(ctx context.Context, file, sbaFile, keyFile, proofFile, logPolicy, output string, v rebuildFlags) (validation, error) {
	if output == "" {
		output = filepath.Base(file)
	}
	// Measured before the build, so that a wrong path does not cost one.
	m, err := measurePath(ctx, file, nil)
	if err != nil {
		return validation{}, err
	}
	logs, err := a.logPolicy(logPolicy)
	if err != nil {
		return validation{}, err
	}
	proof, err := readProof(proofFile, sbaFile)
	if err != nil {
		return validation{}, err
	}
	if proof == nil && logPolicy == "" {
		logs = ""
	}
	att, err := a.verifyWithKey(sbaFile, keyFile, proof, logs)
	if err != nil {
		return validation{}, err
	}
	st := att.Ledger().Statement()
	r := validation{
		File: file, Publisher: att.Publisher().ID(), SBA: att.Digest().String(), Model: st.Predicate.Model,
		Version: st.Predicate.Version, Output: output, Got: m.Sum().String(), Size: m.Size(),
	}
	a.step(1, "verify", "%s %s is signed by %s", r.Model, r.Version, r.Publisher)
	if c := att.Checkpoint(); !c.IsZero() {
		r.Logged = capstore.Logged{Origin: c.Origin(), Index: att.LogIndex(), Size: c.Size()}
		a.step(1, "verify", "logged %s", loggedText(r.Logged))
	} else if proof != nil {
		a.notef("note: no log policy is known, so the log proof is not looked at; give --log-policy FILE\n")
	}
	if !promises(st, output) {
		return r, exitf(codeRefused, "the ledger promises no output named %q, but %s; next: --output NAME", output, outputNames(st))
	}
	a.step(2, "rebuild", "twice, from commit %.12s", st.Source().Digest.GitCommit)
	built, closeAll, err := a.reproduce(ctx, att.Ledger(), v)
	if err != nil {
		return r, err
	}
	defer closeAll()
	a.step(3, "agree", "both builds gave the same bytes")
	made, err := outputOf(built, output)
	if err != nil {
		return r, err
	}
	r.Expected = made.Measurement().Sum().String()
	a.step(4, "derive", "%s is %s", output, r.Expected)
	if !m.Sum().Is(made.Measurement().Sum().Claim()) {
		diagnosis, err := differs(ctx, file, made, st)
		if err != nil {
			diagnosis = "no diagnosis: " + err.Error() // FILE differs all the same
		}
		return r, &diagnosed{exitf(codeDiffers, "step 5, compare: %s is not what the recipe produces: expected sha256 %s of %d bytes, got %s of %d bytes",
			file, r.Expected, made.Measurement().Size(), r.Got, r.Size), diagnosis}
	}
	r.Valid = true
	a.step(5, "compare", "%s is the same", file)
	return r, nil
}

// differs says in what the file at path differs from its rebuild.
func differs(ctx context.Context, path string, made sandbox.Output, st verifier.Statement) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	return rebuild.Differs(ctx, f, fi.Size(), made, st)
}

// verifyWithKey verifies an SBA with one key, which may speak for the model
// that it signed: whoever runs validate has chosen both. If logs, a log policy,
// is not empty, proof has to show that the SBA lies in one of them.
func (a *app) verifyWithKey(sbaFile, keyFile string, proof []byte, logs string) (verifier.Attestation, error) {
	none := verifier.Attestation{}
	_, l, err := inspect(sbaFile, keyFile)
	if err != nil {
		return none, err
	}
	key, err := readPublicKey(keyFile)
	if err != nil {
		return none, err
	}
	// A policy needs a mint and a revoker. This one mints nothing: their key's
	// private half is forgotten here.
	unused, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		return none, err
	}
	builds, err := a.builds()
	if err != nil {
		return none, err
	}
	policy, err := verifier.NewPolicy("validate", unused.Public(), unused.Public(), builds)
	if err != nil {
		return none, err
	}
	policy, err = policy.AddPublisher(verifier.PublisherRule{
		Name: "command-line", Models: []string{l.Statement().Predicate.Model},
		Keys: []dsse.PublicKey{key}, Threshold: 1, Images: []string{"*"},
	})
	if err != nil {
		return none, err
	}
	if policy.Logs = logs; logs != "" {
		policy.Publishers[0].Log = verifier.LogRequired
	}
	vf, err := verifier.New(policy)
	if err != nil {
		return none, err
	}
	data, err := readBounded(sbaFile, dsse.MaxEnvelope)
	if err != nil {
		return none, err
	}
	sba, err := verifier.ParseSBA(data)
	if err != nil {
		return none, refusal(sbaFile, err)
	}
	if proof != nil {
		if sba, err = sba.WithProof(proof); err != nil {
			return none, refusal(sbaFile, err)
		}
	}
	att, err := vf.Verify(sba, time.Now())
	if err != nil {
		return none, refusal(sbaFile, err)
	}
	return att, nil
}

func promises(st verifier.Statement, name string) bool {
	for _, o := range st.Predicate.BuildDefinition.ExternalParameters.Outputs {
		if o.Name == name {
			return true
		}
	}
	return false
}

func outputNames(st verifier.Statement) string {
	var names []string
	for _, o := range st.Predicate.BuildDefinition.ExternalParameters.Outputs {
		names = append(names, o.Name)
	}
	return strings.Join(names, ", ")
}

func outputOf(r *rebuild.Reproduction, name string) (sandbox.Output, error) {
	for _, o := range r.Outputs() {
		if o.Name() == name {
			return o, nil
		}
	}
	return sandbox.Output{}, fmt.Errorf("the rebuild has no output %q", name)
}
