"""`doctor --verify-filesystem` by two hosts on real NFS: what is fit must be called so, and the delays be seen."""

from __future__ import annotations

import json

import pytest

from nfs.conftest import FULL, VERSIONS
from nfs.lab import Lab

#: Half a minute passes until one host sees by itself what another has made: the short run tries one version.
_VERSIONS = VERSIONS if FULL else ("4.2",)


@pytest.mark.parametrize("version", _VERSIONS)
def test_nfs_is_fit_for_two_hosts(mounted: Lab, version: str) -> None:
    """Users would be told that their NFS is unfit, or that it is fit without anybody having tried it between hosts."""
    a, b = mounted.clients[:2]
    place = f"{a.place}-to-be"
    a.do("mkdir", place)
    peer = b.start_sc_dtool("doctor", "--verify-filesystem", place, "--peer")
    led = a.sc_dtool("-f", "json", "doctor", "--verify-filesystem", place, "--wait", "60s")
    assisted = b.wait(peer)
    records = [json.loads(line) for line in led.out.splitlines()]
    for record in records:
        print(version, record)
    assert (led.code, assisted.code) == (0, 0), (led, assisted)
    assert records[0]["fitness"] == "fit"
    checks = {record["check"]: record for record in records[1:]}
    assert checks["clock, between hosts"]["result"] == "note"  # that of b is an hour ahead
    assert abs(checks["clock, between hosts"]["figures"]["offset_of_peer"] + 3600) < 60
    assert a.do("ls", "-A", place) == ""
    if FULL:
        assert checks["visibility between hosts"]["figures"]["delay_listed"] is not None
