package main

import (
	"slices"
	"testing"
)

func TestParseStage(t *testing.T) {
	for _, tt := range []struct {
		in   string
		name string
		argv []string // nil: refused
	}{
		{"", "", nil},
		{"train", "", nil},
		{": sh x", "", nil},
		{"train:", "", nil},
		{"train:   ", "", nil},
		{"train: sh 'x", "", nil},
		{`train: sh "x`, "", nil},
		{`train: sh x\`, "", nil},
		{"train: a | b", "", nil},
		{"train: a > b", "", nil},
		{"train: a; b", "", nil},
		{"train: a & b", "", nil},
		{"train: a $HOME", "", nil},
		{"train: a `b`", "", nil},
		{"train: a *.txt", "", nil},
		{"train: sh /in/source/train.sh 1", "train", []string{"sh", "/in/source/train.sh", "1"}},
		{" train :\tsh  x ", "train", []string{"sh", "x"}},
		{"train: sh -c 'a | b'", "train", []string{"sh", "-c", "a | b"}},
		{`train: echo "it's" a\ b ''`, "train", []string{"echo", "it's", "a b", ""}},
		{`train: echo 'a\b' "a\"b"`, "train", []string{"echo", `a\b`, `a"b`}},
		{"train: ld:x", "train", []string{"ld:x"}},
	} {
		got, err := parseStage(tt.in)
		if (err != nil) != (tt.argv == nil) || got.Name != tt.name || !slices.Equal(got.Argv, tt.argv) {
			t.Errorf("parseStage(%q) = %q %q, %v, want %q %q", tt.in, got.Name, got.Argv, err, tt.name, tt.argv)
		}
	}
}
