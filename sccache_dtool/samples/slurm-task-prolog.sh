#!/bin/sh
# slurm-task-prolog.sh
#
# Sets DTOOL_CACHE_DIRECTORY for every job that does not set it itself. Use it as TaskProlog of slurm.conf. Slurm adds
# lines of the form `export NAME=value` that a task prolog prints to the environment of the task. The cache is the first
# directory in $SC_DTOOL_CACHES (separated by colons), or else the first line of /etc/sc-dtool/caches. Copy this file to
# every node.
cache=${SC_DTOOL_CACHES%%:*}
if [ -z "$cache" ] && [ -r /etc/sc-dtool/caches ]; then
    IFS= read -r cache </etc/sc-dtool/caches
fi
if [ -z "$DTOOL_CACHE_DIRECTORY" ] && [ -n "$cache" ]; then
    printf 'export DTOOL_CACHE_DIRECTORY=%s\n' "$cache"
fi
exit 0
