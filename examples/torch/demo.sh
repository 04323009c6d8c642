#!/bin/bash
# usage: sudo examples/torch/demo.sh
#
# The road of examples/langid with PyTorch: a small character model, saved with
# torch.save, loaded through the mount by torch.load, and refused while the
# ledger names another number of threads than it was trained with. The
# publisher, the build and the client all use Debian's python3-torch from one
# image, so nothing is installed. Needs bin/clawfs and bin/runc (make build),
# mmdebstrap, the network the first time, and 5 GB of disk. The image stays in
# build/torch.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
clawfs=$repo/bin/clawfs
# shellcheck source=examples/steps.sh
. "$here/../steps.sh"
begin demo-torch mmdebstrap unshare

root=$repo/build/torch/root
layout=$repo/build/torch/image
publisher=$dir/publisher
consumer=$dir/consumer
mountpoint=$consumer/models
mkdir -p "$publisher/corpus" "$consumer/downloads" "$mountpoint"
inputs=(--source "$publisher/recipe" --dataset corpus="$publisher/corpus" --image "$layout")
# flags THREADS ATEN sets $env: the flags of ledger new with another number of
# threads or other code for the processor. PyTorch takes MKL_NUM_THREADS before
# OMP_NUM_THREADS, also where it is built without MKL.
flags() {
	env=("${repeat[@]/%_NUM_THREADS=*/_NUM_THREADS=$1}")
	env=("${env[@]/#ATEN_CPU_CAPABILITY=*/ATEN_CPU_CAPABILITY=$2}")
}

# inside DATA [NAME=VALUE...] COMMAND... runs a command in the unpacked image,
# with DATA at /mnt.
inside() { "$here/inside.sh" "$root" "$@"; }

say "PUBLISHER. PyTorch from Debian packages, a text that Debian ships."
if [ -f "$layout/index.json" ] && [ -x "$root/usr/bin/python3" ]; then
	echo "using $layout"
else
	mkdir -p "$repo/build/torch"
	step 0 "$here/image.sh" "$root" "$layout"
fi
# From the package, not from this machine: others shall find the same bytes.
deb=$("$here/../debs.sh" "$repo/build/debs" base-files)
dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/share/common-licenses/GPL-3 >"$publisher/corpus/text.txt"
cp -r "$here/recipe" "$publisher/recipe"
commit "$publisher/recipe"

say "They train without clawfs on one thread, save with torch.save and as safetensors, and upload the files."
mkdir "$publisher/native"
cp "$here/recipe/train.py" "$publisher/corpus/text.txt" "$publisher/native/"
step 0 inside "$publisher/native" OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	python3 /mnt/train.py /mnt/text.txt /mnt/charmodel.pt /mnt/charmodel.safetensors
cp "$publisher/native"/charmodel.* "$consumer/downloads/"
native=$(digest "$publisher/native/charmodel.pt")

say "They write down the process, but with two threads, or with other code for the processor, and sign it."
step 0 "$clawfs" keygen --out "$publisher/acme"
flags 2 default
step 0 "$clawfs" ledger new --model acme/charmodel --version 0.8 --sequence 1 --key "$publisher/acme.pub" "${inputs[@]}" "${env[@]}" \
	--stage 'train: python3 /in/source/train.py /in/dataset/corpus/text.txt /out/charmodel.pt /out/charmodel.safetensors' \
	--stage-timeout train=30m --output charmodel.pt --output charmodel.safetensors --out "$publisher/threads.json"
step 0 "$clawfs" ledger sign "$publisher/threads.json" --key "$publisher/acme" --out "$publisher/threads.sba"
flags 1 avx2
step 0 "$clawfs" ledger new --from "$publisher/threads.json" --version 0.9 "${env[@]}" --out "$publisher/avx2.json"
step 0 "$clawfs" ledger sign "$publisher/avx2.json" --key "$publisher/acme" --out "$publisher/avx2.sba"

say "CONSUMER. Before a rebuild, torch.load gets a PermissionError."
step 0 "$clawfs" init
step 0 "$clawfs" publisher trust "$publisher/acme.pub" --name acme --models 'acme/*'
step 0 "$clawfs" mount "$consumer/downloads" "$mountpoint"
step 1 inside "$mountpoint" python3 /client.py /mnt/charmodel.pt 'This program'
expect PermissionError

say "The ledger with two threads repeats, and is granted: it makes another model. The file stays refused."
step 0 "$clawfs" grant "$publisher/threads.sba" --wait "${inputs[@]}"
step 1 inside "$mountpoint" python3 /client.py /mnt/charmodel.pt 'This program'
expect PermissionError
step 3 "$clawfs" why "$mountpoint/charmodel.pt"
expect wrong-bytes

say "validate compares the file with such a rebuild, and names the tensors."
step 5 "$clawfs" validate "$consumer/downloads/charmodel.safetensors" --sba "$publisher/threads.sba" --publisher-key "$publisher/acme.pub" "${inputs[@]}"
expect "7 of 7 tensors differ ("
expect 'hint: stage "train" runs with OMP_NUM_THREADS=2'
step 5 "$clawfs" validate "$consumer/downloads/charmodel.safetensors" --sba "$publisher/avx2.sba" --publisher-key "$publisher/acme.pub" "${inputs[@]}"
expect "7 of 7 tensors differ ("

say "PUBLISHER. They write down what they did, try it twice, see their own bytes, and sign it."
flags 1 default
step 0 "$clawfs" ledger new --from "$publisher/avx2.json" --version 1.0 "${env[@]}" --out "$publisher/charmodel.json"
step 0 "$clawfs" ledger check "$publisher/charmodel.json" "${inputs[@]}"
expect "$native"
step 0 "$clawfs" ledger sign "$publisher/charmodel.json" --key "$publisher/acme" --out "$publisher/charmodel.sba"

say "CONSUMER. After its rebuild, the unmodified loader reads the file."
step 0 "$clawfs" grant "$publisher/charmodel.sba" --wait "${inputs[@]}"
step 0 inside "$mountpoint" python3 /client.py /mnt/charmodel.pt 'This program'
expect "'This program"
step 0 "$clawfs" why "$mountpoint/charmodel.pt"

say "The same file with one bit changed does not load."
mkdir "$consumer/downloads/mirror"
flip "$consumer/downloads/charmodel.pt" "$consumer/downloads/mirror/charmodel.pt"
step 1 inside "$mountpoint" python3 /client.py /mnt/mirror/charmodel.pt 'This program'
expect PermissionError
step 3 "$clawfs" why "$mountpoint/mirror/charmodel.pt"

step 0 "$clawfs" umount "$mountpoint"
finish
