#!/bin/sh
# usage: unpack.sh CACHE ROOT PACKAGE...
#
# Makes the directory ROOT from Debian packages that debs.sh finds or downloads:
# their files, nothing of what only their installation would need, and the mount
# points of a sandbox. Dependencies are not followed and no maintainer script
# runs, so the same packages give the same tree.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
root=$2
shift 2

# The merged /usr that Debian's base-files makes at installation.
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
chmod 755 "$root"
for dir in bin sbin lib lib64; do
	ln -s "usr/$dir" "$root/$dir"
done
"$here/debs.sh" "$cache" "$@" >"$root/debs"
while read -r deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-same-owner -C "$root"
done <"$root/debs"
# What update-alternatives would have made.
for library in blas/libblas lapack/liblapack; do
	for dir in "$root"/usr/lib/*-linux-gnu; do
		if [ -e "$dir/$library.so.3" ]; then
			ln -sf "$library.so.3" "$dir/${library##*/}.so.3"
		fi
	done
done
# Documentation, tests, character sets that are not UTF-8.
rm -r "$root/debs" "${root:?}/usr/share" "$root"/usr/lib/*/gconv
rm -rf "${root:?}/var"
find "$root/usr/lib" -type d -name tests -prune -exec rm -rf {} +
# Mount points, because the image is read-only when a stage runs.
mkdir -p "$root/dev" "$root/etc" "$root/in" "$root/out" "$root/proc" "$root/sys" "$root/tmp" "$root/work"
