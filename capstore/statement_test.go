package capstore

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The answer is Python's:
//
//	ns = lambda s: f"{len(s)}:{s},".encode()
//	subs = {"langid.bin": "33"*32, "a/config.json": "44"*32, "langid.vec": "55"*32}
//	b = ns("clawfs-claim/v1") + ns("11"*32) + ns("22"*32)
//	for n in sorted(subs, key=lambda s: s.encode()): b += ns(n) + ns(subs[n])
//	hashlib.sha256(b).hexdigest()
func TestClaimKnownAnswer(t *testing.T) {
	const want = "868dacd0d96bfc38d984543ba253547b470dbfff3ee968b92e8d96640e2f204a"
	d := func(s string) hashpipe.Digest {
		d, err := hashpipe.ParseDigest(strings.Repeat(s, 32))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	subjects := []Subject{
		{Name: "langid.bin", Digest: d("33")},
		{Name: "a/config.json", Digest: d("44"), Size: 7},
		{Name: "langid.vec", Digest: d("55")},
	}
	publisher := dsse.KeyID(strings.Repeat("22", 32))
	if got := Claim(d("11"), publisher, subjects); got.String() != want {
		t.Errorf("Claim = %s, want %s", got, want)
	}
	slices.Reverse(subjects)
	if got := Claim(d("11"), publisher, subjects); got.String() != want {
		t.Errorf("Claim of the subjects in another order = %s, want %s", got, want)
	}
	if subjects[0].Name != "langid.vec" {
		t.Error("Claim sorted its argument in place")
	}
	for name, other := range map[string]hashpipe.Digest{
		"sba":       Claim(d("12"), publisher, subjects),
		"publisher": Claim(d("11"), "x"+publisher[1:], subjects),
		"fewer":     Claim(d("11"), publisher, subjects[:2]),
		"none":      Claim(d("11"), publisher, nil),
	} {
		if other.String() == want {
			t.Errorf("%s: another input has the same claim", name)
		}
	}
}

func TestCapabilityReadsBack(t *testing.T) {
	w := newWorld(t)
	for name, edit := range map[string]func(*Statement){
		"plain": func(*Statement) {},
		"restrict": func(st *Statement) {
			st.Predicate.Restrict = &Restrict{Paths: []string{"a.bin", "team/"}, UIDs: []int64{0, 1000}, Mounts: []string{"/", "/models"}}
		},
		"restrict to a user": func(st *Statement) { st.Predicate.Restrict = &Restrict{UIDs: []int64{1000}} },
		"delegate":           func(st *Statement) { st.Predicate.Delegate = []dsse.KeyID{w.stranger.Public().ID()} },
		"no cpu features":    func(st *Statement) { st.Predicate.Platform.CPUFeatures = nil },
		"quotation mark":     func(st *Statement) { st.Predicate.Version = `1 "final" <&>` },
		"letters of others":  func(st *Statement) { st.Predicate.Version = "версия 1" },
	} {
		t.Run(name, func(t *testing.T) {
			st := w.statement(t, "", "langid.vec", "a/config.json", "langid.bin")
			edit(&st)
			payload := payloadOf(t, st)
			envelope := sign(t, payload, w.mint)
			c, err := w.view(t).Admit(envelope)
			if err != nil {
				t.Fatal(err)
			}
			if c.ID() != hashpipe.SumBytes(payload).Claim() || !bytes.Equal(c.Envelope(), envelope) {
				t.Error("ID or Envelope is not of what was admitted")
			}
			p := st.Predicate
			if c.Model() != p.Model || c.Version() != p.Version || c.Sequence() != 12 || c.SBA() != p.SBA.Digest.SHA256 ||
				c.Publisher() != w.publisher.Public() || c.Minter() != w.mint.Public().ID() || c.Operator() != "local" ||
				p.Level != LevelRebuilt || c.Environment() != p.Environment.Digest.SHA256 || c.Claim() != p.Claim || !c.NotBefore().Equal(p.NotBefore) || !c.NotAfter().Equal(p.NotAfter) {
				t.Errorf("accessors do not give back %+v", p)
			}
			subjects := c.Subjects()
			if len(subjects) != 3 || subjects[0].Name != "a/config.json" || subjects[2].Name != "langid.vec" {
				t.Fatalf("Subjects = %v", subjects)
			}
			subjects[0].Name = "changed by the caller"
			if s, ok := c.Subject("a/config.json"); !ok || s.Digest != digestOf("a/config.json") || s.Verity.IsZero() || s.Size != 13 {
				t.Errorf("Subject = %+v, %v", s, ok)
			}
			if _, ok := c.Subject("config.json"); ok {
				t.Error("Subject matched a part of a name")
			}
		})
	}
}

func TestZeroCapabilityPermitsNothing(t *testing.T) {
	var c Capability
	if !c.IsZero() || !c.ID().IsZero() || !c.Claim().IsZero() || !c.SBA().IsZero() || c.Subjects() != nil || c.Envelope() != nil ||
		!c.NotAfter().IsZero() || !c.NotBefore().IsZero() || c.Environment() != (hashpipe.Digest{}) || c.Model() != "" || c.Version() != "" ||
		c.Sequence() != 0 || !c.Publisher().IsZero() || c.Minter() != "" || c.Operator() != "" || c.Platform().OS != "" {
		t.Error("the zero Capability says something")
	}
	var r Revocation
	if !r.IsZero() || !r.ID().IsZero() || r.Target() != "" || r.Kind() != "" || r.Reason() != "" || r.Envelope() != nil || r.Operator() != "" || r.Revoker() != "" {
		t.Error("the zero Revocation says something")
	}
	if _, revoked := (Grant{}).Revoked(); revoked {
		t.Error("the zero Grant is revoked")
	}
}

// Every field that is wrong is refused when it is written and when it is read.
func TestCapabilityRefusals(t *testing.T) {
	w := newWorld(t)
	var zero hashpipe.Digest
	id := w.stranger.Public().ID()
	for name, tc := range map[string]struct {
		edit func(*Statement)
		want string
	}{
		"type":                {func(st *Statement) { st.Type = "https://in-toto.io/Statement/v0.1" }, "_type is"},
		"predicate type":      {func(st *Statement) { st.PredicateType = RevocationType }, "predicateType is"},
		"no subject":          {func(st *Statement) { st.Subject = nil }, "subject is empty"},
		"empty subject":       {func(st *Statement) { st.Subject = []SubjectEntry{} }, "subject is empty"},
		"no outputs":          {func(st *Statement) { st.Predicate.Outputs = nil }, "2 subjects and 0 outputs"},
		"an output too few":   {func(st *Statement) { st.Predicate.Outputs = st.Predicate.Outputs[:1] }, "2 subjects and 1 outputs"},
		"an output of others": {func(st *Statement) { st.Predicate.Outputs[0].Name = "z" }, `output 0 is "z", want "a.bin"`},
		"outputs swapped":     {func(st *Statement) { slices.Reverse(st.Predicate.Outputs) }, `output 0 is "b.bin", want "a.bin"`},
		"subject twice":       {func(st *Statement) { st.Subject[1] = st.Subject[0] }, "unique and sorted"},
		"subjects unsorted": {func(st *Statement) {
			slices.Reverse(st.Subject)
			slices.Reverse(st.Predicate.Outputs)
		}, "unique and sorted"},
		"absolute name":       {rename("/a.bin"), "not a clean relative path"},
		"name leads out":      {rename("../a.bin"), "not a clean relative path"},
		"name with dot":       {rename("./a.bin"), "not a clean relative path"},
		"name ends in slash":  {rename("a/"), "not a clean relative path"},
		"name with two //":    {rename("a//b"), "not a clean relative path"},
		"no name":             {rename(""), "subject name is missing"},
		"name with backslash": {rename(`a\b`), "backslash"},
		"name with newline":   {rename("a\nb"), "control byte"},
		"name with NUL":       {rename("a\x00b"), "control byte"},
		"name with DEL":       {rename("a\x7fb"), "control byte"},
		"name not UTF-8":      {rename("a\xff"), "not UTF-8"},
		"long name":           {rename(strings.Repeat("a/", maxName/2) + "aa"), "at most 4095"},
		"long component":      {rename(strings.Repeat("a", 256)), "at most 255"},
		"no sha256":           {func(st *Statement) { st.Subject[0].Digest.SHA256 = zero }, "has no sha256"},
		"no fsverity":         {func(st *Statement) { st.Predicate.Outputs[0].FSVerity = hashpipe.VerityDigest{} }, "no fsverity"},
		"negative size":       {func(st *Statement) { st.Predicate.Outputs[0].Size = -1 }, "size -1"},
		"huge size":           {func(st *Statement) { st.Predicate.Outputs[0].Size = 1 << 53 }, "size 9007199254740992"},
		"other digest":        {func(st *Statement) { st.Subject[0].Digest.SHA256 = digestOf("other") }, "claim is"},
		"other claim":         {func(st *Statement) { st.Predicate.Claim = digestOf("other") }, "claim is"},
		"no claim":            {func(st *Statement) { st.Predicate.Claim = zero }, "claim is none"},
		"no model":            {func(st *Statement) { st.Predicate.Model = "" }, "model is missing"},
		"model leads out":     {func(st *Statement) { st.Predicate.Model = "../acme" }, "not a clean relative path"},
		"no version":          {func(st *Statement) { st.Predicate.Version = "" }, "version is missing"},
		"version with escape": {func(st *Statement) { st.Predicate.Version = "1\x1b[2J" }, "cannot be printed"},
		"sequence 0":          {func(st *Statement) { st.Predicate.Sequence = 0 }, "sequence 0"},
		"negative sequence":   {func(st *Statement) { st.Predicate.Sequence = -1 }, "sequence -1"},
		"huge sequence":       {func(st *Statement) { st.Predicate.Sequence = 1 << 53 }, "sequence 9007199254740992"},
		"no sba":              {func(st *Statement) { st.Predicate.SBA.Digest.SHA256 = zero }, "sba digest is missing"},
		"no publisher key":    {func(st *Statement) { st.Predicate.Publisher.PublicKey = dsse.PublicKey{} }, "publicKey is missing"},
		"publisher swapped":   {func(st *Statement) { st.Predicate.Publisher.PublicKey = w.stranger.Public() }, "publicKey hashes to"},
		"publisher renamed":   {func(st *Statement) { st.Predicate.Publisher.KeyID = id }, "publicKey hashes to"},
		"no minter":           {func(st *Statement) { st.Predicate.Minter.KeyID = "" }, "minter.keyid"},
		"no os":               {func(st *Statement) { st.Predicate.Platform.OS = "" }, "platform.os"},
		"no arch":             {func(st *Statement) { st.Predicate.Platform.Arch = "" }, "platform.arch"},
		"no accelerator":      {func(st *Statement) { st.Predicate.Platform.Accelerator = "" }, "platform.accelerator"},
		"empty cpu features":  {func(st *Statement) { st.Predicate.Platform.CPUFeatures = []string{} }, "cpuFeatures is empty"},
		"dispatch of others":  {func(st *Statement) { st.Predicate.Platform.CPUDispatch = "any" }, "platform.cpuDispatch is"},
		"dispatch of nothing": {func(st *Statement) {
			st.Predicate.Platform.CPUDispatch, st.Predicate.Platform.CPUFeatures = "exact", nil
		}, "platform.cpuDispatch is"},
		"257 cpu features": {func(st *Statement) {
			st.Predicate.Platform.CPUFeatures = nil
			for i := range 257 {
				st.Predicate.Platform.CPUFeatures = append(st.Predicate.Platform.CPUFeatures, fmt.Sprint("f", i))
			}
		}, "at most 256"},
		"cpu feature twice": {func(st *Statement) { st.Predicate.Platform.CPUFeatures = []string{"avx2", "avx2"} }, "twice"},
		"no start":          {func(st *Statement) { st.Predicate.NotBefore = time.Time{} }, "notBefore is missing"},
		"no end":            {func(st *Statement) { st.Predicate.NotAfter = time.Time{} }, "notAfter is missing"},
		"ends at its start": {func(st *Statement) { st.Predicate.NotAfter = st.Predicate.NotBefore }, "is not before notAfter"},
		"ends before":       {func(st *Statement) { st.Predicate.NotBefore = st.Predicate.NotAfter.Add(time.Second) }, "is not before notAfter"},
		"part of a second":  {func(st *Statement) { st.Predicate.NotAfter = st.Predicate.NotAfter.Add(1) }, "whole second"},
		"other time zone": {func(st *Statement) {
			st.Predicate.NotAfter = st.Predicate.NotAfter.In(time.FixedZone("", 3600))
		}, "not in UTC"},
		"year 10000":        {func(st *Statement) { st.Predicate.NotAfter = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "year 10000"},
		"no level":          {func(st *Statement) { st.Predicate.Level = "" }, "level is"},
		"other level":       {func(st *Statement) { st.Predicate.Level = "reproduced" }, "level is"},
		"empty delegate":    {func(st *Statement) { st.Predicate.Delegate = []dsse.KeyID{} }, "delegate is empty"},
		"delegate twice":    {func(st *Statement) { st.Predicate.Delegate = []dsse.KeyID{id, id} }, "unique and sorted"},
		"delegate no keyid": {func(st *Statement) { st.Predicate.Delegate = []dsse.KeyID{"alice"} }, `delegate "alice"`},
		"too many subjects": {func(st *Statement) {
			for i := range maxSubjects {
				st.Subject = append(st.Subject, SubjectEntry{Name: fmt.Sprintf("c%04d", i), Digest: st.Subject[0].Digest})
			}
		}, "1002 subjects: at most 1000"},
		"too many subjects, with outputs": {func(st *Statement) {
			subjects := st.subjects()
			for i := range maxSubjects - 1 {
				more := subjects[0]
				more.Name = fmt.Sprintf("c%04d", i)
				subjects = append(subjects, more)
			}
			*st = NewStatement(subjects, st.Predicate)
		}, "1001 subjects: at most 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			st := w.statement(t, "", "a.bin", "b.bin")
			tc.edit(&st)
			payload, err := st.Payload()
			wantError(t, err, tc.want)
			if payload != nil {
				t.Error("a payload came with the error")
			}
		})
	}
}

// rename gives the second subject a name, and everything that follows from it.
func rename(name string) func(*Statement) {
	return func(st *Statement) {
		subjects := st.subjects()
		subjects[1].Name = name
		*st = NewStatement(subjects, st.Predicate)
	}
}

// What a mint key signs is refused all the same where the text is not the one
// encoding of a valid statement.
func TestCapabilityTextRefusals(t *testing.T) {
	w := newWorld(t)
	good := string(payloadOf(t, w.statement(t, "", "a.bin", "b.bin")))
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q does not occur in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	hex := digestOf("a.bin").String()
	for name, tc := range map[string]struct{ payload, want string }{
		"empty object":                  {`{}`, "predicateType is"},
		"not JSON":                      {`capability`, "capability: json"},
		"list":                          {`[` + good + `]`, "capability"},
		"null":                          {`null`, "predicateType is"},
		"trailing data":                 {good + `{}`, "capability"},
		"trailing newline":              {good + "\n", "canonical"},
		"white space":                   {swap(`,"predicateType"`, `, "predicateType"`), "canonical"},
		"unknown field":                 {swap(`"level":`, `"uids":[0],"level":`), "unknown"},
		"unknown top field":             {swap(`"predicateType"`, `"note":"x","predicateType"`), "unknown"},
		"unknown digest":                {swap(`{"sha256":`, `{"sha512":"aa","sha256":`), "unknown"},
		"unknown restriction":           {swap(`"level":`, `"restrict":{"gids":[1000]},"level":`), "unknown"},
		"known and unknown restriction": {swap(`"level":`, `"restrict":{"uids":[1000],"cgroups":["a"]},"level":`), "unknown"},
		"empty restriction":             {swap(`"level":`, `"restrict":{},"level":`), "it is empty"},
		"empty restriction list":        {swap(`"level":`, `"restrict":{"uids":[]},"level":`), "uids is empty"},
		"no paths":                      {swap(`"level":`, `"restrict":{"paths":[]},"level":`), "paths is empty"},
		"no mounts":                     {swap(`"level":`, `"restrict":{"mounts":[],"uids":[1]},"level":`), "mounts is empty"},
		"null users":                    {swap(`"level":`, `"restrict":{"uids":null,"paths":["a"]},"level":`), "canonical"},
		"users in two orders":           {swap(`"level":`, `"restrict":{"uids":[2,1]},"level":`), "sorted"},
		"a user twice":                  {swap(`"level":`, `"restrict":{"uids":[1,1]},"level":`), "unique"},
		"a user as text":                {swap(`"level":`, `"restrict":{"uids":["1"]},"level":`), "restrict"},
		"half a user":                   {swap(`"level":`, `"restrict":{"uids":[1.5]},"level":`), "restrict"},
		"a negative user":               {swap(`"level":`, `"restrict":{"uids":[-1]},"level":`), "no user id"},
		"the overflow user":             {swap(`"level":`, `"restrict":{"uids":[65534]},"level":`), "no user id"},
		"the invalid user":              {swap(`"level":`, `"restrict":{"uids":[4294967295]},"level":`), "no user id"},
		"a path that climbs":            {swap(`"level":`, `"restrict":{"paths":["../a"]},"level":`), "not a clean relative path"},
		"an absolute path":              {swap(`"level":`, `"restrict":{"paths":["/a"]},"level":`), "not a clean relative path"},
		"a path of two slashes":         {swap(`"level":`, `"restrict":{"paths":["a//"]},"level":`), "not a clean relative path"},
		"the path of everything":        {swap(`"level":`, `"restrict":{"paths":["/"]},"level":`), "missing"},
		"a path with an escape":         {swap(`"level":`, `"restrict":{"paths":["a\u001bb"]},"level":`), "control byte"},
		"a relative mount":              {swap(`"level":`, `"restrict":{"mounts":["models"]},"level":`), "not an absolute, clean path"},
		"a mount that climbs":           {swap(`"level":`, `"restrict":{"mounts":["/a/../b"]},"level":`), "not an absolute, clean path"},
		"a mount with a slash":          {swap(`"level":`, `"restrict":{"mounts":["/models/"]},"level":`), "not an absolute, clean path"},
		"restrict null":                 {swap(`"level":`, `"restrict":null,"level":`), "canonical"},
		"restrict list":                 {swap(`"level":`, `"restrict":[],"level":`), "capability"},
		"delegate null":                 {swap(`"level":`, `"delegate":null,"level":`), "canonical"},
		"delegate empty":                {swap(`"level":`, `"delegate":[],"level":`), "delegate is empty"},
		"parent":                        {swap(`"level":`, `"parent":"`+hex+`","level":`), "parent"},
		"a parent of a mint's":          {swap(`"publisher":`, `"parent":{"digest":{"sha256":"`+hex+`"}},"publisher":`), "minter.publicKey is missing"},
		"no environment":                {strings.Replace(good, `"environment":{"digest":{"sha256":"`+digestOf("image").String()+`"}},`, ``, 1), "environment digest is missing"},
		"features null":                 {swap(`["avx2"]`, `null`), "canonical"},
		"features empty":                {swap(`["avx2"]`, `[]`), "cpuFeatures is empty"},
		"duplicate field":               {swap(`"level":`, `"level":"rebuilt","level":`), "duplicate"},
		"case variant":                  {swap(`"level":`, `"Level":`), "unknown"},
		"members in other order":        {swap(`"model":"acme/langid","version":"1.2.0"`, `"version":"1.2.0","model":"acme/langid"`), "canonical"},
		"escaped letter":                {swap(`acme/langid`, `acme\/langid`), "canonical"},
		"unicode escape":                {swap(`acme/langid`, `\u0061cme/langid`), "canonical"},
		"upper-case digest":             {swap(hex, strings.ToUpper(hex)), "lower-case"},
		"short digest":                  {swap(hex, hex[1:]), "64"},
		"prefixed digest":               {swap(hex, "sha256:"+hex), "64"},
		"zero digest":                   {swap(hex, strings.Repeat("0", 64)), "zero"},
		"digest null":                   {swap(`"`+hex+`"`, `null`), "no sha256"},
		"float":                         {swap(`"sequence":12`, `"sequence":12.0`), "sequence"},
		"exponent":                      {swap(`"sequence":12`, `"sequence":12e0`), "sequence"},
		"string number":                 {swap(`"sequence":12`, `"sequence":"12"`), "sequence"},
		"beyond int64":                  {swap(`"sequence":12`, `"sequence":9223372036854775808`), "sequence"},
		"offset for Z":                  {swap(`2026-11-23T09:00:00Z`, `2026-11-23T09:00:00+00:00`), "UTC"},
		"other offset":                  {swap(`2026-11-23T09:00:00Z`, `2026-11-23T10:00:00+01:00`), "UTC"},
		"fraction":                      {swap(`2026-11-23T09:00:00Z`, `2026-11-23T09:00:00.000Z`), "canonical"},
		"lower-case z":                  {swap(`2026-11-23T09:00:00Z`, `2026-11-23T09:00:00z`), "capability"},
		"not UTF-8":                     {swap(`1.2.0`, "1.2.\xff"), "UTF-8"},
		"deep":                          {swap(`"level":`, `"restrict":`+strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)+`,"level":`), "capability"},
	} {
		t.Run(name, func(t *testing.T) {
			v := w.view(t)
			c, err := v.Admit(sign(t, []byte(tc.payload), w.mint))
			wantError(t, err, "admitting capability", tc.want)
			if !c.IsZero() || len(v.All()) != 0 || v.Generation() != 0 {
				t.Error("the refused capability left something")
			}
		})
	}
	if _, err := w.view(t).Admit(sign(t, []byte(good), w.mint)); err != nil {
		t.Errorf("the text that the others vary is refused: %v", err)
	}
}
