#!/bin/busybox sh
# PID 1 of the live guest: run what the host sends on the second serial port, a line each: NUMBER UID COMMAND, with
# the command in base64. The answer is the output in base64, then END NUMBER STATUS.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8 PYTHONUNBUFFERED=
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security 2>/dev/null
mount -t tmpfs tmp /tmp
chmod 1777 /tmp
hostname live
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo READY >&3
while read -r number uid command <&3; do
    echo "$command" | base64 -d >"/tmp/command-$number"
    if [ "$uid" = 0 ]; then
        sh "/tmp/command-$number" </dev/null >"/tmp/output-$number" 2>&1 3>&-
    else
        /usr/bin/setpriv --reuid "$uid" --regid "$uid" --clear-groups \
            sh "/tmp/command-$number" </dev/null >"/tmp/output-$number" 2>&1 3>&-
    fi
    status=$?
    base64 "/tmp/output-$number" >&3
    echo "END $number $status" >&3
    rm -f "/tmp/command-$number" "/tmp/output-$number"
done
