package verifier_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func encode(t testing.TB, p *verifier.Policy) []byte {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPolicyRoundTrip(t *testing.T) {
	p := newParty(t, dsse.Ed25519).policy
	data := encode(t, p)
	again, err := verifier.ParsePolicy(data)
	if err != nil || !reflect.DeepEqual(again, p) {
		t.Fatalf("ParsePolicy(Encode()) = %+v, %v, want %+v", again, err, p)
	}
	if twice := encode(t, again); !bytes.Equal(twice, data) {
		t.Errorf("printed again: %s, want %s", twice, data)
	}
	if !strings.HasSuffix(string(data), "}\n") {
		t.Errorf("the text ends with %q, want a line break", data[len(data)-2:])
	}
}

// TestPolicyBudget: what is in the text is what is read, and it is printed again.
func TestPolicyBudget(t *testing.T) {
	text := string(encode(t, newParty(t, dsse.Ed25519).policy))
	for budget, want := range map[string]verifier.Budget{
		`{"concurrent": 2}`: {Concurrent: 2},
		`{"jobsPerDay": 20, "buildSecondsPerDay": 7200, "concurrent": 1}`: {Concurrent: 1, JobsPerDay: 20, BuildSecondsPerDay: 7200},
	} {
		p, err := verifier.ParsePolicy([]byte(strings.Replace(text, `"threshold": 1`, `"threshold": 1, "budget": `+budget, 1)))
		if err != nil || p.Publishers[0].Budget == nil || *p.Publishers[0].Budget != want {
			t.Fatalf("budget %s: %+v, %v, want %+v", budget, p, err, want)
		}
		if again, err := verifier.ParsePolicy(encode(t, p)); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("printed and read again: %+v, %v, want %+v", again, err, p)
		}
	}
	bad := newParty(t, dsse.Ed25519).policy
	bad.Publishers[0].Budget = &verifier.Budget{JobsPerDay: -1}
	if text, err := bad.Encode(); err == nil {
		t.Errorf("a negative budget was printed: %s", text)
	}
	bad.Publishers[0].Budget = &verifier.Budget{}
	if text, err := bad.Encode(); err == nil {
		t.Errorf("an empty budget was printed: %s", text)
	}
}

// TestPolicyText holds the format.
func TestPolicyText(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	key := func(k dsse.PublicKey) string { return base64.StdEncoding.EncodeToString(k.SPKI()) }
	want := fmt.Sprintf(`{
  "version": 1,
  "publishers": [
    {
      "name": "acme",
      "models": [
        "acme/*"
      ],
      "keys": [
        %q
      ],
      "threshold": 1,
      "images": [
        "sha256:6794a0f2bd0cbfa2d0f2d7ad0b2bd1b53b4d6c8db4d8e07f4f2d1a1a0c1d88fc"
      ],
      "minimumSequence": {
        "acme/langid": 3
      }
    }
  ],
  "mints": [
    {
      "operator": "local",
      "keys": [
        %q
      ]
    }
  ],
  "revokers": [
    {
      "operator": "local",
      "keys": [
        %q
      ]
    }
  ],
  "builds": {
    "env": [
      "PYTHONHASHSEED",
      "SOURCE_DATE_EPOCH"
    ],
    "limits": {
      "memoryBytes": 1073741824,
      "processes": 64,
      "cpus": 1.5,
      "wallSeconds": 600,
      "outputBytes": 1073741824,
      "logBytes": 1048576
    }
  }
}
`, key(p.publisher.Public()), key(p.mint.Public()), key(p.policy.Revokers[0].Keys[0]))
	if got := string(encode(t, p.policy)); got != want {
		t.Errorf("Encode() = %s\nwant %s", got, want)
	}
}

