#!/bin/sh
# report.sh CACHE ADDRESS...
#
# For cron. Mails a report on CACHE to each ADDRESS: the summary as text, and the page attached. It needs the extra
# `report` and a sendmail. If the report cannot be made, nothing is mailed, the error is printed, and cron mails that.
# The exit code is that of `sc-dtool`, or of sendmail. $SC_DTOOL_FROM, if it is set, is the sender.
cache=${1:?"usage: report.sh CACHE ADDRESS..."}
shift
: "${1:?"usage: report.sh CACHE ADDRESS..."}"

directory=$(mktemp -d) || exit
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
PATH=$PATH:/usr/sbin:/usr/lib

sc-dtool -q -C "$cache" report -o "$directory/report.html" || exit
sc-dtool -q -C "$cache" summary >"$directory/summary.txt" || exit

boundary=sc-dtool-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
# A mail is text of 7 bits: other characters of the path, which may be any, are left out of the subject.
subject=$(printf '%s' "$cache" | LC_ALL=C tr -cd 'a-zA-Z0-9/._-')
{
    [ -z "$SC_DTOOL_FROM" ] || printf 'From: %s\n' "$SC_DTOOL_FROM"
    printf 'To: %s\n' "$(printf '%s, ' "$@" | sed 's/, $//')"
    printf 'Subject: Report on the cache %s\n' "$subject"
    printf 'MIME-Version: 1.0\n'
    printf 'Content-Type: multipart/mixed; boundary="%s"\n\n' "$boundary"
    printf -- '--%s\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n' "$boundary"
    base64 <"$directory/summary.txt"
    printf -- '--%s\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: base64\n' "$boundary"
    printf 'Content-Disposition: attachment; filename="report.html"\n\n'
    base64 <"$directory/report.html"
    printf -- '--%s--\n' "$boundary"
} | sendmail -i -t
