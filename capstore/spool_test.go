package capstore

import (
	"bytes"
	"os"
	"testing"
)

// A mount process that starts on a full disk knows what it is told: nothing that was
// granted is lost because its text has no place on the disk.
func TestSpoolOnAFullDisk(t *testing.T) {
	s, err := newSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := fact{kind: RecordCapability}
	texts := [][]byte{[]byte("before"), []byte("full"), []byte("full too"), []byte("after")}
	room := s.file
	full, err := os.Open(os.DevNull) // takes nothing that is written
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range texts {
		s.file = room
		if i == 1 || i == 2 {
			s.file = full
		}
		number, err := s.add(f, text)
		if err != nil || number != uint32(i+1) {
			t.Fatalf("record %d has number %d, %v", i+1, number, err)
		}
	}
	s.file = room
	for i, want := range texts {
		got, _, _, err := s.text(uint32(i + 1))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("record %d: %q, %v, want %q", i+1, got, err, want)
		}
		if !s.holds(uint32(i + 1)) {
			t.Errorf("record %d is not held", i+1)
		}
	}
}
