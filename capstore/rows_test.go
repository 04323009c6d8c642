package capstore

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// A database that cannot be read is an error, and not a row that is missing or
// empty.
func TestRowOfAClosedDatabase(t *testing.T) {
	db, err := openBadger(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	if value, err := getRow(db, "x"); !errors.Is(err, ErrNotFound) || value != nil {
		t.Errorf("a row that is not there: %q, %v", value, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if value, err := getRow(db, "x"); err == nil || errors.Is(err, ErrNotFound) || value != nil {
		t.Errorf("getRow of a closed database = %q, %v, want another error than %v", value, err, ErrNotFound)
	}
	rows := 0
	if err := scan(db, "", "", func(*badger.Item) error { rows++; return nil }); err == nil || rows != 0 {
		t.Errorf("scan of a closed database: %d rows, %v, want an error", rows, err)
	}
}
