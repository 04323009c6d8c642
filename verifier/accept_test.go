package verifier_test

import (
	"encoding/base64"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The parts of a policy that many machines share: how many operators must agree,
// which logs are believed, and who signs the next version.
func TestSharedPolicy(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	logs, err := os.ReadFile("tlog/testdata/policy")
	if err != nil {
		t.Fatal(err)
	}
	quoted := `"` + strings.ReplaceAll(string(logs), "\n", `\n`) + `"`
	good := string(encode(t, p.policy))
	root := base64.StdEncoding.EncodeToString(p.second.Public().SPKI())
	with := func(members string) string {
		return strings.Replace(good, `"version": 1,`, `"version": 1, `+members+`,`, 1)
	}
	rule := func(members string) string { return with(`"accept": [{` + members + `}]`) }
	logged := func(text string) string {
		return strings.Replace(text, `"threshold": 1`, `"threshold": 1, "log": "required"`, 1)
	}
	const all = `"models": ["acme/*"], "operators": ["local"], "threshold": 1`

	for name, text := range map[string]string{
		"an acceptance":           rule(all),
		"the local mint":          rule(all + `, "local": "required"`),
		"a list no older":         rule(all + `, "maxListAgeSeconds": 86400`),
		"logs":                    logged(with(`"logs": ` + quoted)),
		"logs that nobody needs":  with(`"logs": ` + quoted),
		"a root":                  with(`"revision": 3, "expires": "2027-01-01T00:00:00Z", "root": {"keys": ["` + root + `"], "threshold": 1}`),
		"a rule for another name": rule(all) + "\n",
	} {
		got, err := verifier.ParsePolicy([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := verifier.ParsePolicy(encode(t, got)); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: printed and read again: %+v, %v, want %+v", name, again, err, got)
		}
	}

	for _, c := range []struct{ name, text, want string }{
		{"no rules", with(`"accept": []`), "accept is missing or empty"},
		{"no models", rule(`"models": [], "operators": ["local"], "threshold": 1`), "models is missing or empty"},
		{"any model", rule(`"models": ["*"], "operators": ["local"], "threshold": 1`), "models"},
		{"one pattern in two rules", with(`"accept": [{` + all + `}, {` + all + `}]`), "given twice"},
		{"no operators", rule(`"models": ["acme/*"], "operators": [], "threshold": 1`), "operators is missing or empty"},
		{"one operator twice", rule(`"models": ["acme/*"], "operators": ["local", "local"], "threshold": 2`), "given twice"},
		{"an operator without a mint", rule(`"models": ["acme/*"], "operators": ["bob"], "threshold": 1`), `"bob" is not an operator of mints`},
		{"threshold 0", rule(`"models": ["acme/*"], "operators": ["local"], "threshold": 0`), "threshold: expected 1 to 1"},
		{"threshold missing", rule(`"models": ["acme/*"], "operators": ["local"]`), "threshold: expected 1 to 1"},
		{"threshold above the operators", rule(`"models": ["acme/*"], "operators": ["local"], "threshold": 2`), "threshold: expected 1 to 1 (the number of operators), got 2"},
		{"another word for local", rule(all + `, "local": "maybe"`), "local: expected required"},
		{"a negative age", rule(all + `, "maxListAgeSeconds": -1`), "maxListAgeSeconds"},
		{"an unknown member", rule(all + `, "quorum": 1`), "quorum"},
		{"a log without logs", logged(good), "the policy has no logs"},
		{"another word for log", strings.Replace(with(`"logs": `+quoted), `"threshold": 1`, `"threshold": 1, "log": "yes"`, 1), `log: expected "required"`},
		{"logs cut short", with(`"logs": "log x"`), "logs:"},
		{"logs without a quorum", with(`"logs": "# nothing\n"`), "logs:"},
		{"a revision without a root", with(`"revision": 1`), "belong to a policy with a root"},
		{"an end without a root", with(`"expires": "2027-01-01T00:00:00Z"`), "belong to a policy with a root"},
		{"a root without an end", with(`"revision": 1, "root": {"keys": ["` + root + `"], "threshold": 1}`), "expires is missing"},
		{"a root without a revision", with(`"expires": "2027-01-01T00:00:00Z", "root": {"keys": ["` + root + `"], "threshold": 1}`), "revision: expected 1"},
		{"a root without keys", with(`"revision": 1, "expires": "2027-01-01T00:00:00Z", "root": {"keys": [], "threshold": 1}`), "root: keys is missing or empty"},
		{"a root that nobody signs", with(`"revision": 1, "expires": "2027-01-01T00:00:00Z", "root": {"keys": ["` + root + `"], "threshold": 0}`), "root: threshold"},
		{"a root that nobody can sign", with(`"revision": 1, "expires": "2027-01-01T00:00:00Z", "root": {"keys": ["` + root + `"], "threshold": 2}`), "root: threshold"},
		{"an end with an offset", with(`"revision": 1, "expires": "2027-01-01T00:00:00+01:00", "root": {"keys": ["` + root + `"], "threshold": 1}`), "expires"},
	} {
		if p, err := verifier.ParsePolicy([]byte(c.text)); err == nil || p != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
}

func TestAcceptRule(t *testing.T) {
	p := &verifier.Policy{Accept: []verifier.AcceptRule{
		{Models: []string{"acme/*"}, Threshold: 1},
		{Models: []string{"acme/langid"}, Threshold: 2},
	}}
	for model, want := range map[string]int64{"acme/other": 1, "acme/langid": 2, "other/langid": 0} {
		if r, ok := p.AcceptRule(model); r.Threshold != want || ok != (want > 0) {
			t.Errorf("%s: threshold %d, %v, want %d", model, r.Threshold, ok, want)
		}
	}
}
