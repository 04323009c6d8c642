package capstore

import (
	"bytes"
	"testing"
	"time"
)

// Whatever text is read as a capability is the one text of that capability.
func FuzzCapability(f *testing.F) {
	w := newWorld(f)
	f.Add(payloadOf(f, w.statement(f, "", "a.bin")))
	f.Add(payloadOf(f, w.statement(f, "x", "a/b.bin", "config.json")))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{}}]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		st, err := parseStatement(payload)
		if err != nil {
			return
		}
		again, err := st.Payload()
		if err != nil || !bytes.Equal(again, payload) {
			t.Fatalf("%s\nprints as\n%s, %v", payload, again, err)
		}
		for _, s := range st.subjects() {
			if s.Digest.IsZero() || s.Verity.IsZero() || s.Name == "" || s.Size < 0 {
				t.Fatalf("subject %+v", s)
			}
		}
	})
}

// Whatever text is read as a revocation is the one text of that revocation.
func FuzzRevocation(f *testing.F) {
	w := newWorld(f)
	for _, kind := range kinds {
		st, err := NewRevocation(kind, digestOf("x").String(), "a reason", time.Unix(1763900000, 0))
		if err != nil {
			f.Fatal(err)
		}
		st.Predicate.Revoker.KeyID = w.revoker.Public().ID()
		p, err := st.Payload()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		st, err := parseRevocation(payload)
		if err != nil {
			return
		}
		again, err := st.Payload()
		if err != nil || !bytes.Equal(again, payload) {
			t.Fatalf("%s\nprints as\n%s, %v", payload, again, err)
		}
	})
}

// No bytes in a job's row crash the reader, and none but a checked row is a job.
func FuzzJobRow(f *testing.F) {
	j := pendingJob()
	j.ID, j.CreatedAt = "abcdefghij", time.Unix(1763900000, 0).UTC()
	r, err := jobRow(j)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(r.key, r.value)
	f.Fuzz(func(t *testing.T, key, value []byte) {
		j, err := readJob(row{key, value})
		if err != nil {
			return
		}
		again, err := jobRow(j)
		if err != nil || !bytes.Equal(again.key, key) {
			t.Fatalf("a job that cannot be written again: %v", err)
		}
	})
}
