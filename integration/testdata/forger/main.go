// Forger is the separate program of an attacker who can write the store's
// directory: it opens Badger without clawfs and puts rows into it.
//
//	forger STORE KEY=FILE...   KEY is text; FILE holds the value
//	forger STORE -list         prints the keys, one a line, quoted
//	forger STORE -get KEY      prints the value of KEY
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

func main() {
	db, err := badger.Open(badger.DefaultOptions(os.Args[1]).WithLogger(nil).WithSyncWrites(true))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if len(os.Args) == 3 && os.Args[2] == "-list" {
		err := db.View(func(txn *badger.Txn) error {
			it := txn.NewIterator(badger.DefaultIteratorOptions)
			defer it.Close()
			for it.Rewind(); it.Valid(); it.Next() {
				fmt.Printf("%q\n", it.Item().Key())
			}
			return nil
		})
		if err != nil {
			log.Fatal(err)
		}
		return
	}
	if len(os.Args) == 4 && os.Args[2] == "-get" {
		err := db.View(func(txn *badger.Txn) error {
			item, err := txn.Get([]byte(os.Args[3]))
			if err != nil {
				return err
			}
			return item.Value(func(v []byte) error { _, err := os.Stdout.Write(v); return err })
		})
		if err != nil {
			log.Fatal(err)
		}
		return
	}
	for _, arg := range os.Args[2:] {
		key, file, _ := strings.Cut(arg, "=")
		value, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(key), value) }); err != nil {
			log.Fatal(err)
		}
	}
}
