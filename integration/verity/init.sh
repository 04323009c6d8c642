#!/bin/sh
# The first and only process of the guest. What it says goes to the second
# serial line, because the kernel writes on the first; the last line is the
# result, and the guest powers off.
#
# clawfs_run (from the kernel's command line) is one of
#   tests       mount the disks, run the test programs, unmount
#   crash-NAME  mount the disks and let TestCrash of that program stop the machine
#   mount       mount the disks and unmount them
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec >/dev/ttyS1 2>&1

finish() {
	echo "guest: exit $1"
	sync
	poweroff -f
	sleep 60
}

while read -r module; do
	insmod "/modules/$module" || finish 1
done </modules/order
[ -c /dev/fuse ] || finish 1

# disk NAME TYPE OPTIONS DIRECTORY
disk() {
	mkdir -p "$4"
	mount -t "$2" -o "$3" "/dev/$1" "$4" || finish 1
}
disk vda ext4 defaults /mnt/ext4
# Without btrfs's own sums, so that it is fs-verity that notices.
disk vdb btrfs nodatasum /mnt/btrfs
disk vdc ext4 defaults /mnt/plain
disk vdd ext4 defaults /mnt/small
export CLAWFS_VERITY_EXT4=/mnt/ext4:/dev/vda CLAWFS_VERITY_BTRFS=/mnt/btrfs:/dev/vdb
export CLAWFS_VERITY_PLAIN=/mnt/plain:/dev/vdc CLAWFS_VERITY_SMALL=/mnt/small:/dev/vdd

run=${clawfs_run:-nothing}
echo "guest: Linux $(uname -r), $run"
code=0
case $run in
tests)
	for program in /tests/*; do
		"$program" -test.v -test.timeout 10m -test.run '^TestGuest' || code=1
	done
	;;
crash-*)
	"/tests/${run#crash-}" -test.v -test.run '^TestCrash$'
	finish 1
	;;
mount) ;;
*) finish 1 ;;
esac
for dir in /mnt/ext4 /mnt/btrfs /mnt/plain /mnt/small; do
	# The kernel lets go of a backing file some time after its last reader.
	for _ in 1 2 3 4 5; do
		umount "$dir" && continue 2
		sleep 1
	done
	code=1
done
finish $code
