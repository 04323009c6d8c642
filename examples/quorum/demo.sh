#!/bin/bash
# usage: sudo examples/quorum/demo.sh
#
# Trust that is shared: a publisher, a log with two witnesses, a registry, three
# operators who rebuild, and a machine that builds nothing and opens a file only
# after two of the three agree. Every party is a process with keys and a store of
# its own. Needs bin/clawfs and bin/runc (make build), Debian's fasttext and
# docker-registry (make servers), and the network for Debian packages the first
# time. Everything is made in a temporary directory and removed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
clawfs=${CLAWFS:-$repo/bin/clawfs}
cache=$repo/build/debs
langid=$here/../langid
# shellcheck source=examples/steps.sh
. "$here/../steps.sh"
begin demo-quorum fasttext openssl
server=$repo/build/servers/usr/bin/docker-registry
[ -x "$server" ] || fail "no $server; next: make servers"

publisher=$dir/publisher
mountpoint=$dir/dave/models
states=()
for node in alice bob carol dave; do
	mkdir -p "$dir/$node"
	states+=("$dir/$node/state")
done
mkdir -p "$publisher" "$dir/dave/downloads" "$mountpoint" "$dir/fleet"

# on NODE VERB... is clawfs with that node's state directory.
on() {
	local code=$1 node=$2 verb=$3
	shift 3
	step "$code" "$clawfs" "$verb" --state "$dir/$node/state" "$@"
}

# serve NAME COMMAND... starts a server whose log is $dir/NAME.log.
serve() {
	local name=$1
	shift
	printf '\n$ %s &\n' "$(show "$@")"
	"$@" </dev/null >"$dir/$name.log" 2>&1 &
	pids+=("$!")
}

# address NAME waits for the server to say where it listens.
address() {
	local found
	for _ in $(seq 200); do
		found=$(sed -nE 's#.*"(address|url)":"(http://)?(127\.0\.0\.1:[0-9]+)".*#\3#p' "$dir/$1.log" | head -n 1)
		if [ -n "$found" ]; then
			echo "$found"
			return
		fi
		sleep 0.1
	done
	cat "$dir/$1.log" >&2
	fail "$1 does not say where it listens"
}

# eventually CODE TEXT COMMAND... repeats COMMAND until it ends with CODE and prints
# TEXT, for what another process has to notice first.
eventually() {
	local want=$1 text=$2
	shift 2
	for _ in $(seq 150); do
		local got=0
		"$@" </dev/null >"$last" 2>&1 || got=$?
		if [ "$got" = "$want" ] && grep -qF -- "$text" "$last"; then
			break
		fi
		sleep 0.2
	done
	step "$want" "$@"
	expect "$text"
}

say "PUBLISHER. The recipe of the first example, with a key of their own."
step 0 "$langid/corpus.sh" "$cache" "$publisher/corpus"
step 0 "$langid/image.sh" "$cache" "$publisher/image"
image=$(tail -n 1 "$last")
cp -r "$langid/recipe" "$publisher/recipe"
commit "$publisher/recipe"
inputs=(--source "$publisher/recipe" --dataset corpus="$publisher/corpus" --image "$publisher/image")
step 0 "$clawfs" keygen --out "$publisher/acme"

say "OPERATORS alice, bob and carol rebuild; dave only serves. Each has keys and a store of its own."
for node in alice bob carol dave; do
	on 0 "$node" init --operator "$node"
done

say "THE FLEET. One policy: acme's ledgers count, two of three operators must agree, and only what is in the log."
for key in root revoker; do
	step 0 "$clawfs" keygen --out "$dir/fleet/$key"
done
parts=(--publisher "acme/*=$publisher/acme.pub" --revoker fleet="$dir/fleet/revoker.pub" --accept 'acme/*=2:alice,bob,carol')
for node in alice bob carol; do
	parts+=(--mint "$node=$dir/$node/state/mint.pub")
done
step 0 "$clawfs" policy new "${parts[@]}" --out "$dir/fleet/log-admits.json"

