#!/bin/sh
# usage: image.sh CACHE LAYOUT
#
# Builds the environment of the langid example: fastText, the libraries it
# needs and one static busybox, unpacked from Debian packages into an OCI image
# layout. Nothing is installed. Prints the digest of the image; the same
# packages give the same digest.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
layout=$2

root=$(mktemp -d "${TMPDIR:-/tmp}/langid-image.XXXXXX")
trap 'rm -rf "$root"' EXIT

"$here/../unpack.sh" "$cache" "$root" \
	busybox-static fasttext libc6 libfasttext0 libgcc-s1 libstdc++6
ln -sf busybox "$root/usr/bin/sh"

"$here/../layout.sh" "$root" "$layout"
