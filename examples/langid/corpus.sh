#!/bin/sh
# usage: corpus.sh CACHE OUT
#
# Makes the training texts from the translated manual pages that Debian ships:
# OUT/train.txt and OUT/valid.txt, one sentence a line after __label__xx. The
# same packages give the same bytes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
out=$2

pages=$(mktemp -d "${TMPDIR:-/tmp}/langid-corpus.XXXXXX")
trap 'rm -rf "$pages"' EXIT

for language in cs da de en es fr it nl pl pt; do
	case $language in
	en) package=manpages ;;
	pt) package=manpages-pt-br ;;
	*) package=manpages-$language ;;
	esac
	deb=$("$here/../debs.sh" "$cache" "$package")
	mkdir "$pages/unpacked"
	dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner -C "$pages/unpacked" ./usr/share/man
	find "$pages/unpacked" -name '*.gz' -type f | LC_ALL=C sort | xargs gzip -dc >"$pages/$language.roff"
	rm -r "$pages/unpacked"
done

rm -rf "$out"
mkdir -p "$out"
perl -CSD "$here/corpus.pl" "$out" "$pages"/*.roff
