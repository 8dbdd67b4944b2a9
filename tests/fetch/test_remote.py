"""Sources that fsspec opens: a real S3 server, a real sshd, and a store that misbehaves on command."""

from __future__ import annotations

import getpass
import hashlib
import importlib.util
import os
import sys
import threading

import pytest

from fetch import servers
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import fsspec_source, sources
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.fetch.words import REMOTE

BODY = os.urandom(9_000_000)  # more than a block


def needs(*modules):
    gone = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(gone), reason=f"not installed: {' '.join(gone)}")


def md5(data):
    return f"md5:{hashlib.md5(data).hexdigest()}"


def refused(get, *words):
    with pytest.raises(FetchFailed) as caught:
        get(*words)
    assert caught.value.message.isprintable()
    return caught.value


# -- S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a server of this test; a boto3 client of it."""
    with servers.moto() as client:
        client.create_bucket(Bucket="refs")
        yield client


s3 = needs("s3fs", "moto", "boto3")


@s3
def test_an_object_of_s3_is_fetched(bucket, get):
    """Data in an object store could not be cached."""
    bucket.put_object(Bucket="refs", Key="a/ref #1.fa", Body=BODY)
    assert get("s3://refs/a/ref #1.fa", md5(BODY)) == BODY


@s3
def test_what_s3_has_not_is_an_error_in_words(bucket, get):
    """Who mistyped a key would see a traceback of ten libraries."""
    assert "no such file" in refused(get, "s3://refs/missing").message
    assert "cannot fetch s3://no-such-bucket/x" in refused(get, "s3://no-such-bucket/x").message


@s3
def test_a_prefix_of_s3_is_no_file(bucket, get):
    """Some of the objects under a prefix would be taken for all."""
    bucket.put_object(Bucket="refs", Key="folder/x", Body=b"x")
    assert "directory" in refused(get, "s3://refs/folder").message


@s3
def test_s3_is_read_through_no_cache_of_fsspec(bucket, get, monkeypatch, tmp_path):
    """A second copy of every file would fill the home directory, and an old one might be given."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bucket.put_object(Bucket="refs", Key="changing", Body=b"first")
    assert get("s3://refs/changing") == b"first"
    bucket.put_object(Bucket="refs", Key="changing", Body=b"second, longer")
    assert get("s3://refs/changing") == b"second, longer"
    assert not (tmp_path / "home").exists()


@s3
def test_s3_says_how_large_a_file_is(bucket):
    """Where to put it could not be chosen before it is fetched."""
    bucket.put_object(Bucket="refs", Key="sized", Body=bytes(12345))
    (chain,) = parse_stack(["s3://refs/sized"]).chains
    assert sources.announced(chain.mirrors) == 12345


# -- sftp --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh(tmp_path_factory):
    """A real sshd on the loopback interface, which this user may enter; the beginning of its URLs."""
    with servers.ssh(tmp_path_factory.mktemp("ssh") / "home") as base:
        yield base


@needs("fsspec", "paramiko")
def test_a_file_is_fetched_over_sftp(ssh, get, tmp_path):
    """Data on the login node of another site could not be cached."""
    (tmp_path / "ref.fa").write_bytes(BODY)
    assert get(f"{ssh}{tmp_path}/ref.fa", md5(BODY)) == BODY


@needs("fsspec", "paramiko")
def test_what_sftp_has_not_is_an_error_in_words(ssh, get, tmp_path):
    """Who mistyped a path would see a traceback."""
    error = refused(get, f"{ssh}{tmp_path}/missing")
    assert "no such file" in error.message
    assert getpass.getuser() + "@" not in error.message


@needs("fsspec", "paramiko")
def test_a_directory_over_sftp_is_refused(ssh, get, tmp_path):
    """Half a directory would be taken for a file."""
    (tmp_path / "tree").mkdir()
    assert "directory" in refused(get, f"{ssh}{tmp_path}/tree").message


# -- what is missing, and what breaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", sorted(REMOTE))
def test_what_is_not_installed_is_named(get, monkeypatch, scheme):
    """Who lacks a package would be left to find out which."""
    for name in ("fsspec", "fsspec.core"):
        monkeypatch.setitem(sys.modules, name, None)
    error = refused(get, f"{scheme}://host/x")
    assert "not installed" in error.message
    assert error.hint == f"install it: pip install {fsspec_source._packages(scheme)}"
    assert fsspec_source.missing(scheme) == fsspec_source._packages(scheme)


@needs("fsspec")
def test_what_fsspec_finds_missing_only_when_it_is_used_is_named(get, monkeypatch):
    """`loaders` would call ready what cannot be fetched."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    assert fsspec_source.missing("hdfs") == "fsspec pyarrow"
    assert refused(get, "hdfs://host/x").hint == "install it: pip install fsspec pyarrow"


