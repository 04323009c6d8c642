// Forge writes one row into a Badger database as any program could that can
// write the files: forge DIR KEY <VALUE. With -delete it deletes the row.
package main

import (
	"io"
	"log"
	"os"

	"github.com/dgraph-io/badger/v4"
)

func main() {
	log.SetFlags(0)
	args := os.Args[1:]
	remove := len(args) > 0 && args[0] == "-delete"
	if remove {
		args = args[1:]
	}
	if len(args) != 2 {
		log.Fatal("usage: forge [-delete] DIR KEY <VALUE")
	}
	value, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	db, err := badger.Open(badger.DefaultOptions(args[0]).WithLogger(nil).WithMemTableSize(8 << 20).WithValueLogFileSize(16 << 20))
	if err != nil {
		log.Fatal(err)
	}
	err = db.Update(func(txn *badger.Txn) error {
		if remove {
			return txn.Delete([]byte(args[1]))
		}
		return txn.Set([]byte(args[1]), value)
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := db.Close(); err != nil {
		log.Fatal(err)
	}
}
