#!/bin/sh
# usage: image.sh ROOT LAYOUT
#
# Unpacks Debian's python3-torch and everything it needs into the directory
# ROOT and writes that as the OCI image layout LAYOUT. Prints the digest. No
# maintainer script runs; the same packages give the same digest. Needs root,
# mmdebstrap, the network, about 2.5 GB of disk and some minutes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$1
layout=$2

# shellcheck disable=SC1091 # of the machine
. /etc/os-release
rm -rf "$root"
mmdebstrap --quiet --mode=root --variant=extract --format=directory \
	--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	--aptopt='APT::Install-Recommends "false"' \
	--include=python3-minimal,python3-torch "$VERSION_CODENAME" "$root" >&2

# What update-alternatives would have made.
for library in blas/libblas lapack/liblapack; do
	for dir in "$root"/usr/lib/*-linux-gnu; do
		if [ -e "$dir/$library.so.3" ]; then
			ln -sf "$library.so.3" "$dir/${library##*/}.so.3"
		fi
	done
done
# Documentation, tests, and what differs between two machines.
rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale "$root"/usr/lib/libtorch-test \
	"${root:?}/var" "${root:?}/dev" "${root:?}/tmp" "$root"/etc/resolv.conf "$root"/etc/hostname "$root"/etc/apt
find "$root" -name __pycache__ -prune -exec rm -rf {} +
: >"$root/client.py"
mkdir -p "$root/dev" "$root/in" "$root/mnt" "$root/out" "$root/proc" "$root/sys" "$root/tmp" "$root/var/tmp" "$root/work"
chmod 755 "$root"

"$here/../layout.sh" "$root" "$layout"
