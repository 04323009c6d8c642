package soak

import (
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"
)

// op lays out one operation of a history.
func op(k kind, ok bool, call, ret int64) porcupine.Operation {
	return porcupine.Operation{Input: input{kind: k}, Output: ok, Call: call, Return: ret}
}

func lenient(o porcupine.Operation) porcupine.Operation {
	o.Input = input{kind: o.Input.(input).kind, lenient: true}
	return o
}

// The checker must be able to fail: histories that break the promise are refused,
// and the nearest ones that keep it are not.
func TestCheckerRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		history []porcupine.Operation
		ok      bool
	}{
		{"nothing", nil, true},
		{"an open without a grant", []porcupine.Operation{op(open, true, 1, 2)}, false},
		{"a refusal without a grant", []porcupine.Operation{op(open, false, 1, 2)}, true},
		{"an open before the grant was sent", []porcupine.Operation{op(open, true, 1, 2), op(grant, true, 3, 4)}, false},
		{"an open while the grant is under way", []porcupine.Operation{op(grant, true, 1, 10), op(open, true, 2, 3)}, true},
		{"a refusal while the grant is under way", []porcupine.Operation{op(grant, true, 1, 10), op(open, false, 2, 3)}, true},
		{"a refusal after an open, while the grant is under way",
			[]porcupine.Operation{op(grant, true, 1, 10), op(open, true, 2, 3), op(open, false, 4, 5)}, false},
		{"a refusal after the grant", []porcupine.Operation{op(grant, true, 1, 2), op(open, false, 3, 4)}, false},
		{"a refusal after the grant, of a file that is written to",
			[]porcupine.Operation{op(grant, true, 1, 2), lenient(op(open, false, 3, 4))}, true},
		{"an open after the revocation",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, 4), op(open, true, 5, 6)}, false},
		{"an open after the revocation, of a file that is written to",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, 4), lenient(op(open, true, 5, 6))}, false},
		{"an open that began before the revocation returned",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, 5), op(open, true, 4, 9)}, true},
		{"an open after a refusal, while the revocation is under way",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, 20), op(open, false, 4, 5), op(open, true, 6, 7)}, false},
		{"an open after a revocation that is not confirmed",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, pending), op(open, true, 5, 6)}, true},
		{"an open after a refusal by a revocation that is not confirmed",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, pending), op(open, false, 5, 6), op(open, true, 7, 8)}, false},
		{"an open after a refusal by a revocation whose answer was lost",
			[]porcupine.Operation{op(grant, true, 1, 2), op(attempt, true, 3, pending), op(open, false, 5, 6), op(open, true, 7, 8)}, true},
		{"a refusal before the attempt to revoke",
			[]porcupine.Operation{op(grant, true, 1, 2), op(open, false, 3, 4), op(attempt, true, 5, pending)}, false},
		{"an open after the revocation that follows an attempt",
			[]porcupine.Operation{op(grant, true, 1, 2), op(attempt, true, 3, pending), op(revoke, true, 5, 6), op(open, true, 7, 8)}, false},
		{"an attempt grants nothing",
			[]porcupine.Operation{op(attempt, true, 1, pending), op(open, true, 3, 4)}, false},
		{"a grant whose answer was lost, seen late",
			[]porcupine.Operation{op(grant, true, 1, pending), op(open, false, 3, 4), op(open, true, 50, 60)}, true},
		{"a second grant does not outrank a revocation",
			[]porcupine.Operation{op(grant, true, 1, 2), op(revoke, true, 3, 4), op(grant, true, 5, 6), op(open, true, 7, 8)}, false},
		{"a revocation before the grant holds",
			[]porcupine.Operation{op(revoke, true, 1, 2), op(grant, true, 3, 4), op(open, true, 7, 8)}, false},
	} {
		err := explain(tt.history)
		if tt.ok != (err == nil) {
			t.Errorf("%s: %v, want it explained: %v", tt.name, err, tt.ok)
		}
		if err != nil && !strings.Contains(err.Error(), "open") {
			t.Errorf("%s: the refusal does not tell of the open: %v", tt.name, err)
		}
	}
}

func TestContentsDiffer(t *testing.T) {
	c := content{ID: 7, Size: 3*blockSize + 100}
	var b strings.Builder
	if n, err := c.WriteTo(&b); n != c.Size || err != nil {
		t.Fatalf("WriteTo: %d, %v, want %d bytes", n, err, c.Size)
	}
	whole := []byte(b.String())
	for _, part := range [][2]int64{{0, c.Size}, {blockSize - 1, blockSize + 1}, {70000, 70001}, {c.Size - 1, c.Size}} {
		if d := c.differs(part[0], whole[part[0]:part[1]]); d != "" {
			t.Errorf("part %v: %s", part, d)
		}
	}
	whole[2*blockSize+5] ^= 1
	if d := c.differs(blockSize, whole[blockSize:]); !strings.Contains(d, "byte 131077 ") {
		t.Errorf("a flipped bit gives %q", d)
	}
	if d := c.differs(0, append(whole, 0)); d == "" {
		t.Error("a byte beyond the end gives nothing")
	}
	if d := (content{ID: 8, Size: c.Size}).differs(0, whole[:1<<10]); d == "" {
		t.Error("another content gives nothing")
	}
}
