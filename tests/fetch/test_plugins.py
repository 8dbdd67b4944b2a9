"""Sources and steps of other packages; `dirac:` is one, with a stand-in for the clients that behaves as they do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import types
import zlib

import pytest

from sccache_dtool.errors import CacheError, FetchFailed, UsageError
from sccache_dtool.fetch import dirac, plugins
from sccache_dtool.fetch.context import Retrieved
from sccache_dtool.fetch.plugins import SourcePlugin, StepPlugin
from sccache_dtool.fetch.request import Location, Source, Step
from sccache_dtool.fetch.stack import parse_stack

BODY = b"of the grid" * 1000


def refused(get, *words):
    with pytest.raises(FetchFailed) as caught:
        get(*words)
    return caught.value


# -- dirac -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(monkeypatch):
    """What the DIRAC clients answer, as DIRAC.Interfaces.API.Dirac does: OK, with maps of what came and what failed."""
    made = types.SimpleNamespace(files={"/vo/ref.fa": BODY}, answer=None, asked=[])

    class Dirac:
        def getFile(self, lfn, destDir=""):  # noqa: N802, N803  (the names are theirs)
            made.asked.append(lfn)
            if made.answer is not None:
                return made.answer
            if lfn not in made.files:
                failed = {lfn: "No such file or directory ( 2 : File does not exist)"}
                return {"OK": True, "Value": {"Successful": {}, "Failed": failed}}
            path = os.path.join(destDir, os.path.basename(lfn))
            with open(path, "wb") as file:
                file.write(made.files[lfn])
            return {"OK": True, "Value": {"Successful": {lfn: path}, "Failed": {}}}

    module = types.ModuleType("DIRAC.Interfaces.API.Dirac")
    module.Dirac = Dirac
    for name in ("DIRAC", "DIRAC.Interfaces", "DIRAC.Interfaces.API"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_a_file_of_the_grid_is_fetched(grid, get):
    """Sites whose data is on the grid could not cache it."""
    digest = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert get("dirac:LFN:/vo/ref.fa", digest, f"adler32:{zlib.adler32(BODY):08x}") == BODY
    assert grid.asked == ["/vo/ref.fa"]


def test_ok_with_a_failed_map_is_a_failure(grid, get):
    """The clients say OK for a file that they could not get, and nothing would be published as it."""
    error = refused(get, "dirac:/vo/missing")
    assert "File does not exist" in error.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"OK": False, "Message": "no\nproxy"}, "no proxy"),
        ({"OK": True, "Value": {"Successful": {}, "Failed": {}}}, "left nothing"),
        ({"OK": True, "Value": {}}, "left nothing"),
        (None, "left nothing"),
        ([], "no answer"),
    ],
)
def test_an_answer_that_brings_nothing_is_a_failure(grid, get, answer, says):
    """Whatever the clients say, only a file that is there counts."""
    grid.answer = {"OK": True, "Value": None} if answer is None else answer
    assert says in refused(get, "dirac:/vo/ref.fa").message


def test_without_the_clients_it_says_what_to_do(get, monkeypatch):
    """Who has no DIRAC here would see an ImportError."""
    monkeypatch.setitem(sys.modules, "DIRAC", None)
    error = refused(get, "dirac:/vo/ref.fa")
    assert "not installed" in error.message
    assert "pip install DIRAC" in error.hint
    assert dirac.missing() is not None


def test_one_name_has_one_form():
    """Two jobs that write LFN: differently would fetch twice."""
    forms = ["dirac:/vo/x", "dirac:LFN:/vo/x", "dirac:lfn:vo/x", "DIRAC:/vo/x"]
    assert {parse_stack([form]).canonical for form in forms} == {("dirac:/vo/x",)}
    with pytest.raises(UsageError):
        parse_stack(["dirac:/vo/"])


# -- others ------------------------------------------------------------------------------------------------------------


class Point:
    """An entry point of another package."""

    dist = types.SimpleNamespace(name="other-package")

    def __init__(self, name, thing):
        self.name, self.value, self.thing = name, f"other:{name}", thing

    def load(self):
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


@pytest.fixture
def others(monkeypatch):
    """Entry points by group, as if other packages had declared them."""
    found = {plugins.SOURCES: [], plugins.STEPS: []}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: found.get(group, ()))
    return found


def _retrieve(job, source, path, algorithms):
    with job.sink(path, algorithms) as sink:
        job.progress.start(source.name, 3)
        sink.write(str(source.location).encode())
    return Retrieved(sink.digests(), 3)


def _reverse(job, path, target, source):
    with open(path, "rb") as old, open(target, "wb") as new:
        new.write(old.read()[::-1])


def test_a_source_and_a_step_of_another_package(others, get):
    """A site with a protocol of its own would have to change this package."""
    others[plugins.SOURCES].append(
        Point("echo", SourcePlugin(lambda word: Source(word, Location(word[5:]), "echo"), _retrieve))
    )
    others[plugins.STEPS].append(Point("reverse", StepPlugin(lambda argument: Step("reverse"), _reverse)))
    digest = f"md5:{hashlib.md5(b'abc').hexdigest()}"
    assert get("echo:abc", digest, "reverse") == b"cba"
    assert parse_stack(["/x", "echo:abc", "reverse"]).chains[1].steps == ("reverse",)


@pytest.mark.parametrize("thing", [ImportError("no such library"), "text"], ids=["breaks", "is something else"])
def test_a_plugin_that_cannot_be_loaded_is_named(others, thing):
    """A broken package would break every command, or be passed over in silence."""
    others[plugins.SOURCES].append(Point("echo", thing))
    with pytest.raises(CacheError, match=r"echo \(other:echo\)"):
        parse_stack(["echo:abc"])
    ((name, package, error),) = plugins.listing(plugins.SOURCES)
    assert (name, package, type(error)) == ("echo", "other-package", CacheError)
    assert parse_stack(["/x"]).source == "file:/x"


def _break(*_):
    raise KeyError("no such\x1b[31m field")


def test_a_fault_in_a_plugin_is_an_error_in_words(others, get, tmp_path):
    """All who wait for the item would not be told, and each run into the same fault, with a traceback."""
    source = SourcePlugin(lambda word: Source(word, Location(word[5:]), "echo"), _break)
    others[plugins.SOURCES].append(Point("echo", source))
    others[plugins.STEPS].append(Point("break", StepPlugin(lambda argument: Step("break"), _break)))
    (tmp_path / "x").write_bytes(b"x")
    assert refused(get, "echo:abc").hint == "this is a bug in the plugin echo"
    error = refused(get, f"{tmp_path}/x", "break")
    assert "cannot apply break" in error.message
    assert "KeyError" in error.message
    assert error.message.isprintable()


def test_built_in_words_look_for_no_plugin():
    """Each of ten thousand jobs would read the metadata of all installed packages."""
    code = (
        "import sys; from sccache_dtool.fetch.stack import parse_stack; before = set(sys.modules); "
        "parse_stack(['http://h/x', 'md5:' + '0' * 32, 'http://h/y|s3://b/y', 'gz', 'tar']); "
        "print('importlib.metadata' in set(sys.modules) - before, 'sccache_dtool.fetch.plugins' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
