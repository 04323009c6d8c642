// Package oci reads environment images from OCI image layout directories, by
// manifest digest, and writes such layouts.
//
// A layout directory is untrusted storage. Every blob is measured before
// anything in it is believed, each layer's decompressed bytes are measured
// again while they are unpacked, and index.json decides nothing.
package oci

import (
	"context"
	"io"

	"github.com/openclaw/clawfs/hashpipe"
)

// Limits bounds what an image may unpack to; every field is required.
type Limits struct {
	// Bytes bounds the decompressed layers together, file by file and in all.
	Bytes int64
	// Entries bounds the archive entries of all layers together.
	Entries int64
}

// Config is what of an image's configuration matters to a build.
type Config struct {
	OS, Architecture, Variant string
	// Env holds "NAME=value" entries in the image's order.
	Env        []string
	WorkingDir string
}

// Inspect returns the configuration of an image without unpacking it. The
// manifest and the configuration are checked against their digests.
func Inspect(ctx context.Context, layout string, manifest hashpipe.Digest) (Config, error) {
	panic("unwritten")
}

// Unpack makes the directory dest out of the image's layers. dest must not
// exist; it appears only when every blob and every layer was verified.
func Unpack(ctx context.Context, layout string, manifest hashpipe.Digest, dest string, lim Limits) (Config, error) {
	panic("unwritten")
}

// Copy is a file that has the same bytes as something measured elsewhere.
type Copy struct {
	// Path is relative to the directory that was searched.
	Path string
	Sum  hashpipe.Sum
}

// Copies finds the regular files below dir whose bytes equal one of wanted.
// Only files of a wanted size are read.
func Copies(ctx context.Context, dir string, wanted []hashpipe.Measurement) ([]Copy, error) {
	panic("unwritten")
}

// Compression is how AppendImage stores a layer.
type Compression string

const (
	Plain Compression = "" // uncompressed tar
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Image describes an image to write.
type Image struct {
	Config
	Compression Compression
	// Ref is the name in index.json; it may be empty.
	Ref string
}

// AppendImage adds an image of the given layers (tar streams, lowest first) to
// the layout directory, which it creates if need be, and returns the digest of
// its manifest. The same input gives the same bytes.
func AppendImage(ctx context.Context, layout string, img Image, layers ...io.Reader) (hashpipe.Digest, error) {
	panic("unwritten")
}

// Entry is one line of index.json: a claim, for people to choose from.
type Entry struct {
	Manifest hashpipe.Digest
	Ref      string
	Platform string // "linux/amd64", or empty
}

// UnverifiedIndex lists what index.json claims to be in the layout.
func UnverifiedIndex(layout string) ([]Entry, error) { panic("unwritten") }
