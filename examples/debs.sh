#!/bin/sh
# usage: debs.sh CACHE PACKAGE...
#
# Downloads Debian packages into CACHE, unless they are there, and prints one
# path of a .deb for each. Nothing is installed.
set -eu

cache=$1
shift
mkdir -p "$cache"
cd "$cache"
cache=$PWD

fetch() { apt-get -qq -o APT::Sandbox::User=root download "$1" >&2; }

for package; do
	set -- "$cache/${package}"_*.deb
	if [ ! -f "$1" ]; then
		fetch "$package" 2>/dev/null || { apt-get -qq update && fetch "$package"; } >&2 || {
			echo "debs.sh: apt-get download $package did not work" >&2
			exit 1
		}
		set -- "$cache/${package}"_*.deb
	fi
	echo "$1"
done
