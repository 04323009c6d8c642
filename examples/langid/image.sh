#!/bin/sh
# usage: image.sh CACHE LAYOUT
#
# Builds the environment of the langid example: fastText, the libraries it
# needs and one static busybox, unpacked from Debian packages into an OCI image
# layout. No maintainer script runs and nothing is installed. Prints the digest
# of the image; the same packages give the same digest.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
layout=$2
packages="busybox-static fasttext libc6 libfasttext0 libgcc-s1 libstdc++6"

root=$(mktemp -d "${TMPDIR:-/tmp}/langid-image.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# The merged /usr that Debian's base-files makes at installation.
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
for dir in bin sbin lib lib64; do
	ln -s "usr/$dir" "$root/$dir"
done
# shellcheck disable=SC2086 # a list of words
"$here/../debs.sh" "$cache" $packages >"$root/debs"
while read -r deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-same-owner -C "$root"
done <"$root/debs"
rm -r "$root/debs" "${root:?}/usr/share" "$root"/usr/lib/*/gconv
# Mount points, because the image is read-only when a stage runs.
mkdir -p "$root/dev" "$root/etc" "$root/in" "$root/out" "$root/proc" "$root/sys" "$root/tmp" "$root/work"
ln -sf busybox "$root/usr/bin/sh"

"$here/../layout.sh" "$root" "$layout"
