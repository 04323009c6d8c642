package oci

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAppendImage(t *testing.T) {
	layer := archive(t, file("a", strings.Repeat("text ", 100_000)))
	for _, c := range []Compression{Plain, Gzip, Zstd} {
		img := amd64
		img.Compression, img.Ref = c, "base"
		one, d1 := image(t, img, layer)
		two, d2 := image(t, img, layer)
		if d1 != d2 || list(t, one) != list(t, two) {
			t.Errorf("%q: the same input gave %v and %v", c, d1, d2)
		}
		// A new image of the same name takes its line in the index.
		d3, err := AppendImage(t.Context(), one, img, bytes.NewReader(archive(t, file("b", "2"))))
		if err != nil {
			t.Fatal(err)
		}
		img.Ref = "other"
		img.Architecture, img.Variant = "arm", "v7"
		d4, err := AppendImage(t.Context(), one, img, bytes.NewReader(layer))
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnverifiedIndex(one)
		want := []Entry{{d3, "base", "linux/amd64"}, {d4, "other", "linux/arm/v7"}}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("UnverifiedIndex = %v, %v, want %v", got, err, want)
		}
		cfg, err := Inspect(t.Context(), one, d4)
		if err != nil || cfg.Platform() != "linux/arm/v7" {
			t.Errorf("Inspect = %+v, %v", cfg, err)
		}
	}
	layout := t.TempDir()
	for name, img := range map[string]Image{
		"no platform":         {},
		"unknown compression": {Config: amd64.Config, Compression: "lzma"},
	} {
		if _, err := AppendImage(t.Context(), layout, img, bytes.NewReader(layer)); err == nil {
			t.Errorf("AppendImage with %s was allowed", name)
		}
	}
	if _, err := AppendImage(t.Context(), layout, amd64); err == nil {
		t.Error("AppendImage without layers was allowed")
	}
	if _, err := AppendImage(t.Context(), layout, amd64, io.MultiReader(bytes.NewReader(layer), failing{})); err == nil {
		t.Error("AppendImage of a failing reader was allowed")
	}
	only(t, filepath.Join(layout, "blobs/sha256"))
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk gone") }
