#!/bin/bash
# usage: run.sh [own|passthrough]...
#
# Runs the tests of the build tag "verity" on kernels that have fs-verity:
# Debian's own (enabling, measuring, damage) and the one of its backports, which
# also has FUSE passthrough. Both run under qemu without KVM, with real ext4 and
# btrfs disks, which are checked after the tests and after a crash. Everything
# is kept in build/verity; the consoles and what the tests said as well.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=build/verity
here=integration/verity
export GOFLAGS=-buildvcs=false

fail() {
	echo "verity: $*" >&2
	exit 1
}

for tool in "qemu-system-x86_64 qemu-system-x86" "mkfs.ext4 e2fsprogs" "mkfs.btrfs btrfs-progs" \
	"cpio cpio" "busybox busybox-static" "modprobe kmod" "xz xz-utils" "fusermount3 fuse3"; do
	command -v "${tool% *}" >/dev/null || fail "no ${tool% *}: apt-get install ${tool#* }"
done

# tests DIR PACKAGE... compiles the test programs that the guest runs.
tests() {
	local dir=$1 package
	shift
	rm -rf "$dir"
	mkdir -p "$dir"
	for package; do
		CGO_ENABLED=0 GOARCH=amd64 go test -c -tags verity -o "$dir/$package" "./$package"
	done
}

# initramfs KERNEL TESTS OUT packs the tests, a shell and the modules.
initramfs() {
	local root=$work/initramfs version module path
	version=$(basename "$1"/lib/modules/*)
	rm -rf "$root"
	mkdir -p "$root"/{bin,dev,proc,sys,tmp,mnt,modules}
	cp "$(command -v busybox)" "$root/bin/busybox"
	for applet in sh mount umount insmod poweroff sync uname sleep mkdir; do
		ln -s busybox "$root/bin/$applet"
	done
	cp "$(command -v fusermount3)" "$root/bin" # looked for and, as root, not run
	cp -r "$2" "$root/tests"
	cp "$here/init.sh" "$root/init"
	for module in virtio_pci virtio_blk ext4 btrfs fuse sha512_generic; do
		modprobe -d "$1" -S "$version" --show-depends "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/order"
	[ -s "$work/order" ] || fail "no modules of Linux $version in $1"
	while read -r path; do
		module=$(basename "${path%.xz}")
		case $path in
		*.xz) xz -dc "$path" >"$root/modules/$module" ;;
		*) cp "$path" "$root/modules/$module" ;;
		esac
		echo "$module"
	done <"$work/order" >"$root/modules/order"
	(cd "$root" && find . | cpio -o -H newc --quiet) >"$3"
}

# disks FEATURE makes empty disks, the one of small blocks with the feature.
disks() {
	rm -f "$work"/*.img
	truncate -s 512M "$work/ext4.img" "$work/btrfs.img"
	truncate -s 32M "$work/plain.img" "$work/small.img"
	mkfs.ext4 -q -b 4096 -O verity "$work/ext4.img"
	mkfs.btrfs -q "$work/btrfs.img" >"$work/mkfs" 2>&1 || fail "mkfs.btrfs: $(cat "$work/mkfs")"
	mkfs.ext4 -q -b 4096 -O ^verity "$work/plain.img"
	mkfs.ext4 -q -b 1024 -O "$1" "$work/small.img"
}

# boot KERNEL INITRAMFS RUN LOG runs the guest to its end.
boot() {
	local disk drives=()
	for disk in ext4 btrfs plain small; do
		drives+=(-drive "file=$work/$disk.img,if=virtio,format=raw,cache=unsafe")
	done
	rm -f "$4" "$4.console"
	timeout 900 qemu-system-x86_64 -accel tcg -cpu max -smp 1 -m 2048 -nodefaults -no-user-config -display none -no-reboot \
		-kernel "$1"/boot/vmlinuz-* -initrd "$2" -append "console=ttyS0 panic=-1 clawfs_run=$3" \
		-serial "file:$4.console" -serial "file:$4" "${drives[@]}" ||
		fail "the guest did not end by itself in 15 minutes (run $3): see $4 and $4.console"
	sed -i 's/\r$//' "$4"
}

# said LOG LINE fails unless the guest said the whole line.
said() {
	grep -qxF -- "$2" "$1" || {
		grep -vE '^(=== |    --- PASS|--- PASS)' "$1" | tail -n 60 >&2
		fail "the guest did not say \"$2\": see $1 and $1.console"
	}
}

# clean LOG fails unless both file systems are consistent.
clean() {
	e2fsck -fn "$work/ext4.img" >"$1.e2fsck" 2>&1 || {
		cat "$1.e2fsck" >&2
		fail "ext4 is not clean after $1"
	}
	btrfs check --readonly "$work/btrfs.img" >"$1.btrfs" 2>&1 || {
		cat "$1.btrfs" >&2
		fail "btrfs is not clean after $1"
	}
}

# on NAME KERNEL PACKAGE... is everything on one kernel.
on() {
	local name=$1 kernel=$2 small=verity log=$work/$1 package test
	[ "$name" != own ] || small=^verity # before Linux 6.3 such a disk cannot even be mounted
	shift 2
	tests "$work/tests" "$@"
	initramfs "$kernel" "$work/tests" "$work/$name.cpio"
	disks "$small"

	boot "$kernel" "$work/$name.cpio" tests "$log.tests"
	said "$log.tests" "guest: exit 0"
	for package; do
		"$work/tests/$package" -test.list '^TestGuest' >"$work/list"
		[ -s "$work/list" ] || fail "package $package has no test for the guest"
		while read -r test; do
			[ "$(grep -c "^--- PASS: $test " "$log.tests")" = 1 ] || fail "$test of package $package did not pass once: see $log.tests"
		done <"$work/list"
	done
	! grep -q -e '--- SKIP' "$log.tests" || fail "a test was skipped: see $log.tests"
	clean "$log.tests"

	for package; do
		boot "$kernel" "$work/$name.cpio" "crash-$package" "$log.crash-$package"
		said "$log.crash-$package" "crash: now"
		! grep -q '^crash: enabled too early' "$log.crash-$package" || fail "nothing was being enabled at the crash: see $log.crash-$package"
		boot "$kernel" "$work/$name.cpio" mount "$log.mount-$package"
		said "$log.mount-$package" "guest: exit 0"
		clean "$log.mount-$package"
	done
	echo "verity: $(sed -n 's/^guest: \(Linux [^,]*\).*/\1/p' "$log.tests"): $(grep -c '^--- PASS' "$log.tests") tests passed of: $*; ext4 and btrfs clean after them and after crashes"
}

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
go vet -tags verity ./hashpipe ./fs
[ $# != 0 ] || set -- own passthrough
for kernel; do
	case $kernel in
	own) suite=$codename packages=hashpipe ;;
	passthrough) suite=$codename-backports packages="hashpipe fs" ;;
	*) fail "no kernel \"$kernel\": own or passthrough" ;;
	esac
	"$here/kernel.sh" "$work/$suite" "$suite"
	# shellcheck disable=SC2086 # a list
	on "$kernel" "$work/$suite/root" $packages
done
