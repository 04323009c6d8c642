package capstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
)

// checkTables looks at the end of each table that Badger is about to open. It
// opens them in goroutines of its own and panics there over a file that was
// cut, which ends the process. Tables that the MANIFEST does not name are what
// a crash left; Badger removes them, whatever is in them.
func checkTables(dir string) (err error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		// A new database, or one that Badger would take for new: it would remove the tables.
		if tables, _ := filepath.Glob(filepath.Join(dir, "*.sst")); len(tables) > 0 {
			return fmt.Errorf("%w: %s is missing beside %d tables; %s", ErrDamaged, filepath.Join(dir, badger.ManifestFilename), len(tables), rebuildNext)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	defer recovered(&err)
	manifest, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return fmt.Errorf("%w: %s: %v", ErrDamaged, f.Name(), err)
	}
	for id := range manifest.Tables {
		if err := checkTable(table.NewFilename(id, dir)); err != nil {
			return err
		}
	}
	return nil
}

// checkTable reads the lengths at the end of a table: index, length of the
// index, checksum, length of the checksum; each length is of four bytes. What
// the index says is behind its checksum, which Badger verifies.
func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	for range 2 {
		var b [4]byte
		if _, err := f.ReadAt(b[:], end-4); err != nil {
			return fmt.Errorf("%w: %s is cut or overwritten: %d bytes", ErrDamaged, path, info.Size())
		}
		end -= 4 + int64(binary.BigEndian.Uint32(b[:]))
		if end < 0 {
			return fmt.Errorf("%w: %s is cut or overwritten: %d bytes", ErrDamaged, path, info.Size())
		}
	}
	return nil
}
