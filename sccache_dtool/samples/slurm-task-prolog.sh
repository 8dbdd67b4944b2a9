#!/bin/sh
# slurm-task-prolog.sh
#
# Tells every job where the cache is: TaskProlog of slurm.conf. What a task prolog prints as `export NAME=value` is put
# into the environment of the task. A job that has chosen a cache itself keeps it. The cache is the first directory in
# $SC_DTOOL_CACHES (with colons between), or else the first line of /etc/sc-dtool/caches. Copy this file to every node.
cache=${SC_DTOOL_CACHES%%:*}
if [ -z "$cache" ] && [ -r /etc/sc-dtool/caches ]; then
    IFS= read -r cache </etc/sc-dtool/caches
fi
if [ -z "$DTOOL_CACHE_DIRECTORY" ] && [ -n "$cache" ]; then
    printf 'export DTOOL_CACHE_DIRECTORY=%s\n' "$cache"
fi
exit 0
