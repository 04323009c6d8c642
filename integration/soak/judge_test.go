package soak

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/anishathalye/porcupine"
)

// saw takes an event of a reader. What is wrong whatever else happens is told at
// once; the rest waits for the end of the life.
func (s *seat) saw(e event) {
	count := s.at.world.run.count
	if e.Way == "around" {
		count.add("around: "+ending(e.Errno), 1)
	} else {
		count.add("opens", 1)
		count.add(fmt.Sprintf("open %s: %s", s.at.seal, ending(e.Errno)), 1)
	}
	count.add("bytes", e.Bytes)
	if e.Failed != 0 {
		count.add(fmt.Sprintf("read %s: %s", s.at.seal, ending(e.Failed)), 1)
	}
	count.slowest("open", time.Duration(e.Return-e.Call))
	if e.Wrong != "" {
		count.add("wrong bytes", 1)
		s.at.world.run.fail("WRONG BYTES: %s, read by way of %q: %s", s.path, e.Way, e.Wrong)
	}
	if s.life == nil {
		return
	}
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
}

func ending(e syscall.Errno) string {
	if e == 0 {
		return "ok"
	}
	return e.Error()
}

// judge compares what readers saw of a content at one mount with the model, and
// wants an excuse for every error that the model does not know.
func (l *life) judge(s *seat, fates ...*fate) {
	run := l.world.run
	var history []porcupine.Operation
	for _, f := range fates {
		history = append(history, f.operations(s.at)...)
	}
	s.mu.Lock()
	events := s.events
	s.mu.Unlock()
	for _, e := range events {
		switch e.Errno {
		case 0, syscall.EACCES:
			history = append(history, porcupine.Operation{
				Input: input{kind: open, lenient: l.churned}, Output: e.Errno == 0, Call: e.Call, Return: e.Return,
			})
		default:
			if !l.excused(s, e.Errno, e.Call, e.Return) {
				run.fail("open %s: %v, and nothing excuses it (tier %s, churned %v, outages %s)", s.path, e.Errno, s.at.seal, l.churned, s.at.told(e.Call))
			}
		}
		if e.Failed != 0 && !l.excusedRead(s, e) {
			run.fail("%s: a read by way of %q failed with %v %v after the open, and nothing excuses it (tier %s, churned %v, outages %s)",
				s.path, e.Way, e.Failed, time.Duration(e.At-e.Return), s.at.seal, l.churned, s.at.told(e.Call))
		}
	}
	for i, f := range fates {
		if f.kind == revoke {
			l.measureRevocation(s, fates[i], events)
		}
	}
	run.count.add("histories", 1)
	run.count.add("operations in histories", int64(len(history)))
	if err := explain(history); err != nil {
		run.count.add("histories that nothing explains", 1)
		run.fail("%s (tier %s, churned %v, outages %s): %v", s.path, s.at.seal, l.churned, s.at.told(history[0].Call), err)
	}
}

// operations are what a fate is for the model, at one mount.
func (f *fate) operations(m *mountpoint) (list []porcupine.Operation) {
	last := len(f.calls) - 1
	op := porcupine.Operation{Input: input{kind: f.kind}, Output: true, Call: f.calls[0], Return: f.at(m), Metadata: f.how}
	if f.kind == grant {
		return append(list, op)
	}
	for i, call := range f.calls {
		if op.Call = call; i == last && f.replied != 0 {
			return append(list, op)
		}
		list = append(list, porcupine.Operation{Input: input{kind: attempt}, Output: true, Call: call, Return: pending, Metadata: f.how})
	}
	return list
}

// measureRevocation notes how long after the reply an open still succeeded. That is
// before the mount has confirmed it: an open later than that is the model's.
func (l *life) measureRevocation(s *seat, f *fate, events []event) {
	if f.replied == 0 {
		return
	}
	last := int64(0)
	for _, e := range events {
		if e.Errno == 0 && e.Call > f.replied {
			last = max(last, e.Call-f.replied)
		}
	}
	l.world.run.count.slowest("last open after the reply to "+f.how+", world "+l.world.name, time.Duration(last))
}

// written are the errors of an open or a read of a file that others write to: it is
// refused (EACCES, which the model knows), it changes under the reader (EIO), its
// name leads to another inode at each look (ESTALE) or to nothing (ENOENT).
var written = []syscall.Errno{syscall.EIO, syscall.ESTALE, syscall.ENOENT}

// excused says whether something that was done explains an error. A daemon that is
// killed or stopped explains none, nor does a mount process that is stopped.
func (l *life) excused(s *seat, err syscall.Errno, from, to int64) bool {
	return s.at.wasAway(from, to) || l.churned && slices.Contains(written, err)
}

// excusedRead is excused for reads: those of a content that is being revoked fail
// with EIO in tier blocks, and in no other.
func (l *life) excusedRead(s *seat, e event) bool {
	if l.excused(s, e.Failed, e.Call, e.At) {
		return true
	}
	sent := l.revoking.Load()
	return e.Failed == syscall.EIO && sent != 0 && sent <= e.At && (s.at.seal == "off" || l.content.Size < sealedFrom)
}

// sealedFrom is the size from which a mount seals, in bytes.
const sealedFrom = 1 << 20
