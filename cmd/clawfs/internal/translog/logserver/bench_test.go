package logserver

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	benchEntries = 100_000
	benchRounds  = 5
)

// BenchmarkLog measures a log of 100,000 entries with two witnesses. Its figures
// are how many times the work takes what one SHA-256 of the same envelopes takes,
// the median of the rounds; and sizes in bytes.
func BenchmarkLog(b *testing.B) {
	w := newWorld(b)
	one, two := newWitness(b, "one", w.vkey), newWitness(b, "two", w.vkey)
	lines := []string{one.line(), two.line(), "group both all one two", "quorum both"}
	l := w.mustOpen(b, lines...)
	leaves := w.fillLeaves(b, l, benchEntries)
	next := 0
	envelopes := func(n int) (all [][]byte) {
		for range n {
			next++
			all = append(all, w.sba(b, next))
		}
		return all
	}
	// The hash of an envelope, at the speed at which this round runs.
	reference := func(all [][]byte) time.Duration {
		const times = 50
		start := time.Now()
		for range times {
			for _, e := range all {
				sha256.Sum256(e)
			}
		}
		return time.Since(start) / times
	}
	figures := make(map[string][]float64)
	measure := func(name string, all [][]byte, work func(e []byte)) {
		before := reference(all)
		start := time.Now()
		for _, e := range all {
			work(e)
		}
		took := time.Since(start)
		figures[name] = append(figures[name], float64(took)/float64((before+reference(all))/2))
	}
	for b.Loop() {
		for range benchRounds {
			all := envelopes(256)
			before := reference(all)
			start := time.Now()
			var adding sync.WaitGroup
			for _, e := range all {
				adding.Go(func() {
					if _, err := l.Add(context.Background(), e); err != nil {
						b.Error(err)
					}
				})
			}
			adding.Wait()
			took := time.Since(start)
			figures["add/hash"] = append(figures["add/hash"], float64(took)/float64((before+reference(all))/2))

			c := newest(b, l.reader)
			var proofs [][]byte
			measure("prove/hash", all, func([]byte) { proofs = append(proofs, prove(b, l.reader, c, rand.Int64N(benchEntries))) })
			measure("verify/hash", all, func([]byte) {
				p := proofs[0]
				proofs = proofs[1:]
				parsed, err := tlog.ParseProof(p)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := tlog.Verify(l.policy, p, leaves[parsed.Index]); err != nil {
					b.Fatal(err)
				}
			})
			keys := []dsse.PublicKey{w.publisher.Public()}
			measure("signature/hash", all, func(e []byte) {
				envelope, err := dsse.Parse(e)
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := envelope.Verify(dsse.PayloadType, keys, 1); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
	c := newest(b, l.reader)
	proof := prove(b, l.reader, c, 1)
	p, err := tlog.ParseProof(proof)
	if err != nil {
		b.Fatal(err)
	}
	for name, rounds := range figures {
		slices.Sort(rounds)
		b.ReportMetric(rounds[len(rounds)/2], name)
	}
	b.ReportMetric(float64(len(envelopes(1)[0])), "envelope-B")
	b.ReportMetric(float64(len(leaves[0].Encode())), "leaf-B")
	b.ReportMetric(float64(len(proof)), "proof-B")
	b.ReportMetric(float64(len(p.Path)), "hashes")
	b.ReportMetric(float64(len(p.Checkpoint)), "checkpoint-B")

	// What a start costs: every leaf is read and hashed.
	w.close(b, l)
	start := time.Now()
	again := w.mustOpen(b, lines...)
	took := time.Since(start)
	b.Cleanup(func() { w.close(b, again) })
	var text []byte
	for _, leaf := range leaves {
		text = append(text, leaf.Encode()...)
	}
	hashed := time.Now()
	sha256.Sum256(text)
	b.ReportMetric(float64(took)/float64(time.Since(hashed)), "open/hash")
	b.ReportMetric(0, "ns/op")
	if !exists(filepath.Join(again.tree(), "tile", "1", "000.p")) {
		b.Error("the log has less than two levels of tiles")
	}
}

// fillLeaves adds leaves without their envelopes, in batches of the library.
func (w *world) fillLeaves(b testing.TB, l *Log, n int) []tlog.Leaf {
	var leaves []tlog.Leaf
	for len(leaves) < n {
		var futures []tessera.IndexFuture
		for range min(batchMax*4, n-len(leaves)) {
			payload := []byte{byte(len(leaves)), byte(len(leaves) >> 8), byte(len(leaves) >> 16)}
			leaf, err := tlog.LeafOf(tlog.KindSBA, payload, w.publisher.Public(), "acme/langid")
			if err != nil {
				b.Fatal(err)
			}
			leaves = append(leaves, leaf)
			futures = append(futures, l.appender.Add(l.ctx, tessera.NewEntry(leaf.Encode())))
		}
		for i, f := range futures {
			index, err := f()
			if want := len(leaves) - len(futures) + i; err != nil || index.Index != uint64(want) {
				b.Fatalf("entry %d: %v, %v", want, index, err)
			}
		}
	}
	l.mu.Lock()
	err := l.scan(func(tlog.Hash) error { return nil })
	l.mu.Unlock()
	if err != nil {
		b.Fatal(err)
	}
	eventually(b, "the leaves are published", func() bool { return l.Size() == int64(n) })
	return leaves
}
