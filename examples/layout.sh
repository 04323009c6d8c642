#!/bin/sh
# usage: layout.sh ROOT LAYOUT
#
# Writes the directory tree ROOT as an OCI image layout of one uncompressed
# layer and prints the digest of its manifest. The bytes depend on the names,
# modes, links and contents below ROOT only: entries are sorted, owned by
# 0:0 and dated SOURCE_DATE_EPOCH (default 0).
set -eu

root=$1
layout=$2
epoch=${SOURCE_DATE_EPOCH:-0}

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac

new=$layout.new
rm -rf "$new"
mkdir -p "$new/blobs/sha256"
trap 'rm -rf "$new"' EXIT

# blob MEDIATYPE FILE moves FILE into the layout and prints its descriptor.
blob() {
	digest=$(sha256sum "$2" | cut -d' ' -f1)
	size=$(stat -c %s "$2")
	mv "$2" "$new/blobs/sha256/$digest"
	printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$1" "$digest" "$size"
}

LC_ALL=C tar --sort=name --format=posix --pax-option=delete=atime,delete=ctime \
	--mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
	-C "$root" -cf "$new/layer" .
layer=$(sha256sum "$new/layer" | cut -d' ' -f1)
layer_descriptor=$(blob application/vnd.oci.image.layer.v1.tar "$new/layer")

printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/bin:/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
	"$arch" "$layer" >"$new/config"
config_descriptor=$(blob application/vnd.oci.image.config.v1+json "$new/config")

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
	"$config_descriptor" "$layer_descriptor" >"$new/manifest"
manifest=$(sha256sum "$new/manifest" | cut -d' ' -f1)
manifest_descriptor=$(blob application/vnd.oci.image.manifest.v1+json "$new/manifest")

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}\n' \
	"$manifest_descriptor" >"$new/index.json"
printf '{"imageLayoutVersion":"1.0.0"}\n' >"$new/oci-layout"

rm -rf "$layout"
mv "$new" "$layout"
echo "sha256:$manifest"
