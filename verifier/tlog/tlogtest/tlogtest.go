// Package tlogtest is a transparency log for tests: real keys, checkpoints,
// cosignatures and proofs, signed and written without any code of package tlog.
// It keeps its tree in memory and can show two trees.
package tlogtest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tiles"
)

const (
	typeLog     = 1
	typeWitness = 4
	// cosignedAt is the time of all cosignatures, in seconds since 1970.
	cosignedAt = 1764230400
)

// Log is a log and the witnesses that cosign all of its checkpoints. Its keys
// come from the names alone.
type Log struct {
	Origin string
	// Witnesses are names; each cosigns every checkpoint. Without one who is in
	// Policy the quorum is missed.
	Witnesses []string
	hashes    hashes
	size      int64
}

// New returns an empty log.
func New(origin string, witnesses ...string) *Log {
	return &Log{Origin: origin, Witnesses: witnesses}
}

// Policy returns a log policy that wants the log's signature and those of all
// its witnesses. url may be empty.
func (l *Log) Policy(url string) string {
	text := strings.TrimSuffix("log "+vkey(l.Origin, typeLog)+" "+url, " ") + "\n"
	for _, w := range l.Witnesses {
		text += "witness " + w + " " + vkey(w, typeWitness) + "\n"
	}
	if len(l.Witnesses) == 0 {
		return text + "quorum none\n"
	}
	return text + "group all all " + strings.Join(l.Witnesses, " ") + "\nquorum all\n"
}

// Add appends a leaf and returns its index.
func (l *Log) Add(t testing.TB, leaf tlog.Leaf) int64 { return l.add(t, leaf.Encode()) }

// Fill appends n leaves of other people, all different.
func (l *Log) Fill(t testing.TB, n int) {
	for range n {
		l.add(t, fmt.Appendf(nil, "leaf %d of %s\n", l.size, l.Origin))
	}
}

func (l *Log) add(t testing.TB, text []byte) int64 {
	t.Helper()
	more, err := merkle.StoredHashes(l.size, text, l.hashes)
	if err != nil {
		t.Fatal(err)
	}
	l.hashes = append(l.hashes, more...)
	l.size++
	return l.size - 1
}

// Size returns the number of leaves.
func (l *Log) Size() int64 { return l.size }

// Clone returns a log with the same keys and leaves, which can go on otherwise.
func (l *Log) Clone() *Log {
	c := *l
	c.hashes = slices.Clone(l.hashes)
	return &c
}

// Tree returns size and root of the first leaves.
func (l *Log) Tree(t testing.TB, size int64) tiles.Tree {
	t.Helper()
	root, err := merkle.TreeHash(size, l.hashes)
	if err != nil {
		t.Fatal(err)
	}
	return tiles.Tree{Size: size, Root: root}
}

// Checkpoint returns the signed checkpoint of the first leaves.
func (l *Log) Checkpoint(t testing.TB, size int64) []byte {
	t.Helper()
	text := fmt.Sprintf("%s\n%d\n%v\n", l.Origin, size, l.Tree(t, size).Root)
	note := text + "\n" + line(l.Origin, typeLog, ed25519.Sign(key(l.Origin), []byte(text)))
	for _, w := range l.Witnesses {
		sig := ed25519.Sign(key(w), fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", cosignedAt, text))
		note += line(w, typeWitness, append(binary.BigEndian.AppendUint64(nil, cosignedAt), sig...))
	}
	return []byte(note)
}

// Proof returns the text of a .tlog-proof for the leaf at index of the first
// size leaves.
func (l *Log) Proof(t testing.TB, index, size int64) []byte {
	t.Helper()
	path, err := merkle.ProveRecord(size, index, l.hashes)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("c2sp.org/tlog-proof@v1\nindex %d\n", index)
	return append(append([]byte(text), lines(path)...), append([]byte("\n"), l.Checkpoint(t, size)...)...)
}

// Consistency returns the text of a consistency proof between two sizes.
func (l *Log) Consistency(t testing.TB, older, newer int64) []byte {
	t.Helper()
	proof, err := merkle.ProveTree(newer, older, l.hashes)
	if err != nil {
		t.Fatal(err)
	}
	return lines(proof)
}

// WriteTiles writes the hash tiles of all leaves below dir.
func (l *Log) WriteTiles(t testing.TB, dir string) {
	t.Helper()
	for _, tile := range merkle.NewTiles(8, 0, l.size) {
		data, err := merkle.ReadTileData(tile, l.hashes)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, tiles.Path(tile.L, tile.N, tile.W))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

type hashes []merkle.Hash

func (h hashes) ReadHashes(indexes []int64) ([]merkle.Hash, error) {
	var out []merkle.Hash
	for _, i := range indexes {
		if i >= int64(len(h)) {
			return nil, fmt.Errorf("no hash %d", i)
		}
		out = append(out, h[i])
	}
	return out, nil
}

func key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("test key of " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func material(name string, kind byte) []byte {
	return append([]byte{kind}, key(name).Public().(ed25519.PublicKey)...)
}

func id(name string, kind byte) []byte {
	sum := sha256.Sum256(append([]byte(name+"\n"), material(name, kind)...))
	return sum[:4]
}

func vkey(name string, kind byte) string {
	return fmt.Sprintf("%s+%x+%s", name, id(name, kind), base64.StdEncoding.EncodeToString(material(name, kind)))
}

func line(name string, kind byte, sig []byte) string {
	return "— " + name + " " + base64.StdEncoding.EncodeToString(append(id(name, kind), sig...)) + "\n"
}

func lines(list []merkle.Hash) (text []byte) {
	for _, h := range list {
		text = fmt.Appendf(text, "%v\n", h)
	}
	return text
}
