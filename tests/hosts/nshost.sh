#!/bin/bash
# nshost.sh NAME [-b BOOT_ID] [-u SECONDS] [-n] -- COMMAND [ARGUMENT]...
#
# Runs COMMAND as if on another host: several hosts on one shared directory, without
# virtual machines and in about 50 ms each. The host has its own
#
#   host name (in /etc/hosts, too, so that nobody asks a name server for it), process
#   numbers, IPC, network (only a loopback), mounts, machine id
#   -b BOOT_ID   boot id; without it a new one for every call, as after a reboot. Two
#                calls with one NAME and BOOT_ID are two containers of one host, since
#                each has a PID name space of its own
#   -u SECONDS   moves its uptime (CLOCK_BOOTTIME and CLOCK_MONOTONIC) by so much
#   -n           keeps this machine's network, so that a server on its loopback is reached
#
# and shares with this machine the kernel, all files, users, and the wall clock. So it
# shows who is who and what is alive; it cannot show what a network file system's client
# caches, nor clocks that disagree.
#
# Process 1 of the host is a shell that waits for COMMAND and reaps orphans as an init
# does, so that COMMAND can be killed like any process. Killing this script's own process
# (SIGKILL) is a power failure: all processes of the host are killed with it. The exit
# code is COMMAND's, 128+n if signal n killed it; 2 means that the call was wrong.
#
# Needs bash, util-linux >= 2.36, md5sum and hostname; `ip`, if there is one, brings the
# loopback up. Works as root, or in a user name space where users may make them.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

NAME=${1:-}; shift || usage
case $NAME in '' | -*) usage ;; esac
BOOT='' UP=0 NET=--net
while [ "${1:-}" != -- ]; do
    [ $# -ge 2 ] || usage
    if [ "$1" = -n ]; then NET=''; shift; continue; fi
    case $1 in -b) BOOT=$2 ;; -u) UP=$2 ;; *) usage ;; esac
    shift 2
done
shift
[ $# -gt 0 ] || usage

ns=(--uts --pid --ipc ${NET:+"$NET"} --mount --fork --kill-child=KILL --mount-proc)
[ "$UP" = 0 ] || ns+=(--time --boottime "$UP" --monotonic "$UP")
# Root in a container may lack the right to do it directly, like any other user.
unshare --uts true 2>/dev/null || ns+=(--user --map-root-user)

export NSH_NAME=$NAME NSH_BOOT=$BOOT
# shellcheck disable=SC2016
exec unshare "${ns[@]}" bash -c '
    set -e
    digest() { md5sum | cut -c1-32; }
    hostname "$NSH_NAME"
    ip link set lo up 2>/dev/null || true
    if [ -z "$NSH_BOOT" ]; then
        NSH_BOOT=$(head -c 16 /dev/urandom | digest | sed -E "s/^(.{8})(.{4})(.{4})(.{4})(.{12})$/\1-\2-\3-\4-\5/")
    fi
    t=$(mktemp -d); mount -t tmpfs tmpfs "$t"
    echo "$NSH_BOOT" >"$t/boot_id"
    mount --bind "$t/boot_id" /proc/sys/kernel/random/boot_id
    if [ -e /etc/machine-id ]; then
        printf "%s" "$NSH_NAME" | digest >"$t/machine-id"
        mount --bind "$t/machine-id" /etc/machine-id
    fi
    if [ -e /etc/hosts ]; then
        printf "127.0.0.1 localhost\n127.0.1.1 %s\n" "$NSH_NAME" >"$t/hosts"
        mount --bind "$t/hosts" /etc/hosts
    fi
    umount -l "$t"; rmdir "$t"
    unset NSH_NAME NSH_BOOT
    "$@" && status=0 || status=$?
    exit "$status"' nshost "$@"
