#!/bin/bash
# usage: sudo examples/langid/demo.sh
#
# The whole road of a model with clawfs, on real input: a publisher trains a
# language identifier and signs how; a consumer downloads the file, sees it
# refused, has it rebuilt, and uses it through the mount with an unmodified
# program. Needs bin/clawfs and bin/runc (make build), Debian's fasttext, and
# the network for Debian packages the first time. Everything else is made in a
# temporary directory and removed; packages are kept in build/debs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
clawfs=$repo/bin/clawfs
cache=$repo/build/debs
# shellcheck source=examples/steps.sh
. "$here/../steps.sh"
begin demo fasttext

publisher=$dir/publisher
consumer=$dir/consumer
mountpoint=$consumer/models
mkdir -p "$publisher" "$consumer/downloads" "$mountpoint"
inputs=(--source "$publisher/recipe" --dataset corpus="$publisher/corpus" --image "$publisher/image")

say "PUBLISHER. Data and environment come from Debian packages."
step 0 "$here/corpus.sh" "$cache" "$publisher/corpus"
step 0 "$here/image.sh" "$cache" "$publisher/image"
image=$(tail -n 1 "$last")
step 0 "$here/image.sh" "$cache" "$publisher/image-again"
expect "$image" # the same digest
cp -r "$here/recipe" "$publisher/recipe"
commit "$publisher/recipe"

say "The publisher trains on their own machine, without clawfs, and uploads the file."
mkdir -p "$publisher/native/in/dataset" "$publisher/native/out"
ln -s "$publisher/corpus" "$publisher/native/in/dataset/corpus"
step 0 env LANGID_IN="$publisher/native/in" LANGID_OUT="$publisher/native/out" sh "$publisher/recipe/train.sh" -thread 1
expect "P@1"
cp "$publisher/native/out/langid.bin" "$consumer/downloads/langid.bin"
native=$(digest "$publisher/native/out/langid.bin")

say "They write down the process, try it twice, and sign it. The ledger holds no hash of the weights."
step 0 "$clawfs" keygen --out "$publisher/acme"
step 0 "$clawfs" ledger new --model acme/langid --version 1.0 --sequence 1 --key "$publisher/acme.pub" \
	--source "$publisher/recipe" --dataset corpus="$publisher/corpus" --image "$publisher/image@$image" \
	--stage 'train: sh /in/source/train.sh -thread 1' --output langid.bin --out "$publisher/langid.json"
step 0 "$clawfs" ledger check "$publisher/langid.json" "${inputs[@]}"
expect "$native" # the sandbox made the bytes of the publisher's machine
step 0 "$clawfs" ledger sign "$publisher/langid.json" --key "$publisher/acme" --out "$publisher/langid.sba"
step 0 "$clawfs" ledger inspect "$publisher/langid.sba" --publisher-key "$publisher/acme.pub"
expect "valid, by"

say "With two threads, fastText gives other bytes each time. ledger check says so before anybody signs."
step 0 "$clawfs" ledger new --from "$publisher/langid.json" --version 1.1 \
	--stage 'train: sh /in/source/train.sh -thread 2' --out "$publisher/threads.json"
step 5 "$clawfs" ledger check "$publisher/threads.json" "${inputs[@]}"
expect NONDETERMINISTIC

say "CONSUMER. A state directory, one trusted publisher, and a mount over the downloads."
step 0 "$clawfs" init
step 0 "$clawfs" publisher trust "$publisher/acme.pub" --name acme --models 'acme/*'
step 0 "$clawfs" mount "$consumer/downloads" "$mountpoint"

say "Nothing has been rebuilt yet, so the downloaded file does not open, not even for root."
step 1 cat "$mountpoint/langid.bin"
expect "Permission denied"
step 134 fasttext predict "$mountpoint/langid.bin" - # it aborts
expect "cannot be opened"
step 3 "$clawfs" why "$mountpoint/langid.bin"

say "grant takes no hash. It has a worker earn one: verify the signature, build twice, compare, sign."
step 0 "$clawfs" grant "$publisher/langid.sba" --wait "${inputs[@]}"
step 0 "$clawfs" caps
expect acme/langid

say "Now an unmodified program reads it, as any user."
cat >"$dir/sentences" <<'TEXT'
the program writes its result to the standard output
das programm schreibt sein ergebnis auf die standardausgabe
le programme écrit son résultat sur la sortie standard
program zapisuje swój wynik na standardowe wyjście
TEXT
input=$dir/sentences
step 0 setpriv --reuid=65534 --regid=65534 --clear-groups fasttext predict "$mountpoint/langid.bin" -
[ "$(tr '\n' ' ' <"$last")" = "__label__en __label__de __label__fr __label__pl " ] || fail "expected en, de, fr, pl"
step 0 sha256sum "$mountpoint/langid.bin"
expect "$native"
step 0 "$clawfs" why "$mountpoint/langid.bin"

say "A copy with one bit changed, under the same name, does not open."
mkdir "$consumer/downloads/mirror"
flip "$consumer/downloads/langid.bin" "$consumer/downloads/mirror/langid.bin"
step 1 cat "$mountpoint/mirror/langid.bin"
expect "Permission denied"
step 3 "$clawfs" why "$mountpoint/mirror/langid.bin"
step 0 "$clawfs" ls -l "$mountpoint/mirror"
expect refused

say "A ledger that somebody else signed earns nothing, and neither does one that does not repeat."
step 0 "$clawfs" keygen --out "$publisher/mallory"
step 0 "$clawfs" ledger new --from "$publisher/langid.json" --key "$publisher/mallory.pub" --out "$publisher/forged.json"
step 0 "$clawfs" ledger sign "$publisher/forged.json" --key "$publisher/mallory" --out "$publisher/forged.sba"
step 4 "$clawfs" grant "$publisher/forged.sba" --wait "${inputs[@]}"
step 0 "$clawfs" ledger sign "$publisher/threads.json" --key "$publisher/acme" --out "$publisher/threads.sba"
step 5 "$clawfs" grant "$publisher/threads.sba" --wait "${inputs[@]}"
expect NONDETERMINISTIC
step 0 "$clawfs" jobs

say "The same protocol in one go for one file, without mount or store."
step 0 "$clawfs" validate "$consumer/downloads/langid.bin" --sba "$publisher/langid.sba" --publisher-key "$publisher/acme.pub" "${inputs[@]}"
step 5 "$clawfs" validate "$consumer/downloads/mirror/langid.bin" --sba "$publisher/langid.sba" --publisher-key "$publisher/acme.pub" "${inputs[@]}"
step 4 "$clawfs" validate "$consumer/downloads/langid.bin" --sba "$publisher/forged.sba" --publisher-key "$publisher/acme.pub" "${inputs[@]}"

step 0 "$clawfs" status
step 0 "$clawfs" umount "$mountpoint"
finish
