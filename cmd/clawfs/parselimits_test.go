package main

import "testing"

func TestParseLimits(t *testing.T) {
	if l, err := parseLimits("memory=2GiB cpu=10m processes=64 output=1GiB"); err != nil || l.MemoryBytes != 2<<30 || l.CPUSeconds != 600 || l.Processes != 64 || l.OutputBytes != 1<<30 {
		t.Errorf("parseLimits = %+v, %v", l, err)
	}
	for _, words := range []string{"processes=64k", "processes=6 4", "processes=-1", "processes=0", "processes=", "cpu=1ms", "cpu=10", "time=1s", "memory"} {
		if l, err := parseLimits(words); err == nil {
			t.Errorf("parseLimits(%q) = %+v", words, l)
		}
	}
}
