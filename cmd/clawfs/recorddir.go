package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

// placeMarker names, in a directory of records, where they came from.
const placeMarker = ".clawfs-place"

// recordDir is a directory of records, each in a file named after its tag. The
// empty recordDir keeps nothing.
type recordDir string

// openRecordDir makes the directory if need be. It belongs to one place: what is
// missing there is judged by what lies here.
func openRecordDir(dir, place string) (recordDir, error) {
	if dir == "" {
		return "", nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	marker := filepath.Join(dir, placeMarker)
	err := durable.Create(marker, []byte(place+"\n"), 0o644)
	if err == nil || !errors.Is(err, fs.ErrExist) {
		return recordDir(dir), err
	}
	have, err := readBounded(marker, 4096)
	if err != nil {
		return "", err
	}
	if from := strings.TrimSuffix(string(have), "\n"); from != place {
		return "", exitf(codeUsage, "%s holds what came from %s, and this is %s; next: another --out", printable(dir), printable(from), printable(place))
	}
	return recordDir(dir), nil
}

func fileName(kind registry.Kind, tag string) string {
	if kind == registry.SBA {
		return tag + ".sba"
	}
	return tag + ".dsse"
}

// load returns the record of a tag if its file is here and is what its name
// says; fs.ErrNotExist if there is none.
func (d recordDir) load(tag string) (registry.Record, error) {
	kind, ok := registry.KindOf(tag)
	if d == "" || !ok {
		return registry.Record{}, fs.ErrNotExist
	}
	path := filepath.Join(string(d), fileName(kind, tag))
	if _, err := os.Lstat(path); err != nil {
		return registry.Record{}, err
	}
	r, err := readRecordFile(path)
	if err == nil && r.Tag() != tag {
		err = fmt.Errorf("%s holds %s", path, r.Tag())
	}
	if err != nil {
		return registry.Record{}, fmt.Errorf("a file that is not what its name says, left as it is (next: remove it): %w", err)
	}
	return r, nil
}

// saved are the tags of the files that are here, revocations and lists alone.
func (d recordDir) saved() ([]string, error) {
	if d == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, e := range entries {
		tag, ok := strings.CutSuffix(e.Name(), ".dsse")
		if kind, known := registry.KindOf(tag); ok && known && takesBack(kind) {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

func takesBack(k registry.Kind) bool { return k == registry.Revocation || k == registry.RevocationList }

// save writes a record unless it is here already, and says whether it wrote
// something. Other bytes under the name are an error and stay; an older proof
// stays too.
func (d recordDir) save(r registry.Record) (file string, wrote bool, err error) {
	if d == "" {
		return "", false, nil
	}
	file = filepath.Join(string(d), fileName(r.Kind, r.Tag()))
	if wrote, err = saveFile(file, r.Envelope); err != nil || r.Proof == nil {
		return file, wrote, err
	}
	added, err := saveFile(file+proofSuffix, r.Proof)
	if errors.Is(err, errOtherBytes) {
		err = nil
	}
	return file, wrote || added, err
}

var errOtherBytes = errors.New("holds other bytes, and stays as it is")

func saveFile(path string, text []byte) (wrote bool, err error) {
	have, err := readBounded(path, int64(len(text)))
	switch _, missing := os.Lstat(path); {
	case errors.Is(missing, fs.ErrNotExist):
		err := durable.Create(path, text, 0o644)
		return err == nil, err
	case err == nil && bytes.Equal(have, text):
		return false, nil
	}
	return false, exitf(codeRefused, "%s: %w", printable(path), errOtherBytes)
}
