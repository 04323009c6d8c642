#!/bin/bash
# usage: inside.sh ROOT DATA [NAME=VALUE...] COMMAND...
#
# Runs COMMAND in the directory tree ROOT with DATA at /mnt and the client of
# this example at /client.py. Everything is mounted in a mount namespace of its
# own and gone with it. This is no sandbox: it keeps the machine clean.
set -euo pipefail

if [ "${INSIDE:-}" != mounted ]; then
	exec env INSIDE=mounted unshare --mount "$0" "$@"
fi
root=$1
data=$2
shift 2
set_env=()
while [[ ${1:-} == *=* ]]; do
	set_env+=("$1")
	shift
done

mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$data" "$root/mnt"
mount --bind "$(dirname "$0")/client.py" "$root/client.py"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 "${set_env[@]}" \
	chroot "$root" "$@"
