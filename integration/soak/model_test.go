package soak

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// kind of an operation on one content at one mount.
type kind int

const (
	grant kind = iota
	revoke
	attempt // to revoke, of which nobody knows what became
	open
)

// input is what was asked. A content whose file is written to meanwhile may be
// refused at any time (lenient); one whose file is left alone may not.
type input struct {
	kind    kind
	lenient bool
}

// pending is when an operation returned whose answer never came: it may have
// taken effect at any time since its call, or never.
const pending = math.MaxInt64

// model says what grant, revoke and open of one content at one mount promise.
//
// A content is unknown, granted or revoked. What is revoked stays so; a
// revocation that comes before its grant holds too ("revoked on arrival"). An open
// succeeds in the state granted and in no other. It is refused with EACCES in the
// others, and in the state granted only if somebody writes to the file.
//
// A grant or a revocation begins when it is sent. When it returns is what clawfs
// promises: the answer of the daemon says that the record is on stable storage and
// on its way, and the verb (`clawfs import`, `clawfs revoke`) returns when every
// mount has reported that it has the record, or says which have not ("the mount at
// DIR has not confirmed it yet"). So an operation returns at a mount
//
//   - with the verb, if the verb ended with 0 and did not name the mount,
//   - else with the first status in which the mount's report is as far as the
//     store, which is what the verb waits for.
//
// Until then an open may see the old state or the new one, but once one has seen
// the new one, none that begins later sees the old one: the view of a mount process
// only grows, and its successor begins with all that the daemon has.
//
// A grant whose answer was lost (the daemon was killed, or the client) is sent
// again: a record twice is the record once, and all attempts are one operation. If
// none is answered it is pending to the end.
//
// A revocation whose answer was lost promises nothing either way. It is in force
// before it is on the disk, so mounts may obey it already, and forget it if the
// daemon and the mount process are killed in that moment: they err on the side that
// refuses. So such an attempt is an operation of its own, after which a granted
// content is in doubt: an open of it may do either. It is sent again, and what is
// then acknowledged is the revocation.
//
// Opens that end otherwise (a mount that is away, a file being written) say nothing
// about the state; excused judges them.
var model = porcupine.Model{
	Init: func() any { return "unknown" },
	Step: func(state, in, out any) (bool, any) {
		switch op := in.(input); op.kind {
		case grant:
			if state == "unknown" {
				return true, "granted"
			}
			return true, state
		case revoke:
			return true, "revoked"
		case attempt:
			if state == "granted" {
				return true, "in doubt"
			}
			return true, state
		default:
			if out.(bool) {
				return state == "granted" || state == "in doubt", state
			}
			return state != "granted" || op.lenient, state
		}
	},
	DescribeOperation: func(in, out any) string {
		switch in.(input).kind {
		case grant:
			return "grant"
		case revoke:
			return "revoke"
		case attempt:
			return "attempt to revoke"
		}
		if out.(bool) {
			return "open: ok"
		}
		return "open: EACCES"
	},
	DescribeState: func(state any) string { return state.(string) },
}

// checkPatience bounds the search for an order. A history that is not settled in
// time is a failure.
const checkPatience = time.Minute

// explain returns nil if some order of the operations explains all their answers.
func explain(history []porcupine.Operation) error {
	end := int64(math.MinInt64)
	for _, op := range history {
		end = max(end, op.Call)
		if op.Return != pending {
			end = max(end, op.Return)
		}
	}
	// An operation that may never take effect is put after all others.
	bounded := slices.Clone(history)
	for i := range bounded {
		if bounded[i].Return == pending {
			bounded[i].Return = end + 1
		}
	}
	switch res := porcupine.CheckOperationsTimeout(model, bounded, checkPatience); res {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("no order of %d operations found in %v, and none excluded", len(history), checkPatience)
	}
	return fmt.Errorf("no order explains these answers:\n%s", tell(history))
}

// tell writes a history for a person: times in ms since its beginning. Runs of
// equal answers are drawn together.
func tell(history []porcupine.Operation) string {
	list := slices.Clone(history)
	slices.SortFunc(list, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	if len(list) == 0 {
		return "nothing"
	}
	ms := func(t int64) string {
		if t == pending {
			return "never"
		}
		return fmt.Sprintf("%.1f", float64(t-list[0].Call)/1e6)
	}
	var text string
	for i := 0; i < len(list); {
		op := list[i]
		what := model.DescribeOperation(op.Input, op.Output)
		j, last := i, op.Return
		for ; j < len(list) && model.DescribeOperation(list[j].Input, list[j].Output) == what; j++ {
			last = max(last, list[j].Return)
		}
		if j-i == 1 {
			text += fmt.Sprintf("  [%s, %s] %s %v\n", ms(op.Call), ms(op.Return), what, orNone(op.Metadata))
		} else {
			text += fmt.Sprintf("  [%s, %s] %d times %s, the last from %s\n", ms(op.Call), ms(last), j-i, what, ms(list[j-1].Call))
		}
		i = j
	}
	return text
}

func orNone(v any) any {
	if v == nil {
		return ""
	}
	return v
}