say "A LOG that two witnesses watch. It takes entries of those whom the policy names."
step 0 "$clawfs" log init "$dir/log" --origin log.example/models --policy "$dir/fleet/log-admits.json"
grep -E '^log ' "$last" >"$dir/fleet/log.txt"
for n in 1 2; do
	step 0 "$clawfs" witness init "$dir/witness$n" --name "witness$n.example"
	grep -E '^witness ' "$last" >"$dir/fleet/witness$n.txt"
	serve "witness$n" "$clawfs" witness serve "$dir/witness$n" --listen 127.0.0.1:0 --logs "$dir/fleet/log.txt"
done
policy=$dir/fleet/log.policy
# What serves a log asks the witnesses by URL.
{
	cat "$dir/fleet/log.txt"
	for n in 1 2; do
		where=$(address "witness$n")
		printf '%s http://%s\n' "$(cat "$dir/fleet/witness$n.txt")" "$where"
	done
	printf 'group both all %s\nquorum both\n' "$(cut -d' ' -f2 "$dir"/fleet/witness?.txt | tr '\n' ' ' | sed 's/ $//')"
} >"$policy.serve"
serve log "$clawfs" log serve "$dir/log" --listen 127.0.0.1:0 --witness-policy "$policy.serve"
# What reads it needs to know where the log is.
where=$(address log)
sed -E "s#^(log [^ ]+).*#\\1 http://$where#" "$policy.serve" >"$policy"
step 0 cat "$policy"

say "Every node installs the same policy, signed by its root."
step 0 "$clawfs" policy new --from "$dir/fleet/log-admits.json" --logs "$policy" --require-log \
	--root "$dir/fleet/root.pub" --threshold 1 --expires 2160h --out "$dir/fleet/policy.json"
step 0 "$clawfs" policy sign "$dir/fleet/policy.json" --key "$dir/fleet/root" --out "$dir/fleet/policy.dsse"
for node in alice bob carol dave; do
	step 0 "$clawfs" policy --state "$dir/$node/state" install "$dir/fleet/policy.dsse" --first
done
step 0 "$clawfs" policy --state "$dir/dave/state" explain acme/langid