func TestPolicyTextRefused(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	good := string(encode(t, p.policy))
	key := base64.StdEncoding.EncodeToString(p.publisher.Public().SPKI())
	identity, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(append([]byte{1}, make([]byte, 31)...)))
	if err != nil {
		t.Fatal(err)
	}
	lowOrder := base64.StdEncoding.EncodeToString(identity)
	tests := []struct{ name, old, new, want string }{
		{"empty budget", `"threshold": 1`, `"threshold": 1, "budget": {}`, "budget is empty"},
		{"null budget", `"threshold": 1`, `"threshold": 1, "budget": null`, "null"},
		{"budget of 0 jobs", `"threshold": 1`, `"threshold": 1, "budget": {"jobsPerDay": 0}`, "jobsPerDay: expected 1 to 2^53-1, got 0"},
		{"budget of -1 at a time", `"threshold": 1`, `"threshold": 1, "budget": {"concurrent": -1, "jobsPerDay": 4}`, "concurrent: expected 1"},
		{"budget of half a second", `"threshold": 1`, `"threshold": 1, "budget": {"buildSecondsPerDay": 0.5}`, "buildSecondsPerDay"},
		{"budget without an end", `"threshold": 1`, `"threshold": 1, "budget": {"buildSecondsPerDay": 9007199254740992}`, "buildSecondsPerDay: expected 1"},
		{"budget of something else", `"threshold": 1`, `"threshold": 1, "budget": {"jobsPerHour": 1}`, "jobsPerHour"},
		{"budget bound twice", `"threshold": 1`, `"threshold": 1, "budget": {"jobsPerDay": 1, "jobsPerDay": 2}`, "duplicate"},
		{"budget as a number", `"threshold": 1`, `"threshold": 1, "budget": 5`, "budget"},
		{"threshold 0", `"threshold": 1`, `"threshold": 0`, "threshold: expected 1 to 1 (the number of keys), got 0"},
		{"threshold missing", `"threshold": 1,`, ``, "threshold"},
		{"threshold -1", `"threshold": 1`, `"threshold": -1`, "threshold"},
		{"threshold above the keys", `"threshold": 1`, `"threshold": 2`, "threshold: expected 1 to 1 (the number of keys), got 2"},
		{"threshold as a string", `"threshold": 1`, `"threshold": "1"`, "threshold"},
		{"low-order key", key, lowOrder, "small order"},
		{"a key that is none", key, "AAAA", "public key"},
		{"an empty key", key, "", "public key"},
		{"a key twice", `"` + key + `"`, `"` + key + `","` + key + `"`, "given twice"},
		{"null key", `"` + key + `"`, `null`, "null is not a value"},
		{"no keys", `"` + key + `"`, ``, "keys is missing or empty"},
		{"version 2", `"version": 1`, `"version": 2`, "version: expected 1, got 2"},
		{"version missing", `"version": 1,`, ``, "version"},
		{"unknown field", `"version": 1`, `"version": 1, "insecure": true`, "insecure"},
		{"unknown field of a publisher", `"threshold": 1`, `"threshold": 1, "expires": "never"`, "expires"},
		{"unknown limit", `"processes": 64`, `"processes": 64, "gpus": 1`, "gpus"},
		{"duplicate list", `"mints": [`, `"mints": [], "mints": [`, "duplicate"},
		{"case variant", `"mints": [`, `"Mints": [], "mints": [`, "Mints"},
		{"publishers null", `"publishers": [`, `"publishers": null, "x": [`, "null"},
		{"publishers missing", `"publishers": [`, `"x": [`, "x"},
		{"revokers missing", `"revokers": [`, `"x": [`, "x"},
		{"any model", `"acme/*"`, `"*"`, "models"},
		{"any publisher", `"acme/*"`, `"*/langid"`, "models"},
		{"a publisher without its star", `"acme/*"`, `"acme"`, "models"},
		{"half a name", `"acme/*"`, `"acme/lang*"`, "models"},
		{"two stars", `"acme/*"`, `"acme/*/*"`, "models"},
		{"a pattern in upper case", `"acme/*"`, `"ACME/*"`, "models"},
		{"a pattern that climbs", `"acme/*"`, `"../*"`, "models"},
		{"an empty pattern", `"acme/*"`, `""`, "models"},
		{"a pattern twice", `"acme/*"`, `"acme/*", "acme/*"`, `models: "acme/*" is given twice`},
		{"no patterns", `"acme/*"`, ``, "models is missing or empty"},
		{"no images", `"sha256:` + image + `"`, ``, "images is missing or empty"},
		{"an image by tag", `"sha256:` + image + `"`, `"debian:13"`, "images"},
		{"an image without its algorithm", `"sha256:` + image + `"`, `"` + image + `"`, "images"},
		{"an image beside any", `"sha256:` + image + `"`, `"*", "sha256:` + image + `"`, "stands alone"},
		{"a minimum for another's model", `"acme/langid": 3`, `"other/langid": 3`, "not a model of this rule"},
		{"a minimum for a pattern", `"acme/langid": 3`, `"acme/*": 3`, "minimumSequence"},
		{"a minimum of 0", `"acme/langid": 3`, `"acme/langid": 0`, "minimumSequence"},
		{"no minimum", `"acme/langid": 3`, ``, "minimumSequence is empty"},
		{"a publisher's name with a space", `"name": "acme"`, `"name": "ac me"`, "expected a name"},
		{"an operator's name with an escape", `"operator": "local"`, `"operator": "\u001b[2J"`, "expected a name"},
		{"no variables", "\"PYTHONHASHSEED\",\n      \"SOURCE_DATE_EPOCH\"", ``, "builds.env is missing or empty"},
		{"a variable that is a pattern", `"PYTHONHASHSEED"`, `"*"`, "builds.env"},
		{"a variable twice", `"PYTHONHASHSEED"`, `"SOURCE_DATE_EPOCH"`, "twice"},
		{"memory 0", `"memoryBytes": 1073741824`, `"memoryBytes": 0`, "memoryBytes"},
		{"memory missing", `"memoryBytes": 1073741824,`, ``, "memoryBytes"},
		{"negative memory", `"memoryBytes": 1073741824`, `"memoryBytes": -1`, "memoryBytes"},
		{"memory 2^53", `"memoryBytes": 1073741824`, `"memoryBytes": 9007199254740992`, "memoryBytes"},
		{"processes 0", `"processes": 64`, `"processes": 0`, "processes"},
		{"cpus 0", `"cpus": 1.5`, `"cpus": 0`, "cpus"},
		{"cpus missing", `"cpus": 1.5,`, ``, "cpus"},
		{"negative cpus", `"cpus": 1.5`, `"cpus": -0.5`, "cpus"},
		{"endless cpus", `"cpus": 1.5`, `"cpus": 1e300`, "cpus"},
		{"cpus beyond float64", `"cpus": 1.5`, `"cpus": 1e999`, "cpus"},
		{"wall 0", `"wallSeconds": 600`, `"wallSeconds": 0`, "wallSeconds"},
		{"wall beyond time.Duration", `"wallSeconds": 600`, `"wallSeconds": 9223372037`, "wallSeconds"},
		{"output 0", `"outputBytes": 1073741824`, `"outputBytes": 0`, "outputBytes"},
		{"log 0", `"logBytes": 1048576`, `"logBytes": 0`, "logBytes"},
		{"trailing data", "}\n", "}}\n", "policy"},
	}
	for _, tt := range tests {
		i := strings.LastIndex(good, tt.old)
		if tt.old != "}\n" {
			i = strings.Index(good, tt.old)
		}
		if i < 0 {
			t.Fatalf("%s: %q is not in the policy", tt.name, tt.old)
		}
		text := good[:i] + tt.new + good[i+len(tt.old):]
		p, err := verifier.ParsePolicy([]byte(text))
		if err == nil || !strings.Contains(err.Error(), tt.want) || p != nil {
			t.Errorf("%s: ParsePolicy = %v, want an error with %q", tt.name, err, tt.want)
		}
	}
	for _, text := range []string{"", " ", "null", "{}", "[]", "0", `"policy"`, good + good, good[:len(good)-3], strings.Repeat("[", 100_000), good + strings.Repeat(" ", 1<<20)} {
		if p, err := verifier.ParsePolicy([]byte(text)); err == nil || p != nil {
			t.Errorf("ParsePolicy(%.30q…) was accepted", text)
		}
	}
}

