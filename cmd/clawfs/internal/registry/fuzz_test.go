package registry

import (
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

// Whatever an envelope holds, its tag is one of its kind, and says the same
// each time.
func FuzzIdentify(f *testing.F) {
	for _, payload := range []string{
		sbaPayload("acme/langid"), capPayload("2027"), revPayload("x"), `{}`,
		statementOf("https://github.com/openclaw/clawfs/revocation-list/v1", "", `{"sequence":41}`),
		statementOf("https://github.com/openclaw/clawfs/rebuild-failure/v1", `{"digest":{"sha256":"`+sbaHex+`"}}`, `{}`),
		statementOf("https://slsa.dev/provenance/v1", "", `{"runDetails":{"byproducts":[{"name":"attestation","digest":{"sha256":"`+sbaHex+`"}}]}}`),
	} {
		f.Add(payload, false)
		f.Add(payload, true)
	}
	f.Fuzz(func(t *testing.T, payload string, chain bool) {
		envelope := []byte(`{"payloadType":"application/vnd.in-toto+json","payload":"` + base64Of(payload) + `","signatures":[{"sig":"AAAA"}]}`)
		if chain {
			envelope = append(append(envelope, '\n'), envelope...)
		}
		r, err := Identify(envelope)
		if err != nil {
			return
		}
		if k, ok := KindOf(r.Tag()); !ok || k != r.Kind || r.ID != hashpipe.SumBytes([]byte(payload)).Claim() {
			t.Errorf("%s %s: KindOf = %s, %v", r.Kind, r.Tag(), k, ok)
		}
		if again, err := Identify(envelope); err != nil || again.Tag() != r.Tag() {
			t.Errorf("a second time: %s, %v", again.Tag(), err)
		}
	})
}
