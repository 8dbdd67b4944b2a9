"""What `bin/cron` has for cron, scrontab and systemd: each sample is run, with the paths that a site would put in."""

from __future__ import annotations

import email
import email.policy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.tool import SCRIPTS, config
from sccache_dtool.cache import Cache
from waiting import PATIENCE, wait_until

CRON = Path(__file__).parents[1] / "bin" / "cron"


@pytest.fixture
def cache(cache: Cache, tmp_path: Path) -> Cache:
    """The same over its mark, with nobody who uses it."""
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(1000))
        cache.use(tmp_path / name).release()
    cache.close()
    config(cache.root, '[clean]\ncapacity = "1500"\n')
    return cache


def left(cache: Cache) -> int:
    return sum(bool(item.copies) for item in cache.items())


def at_this_site(name: str, cache: Cache) -> str:
    """A sample with the paths changed, as it says."""
    text = (CRON / name).read_text().replace("/shared/lab/cache", str(cache.root))
    for script in ("clean.sh", "report.sh"):
        text = text.replace(f"/opt/sc-dtool/bin/{script}", str(CRON / script))
    return text.replace("/opt/sc-dtool/bin", SCRIPTS)


def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": os.environ["HOME"], **more}
    argv = ["sh", str(CRON / "clean.sh"), *map(str, words)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)


