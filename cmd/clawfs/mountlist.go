package main

import (
	"cmp"
	"slices"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// list is what is known of all mounts, by mount point.
func (s *supervisor) list() []control.Mount {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []control.Mount{}
	for _, w := range s.mounts {
		list = append(list, w.answer())
	}
	slices.SortFunc(list, func(a, b control.Mount) int { return cmp.Compare(a.Mountpoint, b.Mountpoint) })
	return list
}

func (s *supervisor) one(id string) control.Mount {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, known := s.mounts[id]; known {
		return w.answer()
	}
	return control.Mount{ID: id, State: mountDead}
}

func (w *watched) answer() control.Mount {
	m := control.Mount{
		ID: w.record.ID, Source: w.record.Source, Mountpoint: w.record.Mountpoint, State: w.state,
		PID: w.pid, Foreground: w.record.Foreground, Restarts: w.restarts, Resumable: w.pid > 0 && w.pid == w.holder,
	}
	if w.record.AuditUntil.After(time.Now()) {
		m.AuditUntil = w.record.AuditUntil
	}
	if w.err != nil {
		m.LastError = w.err.Error()
	}
	if w.state == mountStarting {
		m.Records = w.records
	}
	// A report of a process that is gone says nothing about the one that serves.
	if w.report != nil && w.report.PID == w.pid {
		m.Report = w.report
	}
	return m
}
