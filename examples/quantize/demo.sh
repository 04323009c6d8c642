#!/bin/bash
# usage: sudo examples/quantize/demo.sh
#
# A conversion, the cheapest rebuild there is: one ledger trains a tiny language
# model, a second one names that by its capability and turns it into 8-bit
# weights with llama.cpp's own code, and llama.cpp writes text with both, through
# the mount. Needs bin/clawfs and
# bin/runc (make build), the npm packages of make clients, and the network for
# Debian packages the first time; they are kept in build/debs. amd64 only, like
# the npm package that make clients installs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
clawfs=${CLAWFS:-$repo/bin/clawfs}
cache=$repo/build/debs
packages=$repo/build/clients/node_modules
python=/usr/bin/python3 # Debian's
# shellcheck source=examples/steps.sh
. "$here/../steps.sh"
begin demo-quantize jq node "$python"
[ -f "$packages/.package-lock.json" ] || fail "no $packages; next: make clients"

publisher=$dir/publisher
consumer=$dir/consumer
mountpoint=$consumer/models
mkdir -p "$publisher/text" "$publisher/native" "$consumer/downloads/mirror" "$mountpoint"
image=(--image "$publisher/image")
tiny=(--source "$publisher/tiny" --dataset text="$publisher/text" "${image[@]}")
# The build finds the base here, and whoever builds has it among the downloads.
base=/in/model/base/tiny.gguf
q8=(--source "$publisher/q8" --model base="$consumer/downloads" "${image[@]}")
# quantize TYPE is the one stage of a conversion.
quantize() { echo "quantize: python3 /in/source/quantize.py /usr/lib/llama.cpp/libllama.so $base /out/tiny-q8_0.gguf $1"; }
# convert MODEL TYPE does the same on this machine.
convert() {
	"$python" "$publisher/q8/quantize.py" "$packages"/@node-llama-cpp/linux-x64/bins/linux-x64/libllama.v*.so "$publisher/built/tiny.gguf" "$@"
}
# client CODE MODEL lets llama.cpp write what follows a letter.
client() { step "$1" node "$here/client.mjs" "$packages" "$2" t; }

say "PUBLISHER. Python, NumPy and llama.cpp in one image, a text that Debian ships."
step 0 "$here/image.sh" "$cache" "$packages" "$publisher/image"
deb=$("$here/../debs.sh" "$cache" base-files)
dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/share/common-licenses/GPL-3 >"$publisher/text/text.txt"
for recipe in tiny q8; do
	cp -r "$here/$recipe" "$publisher/$recipe"
	commit "$publisher/$recipe"
done

say "The first ledger trains acme/tiny."
step 0 "$clawfs" keygen --out "$publisher/acme"
step 0 "$clawfs" ledger new --model acme/tiny --version 1.0 --sequence 1 --key "$publisher/acme.pub" "${tiny[@]}" "${repeat[@]}" \
	--stage 'train: python3 /in/source/train.py /in/dataset/text/text.txt /out/tiny.gguf' \
	--stage-timeout train=10m --output tiny.gguf --out "$publisher/tiny.json"
step 0 "$clawfs" ledger check "$publisher/tiny.json" "${tiny[@]}" --output-dir "$publisher/built"
step 0 "$clawfs" ledger sign "$publisher/tiny.json" --key "$publisher/acme" --out "$publisher/tiny.sba"

say "Nobody can build from a model that is not granted."
step 0 "$clawfs" init
step 0 "$clawfs" publisher trust "$publisher/acme.pub" --name acme --models 'acme/*'
step 0 "$clawfs" mount "$consumer/downloads" "$mountpoint"
step 2 "$clawfs" ledger new --model acme/tiny-q8 --version 1.0 --sequence 1 --key "$publisher/acme.pub" \
	--source "$publisher/q8" --model-input base=acme/tiny "${image[@]}" \
	--stage "$(quantize q8_0)" --output tiny-q8_0.gguf --out "$publisher/early.json"
expect "nor a model with a live one"

say "CONSUMER. Before a rebuild, llama.cpp does not open it; after it, it writes text."
cp "$publisher/built/tiny.gguf" "$consumer/downloads/"
client 1 "$mountpoint/tiny.gguf"
expect "EACCES: permission denied"
step 0 "$clawfs" grant "$publisher/tiny.sba" --wait "${tiny[@]}"
client 0 "$mountpoint/tiny.gguf"
expect '"the the the'

