#!/bin/sh
# clean.sh CACHE [OPTION OF CLEAN]...
#
# For cron, scrontab and systemd. Cleans CACHE by the policy in its config.toml, or by the given options, with low
# priority and for at most $SC_DTOOL_MAX_RUNTIME (50m). The next run does the rest. Prints warnings, and other output
# only if a person must act, so that cron sends mail only then. The exit codes are those of `sc-dtool clean`, except
# that 0 replaces 14 (another cleaner is running). If $SC_DTOOL_METRICS is set, writes metrics for Prometheus to that
# file afterwards.
cache=${1:?"usage: clean.sh CACHE [OPTION OF CLEAN]..."}
shift

gently() {
    if command -v ionice >/dev/null && ionice -c 3 true 2>/dev/null; then
        nice -n 19 ionice -c 3 "$@"
    else
        nice -n 19 "$@"
    fi
}

output=$(gently sc-dtool -q -C "$cache" clean --max-runtime "${SC_DTOOL_MAX_RUNTIME:-50m}" "$@" 2>&1)
code=$?
case $code in
    0) printf '%s\n' "$output" | grep '^warning: ' ;;
    14) code=0 ;;
    *) printf '%s\n' "$output" ;;
esac
if [ -n "$SC_DTOOL_METRICS" ]; then
    gently sc-dtool -q -C "$cache" metrics -o "$SC_DTOOL_METRICS" || [ $code != 0 ] || code=1
fi
exit $code
