#!/bin/busybox sh
# PID 1 of the live guest's initramfs: load what the disk needs, and go on in the root file system on it.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
while read -r module; do
    /bin/busybox insmod "$module"
done </modules/list
until /bin/busybox mount -t ext4 -o noatime /dev/vda /root 2>/dev/null; do
    /bin/busybox sleep 0.1
done
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /live/agent.sh
