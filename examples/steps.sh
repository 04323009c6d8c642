# shellcheck shell=bash
# Sourced by the demos: every step prints its command and what came of it, and
# a step that ends otherwise than said ends the demo.

started=$(date +%s)
last=$(mktemp) # what the last step printed

# repeat is what keeps the bytes of numeric programs the same, as flags of ledger
# new: one thread, and the code that every processor of the architecture has.
# shellcheck disable=SC2034 # of the demos
repeat=()
for variable in OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem \
	PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 SOURCE_DATE_EPOCH=1795165200; do
	repeat+=(--env "$variable")
done

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

fail() {
	printf '\nDEMO FAILED: %s\n' "$*" >&2
	exit 1
}

# step CODE COMMAND... runs COMMAND and wants that exit code. Standard input
# comes from $input, and nowhere else.
input=/dev/null
step() {
	local want=$1 got=0
	shift
	printf '\n$ %s\n' "$(show "$@")"
	# The braces take what bash itself says of a program that was aborted.
	{ "$@" <"$input" >"$last" 2>&1 || got=$?; } 2>/dev/null
	input=/dev/null
	sed 's/^/    /' "$last"
	[ "$got" = "$want" ] || fail "exit code $got, expected $want: $(show "$@")"
	[ "$want" = 0 ] || printf '    (exit code %s, as it should be)\n' "$got"
}

# show prints a command so that it can be pasted, without the directories of the
# demo and of the repository and the path of the program under test.
show() {
	local word out=
	for word; do
		word=${word//$dir\//}
		word=${word//$clawfs/clawfs}
		word=${word//$repo\//}
		case $word in
		*[!A-Za-z0-9_./=:@,%+-]*|'') word="'${word//\'/\'\\\'\'}'" ;;
		esac
		out+="$word "
	done
	printf '%s' "${out% }"
}

# expect TEXT wants TEXT in what the last step printed.
expect() {
	grep -qF -- "$1" "$last" || fail "expected \"$1\" in the output above"
}

# digest FILE prints the SHA-256 of FILE.
digest() { sha256sum "$1" | cut -d' ' -f1; }

# flip FILE OUT copies FILE to OUT with one bit in its middle changed.
flip() {
	local at byte
	at=$(($(stat -c %s "$1") / 2))
	cp "$1" "$2"
	byte=$(od -An -tu1 -j "$at" -N 1 "$1" | tr -d ' ')
	printf %b "\\0$(printf %03o $((byte ^ 1)))" | dd of="$2" bs=1 seek="$at" conv=notrunc status=none
}

# leave unmounts $mountpoint, ends what is in pids and the daemons of states (by
# default the one of $CLAWFS_STATE) by their process ids, and removes $dir.
pids=()
states=()
leave() {
	local code=$? pid state
	set +e
	if [ -n "${mountpoint:-}" ] && mountpoint -q "$mountpoint"; then
		"$clawfs" -q umount "$mountpoint" || umount -l "$mountpoint"
	fi
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null
	done
	[ ${#states[@]} -gt 0 ] || states=("$CLAWFS_STATE")
	for state in "${states[@]}"; do
		if [ "$code" != 0 ]; then
			tail -n 20 "$state/log/daemon.log" >&2 2>/dev/null
		fi
		pid=
		if [ -f "$state/run/daemon.lock" ]; then
			pid=$(tr -dc 0-9 <"$state/run/daemon.lock")
		fi
		if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f "$clawfs")" ]; then
			kill "$pid"
			for _ in $(seq 100); do
				[ -d "/proc/$pid" ] || break
				sleep 0.1
			done
		fi
	done
	wait "${pids[@]}" 2>/dev/null
	chmod -R u+w "$dir" 2>/dev/null
	rm -rf "$dir" "$last"
	exit "$code"
}

# begin NAME PROGRAM... checks what the demo needs and makes $dir. It lies where
# only root can change what is above it, because a state directory must.
begin() {
	local name=$1 program
	shift
	[ "$(id -u)" = 0 ] || fail "needs root, to mount for other users and to run sandboxes; next: sudo make $name"
	[ -x "$clawfs" ] || fail "no $clawfs; next: make build"
	for program in git tar gzip dpkg-deb apt-get sha256sum perl setpriv mountpoint "$@"; do
		command -v "$program" >/dev/null || fail "no program $program; next: make deps"
	done
	dir=$(mktemp -d "${CLAWFS_DEMO_DIR:-/var/tmp}/clawfs-$name.XXXXXX")
	chmod 755 "$dir"
	export CLAWFS_STATE=$dir/consumer/state
	export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
	trap leave EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

# commit DIR makes DIR a git repository with one commit of all its files.
commit() {
	git -C "$1" init -q -b main
	git -C "$1" add -A
	GIT_AUTHOR_DATE='2026-11-20T09:00:00Z' GIT_COMMITTER_DATE='2026-11-20T09:00:00Z' \
		git -C "$1" -c user.name=acme -c user.email=ci@acme.example commit -q -m 'recipe'
}

finish() {
	say "done in $(($(date +%s) - started)) s"
}
