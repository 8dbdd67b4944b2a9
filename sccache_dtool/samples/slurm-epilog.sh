#!/bin/sh
# slurm-epilog.sh [CACHE]...
#
# Gives back what a Slurm job still holds in the caches, in milliseconds: Epilog of slurm.conf, or called by a site's
# own. CACHE are the caches' directories; without any, those in $SC_DTOOL_CACHES (with colons between), or the lines of
# /etc/sc-dtool/caches. Copy this file to every node; it needs neither Python nor sc-dtool.
#
# It only renames and unlinks, calls no Slurm command, gives up after $SC_DTOOL_SECONDS (10), and always exits 0: an
# epilog that fails, or hangs because a file server does, drains the node. Root may not write on a file server that
# squashes it, so the work is done as the job's user. Left to `sc-dtool reap`, which asks Slurm, are: jobs on several
# nodes (the others' processes may still run), leases that were taken for a job with `--holder slurm:ID` (they last
# through requeues), and leases of Python programs and of `sc-dtool run`, which end with their process.
#
# To try it without Slurm:  SLURM_CLUSTER_NAME=c SLURM_JOB_ID=1 SLURM_JOB_NUM_NODES=1 SLURMD_NODENAME=n1 slurm-epilog.sh CACHE
trap 'exit 0' EXIT
trap 'exit 0' HUP INT TERM
export LC_ALL=C
PATH=${PATH:+$PATH:}/usr/sbin:/usr/bin:/sbin:/bin

[ -n "$SLURM_CLUSTER_NAME" ] && [ -n "$SLURM_JOB_ID" ] && [ -n "$SLURMD_NODENAME" ] || exit 0
[ "$SLURM_JOB_NUM_NODES" = 1 ] || exit 0

caches() { # one per line
    if [ $# -gt 0 ]; then
        printf '%s\n' "$@"
    elif [ -n "$SC_DTOOL_CACHES" ]; then
        printf '%s\n' "$SC_DTOOL_CACHES" | tr ':' '\n'
    elif [ -r /etc/sc-dtool/caches ]; then
        cat /etc/sc-dtool/caches
    fi
}

# The 12 digits in the ids of a job's holders; see `Job.identity` in sccache_dtool/liveness/jobs.py.
token() {
    hash=$(printf '%s' "slurm/$SLURM_CLUSTER_NAME/$1" | sha256sum) && printf '%.12s' "$hash"
}

field() { # field NAME RECORD: prints the text of a field of a holder's record, which is one line of JSON
    rest=${2#*\"$1\":\"}
    [ "$rest" != "$2" ] && printf '%s' "${rest%%\"*}"
}

release() { # release CONTROL HOLDER-FILE
    record=$(readlink "$2" || head -c 1000 "$2") || return
    case $record in *'"pid":'*) return ;; esac # also held by a process that the job's end does not end
    [ "$(field nodes "$record")" = "$SLURMD_NODENAME" ] || return
    start=$(field incarnation "$record")
    [ -n "$start" ] && [ "$start" = "${SLURM_JOB_RESTART_COUNT:-$start}" ] || return
    digits=$(field item "$record") # the first 32 of the item's key
    case $digits in *[!0-9a-f]* | '') return ;; esac
    [ ${#digits} = 32 ] || return
    id=${2##*/} id=${id%%.*}
    for lease in "$1/items/$(printf '%.2s' "$digits")/$digits"-*/g*/use/"$id".*; do
        [ -L "$lease" ] || [ -e "$lease" ] || continue
        item=${lease%/g*/use/*}
        [ -d "$item/history" ] || mkdir "$item/history"
        mv -f "$lease" "$item/history/${lease##*/}~$(date +%s)000~released" || return
    done
    rm -f "$2"
}

release_all() {
    plain=$(token "$SLURM_JOB_ID") && task=$(token "task:$SLURM_JOB_ID") || return
    caches "$@" | while IFS= read -r cache; do
        control=${cache%/}/.sc-dtool
        for holder in "$control"/holders/j"$plain"-* "$control"/holders/j"$task"-*; do
            if [ -L "$holder" ] || [ -e "$holder" ]; then release "$control" "$holder"; fi
        done
    done
}

if [ -z "$SC_DTOOL_STAGE" ] && command -v timeout; then
    # With KILL, timeout ends itself as well: nobody waits for a process that not even KILL ends.
    SC_DTOOL_STAGE=limited timeout -s KILL "${SC_DTOOL_SECONDS:-10}" /bin/sh "$0" "$@"
elif [ "$(id -u)" = 0 ] && [ "${SLURM_JOB_UID:-0}" != 0 ] && [ "$SC_DTOOL_STAGE" != dropped ]; then
    export SC_DTOOL_STAGE=dropped
    if command -v setpriv; then
        setpriv --reuid="$SLURM_JOB_UID" --regid="${SLURM_JOB_GID:-$SLURM_JOB_UID}" --init-groups /bin/sh "$0" "$@"
    else
        runuser -u "$SLURM_JOB_USER" -- /bin/sh "$0" "$@"
    fi
else
    umask 002
    release_all "$@"
fi >/dev/null 2>&1 </dev/null
