#!/bin/sh
# clean.sh CACHE [OPTION OF CLEAN]...
#
# For cron, scrontab and systemd: cleans CACHE by the policy in its config.toml, or by the options given, with low
# priority and for at most $SC_DTOOL_MAX_RUNTIME (50m); what is left then is for the next time. Prints warnings, and
# otherwise only if there is something for a person to do, so that cron mails only then; exit codes are those of
# `sc-dtool clean`, but that another cleaner is at work (14) is as good as done. With $SC_DTOOL_METRICS it then writes
# that file for Prometheus.
cache=${1:?"usage: clean.sh CACHE [OPTION OF CLEAN]..."}
shift

gently() {
    if command -v ionice >/dev/null && ionice -c 3 true 2>/dev/null; then
        nice -n 19 ionice -c 3 "$@"
    else
        nice -n 19 "$@"
    fi
}

said=$(gently sc-dtool -q -C "$cache" clean --max-runtime "${SC_DTOOL_MAX_RUNTIME:-50m}" "$@" 2>&1)
code=$?
case $code in
    0) printf '%s\n' "$said" | grep '^warning: ' ;;
    14) code=0 ;;
    *) printf '%s\n' "$said" ;;
esac
if [ -n "$SC_DTOOL_METRICS" ]; then
    gently sc-dtool -q -C "$cache" metrics -o "$SC_DTOOL_METRICS" || [ $code != 0 ] || code=1
fi
exit $code
