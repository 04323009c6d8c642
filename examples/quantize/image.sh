#!/bin/sh
# usage: image.sh CACHE PACKAGES LAYOUT
#
# Builds the environment of the quantize example as an OCI image layout: Python
# and NumPy from Debian packages, and the libraries of llama.cpp out of the
# directory of npm packages PACKAGES. Nothing is installed. Prints the digest of
# the image; the same packages give the same digest.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
packages=$2
layout=$3
binaries=$packages/@node-llama-cpp/linux-x64/bins/linux-x64

root=$(mktemp -d "${TMPDIR:-/tmp}/quantize-image.XXXXXX")
trap 'rm -rf "$root"' EXIT

"$here/../unpack.sh" "$cache" "$root" \
	libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1 \
	libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3-minimal \
	libblas3 liblapack3 libgfortran5 libquadmath0 python3-numpy
# They find each other by $ORIGIN. The processor-specific ones run models only.
mkdir "$root/usr/lib/llama.cpp"
install -m 644 "$binaries"/libllama.v*.so "$binaries"/libggml.v*.so "$binaries"/libggml-base.so "$root/usr/lib/llama.cpp"
ln -s "$(basename "$binaries"/libllama.v*.so)" "$root/usr/lib/llama.cpp/libllama.so"

"$here/../layout.sh" "$root" "$layout"
