#!/bin/bash
# usage: sudo examples/xgboost/demo.sh
#
# The road of examples/langid with XGBoost: a classifier of handwritten digits,
# loaded through the mount by an unmodified xgboost. Needs bin/clawfs and
# bin/runc (make build), Debian's python3-xgboost (make client-deps), and the
# network for Debian packages the first time; they are kept in build/debs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
clawfs=$repo/bin/clawfs
cache=$repo/build/debs
python=/usr/bin/python3 # Debian's, which has Debian's modules
# shellcheck source=examples/steps.sh
. "$here/../steps.sh"
begin demo-xgboost "$python"
"$python" -c 'import xgboost' || fail "no xgboost; next: make client-deps"

publisher=$dir/publisher
consumer=$dir/consumer
mountpoint=$consumer/models
mkdir -p "$publisher/data" "$publisher/native" "$consumer/downloads" "$mountpoint"
inputs=(--source "$publisher/recipe" --dataset digits="$publisher/data" --image "$publisher/image")
# train THREADS SEED is the one stage of the ledgers.
train() { echo "train: python3 /in/source/train.py /in/dataset/digits/digits.csv.gz /out $1 $2"; }
client() { step "$1" "$python" "$here/client.py" "$2" "$publisher/data/digits.csv.gz"; }

say "PUBLISHER. 1797 handwritten digits (NIST, by way of UCI) that Debian ships with scikit-learn."
deb=$("$here/../debs.sh" "$cache" python3-sklearn)
dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/lib/python3/dist-packages/sklearn/datasets/data/digits.csv.gz >"$publisher/data/digits.csv.gz"
cp -r "$here/recipe" "$publisher/recipe"
commit "$publisher/recipe"
step 0 "$here/image.sh" "$cache" "$publisher/image"

say "They train on their own machine, without clawfs, and upload the files."
step 0 "$python" "$publisher/recipe/train.py" "$publisher/data/digits.csv.gz" "$publisher/native" 1 7
cp "$publisher/native"/digits.* "$consumer/downloads/"
native=$(digest "$publisher/native/digits.ubj")
client 0 "$publisher/native/digits.ubj"
read=$(head -n 1 "$last")

say "A seed that is left to chance gives other trees each time. ledger check says so before anybody signs."
step 0 "$clawfs" keygen --out "$publisher/acme"
step 0 "$clawfs" ledger new --model acme/digits --version 1.0 --sequence 1 --key "$publisher/acme.pub" "${inputs[@]}" \
	"${repeat[@]}" --stage-timeout train=10m --stage "$(train 1 none)" --output digits.ubj --output digits.json --out "$publisher/chance.json"
step 5 "$clawfs" ledger check "$publisher/chance.json" "${inputs[@]}"
expect "NONDETERMINISTIC: two builds of the same recipe differ in 2 of 2 outputs"
step 0 "$clawfs" ledger sign "$publisher/chance.json" --key "$publisher/acme" --out "$publisher/chance.sba"

say "With a seed the sandbox makes the bytes of the publisher's machine. Two threads make the same here."
for threads in 2 1; do
	step 0 "$clawfs" ledger new --from "$publisher/chance.json" --version 1.1 --stage-timeout train=10m --stage "$(train $threads 7)" --out "$publisher/digits.json"
	step 0 "$clawfs" ledger check "$publisher/digits.json" "${inputs[@]}"
	expect "$native"
done
step 0 "$clawfs" ledger sign "$publisher/digits.json" --key "$publisher/acme" --out "$publisher/digits.sba"

say "CONSUMER. Before the rebuild, xgboost cannot open the files; a ledger that does not repeat changes nothing."
step 0 "$clawfs" init
step 0 "$clawfs" publisher trust "$publisher/acme.pub" --name acme --models 'acme/*'
step 0 "$clawfs" mount "$consumer/downloads" "$mountpoint"
client 1 "$mountpoint/digits.ubj"
expect "Permission denied"
step 5 "$clawfs" grant "$publisher/chance.sba" --wait "${inputs[@]}"
expect NONDETERMINISTIC
client 1 "$mountpoint/digits.json"
expect "Permission denied"

say "After it, the unmodified loader reads both formats."
step 0 "$clawfs" grant "$publisher/digits.sba" --wait "${inputs[@]}"
for format in ubj json; do
	client 0 "$mountpoint/digits.$format"
	expect "$read"
done
step 0 "$clawfs" why "$mountpoint/digits.ubj"

say "A copy with one bit changed does not load."
mkdir "$consumer/downloads/mirror"
for format in ubj json; do
	flip "$consumer/downloads/digits.$format" "$consumer/downloads/mirror/digits.$format"
	client 1 "$mountpoint/mirror/digits.$format"
	expect "Permission denied"
done
step 3 "$clawfs" why "$mountpoint/mirror/digits.ubj"

step 0 "$clawfs" umount "$mountpoint"
finish