def test_what_is_done_is_not_mailed(cache: Cache) -> None:
    """Cron would send a mail every hour, and nobody read those that matter."""
    done = run(cache.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left(cache) == 1


def test_what_a_person_must_do_is_mailed(cache: Cache, tmp_path: Path) -> None:
    """A cache that cannot be cleaned would run full in silence."""
    done = run(cache.root, "--retain-size", "1B", "--exclude", "*")
    assert done.returncode == 3
    assert "the goal was missed by 2.0 kB" in done.stdout
    assert run(tmp_path / "missing").returncode == 10


def test_warnings_are_mailed_although_all_is_done(cache: Cache) -> None:
    """A data manager would never hear of a misspelt setting."""
    config = Path(f"{cache.root}/.sc-dtool/config.toml")
    config.write_text(f'{config.read_text()}[lease]\ntll = "1d"\n')
    done = run(cache.root)
    assert (done.returncode, left(cache)) == (0, 1)
    assert done.stdout == f"warning: {config}: [lease] tll is not a setting that this release knows; ignored\n"


def test_metrics_are_written_after_it(cache: Cache, tmp_path: Path) -> None:
    """The monitor would show the cache as it was before."""
    file = tmp_path / "cache.prom"
    assert run(cache.root, SC_DTOOL_METRICS=str(file)).returncode == 0
    assert re.search(r"^sc_dtool_items\{.*\} 1$", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["crontab", "scrontab"])
def test_the_line_of_a_crontab_cleans(cache: Cache, name: str) -> None:
    """A sample that does not run as it stands would be copied to every site."""
    lines = [line for line in at_this_site(name, cache).splitlines() if line and not line.startswith("#")]
    path = next((line.removeprefix("PATH=") for line in lines if line.startswith("PATH=")), os.environ["PATH"])
    (command,) = [line.split(None, 5)[5] for line in lines if not line.startswith("PATH=")]
    environment = {"PATH": path, "HOME": os.environ["HOME"]}  # and nothing else, as under cron
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left(cache) == 1


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    """A directory of programs with a sendmail that keeps what it is given, beside itself."""
    (tmp_path / "bin").mkdir()
    sendmail = tmp_path / "bin" / "sendmail"
    sendmail.write_text('#!/bin/sh\ncat >"${0%/*}/mail" && echo "$@" >"${0%/*}/words"\n')
    sendmail.chmod(0o755)
    return sendmail.parent


def mail_report(mails: Path, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `report.sh` where only this sendmail is found."""
    environment = {"PATH": f"{SCRIPTS}:{mails}:/usr/bin:/bin", "HOME": os.environ["HOME"], "TMPDIR": str(mails), **more}
    argv = ["sh", str(CRON / "report.sh"), *map(str, words)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_the_report_is_mailed_with_the_page(cache: Cache, mails: Path) -> None:
    """A data manager would open a mail whose attachment no program can read."""
    done = mail_report(mails, cache.root, "ada@example.org", "bob@example.org", SC_DTOOL_FROM="cache@example.org")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (mails / "words").read_text() == "-i -t\n"
    mail = email.message_from_bytes((mails / "mail").read_bytes(), policy=email.policy.default)
    assert (mail["From"], mail["To"]) == ("cache@example.org", "ada@example.org, bob@example.org")
    assert mail["Subject"] == f"Report on the cache {cache.root}"
    text, page = mail.iter_parts()
    assert text.get_content().startswith("DATASET")
    assert f"cache   {cache.root}" in text.get_content()
    assert (page.get_content_type(), page.get_filename()) == ("text/html", "report.html")
    assert page.get_content().startswith("<!DOCTYPE html>")
    assert {one.name for one in mails.iterdir()} == {"sendmail", "mail", "words"}


def test_a_report_that_fails_is_not_mailed(cache: Cache, mails: Path, tmp_path: Path) -> None:
    """Half a page would be mailed every week, and nobody hear of the error."""
    done = mail_report(mails, tmp_path / "missing", "ada@example.org")
    assert done.returncode == 10
    assert "is not a cache" in done.stderr or "missing" in done.stderr
    assert {one.name for one in mails.iterdir()} == {"sendmail"}
    assert mail_report(mails, cache.root).returncode != 0


def test_a_path_cannot_add_headers(tmp_path: Path, mails: Path) -> None:
    """Whoever names a directory could send mails to anybody."""
    assert mail_report(mails, f"{tmp_path}/a\nBcc: eve@example.org", "ada@example.org").returncode == 2
    assert not (mails / "mail").exists()
    cache = Cache(tmp_path / "größer: <eve@example.org>")
    cache.init()
    assert mail_report(mails, cache.root, "ada@example.org").returncode == 0
    mail = email.message_from_bytes((mails / "mail").read_bytes(), policy=email.policy.default)
    assert mail.keys() == ["To", "Subject", "MIME-Version", "Content-Type"]
    assert mail["Subject"] == f"Report on the cache {tmp_path}/grereveexample.org"


def test_the_line_of_the_crontab_mails_the_report(cache: Cache, mails: Path) -> None:
    """A sample that does not run as it stands would be copied to every site."""
    lines = [line for line in at_this_site("crontab-report", cache).splitlines() if line and not line.startswith("#")]
    path, line = lines
    environment = {"PATH": f"{path.removeprefix('PATH=')}:{mails}", "HOME": os.environ["HOME"]}
    command = line.split(None, 5)[5]
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert b"To: data@example.org" in (mails / "mail").read_bytes()


# -- in cron itself ----------------------------------------------------------------------------------------------------

#: A host with a crontab spool of its own, on which it is three seconds to 17 past. Cron gives its jobs nothing of its
#: own environment, so that they have the time of day as it is. What is under the test's directory, $HERE, stays there.
_CRON = r"""
mount --make-rprivate /
mount -t tmpfs none /run
mkdir /run/here
mount --bind "$HERE" /run/here
mount -t tmpfs -o mode=1730,gid=crontab none /var/spool/cron/crontabs
mount -t tmpfs none /etc/cron.d
mount -t tmpfs none /dev/shm
mkdir -p "$HERE"
mount --bind /run/here "$HERE"
mount --bind /dev/null /etc/crontab
crontab - || exit
exec faketime -f "@2026-11-21 10:16:57" cron -f
"""


def cron_is_lacking() -> str | None:
    """Why no cron can be run here; None if it can."""
    found = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("cron", "crontab", "faketime", "unshare") if not shutil.which(name, path=found)]
    if missing:
        return f"no {', '.join(missing)} here (on Debian: see .ci/packages)"
    return f"needs root, and runs as user {os.geteuid()}" if os.geteuid() != 0 else None


@pytest.mark.skipif(cron_is_lacking() is not None, reason=str(cron_is_lacking()))
def test_cron_runs_the_line(cache: Cache, tmp_path: Path) -> None:
    """What is fine for a shell need not be for cron: a line that it refuses, a PATH that it sets otherwise."""
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "TZ": "UTC", "HOME": os.environ["HOME"]}
    environment["HERE"] = str(tmp_path)
    host = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", _CRON]
    log = tmp_path / "cron.log"
    with log.open("w") as said:
        cron = subprocess.Popen(host, stdin=subprocess.PIPE, stdout=said, stderr=said, text=True, env=environment)
    try:
        assert cron.stdin is not None
        cron.stdin.write(at_this_site("crontab", cache))
        cron.stdin.close()
        wait_until(lambda: left(cache) == 1 or cron.poll() is not None, "cron cleans")
    finally:
        cron.kill()
        cron.wait(timeout=PATIENCE)
    assert left(cache) == 1, log.read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_understands_the_units(cache: Cache, tmp_path: Path) -> None:
    """A typing error in a unit would show only when it is enabled, as a cache that is never cleaned."""
    for name in ("sc-dtool-clean.service", "sc-dtool-clean.timer"):
        (tmp_path / name).write_text(at_this_site(name, cache))
    units = sorted(map(str, tmp_path.glob("sc-dtool-clean.*")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "sc-dtool" in line]) == (0, [])


#: A host that systemd has started, in a control group of its own; all that it knows are the units in $UNITS.
_SYSTEMD = r"""
mount --make-rprivate /
mount -t tmpfs none /run
mkdir /run/group
mount -t cgroup2 none /run/group || exit 77
mkdir "/run/group/$GROUP" || exit 77
echo $$ >"/run/group/$GROUP/cgroup.procs"
umount /run/group
exec unshare --cgroup --uts --ipc --pid --fork --kill-child=KILL --mount --mount-proc sh -c "
    umount -l /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    mount -t tmpfs none /var/lib/systemd
    exec env -i container=test SYSTEMD_UNIT_PATH='$UNITS' /lib/systemd/systemd --unit=timers.target \
        --log-target=console --show-status=0
"
"""

#: Let the timer's time come now; `hourly` is none to wait for.
_NOW = "[Timer]\nOnCalendar=\nOnActiveSec=0\nRandomizedDelaySec=0\n"


def systemd_is_lacking() -> str | None:
    """Why systemd cannot be started here; None if it can."""
    if not (os.access("/lib/systemd/systemd", os.X_OK) and shutil.which("unshare")):
        return "no systemd, or no unshare, here"
    return f"needs root, and runs as user {os.geteuid()}" if os.geteuid() != 0 else None


@pytest.fixture
def group(tmp_path: Path) -> Iterator[str]:
    """The name of a control group, which is removed with all that systemd has made in it."""
    name = f"sc-dtool-{os.getpid()}"
    yield name
    find = 'find "$1" -depth -type d -exec rmdir "{}" +'
    script = f'mount -t cgroup2 none "$0" || exit 0; cd "$0" && {{ [ ! -d "$1" ] || {find}; }}'
    remove = ["unshare", "--mount", "sh", "-c", script, str(tmp_path), name]
    wait_until(lambda: subprocess.run(remove, capture_output=True).returncode == 0, "what was in the group has ended")


@pytest.mark.skipif(systemd_is_lacking() is not None, reason=str(systemd_is_lacking()))
def test_systemd_cleans_when_the_time_has_come(cache: Cache, tmp_path: Path, group: str) -> None:
    """A timer that is not enabled by what it says, or starts nothing, would show as a cache that is full."""
    units = tmp_path / "units"
    (units / "timers.target.wants").mkdir(parents=True)
    (units / "sc-dtool-clean.timer.d").mkdir()
    (units / "sc-dtool-clean.timer.d" / "now.conf").write_text(_NOW)
    for name in ("sc-dtool-clean.service", "sc-dtool-clean.timer"):
        (units / name).write_text(at_this_site(name, cache))
    wanted = re.findall(r"^WantedBy=(.*)$", (units / "sc-dtool-clean.timer").read_text(), re.MULTILINE)
    (units / f"{wanted[0]}.wants" / "sc-dtool-clean.timer").symlink_to("../sc-dtool-clean.timer")  # as `enable` does
    for target in ("sysinit", "basic", "timers", "shutdown", "time-set", "time-sync"):
        (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    log = tmp_path / "systemd.log"
    with log.open("w") as said:
        environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "GROUP": group, "UNITS": str(units)}
        host = subprocess.Popen(["unshare", "--mount", "sh", "-c", _SYSTEMD], stdout=said, stderr=said, env=environment)
    try:
        wait_until(lambda: left(cache) == 1 or host.poll() is not None, "systemd cleans")
    finally:
        host.kill()
        host.wait(timeout=PATIENCE)
    if host.returncode == 77:
        pytest.skip(f"no control groups can be made here: {log.read_text()}")
    assert left(cache) == 1, log.read_text()


def test_the_service_runs_what_it_says(cache: Cache) -> None:
    """The unit could be in order, and what it starts be not."""
    text = at_this_site("sc-dtool-clean.service", cache)
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    (path,) = re.findall(r"^Environment=PATH=(.*)$", text, re.MULTILINE)
    done = subprocess.run(command.split(), env={"PATH": path}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert left(cache) == 1