say "PUBLISHER. They convert it without clawfs, on their own machine, and upload that too."
step 0 convert "$publisher/native/tiny-q8_0.gguf" q8_0
cp "$publisher/native/tiny-q8_0.gguf" "$consumer/downloads/"
native=$(digest "$publisher/native/tiny-q8_0.gguf")

say "A conversion that hands out its input is none. ledger check says so before anybody signs."
step 0 "$clawfs" ledger new --model acme/tiny-q8 --version 1.0 --sequence 1 --key "$publisher/acme.pub" \
	--source "$publisher/q8" --model-input base=acme/tiny "${image[@]}" "${repeat[@]}" \
	--stage "quantize: python3 -c 'import shutil; shutil.copy(\"$base\", \"/out/tiny-q8_0.gguf\")'" \
	--stage-timeout quantize=10m --output tiny-q8_0.gguf --cpu-features none --out "$publisher/copy.json"
step 3 "$clawfs" ledger check "$publisher/copy.json" "${q8[@]}"
expect COPIED_INPUT
step 0 "$clawfs" ledger sign "$publisher/copy.json" --key "$publisher/acme" --out "$publisher/copy.sba"

say "One that converts. Its bytes depend on no processor feature, and it says so."
step 0 "$clawfs" ledger new --from "$publisher/copy.json" --version 1.1 --stage-timeout quantize=10m --stage "$(quantize q8_0)" --out "$publisher/q8.json"
step 0 "$clawfs" ledger check "$publisher/q8.json" "${q8[@]}"
expect "$native" # the sandbox made the bytes of the publisher's machine
step 0 "$clawfs" ledger sign "$publisher/q8.json" --key "$publisher/acme" --out "$publisher/q8.sba"

say "CONSUMER. The grant of the base opens nothing else, and neither does the ledger that copies."
client 1 "$mountpoint/tiny-q8_0.gguf"
expect "EACCES: permission denied"
step 3 "$clawfs" grant "$publisher/copy.sba" --wait "${q8[@]}"
expect COPIED_INPUT
client 1 "$mountpoint/tiny-q8_0.gguf"
expect "EACCES: permission denied"

say "After its own rebuild, the 8-bit model writes the same text."
step 0 "$clawfs" grant "$publisher/q8.sba" --wait "${q8[@]}"
client 0 "$mountpoint/tiny-q8_0.gguf"
expect '"the the the'
step 0 "$clawfs" why "$mountpoint/tiny-q8_0.gguf"

say "Neither one flipped bit nor a 4-bit model under the name opens."
flip "$consumer/downloads/tiny-q8_0.gguf" "$consumer/downloads/mirror/tiny-q8_0.gguf"
client 1 "$mountpoint/mirror/tiny-q8_0.gguf"
expect "EACCES: permission denied"
step 3 "$clawfs" why "$mountpoint/mirror/tiny-q8_0.gguf"
step 0 convert "$consumer/downloads/mirror/tiny-q8_0.gguf" q4_0
client 1 "$mountpoint/mirror/tiny-q8_0.gguf"
expect "EACCES: permission denied"
step 5 "$clawfs" validate "$consumer/downloads/mirror/tiny-q8_0.gguf" --sba "$publisher/q8.sba" --publisher-key "$publisher/acme.pub" "${q8[@]}"
expect "8 of 12 tensors differ ("

say "The base is taken back: what was built from it is marked, and is built no more."
id=$("$clawfs" caps -o json | jq -r '.[] | select(.model == "acme/tiny").id')
step 0 "$clawfs" revoke "$id" --reason "trained on the wrong text"
expect "was built from what was taken back"
client 1 "$mountpoint/tiny.gguf"
expect "EACCES: permission denied"
step 0 "$clawfs" why "$mountpoint/tiny-q8_0.gguf"
expect "WARNING: built from a model that was taken back"
step 3 "$clawfs" ledger check "$publisher/q8.json" "${q8[@]}"
expect "was taken back, and is granted no more"

step 0 "$clawfs" caps
step 0 "$clawfs" umount "$mountpoint"
finish
