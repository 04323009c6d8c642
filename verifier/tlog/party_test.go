package tlog_test

import (
	"fmt"
	"testing"

	"github.com/openclaw/clawfs/verifier/tlog"
)

func TestQuorumParties(t *testing.T) {
	w := newWorld(t)
	head := []string{
		"log " + w.log.vkey() + " https://log.example",
		"witness w1 " + w.w1.vkey() + " https://w1.example/a",
		"witness w2 " + w.w2.vkey(), "witness w3 " + w.w3.vkey(),
		"group inner any w2 w3", "group outer all w1 inner",
	}
	show := func(p tlog.Party) string {
		out := ""
		for _, x := range p.Witnesses() {
			out += fmt.Sprintf("%s %s %q;", x.Name, x.Key, x.URL)
		}
		return out
	}
	q, ok := policy(t, append(head, "quorum outer")...).Quorum()
	if !ok || q.Name != "outer" || q.K != 2 || len(q.Members) != 2 || !q.Key.IsZero() {
		t.Errorf("Quorum of outer = %+v, %t", q, ok)
	}
	if inner := q.Members[1]; inner.Name != "inner" || inner.K != 1 || len(inner.Members) != 2 {
		t.Errorf("its second member = %+v, want inner, any of two", inner)
	}
	want := fmt.Sprintf("w1 %s %q;w2 %s %q;w3 %s %q;", w.w1.vkey(), "https://w1.example/a", w.w2.vkey(), "", w.w3.vkey(), "")
	if got := show(q); got != want {
		t.Errorf("Witnesses = %s\nwant %s", got, want)
	}
	if q, ok := policy(t, append(head, "quorum w1")...).Quorum(); !ok || show(q) != fmt.Sprintf("w1 %s %q;", w.w1.vkey(), "https://w1.example/a") {
		t.Errorf("Quorum of one witness = %+v, %t", q, ok)
	}
	none := policy(t, append(head, "quorum none")...)
	if q, ok := none.Quorum(); ok {
		t.Errorf("Quorum of none = %+v, true", q)
	}
	if q, ok := (tlog.Policy{}).Quorum(); ok || (tlog.Policy{}).Logs() != nil {
		t.Errorf("Quorum of no policy = %+v, true", q)
	}
	if logs := none.Logs(); len(logs) != 1 || logs[0].Key.String() != w.log.vkey() || logs[0].URL != "https://log.example" {
		t.Errorf("Logs = %+v", logs)
	}
}
