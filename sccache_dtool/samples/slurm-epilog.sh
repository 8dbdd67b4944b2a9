#!/bin/sh
# slurm-epilog.sh [CACHE]...
#
# Releases the leases that a Slurm job still holds, in milliseconds. Use it as Epilog of slurm.conf, or call it from your
# own epilog. CACHE is the directory of a cache. Without arguments, the caches are those in $SC_DTOOL_CACHES (separated
# by colons), or else the lines of /etc/sc-dtool/caches. Copy this file to every node. It requires neither Python nor
# sc-dtool.
#
# The script only renames and removes names, stops after $SC_DTOOL_SECONDS (10), and always exits with 0, because Slurm
# drains a node whose epilog fails or hangs. It works as the user of the job, because a file server that squashes root
# does not let root write.
#
# Leases taken by `sc-dtool sbatch` or with `--holder slurm:ID` last through requeues. While its epilog runs, a job is
# COMPLETING, whether it is requeued or not. So a process that outlives the epilog asks `squeue` a second later, and
# ends these leases if the job has ended. Only for jobs with such leases is Slurm asked; of an array, only once.
#
# The following leases are left to `sc-dtool reap`: those of jobs on several nodes (processes on other nodes may still
# run), those of an array if other tasks outlive the one that was started last, and those of Python programs and of
# `sc-dtool run`, which end with their process.
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

# The 12 digits in the ids of a job's holders; see `Job.identity` in sccache_dtool/liveness/job.py.
token() {
    hash=$(printf '%s' "slurm/$SLURM_CLUSTER_NAME/$1" | sha256sum) && printf '%.12s' "$hash"
}

field() { # field NAME RECORD: prints a field of a holder's record, which is one line of JSON
    rest=${2#*\"$1\":\"}
    [ "$rest" != "$2" ] && printf '%s' "${rest%%\"*}"
}

end_leases() { # end_leases CONTROL HOLDER-ID GENERATION: GENERATION is a directory below CONTROL
    for lease in "$1/$3/use/$2".*; do
        [ -L "$lease" ] || [ -e "$lease" ] || continue
        history=$1/${3%/*}/history
        [ -d "$history" ] || mkdir "$history"
        mv -f "$lease" "$history/${lease##*/}~$(date +%s)000~released" || return
    done
}

# A set of items: its view has a link to each of them. Its session is closed first, and `clean` removes it.
release_set() { # release_set CONTROL HOLDER-ID SESSION
    case $3 in *[!s0-9a-f]*) return 1 ;; esac
    grep -q '"detached"' "$1/sessions/$3"/data-* && return 1 # of its leases, some are on items that are not in its view
    rmdir "$1/sessions/$3/use" || return
    find "$1/sessions/$3/view" -type l -exec readlink {} + | while IFS= read -r link; do
        while [ "$link" != "${link#../}" ]; do link=${link#../}; done
        case /$link in
            */../*) ;;
            /items/[0-9a-f][0-9a-f]/*/g*/payload/*) end_leases "$1" "$2" "${link%/payload/*}" || exit ;;
        esac
    done
}

release() { # release CONTROL HOLDER-FILE
    record=$(readlink "$2" || head -c 1000 "$2") || return
    case $record in *'"pid":'*) return ;; esac # a process that may outlive the job holds it as well
    start=$(field incarnation "$record")
    if [ -n "$start" ]; then
        [ "$(field nodes "$record")" = "$SLURMD_NODENAME" ] && [ "$start" = "${SLURM_JOB_RESTART_COUNT:-$start}" ] || return
    elif [ "$SC_DTOOL_STAGE" != ended ]; then
        of_any_start=yes
        return
    fi
    id=${2##*/} id=${id%%.*}
    if session=$(field session "$record"); then
        release_set "$1" "$id" "$session" || return
    else
        digits=$(field item "$record") # the first 32 digits of the item's key
        case $digits in *[!0-9a-f]* | '') return ;; esac
        [ ${#digits} = 32 ] || return
        for generation in "$1/items/$(printf '%.2s' "$digits")/$digits"-*/g*; do
            end_leases "$1" "$id" "${generation#"$1/"}" || return
        done
    fi
    rm -f "$2"
}

release_all() {
    plain=$(token "$SLURM_JOB_ID") && task=$(token "task:$SLURM_JOB_ID") || return
    caches "$@" | while IFS= read -r cache; do
        of_any_start= control=${cache%/}/.sc-dtool
        for holder in "$control"/holders/j"$plain"-* "$control"/holders/j"$task"-*; do
            if [ -L "$holder" ] || [ -e "$holder" ]; then release "$control" "$holder"; fi
        done
        if [ -n "$of_any_start" ]; then SC_DTOOL_STAGE=waiting setsid timeout -s KILL 300 /bin/sh "$0" "$cache" & fi
    done
}

# Whether the job has ended: 0 yes, 1 no, or it cannot be told, 2 not yet. Another node of which the controller has
# declared the end may not answer, while processes go on there.
has_ended() {
    rows=$(squeue -h -t all -j "$SLURM_JOB_ID" -o '%T %N') && [ -n "$rows" ] || return 1
    printf '%s\n' "$rows" | while read -r state nodes; do
        case $state in
            COMPLETING) [ "$nodes" = "$SLURMD_NODENAME" ] && exit 2 || exit 1 ;;
            COMPLETED | FAILED | OUT_OF_MEMORY) case $nodes in *[[,]*) exit 1 ;; esac ;;
            CANCELLED | TIMEOUT | PREEMPTED | DEADLINE) [ "${nodes:-$SLURMD_NODENAME}" = "$SLURMD_NODENAME" ] || exit 1 ;;
            *) exit 1 ;;
        esac
    done
}

release_after_the_end() {
    for pause in 1 2 4 8 16 32; do
        sleep "$pause"
        has_ended
        case $? in
            0) SC_DTOOL_STAGE=ended && release_all "$@" && return ;;
            1) return ;;
        esac
    done
}

if [ "$SC_DTOOL_STAGE" = waiting ]; then
    umask 002
    release_after_the_end "$@"
elif [ -z "$SC_DTOOL_STAGE" ] && command -v timeout; then
    # With KILL, timeout also ends itself, so that Slurm does not wait for a process that KILL cannot end.
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
