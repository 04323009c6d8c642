package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// policyParts are the flags of policy new.
type policyParts struct {
	from, out, logs             string
	publishers, mints, revokers []string
	accept                      []string
	local                       string
	listAge                     time.Duration
	root                        []string
	rootThreshold               int64
	expires                     string
	requireLog                  bool
	now                         time.Time
}

func newPolicyNewCommand(a *app) *cobra.Command {
	var p policyParts
	c := &cobra.Command{
		Use:   "new --out FILE",
		Short: "Write a policy from keys and rules",
		Long: `Writes a policy for one machine or for many. --from starts from another policy
and adds to it; without it, the bounds of builds are those of clawfs init.

A file opens when K of the operators that --accept names for its model have
minted the same result. With --root the policy is one that has to be signed by
clawfs policy sign before a machine installs it; its revision is one more than
that of --from.`,
		Example: `  clawfs policy new --publisher 'acme/*=acme.pub' --mint alice=alice.pub --mint bob=bob.pub \
      --revoker fleet=fleet.pub --accept 'acme/*=2:alice,bob' --out policy.json
  clawfs policy new --from policy.json --logs log.policy --require-log --out next.json
  clawfs policy new --from policy.json --root a.pub --root b.pub --threshold 2 --expires 2160h --out next.json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p.now = time.Now()
			policy, err := p.build()
			if err != nil {
				return err
			}
			text, err := policy.Encode()
			if err != nil {
				return exit(codeUsage, err)
			}
			if err := durable.Create(p.out, text, 0o644); err != nil {
				return err
			}
			result := struct {
				Out      string `json:"out"`
				Revision int64  `json:"revision,omitzero"`
			}{p.out, policy.Revision}
			return a.print(result, func() {
				a.printf("wrote %s\n", p.out)
				if policy.Root != nil {
					a.notef("next: %s\n", a.command("policy", "sign", p.out, "--key", "KEYFILE"))
				}
			})
		},
	}
	f := c.Flags()
	f.StringVar(&p.from, "from", "", "policy `file` to start from")
	f.StringVar(&p.out, "out", "", "`file` to write; it may not exist")
	f.StringArrayVar(&p.publishers, "publisher", nil, "`PATTERN=KEYFILE`[,KEYFILE...]: whose ledgers of these models are rebuilt (repeat)")
	f.BoolVar(&p.requireLog, "require-log", false, "every publisher's ledgers need a proof of one of the logs")
	f.StringVar(&p.logs, "logs", "", "`file` with logs, witnesses and their quorum (C2SP tlog-policy)")
	f.StringArrayVar(&p.mints, "mint", nil, "`OPERATOR=KEYFILE`: whose capabilities count (repeat)")
	f.StringArrayVar(&p.revokers, "revoker", nil, "`OPERATOR=KEYFILE`: whose revocations count (repeat)")
	f.StringArrayVar(&p.accept, "accept", nil, "`PATTERN=K:OPERATOR,OPERATOR...`: how many of whom must agree (repeat)")
	f.StringVar(&p.local, "local", "", "for the rules of --accept: this machine's own mint is required, counts or is ignored (`word`)")
	completes(c, "local", []string{verifier.LocalRequired, verifier.LocalCounts, verifier.LocalIgnored})
	f.DurationVar(&p.listAge, "list-max-age", 0, "for the rules of --accept: files open only under a revocation list no older")
	f.StringArrayVar(&p.root, "root", nil, "public key `file` of who signs the next version (repeat)")
	f.Int64Var(&p.rootThreshold, "threshold", 0, "how many of the root keys must sign")
	f.StringVar(&p.expires, "expires", "2160h", "with --root: `time` (RFC 3339) or duration until which the policy is valid")
	c.MarkFlagRequired("out")
	c.MarkFlagsRequiredTogether("root", "threshold")
	return c
}

func (p policyParts) build() (*verifier.Policy, error) {
	policy := &verifier.Policy{Version: 1, Publishers: []verifier.PublisherRule{}, Builds: defaultBuilds()}
	if p.from != "" {
		data, err := readBounded(p.from, 1<<20)
		if err != nil {
			return nil, err
		}
		if policy, err = verifier.ParsePolicy(data); err != nil {
			return nil, fmt.Errorf("%s: %w", p.from, err)
		}
	}
	for _, w := range p.publishers {
		rule, err := publisherOf(w)
		if err != nil {
			return nil, err
		}
		policy.Publishers = append(policy.Publishers, rule)
	}
	for _, list := range []struct {
		flag  string
		words []string
		to    *[]verifier.Operator
	}{{"mint", p.mints, &policy.Mints}, {"revoker", p.revokers, &policy.Revokers}} {
		for _, w := range list.words {
			if err := addOperator(list.to, list.flag, w); err != nil {
				return nil, err
			}
		}
	}
	for _, w := range p.accept {
		rule, err := acceptOf(w)
		if err != nil {
			return nil, err
		}
		rule.Local, rule.MaxListAgeSeconds = p.local, int64(p.listAge/time.Second)
		policy.Accept = append(policy.Accept, rule)
	}
	if p.logs != "" {
		data, err := readBounded(p.logs, tlog.MaxPolicy)
		if err != nil {
			return nil, err
		}
		policy.Logs = string(data)
	}
	if p.requireLog {
		for i := range policy.Publishers {
			policy.Publishers[i].Log = verifier.LogRequired
		}
	}
	return policy, p.rooted(policy)
}

// rooted gives the policy the parts of one that is signed.
func (p policyParts) rooted(policy *verifier.Policy) error {
	if len(p.root) > 0 {
		keys, err := readPublicKeys(p.root)
		if err != nil {
			return err
		}
		policy.Root = &verifier.Root{Keys: keys, Threshold: p.rootThreshold}
	}
	if policy.Root == nil {
		return nil
	}
	policy.Revision++
	end, err := time.Parse(time.RFC3339, p.expires)
	if err != nil {
		d, err := time.ParseDuration(p.expires)
		if err != nil || d <= 0 {
			return exitf(codeUsage, "--expires %q: want a time such as 2027-03-01T00:00:00Z, or a duration such as 2160h", p.expires)
		}
		end = p.now.Add(d)
	}
	policy.Expires = verifier.At(end)
	return nil
}

func readPublicKeys(paths []string) ([]dsse.PublicKey, error) {
	var keys []dsse.PublicKey
	for _, path := range paths {
		k, err := readPublicKey(path)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func publisherOf(word string) (verifier.PublisherRule, error) {
	pattern, files, ok := strings.Cut(word, "=")
	name, _, _ := strings.Cut(pattern, "/")
	if !ok || name == "" || files == "" {
		return verifier.PublisherRule{}, exitf(codeUsage, "--publisher %q: want PATTERN=KEYFILE[,KEYFILE...], such as 'acme/*=acme.pub'", word)
	}
	keys, err := readPublicKeys(strings.Split(files, ","))
	return verifier.PublisherRule{Name: name, Models: []string{pattern}, Keys: keys, Threshold: 1, Images: []string{"*"}}, err
}

func addOperator(list *[]verifier.Operator, flag, word string) error {
	name, file, ok := strings.Cut(word, "=")
	if !ok || name == "" || file == "" {
		return exitf(codeUsage, "--%s %q: want OPERATOR=KEYFILE, such as alice=alice.pub", flag, word)
	}
	key, err := readPublicKey(file)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(*list, func(o verifier.Operator) bool { return o.Operator == name }); i >= 0 {
		(*list)[i].Keys = append((*list)[i].Keys, key)
		return nil
	}
	*list = append(*list, verifier.Operator{Operator: name, Keys: []dsse.PublicKey{key}})
	return nil
}

func acceptOf(word string) (verifier.AcceptRule, error) {
	pattern, rest, ok := strings.Cut(word, "=")
	number, operators, also := strings.Cut(rest, ":")
	k, err := strconv.ParseInt(number, 10, 32)
	if !ok || !also || err != nil || operators == "" {
		return verifier.AcceptRule{}, exitf(codeUsage, "--accept %q: want PATTERN=K:OPERATOR[,OPERATOR...], such as 'acme/*=2:alice,bob,carol'", word)
	}
	return verifier.AcceptRule{Models: []string{pattern}, Operators: strings.Split(operators, ","), Threshold: k}, nil
}