func TestPolicyRefused(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	other := newKey(t, dsse.Ed25519).Public()
	rule := func(name, pattern string) verifier.PublisherRule {
		return verifier.PublisherRule{Name: name, Models: []string{pattern}, Keys: []dsse.PublicKey{other}, Threshold: 1, Images: []string{"*"}}
	}
	tests := []struct {
		name   string
		change func(c *verifier.Policy)
		want   string
	}{
		{"no mints", func(c *verifier.Policy) { c.Mints = nil }, "mints is missing or empty"},
		{"no revokers", func(c *verifier.Policy) { c.Revokers = nil }, "revokers is missing or empty"},
		{"a mint without keys", func(c *verifier.Policy) { c.Mints[0].Keys = nil }, "keys is missing or empty"},
		{"a mint's zero key", func(c *verifier.Policy) { c.Mints[0].Keys = []dsse.PublicKey{{}} }, "public key: empty"},
		{"an operator twice", func(c *verifier.Policy) {
			c.Mints = append(c.Mints, verifier.Operator{Operator: "local", Keys: []dsse.PublicKey{other}})
		}, `operator: "local" is given twice`},
		{"one key of two operators", func(c *verifier.Policy) {
			c.Mints = append(c.Mints, verifier.Operator{Operator: "bob", Keys: c.Mints[0].Keys})
		}, "mints: key"},
		{"a publisher that mints", func(c *verifier.Policy) { c.Mints[0].Keys[0] = p.publisher.Public() }, "would not be independent"},
		{"a publisher twice", func(c *verifier.Policy) { c.Publishers = append(c.Publishers, rule("acme", "other/*")) }, `publishers: "acme" is given twice`},
		{"two rules for one pattern", func(c *verifier.Policy) { c.Publishers = append(c.Publishers, rule("other", "acme/*")) }, `models: "acme/*" is given twice`},
		{"a minimum of 2^53", func(c *verifier.Policy) { c.Publishers[0].MinimumSequence = map[string]int64{"acme/langid": 1 << 53} }, "minimumSequence: acme/langid: expected 1 to 2^53-1"},
		{"a minimum of 0", func(c *verifier.Policy) { c.Publishers[0].MinimumSequence = map[string]int64{"acme/langid": 0} }, "minimumSequence: acme/langid: expected 1 to 2^53-1"},
		{"more processes than a kernel has", func(c *verifier.Policy) { c.Builds.Limits.Processes = 1<<22 + 1 }, "processes: expected 1 to 4194304"},
		{"more memory than JSON counts", func(c *verifier.Policy) { c.Builds.Limits.MemoryBytes = 1 << 53 }, "memoryBytes: expected 1 to"},
		{"a minimum that another rule hides", func(c *verifier.Policy) { c.Publishers = append(c.Publishers, rule("other", "acme/langid")) }, "not a model of this rule"},
	}
	for _, tt := range tests {
		c, err := verifier.ParsePolicy(encode(t, p.policy))
		if err != nil {
			t.Fatal(err)
		}
		tt.change(c)
		if data, err := c.Encode(); err == nil || !strings.Contains(err.Error(), tt.want) || data != nil {
			t.Errorf("%s: Encode = %v, want an error with %q", tt.name, err, tt.want)
		}
		if _, err := verifier.New(c); err == nil {
			t.Errorf("%s: New took the policy", tt.name)
		}
	}
	var none *verifier.Policy
	if _, err := none.Encode(); err == nil {
		t.Error("a nil Policy has a text")
	}
}

