"""What a user holds, and until when: as a table, as a mail, and as a calendar."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icalendar
import pytest

from cli.tool import SC_DTOOL, Disk, Done, has_ended, heard, one_line_error, say, start
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import HolderName
from sccache_dtool.liveness.caller import JOB, Owner, user_name
from sccache_dtool.liveness.job import Job
from waiting import wait_until

Sc = Callable[..., Done]

DAY = 86_400


def held(sc: Sc, *words: str) -> list[dict[str, Any]]:
    return sc("status", *words, "-f", "json").rows("held")


def rewrite(disk: Disk, of: str, **fields: object) -> None:
    """Change the record of the one holder whose record has `of` in it."""
    (holder,) = (path for path in disk.holders() if of in os.readlink(path))
    record = json.loads(os.readlink(holder)) | fields
    holder.unlink()
    holder.symlink_to(json.dumps(record))


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_each_lease_says_until_when(sc: Sc, source: str, root: Path) -> None:
    """Who held what, and whether it would outlive the holidays, had to be asked item by item."""
    sc("use", source)
    sc("use", source, "--ttl", "3d")
    sc("use", source, "--holder", "night", "--ttl", "2d")
    sc("use", source, "--holder", "for ever")
    cache = Cache(root)
    job = Owner(JOB, None, None, "align.sh", Job("slurm", "lab", "4711"))
    cache.hold(job, cache.item_request([source]))
    with start([SC_DTOOL, "-C", str(root), "run", source, "--", "sh", "-c", "echo $$; read wait"]) as running:
        child = heard(running)
        rows = held(sc, "--mine")
        say(running)
    here = rows[0]["by"].partition(",")[0].partition("@")[2]
    me = f"process {os.getpid()} on {here} ends"
    timed = [row for row in rows if row["until"] is not None]
    assert [round(seconds(row["until"]) - seconds(row["since"]), -3) for row in timed] == [
        pytest.approx(2 * DAY, abs=1000),
        pytest.approx(3 * DAY, abs=1000),
    ]
    assert [row["lasts"] for row in timed] == [timed[0]["until"], f"{me}; if that cannot be seen: {timed[1]['until']}"]
    assert sorted(row["lasts"] for row in rows if row["until"] is None) == [
        "Slurm job 4711 ends",
        "it is released",
        *sorted([me, f"process {child} on {here} ends"]),
    ]
    assert {row["user"] for row in rows} == {user_name()}
    shown = sc("status", "--mine").out
    assert "Slurm job 4711 ends" in shown
    assert "HELD BY" in shown


def test_a_lock_names_its_session(sc: Sc, source: str) -> None:
    """Whoever looks for what keeps an item would not find the session that is to be deleted."""
    session = sc("session", "create", "--ttl", "1h", "--add", f"{source}:/x").out.strip()
    sc("lock", "get", session, "/x")
    (row,) = held(sc, "--mine")
    assert (row["session"], row["until"]) == (session, None)
    assert row["lasts"] == f"it is released, or session {session} ends"
    assert f"session {session} ends" in sc("ls", "--mine").out


def test_only_the_leases_of_one_user_are_shown(sc: Sc, source: str, tmp_path: Path, disk: Disk) -> None:
    """A user would see the leases of a whole group, or lose some of those that are asked for."""
    other = tmp_path / "other"
    other.write_text("TTTT\n")
    sc("use", source, "--holder", "ours", "--ttl", "1d")
    sc("use", other, "--holder", "hers", "--ttl", "1d")
    rewrite(disk, "hers", user="ada")
    assert [row["name"] for row in held(sc, "--mine")] == ["ref.fa"]
    assert [(row["name"], row["user"]) for row in held(sc, "--user", "ada")] == [("other", "ada")]
    assert sorted(row["user"] for row in held(sc, "--notice", "2d")) == sorted(["ada", user_name()])
    (row,) = sc("ls", "--user", "ada", "-f", "json").rows("item")
    assert (row["name"], row["held"], row["uses"]) == ("other", 1, 1)
    assert row["lasts"] == [row["until"]]
    assert row["until"] in sc("ls", "--user", "ada").out
    assert sc("ls", "--mine", "--filter", "oth*", "-f", "json").rows("item") == []
    done = sc("status", "--user", "grace")
    assert (done.out, done.err) == ("", "no lease is held by grace\n")
    assert sc("ls", "--user", "grace").err == "no item is held by grace\n"


def test_a_lease_whose_holder_is_gone_is_shown(sc: Sc, source: str, disk: Disk) -> None:
    """Before a clean, what a killed process had used would be held by nobody, and still be held."""
    with start(["sh", "-c", f"{SC_DTOOL} use --holder pid:$$ {source}; read wait"]) as killed:
        heard(killed)
        killed.kill()
        wait_until(lambda: has_ended(killed.pid), "its end")
    (row,) = held(sc, "--mine")
    assert row["verdict"] == "dead"
    assert row["lasts"].startswith("the next clean: ")
    (holder,) = disk.holders()
    holder.rename(disk.control / "holders" / "gone" / holder.name)
    (row,) = held(sc, "--mine")
    assert (row["verdict"], row["user"]) == ("dead", user_name())


def test_what_ends_soon_is_a_mail(sc: Sc, source: str) -> None:
    """A site that warns its users would have to write a program for it; and the mail would not say what to do."""
    sc("use", source, "--holder", "soon", "--ttl", "1d")
    sc("use", source, "--holder", "later", "--ttl", "9d")
    sc("use", source)
    head, line = sc("status", "--mine", "--notice", "2d").out.splitlines()
    assert head.split() == ["ITEM", "HELD", "BY", "SINCE", "UNTIL", "TO", "KEEP", "IT"]
    assert line.endswith("sc-dtool renew --holder soon")
    (row,) = held(sc, "--mine", "--notice", "2d")
    assert row["renew"] == "sc-dtool renew --holder soon"
    done = sc("status", "--mine", "--notice", "1h")
    assert (done.code, done.out) == (0, "")  # `mail -E` sends no empty mail
    before = row["until"]
    wait_until(lambda: sc("renew", "--holder", "soon").code == 0 and held(sc, "--mine")[0]["until"] > before, "renewed")


def calendar(text: str) -> dict[str, Any]:
    """The events of a calendar, by the first words of their descriptions."""
    assert text.endswith("\r\n")
    assert text.replace("\r\n", "").isprintable()
    assert all(len(line.encode()) <= 75 for line in text.split("\r\n"))
    events = list(icalendar.Calendar.from_ical(text).walk("VEVENT"))
    assert len({str(event["UID"]) for event in events}) == len(events)
    return {str(event["DESCRIPTION"]).partition(" in ")[0]: event for event in events}


def test_ends_of_leases_are_a_calendar(sc: Sc, tmp_path: Path) -> None:
    """A calendar program would refuse a file that is nearly right, or show each end again after each export."""
    odd = tmp_path / "größe, Länge; und \\ — alles zusammen, damit die Zeile sicher länger als erlaubt ist.fa"
    plain = tmp_path / "ref.fa"
    for path in (odd, plain):
        path.write_text("ACGT\n")
        sc("use", path, "--holder", path.name[:5], "--ttl", "2d")
    sc("use", plain)
    text = sc("status", "--mine", "--ical").out
    events = calendar(text)
    assert sorted(events) == sorted([odd.name, plain.name])
    event, (row,) = events[odd.name], [row for row in held(sc, "--mine") if row["name"] == odd.name]
    assert event["DTSTART"].dt == datetime.fromtimestamp(seconds(row["until"]), UTC)
    assert event["DTSTAMP"].dt.tzinfo is not None
    assert str(event["SUMMARY"]) == f"The lease on {odd.name} ends"
    assert f"\nTo keep it: {row['renew']}" in str(event["DESCRIPTION"])
    sc("renew", "--holder", "ref.f")
    after = calendar(sc("status", "--mine", "--ical").out)[plain.name]
    assert after["UID"] == events[plain.name]["UID"]
    assert after["SEQUENCE"] > events[plain.name]["SEQUENCE"]
    assert len(calendar(sc("status", "--ical", "--notice", "3d").out)) == 2
    done = sc("status", "--mine", "--ical", "--notice", "1h")
    assert (done.code, done.out) == (0, "")  # a calendar has at least one event


def test_records_of_others_cannot_break_the_calendar(sc: Sc, source: str, disk: Disk) -> None:
    """A member of the group could put an event of their own into everybody's calendar."""
    sc("use", source, "--holder", "night", "--ttl", "2d")
    rewrite(disk, "night", name="x\r\nEND:VEVENT\r\nBEGIN:VEVENT", host="n1\r\nUID:1")
    assert len(calendar(sc("status", "--mine", "--ical").out)) == 1


@pytest.mark.parametrize(
    "name", [HolderName("p" + "0" * 12 + "-" + "1" * 12, 1, 10**12 - 1), None], ids=["far", "none"]
)
def test_an_end_that_no_calendar_has(sc: Sc, source: str, disk: Disk, name: HolderName | None) -> None:
    """A lease for a thousand years, or a damaged record, would end the command with a traceback."""
    sc("use", source, "--holder", "night", "--ttl", "52000w")
    if name is None:
        (holder,) = disk.holders()
        holder.unlink()
        holder.symlink_to("{")
        (row,) = held(sc, "--mine")
        assert (row["until"], row["verdict"]) == (None, "unknown")
    else:
        assert len(calendar(sc("status", "--mine", "--ical").out)) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("status", "--mine", "--user", "ada"), "--mine and --user cannot be combined"),
        (("status", "ref.fa", "--mine"), "lists of leases cannot be restricted to one item"),
        (("status", "--mine", "--ical", "-f", "json"), "--ical and -f cannot be combined"),
    ],
)
def test_what_cannot_be_combined(sc: Sc, words: tuple[str, ...], error: str) -> None:
    """One of the two would be ignored."""
    done = sc(*words)
    assert done.code == 2
    assert error in one_line_error(done)
