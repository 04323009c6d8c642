#!/bin/sh
# usage: kernel.sh DIR SUITE
#
# Unpacks Debian's kernel of the suite (bookworm, bookworm-backports) into DIR,
# unless it is there. Nothing is installed, and the machine's own package lists
# stay as they are: the suite is asked for at the mirror that the machine's
# apt sources name, through lists of its own in DIR.
set -eu

dir=$1
suite=$2
[ ! -e "$dir/unpacked" ] || exit 0
mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/root"
cd "$dir"
dir=$PWD

release=${suite%-backports}
uri=$(apt-get indextargets --format "\$(REPO_URI)" "Codename: $release" 'Component: main' | sort -u | head -n 1)
[ -n "$uri" ] || {
	echo "kernel.sh: no apt source has the suite $release: apt-get update, or run this on Debian $release" >&2
	exit 1
}
echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >sources.list
cat >apt.conf <<-END
	APT::Sandbox::User "root";
	APT::Architecture "amd64";
	APT::Architectures { "amd64"; };
	Dir::Etc::SourceList "$dir/sources.list";
	Dir::Etc::SourceParts "/dev/null";
	Dir::State::Lists "$dir/lists";
	Dir::Cache "$dir";
END
export APT_CONFIG="$dir/apt.conf"

apt-get -qq update
package=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2 }')
[ -n "$package" ] || {
	echo "kernel.sh: linux-image-amd64 of $suite depends on no kernel" >&2
	exit 1
}
rm -f ./*.deb
apt-get -qq download "$package"
dpkg-deb -x ./*.deb root
rm -rf ./*.deb archives
depmod -b root "$(basename root/lib/modules/*)"
touch unpacked
