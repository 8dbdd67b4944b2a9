"""The settings that all users of a cache share."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Failing
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.log import Log
from sccache_dtool.policy import config
from sccache_dtool.policy.config import Config
from sccache_dtool.policy.thresholds import Limits, Mark

TB = 10**12


def load(layout: Layout, text: str, warnings: list[str]) -> Config:
    Path(layout.config_file).write_text(text)
    return config.load(FileSystem(), layout, Log())


def test_without_a_file_there_are_no_settings(layout: Layout, warnings: list[str]) -> None:
    """A new cache could not be used before somebody has written a file."""
    assert config.load(FileSystem(), layout, Log()) == Config()
    assert Config().trash_keep == 0
    assert Config().lease_ttl is None


def test_every_setting_is_read(layout: Layout, warnings: list[str]) -> None:
    """What a data manager has set would have no effect."""
    text = '[lease]\nttl = "1h"\nheartbeat_ttl = "2h"\n[fetch]\nwait = "3m"\n[clean]\ntrash = "4d"\n'
    text += 'capacity = "10TB"\nhigh_watermark = "90%"\nlow_watermark = "7TB"\nmin_free = "1GB"\n'
    text += 'high_watermark_files = "1000000"\nlow_watermark_files = "50%"\nolder_than = "5d"\nlarger_than = "1kB"\n'
    text += 'exclude_frequently_accessed = 9\nretain_size = "5TB"\norder = "cost"\nexclude = ["hg*"]\ngrace = "1h"\n'
    text += '[dtool]\ndirectories = ["study-1", "mirror/*"]\n'
    text += '[archive]\nurl = "/tank/archive/"\nlimit = "1TB"\nverify = false\n'
    text += f'[globus]\ncollection = "{"A" * 8}{"-0000" * 3}-{"0" * 12}"\nbase = "/lab/cache/"\n'
    limits = (10 * TB, Mark(0.9, True), Mark(7 * TB, False), Mark(1_000_000, False), Mark(0.5, True), 10**9)
    conditions = (432_000, 9, 1000, 5 * TB, "cost", ("hg*",), 3600)
    read = load(layout, text, warnings)
    placed = {"globus_collection": f"{'a' * 8}{'-0000' * 3}-{'0' * 12}", "globus_base": "/lab/cache"}
    archived = {"archive_url": "/tank/archive", "archive_limit": TB, "archive_verify": False}
    given = (*limits, *conditions, ("study-1", "mirror/*"))
    assert read == Config(3600, 7200, 180, 345_600, *given, **placed, **archived)
    assert read.limits == limits
    assert warnings == []
    assert {*config.SETTINGS, "unknown"} == set(Config._fields)


def test_the_data_managers_names_are_understood(layout: Layout, warnings: list[str]) -> None:
    """Whoever comes from the Whole Tale data manager would have to learn other words for the same."""
    text = "[clean]\nprivate_storage_capacity = 1000\ngc_collect_start_fraction = 0.5\ngc_collect_end_fraction = 0.25\n"
    assert load(layout, text, warnings).limits == Limits(1000, Mark(0.5, True), Mark(0.25, True))
    assert load(layout, f'{text}high_watermark = "90%"\n', warnings).limits.high == Mark(0.9, True)
    assert warnings == []


DM = """[dm]
private_storage_path = "/tmp/ps"
private_storage_capacity = 1000
gc_run_interval = 600
gc_collect_start_fraction = 0.5
gc_collect_end_fraction = 0.25
"""


def test_the_data_managers_table_is_understood(layout: Layout, warnings: list[str]) -> None:
    """Whoever copies the settings of the Whole Tale data manager would have a cache that is never cleaned."""
    assert load(layout, DM, warnings).limits == Limits(1000, Mark(0.5, True), Mark(0.25, True))
    dotted = "dm.gc_collect_start_fraction = 0.5\n[clean]\nhigh_watermark = '90%'\n"
    assert load(layout, dotted, warnings).limits.high == Mark(0.9, True)
    assert warnings == []


@pytest.mark.parametrize(
    "text",
    [
        f"{DM}[clean]\nlow_watermark = '75%'\n",
        "[dm]\ngc_collect_end_fraction = 50\n",
        "[dm]\ngc_collect_end_fraction = 0.9\ngc_collect_start_fraction = 0.5\n",
        "[dm]\nprivate_storage_capacity = 100GB\n",
        "dm = 1\n",
    ],
)
def test_a_mistake_in_the_data_managers_table_stops_cleaning(layout: Layout, warnings: list[str], text: str) -> None:
    """Half of what was meant to protect the cache would be in force."""
    read = load(layout, text, warnings)
    assert set(read.faults) == {"clean"}
    assert layout.config_file in read.mistakes[0].message


def test_a_setting_in_the_data_managers_table_that_nobody_knows_stops_cleaning(
    layout: Layout, warnings: list[str]
) -> None:
    """A mistyped fraction would have no effect."""
    (unknown,) = load(layout, "[dm]\ngc_colect_end_fraction = 0.5\n", warnings).unknown
    assert unknown.may_concern_cleaning


def test_what_is_not_said_has_its_default(layout: Layout, warnings: list[str]) -> None:
    """One setting would change all the others."""
    assert load(layout, '[clean]\ntrash = "1d"\n', warnings) == Config(trash_keep=86_400)


@pytest.mark.parametrize(
    "text",
    [
        '[clean]\nhigh_watermark = "190%"\n',
        '[clean]\nhigh_watermark = "many"\n',
        "[clean]\nhigh_watermark = 0.9\n",
        "[clean]\nhigh_watermark = 90\n",
        '[clean]\nlow_watermark = "75%"\n',
        '[clean]\nhigh_watermark = "75%"\nlow_watermark = "90%"\n',
        '[clean]\nhigh_watermark = "8TB"\nlow_watermark = "9TB"\n',
        '[clean]\ncapacity = "8TB"\nhigh_watermark_files = 8\nlow_watermark_files = 9\n',
        '[clean]\nlow_watermark_files = "1.5"\n',
        "[clean]\ngc_collect_start_fraction = 90\n",
        "[clean]\ngc_collect_start_fraction = 0.0\n",
        "[clean]\ngc_collect_start_fraction = 0.9\ngc_collect_end_fraction = 0\n",
        "[clean]\nprivate_storage_capacity = 20\n",
        "[clean]\nexclude_frequently_accessed = -1\n",
        '[clean]\norder = "random"\n',
        "[clean]\nexclude = [1]\n",
        '[clean]\ncapacity = "90%"\n',
        '[lease]\nttl = "soon"\n',
        "[lease]\nttl = 3600\n",
        "[lease]\nttl = true\n",
        "[lease]\nttl = []\n",
        '[lease]\nttl = "0s"\n',
        '[lease]\nheartbeat_ttl = "0.5s"\n',
        '[lease]\nttl = "99999999999w"\n',
        '[clean]\ntrash = ""\n',
        "[dtool]\ndirectories = 1\n",
        "[dtool]\ndirectories = [1]\n",
        '[dtool]\ndirectories = ["/etc"]\n',
        '[dtool]\ndirectories = ["a/../b"]\n',
        '[dtool]\ndirectories = [""]\n',
    ],
)
def test_a_setting_that_makes_no_sense_is_an_error_that_says_where(
    layout: Layout, warnings: list[str], text: str
) -> None:
    """A slip in the file would give all leases another lifetime, or have all deleted but 0.9 bytes, or never any."""
    read = load(layout, text, warnings)
    (table,) = read.faults
    with pytest.raises(CacheError) as caught:
        getattr(read, ANY_OF[table])
    assert layout.config_file in caught.value.message
    assert text.split("\n")[0] in caught.value.message


#: A setting of each table.
ANY_OF = {setting.table: name for name, setting in config.SETTINGS.items()}

#: A mistake in each table: in a value, in its type, in its syntax, in the table itself.
MISTAKES = {
    "lease": ['[lease]\nttl = "soon"\n', "[lease]\nttl = 1\n", "[lease]\nttl = 1h\n", 'lease = "1h"\n', "[[lease]]\n"],
    "fetch": ['[fetch]\nwait = "soon"\n', "[fetch]\nwait = []\n", "[fetch]\nwait = 1h # x\n", "fetch = 1\n"],
    "clean": ["[clean]\nhigh_watermark = 90\n", '[clean]\ntrash = "7d\n', "[clean]\ntrash =\n", "clean = []\n"],
    "archive": [
        "[archive]\nurl = 1\n",
        '[archive]\nurl = "here"\n',
        '[archive]\nurl = "webdavs://me:secret@host/a"\n',
        '[archive]\nverify = "no"\n',
        "archive = 1\n",
    ],
    "dtool": ["[dtool]\ndirectories = 1\n", "[dtool]\ndirectories = a\n", "dtool = 1\n"],
    "globus": ['[globus]\ncollection = "x"\n', '[globus]\nbase = "a"\n', '[globus]\nbase = "/../a"\n', "globus = 1\n"],
    "lots": ['[lots]\norder = ["x"]\n', '[lots]\norder = ["del", "del"]\n', "[lots]\nmanagers = [1]\n", "lots = 1\n"],
}

GOOD = {
    "lease": '[lease]\nttl = "1h"\n',
    "fetch": '[fetch]\nwait = "1m"\n',
    "clean": '[clean]\ntrash = "1d"\n',
    "archive": '[archive]\nurl = "/a"\n',
    "dtool": '[dtool]\ndirectories = ["a"]\n',
    "globus": '[globus]\nbase = "/a"\n',
    "lots": '[lots]\nforget = "30d"\n',
}


@pytest.mark.parametrize(("table", "text"), [(table, text) for table, texts in MISTAKES.items() for text in texts])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_mistake_in_one_table_leaves_the_others(
    layout: Layout, warnings: list[str], table: str, text: str, where: str
) -> None:
    """A typing error in the policy would stop every job that uses the cache."""
    others = "".join(good for name, good in GOOD.items() if name != table)
    if not text.startswith("["):  # a key of the file itself stands before all tables
        where = "first"
    read = load(layout, text + others if where == "first" else f"# all\n{others}\n{text}", warnings)
    assert set(read.faults) == {table}
    (mistake,) = read.mistakes
    assert mistake.message.startswith(f"{layout.config_file}: [{table}]")
    expected = {"lease": ("lease_ttl", 3600), "fetch": ("fetch_wait", 60), "clean": ("trash_keep", 86400)}
    more = {
        "archive": ("archive_url", "/a"),
        "dtool": ("dtool_directories", ("a",)),
        "globus": ("globus_base", "/a"),
        "lots": ("lots_forget", 30 * 86400),
    }
    for name, (field, value) in (expected | more).items():
        if name != table:
            assert getattr(read, field) == value
        else:
            with pytest.raises(CacheError) as caught:
                getattr(read, field)
            assert caught.value is mistake


@pytest.mark.parametrize(
    "text",
    [
        '[lease]\nttl = "1h"\n[clean\nexclude = ["x"]\n',
        '[lease]\nttl = "1h"\n(clean]\nexclude = ["x"]\n',
        '[lease]\nttl = "1h"\nclean]\nexclude = ["x"]\n',
        '[lease]\nttl = 1h\n[[clean]]\nexclude = ["x"]\n',
        "[lease]\nttl = 1h\n[claen]\nexclude = [x]\n",
        '[lease]\nttl = """\n[clean]\ntrash = "7d"\n',
        'clean.trash = 7d\n[lease]\nttl = "1h"\n',
    ],
)
def test_what_may_belong_to_any_table_stops_all(layout: Layout, warnings: list[str], text: str) -> None:
    """A mistyped head of a table would hide the settings below it, and what they protect would be deleted."""
    read = load(layout, text, warnings)
    assert set(read.faults) == set(GOOD)
    assert len(read.mistakes) == 1
    for name in ANY_OF.values():
        with pytest.raises(CacheError, match=r"config\.toml"):
            getattr(read, name)


