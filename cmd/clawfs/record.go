package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

// mountRecord is the wish that a mount exists, run/mounts/<id>.json. Who mounts
// writes it; who unmounts removes it; while it is there, the daemon brings the
// mount back. Whether somebody serves it now is the lock beside it.
type mountRecord struct {
	ID         string    `json:"id"`
	Source     string    `json:"source"`
	Mountpoint string    `json:"mountpoint"`
	Foreground bool      `json:"foreground,omitzero"` // somebody else restarts it
	CreatedAt  time.Time `json:"createdAt"`
	control.MountOptions
}

// mountID names the mount at an absolute, clean path: there is one at each.
func mountID(mountpoint string) string {
	sum := sha256.Sum256([]byte(mountpoint))
	return hex.EncodeToString(sum[:6])
}

func newRecord(source, mountpoint string, foreground bool, o control.MountOptions) mountRecord {
	return mountRecord{
		ID: mountID(mountpoint), Source: source, Mountpoint: mountpoint, Foreground: foreground,
		CreatedAt: time.Now().UTC(), MountOptions: o,
	}
}

func readRecord(s config.State, id string) (mountRecord, error) {
	b, err := config.ReadPublic(s.Mount(id))
	if err != nil {
		return mountRecord{}, err
	}
	var r mountRecord
	if err := json.Unmarshal(b, &r, json.RejectUnknownMembers(true)); err != nil {
		return mountRecord{}, fmt.Errorf("mount record %s: %w", s.Mount(id), err)
	}
	if r.ID != id || r.ID != mountID(r.Mountpoint) || !filepath.IsAbs(r.Source) || !filepath.IsAbs(r.Mountpoint) {
		return mountRecord{}, fmt.Errorf("mount record %s: does not belong to its name", s.Mount(id))
	}
	if r.AuditUntil.Sub(r.CreatedAt) > maxAudit+time.Minute { // it was made a moment after it was asked for
		return mountRecord{}, fmt.Errorf("mount record %s: audit mode for more than 30 days", s.Mount(id))
	}
	return r, nil
}

// write puts the record in place, whole or not at all.
func (r mountRecord) write(s config.State) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.Replace(s.Mount(r.ID), append(b, '\n'), 0o600)
}

// readRecords returns all records, and the files that are none.
func readRecords(s config.State) (list []mountRecord, bad []error, err error) {
	entries, err := os.ReadDir(s.Mounts())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		id, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord || strings.HasPrefix(id, ".") {
			continue
		}
		r, err := readRecord(s, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			bad = append(bad, err)
		default:
			list = append(list, r)
		}
	}
	return list, bad, nil
}
