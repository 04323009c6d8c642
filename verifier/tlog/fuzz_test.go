package tlog_test

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/openclaw/clawfs/verifier/tlog"
)

// Each parser, fed with anything, refuses it or can print what it took: there is
// one text for one value.

func FuzzProof(f *testing.F) {
	f.Add(known(f, "11.tlog-proof"))
	f.Add(known(f, "13.tlog-proof"))
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra AAAA\nindex 0\n\na\n0\n\n"))
	p, err := tlog.ParsePolicy(known(f, "policy"))
	if err != nil {
		f.Fatal(err)
	}
	l, err := tlog.ParseLeaf(known(f, "leaf"))
	if err != nil {
		f.Fatal(err)
	}
	signed := known(f, "11.checkpoint")
	f.Fuzz(func(t *testing.T, data []byte) {
		proof, err := tlog.ParseProof(data)
		if err != nil {
			return
		}
		if got, err := proof.Encode(); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%q parsed and printed as %q, %v", data, got, err)
		}
		c, err := tlog.Verify(p, data, l)
		if err == nil && (!bytes.HasPrefix(c.Note(), signed[:bytes.Index(signed, []byte("\n\n"))+1]) || proof.Index != 0) {
			t.Errorf("%q verified: nobody signed that", data)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	for _, name := range []string{"11.checkpoint", "13.checkpoint", "13fork.checkpoint"} {
		f.Add(known(f, name))
	}
	f.Add([]byte("a\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nextension\n\n— x AAAAAAA=\n"))
	p, err := tlog.ParsePolicy(known(f, "policy"))
	if err != nil {
		f.Fatal(err)
	}
	var texts []string
	for _, name := range []string{"11.checkpoint", "13.checkpoint", "13fork.checkpoint"} {
		text, _, _ := strings.Cut(string(known(f, name)), "\n\n")
		texts = append(texts, text+"\n\n")
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := tlog.Reprint(data)
		if err != nil {
			return
		}
		if got != string(data) {
			t.Errorf("%q parsed and printed as %q", data, got)
		}
		// Whatever we take for a note, Go's own parser must.
		if _, err := note.Open(data, nil); err != nil {
			if _, ok := err.(*note.UnverifiedNoteError); !ok {
				t.Errorf("%q: note.Open: %v", data, err)
			}
		}
		c, err := p.Checkpoint(data)
		if err != nil {
			return
		}
		for _, text := range texts {
			if strings.HasPrefix(string(c.Note()), text) {
				return
			}
		}
		t.Errorf("%q verified: nobody signed that", data)
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(known(f, "policy"))
	f.Add([]byte("# comment\n\tlog x  \n"))
	f.Add([]byte(strings.Replace(string(known(f, "policy")), "group two 2", "group a any w1\ngroup two all a", 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := tlog.ParsePolicy(data)
		if err != nil {
			return
		}
		text := p.Encode()
		again, err := tlog.ParsePolicy(text)
		if err != nil || !bytes.Equal(again.Encode(), text) {
			t.Errorf("%q printed as %q, which parses as %q, %v", data, text, again.Encode(), err)
		}
	})
}

func FuzzVerifierKey(f *testing.F) {
	for line := range strings.Lines(string(known(f, "policy"))) {
		for _, word := range strings.Fields(line) {
			f.Add(word)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := tlog.ParseVerifierKey(s); err == nil && k.String() != s {
			t.Errorf("%q parsed and printed as %q", s, k)
		}
	})
}

func FuzzLeaf(f *testing.F) {
	f.Add(known(f, "leaf"))
	f.Add(known(f, "leaf9"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := tlog.ParseLeaf(data); err == nil && !bytes.Equal(l.Encode(), data) {
			t.Errorf("%q parsed and printed as %q", data, l.Encode())
		}
	})
}

func FuzzConsistency(f *testing.F) {
	f.Add(known(f, "11to13.consistency"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := tlog.ParseConsistency(data)
		if err != nil {
			return
		}
		if got, err := c.Encode(); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%q parsed and printed as %q, %v", data, got, err)
		}
	})
}

func FuzzMemory(f *testing.F) {
	f.Add(known(f, "memory"))
	f.Add([]byte("clawfs-log-memory/v1\nnewest 3\nabc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := tlog.ParseMemory(data)
		if err != nil {
			return
		}
		if got := m.Encode(); !bytes.Equal(got, data) {
			t.Errorf("%q parsed and printed as %q", data, got)
		}
	})
}