def test_a_table_that_is_there_twice_is_a_mistake_in_it(layout: Layout, warnings: list[str]) -> None:
    """Which of the two holds could not be told."""
    read = load(layout, f"{GOOD['lease']}{GOOD['clean']}{GOOD['fetch']}{GOOD['clean']}", warnings)
    assert set(read.faults) == {"clean"}
    assert read.lease_ttl == 3600


def test_a_mistake_is_told_with_the_line_that_it_is_in(layout: Layout, warnings: list[str]) -> None:
    """In a long file it could not be found."""
    read = load(layout, f"{GOOD['lease']}\n# policy\n[clean]\ntrash = 7d\n", warnings)
    assert "line 6" in read.mistakes[0].message


@pytest.mark.parametrize("text", ['[clean]\nexlude = ["x"]\n', '[claen]\nexclude = ["x"]\n', 'exclude = ["x"]\n'])
def test_nothing_is_cleaned_by_a_policy_that_is_misspelt(
    make_cache: Callable[..., Cache], warnings: list[str], text: str
) -> None:
    """What was to be kept would be deleted."""
    cache = make_cache()
    cache.init()
    Path(cache.root, ".sc-dtool", "config.toml").write_text(text)
    with pytest.raises(UsageError, match="is not a setting"):
        cache.policy()