say "A REGISTRY, which nobody has to trust."
for _ in $(seq 50); do
	port=$((20000 + RANDOM % 20000))
	(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
done
cat >"$dir/registry.yml" <<YAML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
YAML
serve registry "$server" serve "$dir/registry.yml"
for _ in $(seq 100); do
	(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
	sleep 0.1
done
place=oci://127.0.0.1:$port/acme/trust

say "The publisher signs the process, enters it in the log, and publishes it. The file itself goes anywhere."
step 0 "$clawfs" ledger new --model acme/langid --version 1.0 --sequence 1 --key "$publisher/acme.pub" \
	--source "$publisher/recipe" --dataset corpus="$publisher/corpus" --image "$publisher/image@$image" \
	--stage 'train: sh /in/source/train.sh -thread 1' --output langid.bin --out "$publisher/langid.json"
step 0 "$clawfs" ledger check "$publisher/langid.json" "${inputs[@]}" --output-dir "$publisher/built"
cp "$publisher/built/langid.bin" "$dir/dave/downloads/langid.bin"
step 0 "$clawfs" ledger sign "$publisher/langid.json" --key "$publisher/acme" --out "$publisher/langid.sba"
say "Before it is in the log, no operator rebuilds it."
on 3 alice grant "$publisher/langid.sba" --wait "${inputs[@]}"
expect "tlog-proof"
step 0 "$clawfs" log add "$publisher/langid.sba" --log-policy "$policy"
step 0 "$clawfs" push "$place" "$publisher/langid.sba"

say "DAVE mounts, and watches the registry. Nothing opens."
on 0 dave mount "$dir/dave/downloads" "$mountpoint"
serve dave-pull "$clawfs" pull --state "$dir/dave/state" "$place" --admit --watch 1s
step 1 cat "$mountpoint/langid.bin"
expect "Permission denied"

# rebuilt NODE: the node fetches the attestation, rebuilds it, and publishes what it got.
rebuilt() {
	on 0 "$1" pull "$place" --out "$dir/$1/trust" --model acme/langid
	on 0 "$1" grant "$(ls "$dir/$1"/trust/sba-*.sba)" --wait "${inputs[@]}"
	on 0 "$1" push "$place" --all-capabilities
}

say "ALICE rebuilds. One is not two."
rebuilt alice
eventually 3 "missing: bob, carol" "$clawfs" why --state "$dir/dave/state" "$mountpoint/langid.bin"
step 1 cat "$mountpoint/langid.bin"
on 0 dave caps
expect waiting

say "BOB rebuilds, and the file opens at dave's, who built nothing."
rebuilt bob
eventually 0 "reproduced-2" "$clawfs" why --state "$dir/dave/state" "$mountpoint/langid.bin"
printf 'das programm schreibt sein ergebnis auf die standardausgabe\n' >"$dir/sentence"
input=$dir/sentence
step 0 setpriv --reuid=65534 --regid=65534 --clear-groups fasttext predict "$mountpoint/langid.bin" -
expect __label__de
step 0 getfattr --only-values -n user.clawfs.level "$mountpoint/langid.bin"
expect reproduced-2

say "CAROL lies: with her mint key she signs a capability for a file with one bit changed."
mkdir "$dir/dave/downloads/evil"
flip "$dir/dave/downloads/langid.bin" "$dir/dave/downloads/evil/langid.bin"
on 0 carol pull "$place" --out "$dir/carol/trust" --model acme/langid
step 0 "$here/lie.pl" "$(find "$dir/carol/trust" -name 'cap-*.dsse' | sort | head -n 1)" "$dir/carol/state/mint.key" \
	"$dir/dave/downloads/evil/langid.bin" "$dir/carol/lie.dsse"
lie=$(tail -n 1 "$last")
step 0 "$clawfs" push "$place" "$dir/carol/lie.dsse"
say "Her file does not open, and neither does the other any more: nobody here knows who is right."
eventually 3 "disputed" "$clawfs" why --state "$dir/dave/state" "$mountpoint/langid.bin"
step 1 cat "$mountpoint/langid.bin"
step 1 cat "$mountpoint/evil/langid.bin"
on 0 dave disputes
expect "${lie:0:16}"
honest=$(awk '/alice/ { print $1 }' "$last")

say "A person finds out, and takes the lie back, on the record."
on 0 alice pull "$place" --admit
sba=$(basename "$(ls "$dir"/alice/trust/sba-*.sba)" .sba)
sba=${sba#sba-}
on 0 alice resolve "$sba" --uphold "$honest" --reason 'the mint key of carol was stolen' --key "$dir/fleet/revoker"
on 0 alice push "$place" --revocations
eventually 0 "reproduced-2" "$clawfs" why --state "$dir/dave/state" "$mountpoint/langid.bin"
step 0 sha256sum "$mountpoint/langid.bin"
step 1 cat "$mountpoint/evil/langid.bin"

say "The data was not theirs to use: the attestation is taken back, and the next open at dave's is refused."
on 0 alice affected --by "$sba"
on 0 alice revoke "$sba" --kind sba --reason 'training data withdrawn' --key "$dir/fleet/revoker"
on 0 alice push "$place" --revocations
eventually 3 "training data withdrawn" "$clawfs" why --state "$dir/dave/state" "$mountpoint/langid.bin"
step 1 cat "$mountpoint/langid.bin"
expect "Permission denied"
say "Submitting it again earns nothing."
on 0 bob pull "$place" --admit
on 3 bob grant "$(ls "$dir/bob"/trust/sba-*.sba)" --wait "${inputs[@]}"
expect "training data withdrawn"

say "The publisher looks for entries under their key that they did not make."
step 0 "$clawfs" log monitor --log-policy "$policy" --key "$publisher/acme.pub" --known "$publisher/langid.sba" --state "$publisher/monitor"

say "DAVE loses the store, and the journal beside it. The registry has what was granted, and what was taken back."
on 0 dave status
kill -9 "$(sed -n 's/^daemon .*pid \([0-9]*\),.*/\1/p' "$last")"
rm -r "$dir/dave/state/store" "$dir/dave/state/kept"
on 0 dave store rebuild --from "$place"
serve dave-daemon "$clawfs" daemon --state "$dir/dave/state"
eventually 0 revoked "$clawfs" caps --state "$dir/dave/state"
step 1 cat "$mountpoint/langid.bin"

on 0 dave status
on 0 dave umount "$mountpoint"
finish