func TestRule(t *testing.T) {
	p := newParty(t, dsse.Ed25519).policy
	for _, r := range []struct{ name, pattern string }{
		{"team", "acme/team/*"}, {"one", "acme/team/one"}, {"exact", "solo/model"}, {"short", "acme/x"}, {"brief", "acme/team/y"},
	} {
		var err error
		if p, err = p.AddPublisher(verifier.PublisherRule{
			Name: r.name, Models: []string{r.pattern}, Keys: []dsse.PublicKey{newKey(t, dsse.Ed25519).Public()}, Threshold: 1, Images: []string{"*"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	for model, want := range map[string]string{
		"acme/langid":       "acme",
		"acme/teams":        "acme",
		"acme/team":         "acme",
		"acme/team/two":     "team",
		"acme/team/one":     "one",
		"acme/team/one/sub": "team",
		"acme/team/on":      "team",
		"acme/x":            "short", // its pattern is no longer than "acme/*"
		"acme/team/y":       "brief",
		"solo/model":        "exact",
		"solo/model/sub":    "",
		"solo/models":       "",
		"solo":              "",
		"acme":              "",
		"acme/":             "acme", // no model; ParseLedger refuses it
		"acmes/langid":      "",
		"other/acme/langid": "",
		"":                  "",
		"*":                 "",
	} {
		for range 2 { // in either order of the rules
			r, ok := p.Rule(model)
			if r.Name != want || ok != (want != "") {
				t.Errorf("Rule(%q) = %q, %v, want %q", model, r.Name, ok, want)
			}
			slices.Reverse(p.Publishers)
		}
	}
}

func TestEdit(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	before := encode(t, p.policy)
	other := newKey(t, dsse.ECDSAP256).Public()
	sum := digest(t, strings.Repeat("ab", 32))
	edits := map[string]func() (*verifier.Policy, error){
		"AddPublisher": func() (*verifier.Policy, error) {
			return p.policy.AddPublisher(verifier.PublisherRule{Name: "other", Models: []string{"other/*"}, Keys: []dsse.PublicKey{other}, Threshold: 1, Images: []string{"*"}})
		},
		"RemovePublisher": func() (*verifier.Policy, error) { return p.policy.RemovePublisher("acme") },
		"PinSequence":     func() (*verifier.Policy, error) { return p.policy.PinSequence("acme/other", 7) },
		"raise a pin":     func() (*verifier.Policy, error) { return p.policy.PinSequence("acme/langid", 4) },
		"AllowImage":      func() (*verifier.Policy, error) { return p.policy.AllowImage("acme", sum) },
		"AllowEnv":        func() (*verifier.Policy, error) { return p.policy.AllowEnv("LANG") },
		"AddMint":         func() (*verifier.Policy, error) { return p.policy.AddMint("bob", other) },
		"a second key":    func() (*verifier.Policy, error) { return p.policy.AddMint("local", other) },
		"AddRevoker":      func() (*verifier.Policy, error) { return p.policy.AddRevoker("bob", other) },
	}
	for name, edit := range edits {
		got, err := edit()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if after := encode(t, got); bytes.Equal(after, before) {
			t.Errorf("%s changed nothing", name)
		}
	}
	// The first pin of a rule that had none.
	if got, err := p.policy.AddPublisher(verifier.PublisherRule{Name: "other", Models: []string{"other/*"}, Keys: []dsse.PublicKey{other}, Threshold: 1, Images: []string{"*"}}); err != nil {
		t.Error(err)
	} else if got, err = got.PinSequence("other/langid", 5); err != nil {
		t.Error(err)
	} else if r, _ := got.Rule("other/langid"); r.MinimumSequence["other/langid"] != 5 {
		t.Errorf("pinned at %v, want 5", r.MinimumSequence)
	}
	if _, err := p.policy.PinSequence("other/langid", 2); err == nil || !strings.Contains(err.Error(), `no publisher speaks for "other/langid"`) {
		t.Errorf("a pin of a stranger's model: %v", err)
	}
	refused := map[string]func() (*verifier.Policy, error){
		"a publisher's name twice": func() (*verifier.Policy, error) { return p.policy.AddPublisher(p.policy.Publishers[0]) },
		"an empty publisher":       func() (*verifier.Policy, error) { return p.policy.AddPublisher(verifier.PublisherRule{}) },
		"remove a stranger":        func() (*verifier.Policy, error) { return p.policy.RemovePublisher("other") },
		"lower a pin":              func() (*verifier.Policy, error) { return p.policy.PinSequence("acme/langid", 2) },
		"pin at 0":                 func() (*verifier.Policy, error) { return p.policy.PinSequence("acme/other", 0) },
		"pin a stranger's":         func() (*verifier.Policy, error) { return p.policy.PinSequence("other/langid", 2) },
		"an image of nobody":       func() (*verifier.Policy, error) { return p.policy.AllowImage("other", sum) },
		"a bad variable":           func() (*verifier.Policy, error) { return p.policy.AllowEnv("A=B") },
		"a mint's key twice":       func() (*verifier.Policy, error) { return p.policy.AddMint("bob", p.mint.Public()) },
		"a publisher's key mints":  func() (*verifier.Policy, error) { return p.policy.AddMint("bob", p.publisher.Public()) },
		"a zero key revokes":       func() (*verifier.Policy, error) { return p.policy.AddRevoker("bob", dsse.PublicKey{}) },
		"a policy of nothing":      func() (*verifier.Policy, error) { return new(verifier.Policy).AllowEnv("LANG") },
	}
	for name, edit := range refused {
		if got, err := edit(); err == nil || got != nil {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
	if after := encode(t, p.policy); !bytes.Equal(after, before) {
		t.Errorf("the edited policy itself changed: %s", after)
	}
}

// FuzzPolicy: what parses has one printed form, which parses to the same.
func FuzzPolicy(f *testing.F) {
	f.Add(encode(f, newParty(f, dsse.Ed25519).policy))
	p := newParty(f, dsse.Ed25519)
	f.Add(encode(f, windowed(f, p, 2, map[dsse.KeyID]verifier.Window{p.second.Public().ID(): {NotBefore: verifier.At(now), NotAfter: verifier.At(now.AddDate(1, 0, 0))}})))
	f.Add([]byte(`{"version":1,"publishers":[],"mints":[{"operator":"a","keys":["AAAA"]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := verifier.ParsePolicy(data)
		if err != nil {
			return
		}
		printed, err := p.Encode()
		if err != nil {
			t.Fatalf("%q parsed, but does not print: %v", data, err)
		}
		again, err := verifier.ParsePolicy(printed)
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%q parses as %+v, %v, want %+v", printed, again, err, p)
		}
		twice, err := again.Encode()
		if err != nil || !bytes.Equal(twice, printed) {
			t.Errorf("%q prints as %q, then as %q, %v", data, printed, twice, err)
		}
	})
}