@pytest.mark.parametrize("text", ["garbage", "[lease\n", "ttl = = 1", "x = 1\n[lease\n", "\x00"])
def test_a_file_that_is_no_toml_is_an_error(layout: Layout, warnings: list[str], text: str) -> None:
    """A broken file would silently mean "no settings", and what is to be kept would be deleted."""
    read = load(layout, text, warnings)
    for name in ANY_OF.values():
        with pytest.raises(CacheError, match=r"config\.toml"):
            getattr(read, name)


@pytest.mark.parametrize("text", ['[lease]\nttk = "1h"\n', "[other]\nx = 1\n", 'ttl = "1h"\n'])
def test_a_setting_that_nobody_knows_is_told_of(layout: Layout, warnings: list[str], text: str) -> None:
    """A misspelt setting would have no effect, and nobody would notice."""
    read = load(layout, text, warnings)
    assert read == Config(unknown=read.unknown)
    assert len(read.unknown) == 1
    assert f"{read.unknown[0]} is not a setting" in warnings[0]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_an_error(layout: Layout, warnings: list[str], error: int) -> None:
    """A passing fault would silently mean "no settings"."""
    fs = Failing()
    fs.fail("read_text", error)
    read = config.load(fs, layout, Log())
    for name in ANY_OF.values():
        with pytest.raises(CacheError, match="cannot be read"):
            getattr(read, name)
