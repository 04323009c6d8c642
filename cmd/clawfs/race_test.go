//go:build race

package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const raceEnabled = true

// raced is a program with a data race.
func raced() {
	n, done := 0, make(chan bool)
	for range 2 {
		go func() { n++; done <- true }()
	}
	<-done
	<-done
}

// TestRacesAreSeen: a race in a child ends it, so that no test takes what it
// did for an answer.
func TestRacesAreSeen(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Args[0] = "raced" // TestMain's name for it
	out, err := cmd.CombinedOutput()
	var exited *exec.ExitError
	if !errors.As(err, &exited) || exited.ExitCode() != 66 || strings.Count(string(out), dataRace) != 1 {
		t.Errorf("a child with a race: %v, want exit code 66, at once\n%s", err, out)
	}
}
