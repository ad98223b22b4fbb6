# Run by init in the crash kernel: write every kind of dump file of /proc/vmcore onto the ext4 disk /dev/vdb.
# Each step's words and exit status are kept beside the files.

mkdir -p /out /small
mount -t ext4 /dev/vdb /out || exit 1
mount -t tmpfs -o size=6m small /small || exit 1

step() {
	name=$1
	shift
	start=$(cut -d' ' -f1 /proc/uptime)
	"$@" >"/out/$name.log" 2>&1
	echo "$name $? $start $(cut -d' ' -f1 /proc/uptime) $*" | tee -a /out/steps
}

flattened() {
	makedumpfile -F -c -d 31 --message-level 4 /proc/vmcore >/out/flattened-zlib-d31
}

incomplete() {
	makedumpfile -l -d 31 --message-level 4 /proc/vmcore /small/incomplete
	status=$?
	cp /small/incomplete /out/incomplete-lzo-d31
	rm /small/incomplete
	return $status
}

PATH=/bin:/sbin
cp /proc/cmdline /out/crash-cmdline
step zlib-d31 makedumpfile -c -d 31 --message-level 4 /proc/vmcore /out/zlib-d31
step lzo-d31 makedumpfile -l -d 31 --message-level 4 /proc/vmcore /out/lzo-d31
step lzo-d0 makedumpfile -l -d 0 --message-level 4 /proc/vmcore /out/lzo-d0
if makedumpfile --help 2>&1 | grep -A1 '^zstd' | grep -q ' enabled'; then
	step zstd-d31 makedumpfile -z -d 31 --message-level 4 /proc/vmcore /out/zstd-d31
fi
step raw-d31 makedumpfile -d 31 --message-level 4 /proc/vmcore /out/raw-d31
step elf-d31 makedumpfile -E -d 31 --message-level 4 /proc/vmcore /out/elf-d31
step split-lzo-d1 makedumpfile -l -d 1 --message-level 4 --split --splitblock-size 16384 /proc/vmcore /out/split-lzo-d1.1 /out/split-lzo-d1.2 /out/split-lzo-d1.3
step flattened-zlib-d31 flattened
step incomplete-lzo-d31 incomplete
step dmesg makedumpfile --dump-dmesg /proc/vmcore /out/dmesg
step vmcore dd if=/proc/vmcore of=/out/vmcore bs=1M
umount /out