class Store:
    """A store of one file, that misbehaves as it is told."""

    def __init__(self, body, **info):
        self.bodies = [body]
        self.facts = {"type": "file", "ETag": "one", **info}
        self.breaks = []  # numbers of reads that fail
        self.hangs = {}  # numbers of reads that wait for an event
        self.reads = 0
        self.seeks = []
        self.change_at = None

    def info(self, name):
        return {**self.facts, "size": self.facts.get("size", len(self.bodies[-1]))}

    def invalidate_cache(self):
        pass

    def open(self, name, mode, **more):
        store, body = self, self.bodies[-1]

        class File:
            at = 0

            def seek(self, at):
                store.seeks.append(at)
                self.at = at

            def read(self, size):
                store.reads += 1
                if store.reads in store.breaks:
                    raise ConnectionResetError("reset")
                if store.reads in store.hangs:
                    store.hangs[store.reads].wait()
                data = body[self.at : self.at + size]
                self.at += len(data)
                if store.reads == store.change_at:
                    store.facts["ETag"] = "two"
                    store.bodies.append(store.bodies[-1][::-1])
                return data

            def close(self):
                pass

        return File()


@pytest.fixture
def store(monkeypatch):
    made = Store(BODY)
    monkeypatch.setattr(fsspec_source, "open_system", lambda source: (made, "x"))
    return made


def test_a_broken_transfer_is_continued(store, get):
    """A line that breaks once an hour would never bring a file of a terabyte."""
    store.breaks = [4]
    assert get("s3://b/x") == BODY
    assert store.seeks == [3 << 20]


def test_without_a_version_it_begins_again(store, get):
    """Halves of two versions would be put together."""
    del store.facts["ETag"]
    store.breaks = [4]
    assert get("s3://b/x") == BODY
    assert store.seeks == []


def test_a_file_that_changes_under_the_reader_is_read_again(store, get):
    """Half of the old and half of the new version would be published."""
    store.change_at = 3
    assert get("s3://b/x") == BODY[::-1]


def test_a_store_that_gives_less_than_it_says_is_not_believed(store, get):
    """A source that is shorter than declared would count as done."""
    store.facts["size"] = len(BODY) + 1
    assert "received " in refused(get, "s3://b/x").message


def test_a_store_that_stays_away_is_given_up(store, get):
    """A job would ask for ever."""
    store.breaks = range(1, 1000)
    assert "reset" in refused(get, "s3://b/x").message


def test_a_store_that_falls_silent_is_asked_again(store, get, monkeypatch):
    """A job would hang for ever: some packages, such as that for sftp, wait without limit."""
    monkeypatch.setattr(fsspec_source, "PATIENCE", 2.0)
    store.hangs[4] = threading.Event()
    try:
        assert get("s3://b/x") == BODY
    finally:
        store.hangs[4].set()
    assert store.seeks == [3 << 20]


def test_a_refusal_is_final(store, get, monkeypatch):
    """A job without rights would be told so only after a minute."""
    asked = []

    def info(name):
        asked.append(name)
        raise PermissionError("Forbidden")

    monkeypatch.setattr(store, "info", info)
    assert "permission denied" in refused(get, "s3://b/x").message
    assert len(asked) == 1
