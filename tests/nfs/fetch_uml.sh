#!/bin/bash
# fetch_uml.sh DIRECTORY SUITE
#
# Unpacks the User-Mode Linux of another Debian suite (such as sid) into DIRECTORY, with the C library that it needs.
# Nothing is installed, and no setting of the machine's apt is changed. DIRECTORY appears only once it is complete:
#
#   DIRECTORY/usr/bin/linux.uml      the kernel
#   DIRECTORY/usr/lib/uml/modules    its modules
#
# Needs apt-get, dpkg, patchelf, and the keys of Debian (debian-archive-keyring), which verify what is downloaded.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
export LC_ALL=C
directory=$1 suite=$2
mkdir -p "$(dirname "$directory")"
new=$(mktemp -d "$directory.XXXXXX")
trap 'rm -rf "$new"' EXIT

# The archive that this machine uses for Debian itself, which may be a mirror; other archives have another label.
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Label: Debian' 2>/dev/null | head -n 1) || true
apt=$new/apt
mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${archive:-http://deb.debian.org/debian} $suite main" \
    >"$apt/sources.list"
apt_get() {
    apt-get -qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists" \
        -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=2 \
        -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@"
}
apt_get update
(cd "$apt" && apt_get download "user-mode-linux/$suite" "libc6/$suite")
dpkg -x "$apt"/user-mode-linux_*.deb "$new"
if ! "$new/usr/bin/linux.uml" --version >/dev/null 2>&1; then # the C library of this machine is older than it needs
    dpkg -x "$apt"/libc6_*.deb "$new/libc"
    patchelf --set-interpreter "$directory/libc/usr/lib64/ld-linux-x86-64.so.2" \
        --set-rpath "$directory/libc/usr/lib/x86_64-linux-gnu" "$new/usr/bin/linux.uml"
fi
rm -rf "$apt"
chmod 755 "$new"
mv -T "$new" "$directory"
