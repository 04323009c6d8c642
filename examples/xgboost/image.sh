#!/bin/sh
# usage: image.sh CACHE LAYOUT
#
# Builds the environment of the xgboost example, Python with XGBoost and the
# libraries it loads, from Debian packages as an OCI image layout of 120 MB.
# Nothing is installed. Prints the digest of the image; the same packages give
# the same digest.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
layout=$2

root=$(mktemp -d "${TMPDIR:-/tmp}/xgboost-image.XXXXXX")
trap 'rm -rf "$root"' EXIT

"$here/../unpack.sh" "$cache" "$root" \
	libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1 \
	libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3-minimal \
	libblas3 liblapack3 libgfortran5 libquadmath0 python3-numpy python3-scipy \
	libdmlc0 libxgboost0 python3-xgboost

"$here/../layout.sh" "$root" "$layout"
