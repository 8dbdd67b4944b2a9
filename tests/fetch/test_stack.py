"""A loader stack is read as it was meant, and written in one way only."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.request import Stack
from sccache_dtool.fetch.stack import parse_stack

SHA256 = "0123456789abcdef" * 4
MD5 = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("words", "canonical"),
    [
        (["/data/x"], "file:/data/x"),
        (["x"], "file:/home/me/x"),
        (["./a/../x/"], "file:/home/me/x"),
        (["//data///x"], "file:/data/x"),
        (["a b"], "file:/home/me/a b"),
        (["~/x"], "file:/home/me/~/x"),
        (["file:x"], "file:/home/me/x"),
        (["file:/data/x"], "file:/data/x"),
        (["FILE:///data/x%20#?%4"], "file:/data/x #?%4"),
        (["file:/data/x%20"], "file:/data/x%20"),
        (["local:///data/x"], "file:/data/x"),
        (["LOCAL:/data/x"], "file:/data/x"),
        (
            [f"globus://{'AB' * 4}{'-0000' * 3}-{'0' * 12}/~/a//b%20c?d"],
            f"globus://{'ab' * 4}{'-0000' * 3}-{'0' * 12}/~/a//b%20c?d",
        ),
        (["file://localhost/data/x"], "file:/data/x"),
        (["./tar"], "file:/home/me/tar"),
        (["./s3:x"], "file:/home/me/s3:x"),
        (["http://example.org"], "http://example.org/"),
        (["HTTP://Example.ORG:80/A?b=C#d"], "http://example.org/A?b=C"),
        (["https://example.org:443?q"], "https://example.org/?q"),
        (["https://example.org:08443/"], "https://example.org:8443/"),
        (["https://example.org:/x?"], "https://example.org/x"),
        (["https://me:secret@example.org/x"], "https://example.org/x"),
        (["https://me:s@cret@example.org/x"], "https://example.org/x"),
        (["http://[2001:DB8::1]:8080/x"], "http://[2001:db8::1]:8080/x"),
        (["http:http://Example.org/x"], "http://example.org/x"),
        (["http:https://example.org/x"], "https://example.org/x"),
        # RFC 3986, 6.2.2: case, percent-encodings, dots, the default port, an empty path.
        (["http://h/sp ace"], "http://h/sp%20ace"),
        (["http://h/%7Ea%2db%41"], "http://h/~a-bA"),
        (["http://h/a%2fb%3a"], "http://h/a%2Fb%3A"),
        (["http://h/a/./b/../c/"], "http://h/a/c/"),
        (["http://h/a/b/.."], "http://h/a/"),
        (["http://h/../%2E%2e/a"], "http://h/a"),
        (["http://h/a//b"], "http://h/a//b"),
        (["http://h/100%"], "http://h/100%25"),
        (["http://h/%zz%4"], "http://h/%25zz%254"),
        (["http://h/a|b"], "http://h/a%7Cb"),
        (["http://h/a[1]{2}"], "http://h/a%5B1%5D%7B2%7D"),
        (["http://h/é?q=é é"], "http://h/%C3%A9?q=%C3%A9%20%C3%A9"),
        (["http://h/x?b=2&a=1+1"], "http://h/x?b=2&a=1+1"),
        (["http://BÜCHER.example/x"], "http://xn--bcher-kva.example/x"),
        (["http://xn--BCHER-kva.example/x"], "http://xn--bcher-kva.example/x"),
        (["http://[0:0:0:0:0:0:0:1]/x"], "http://[::1]/x"),
        (["http://[fe80::1%25eth0]:8080/x"], "http://[fe80::1%25eth0]:8080/x"),
        # Hosts are hosts everywhere; what follows them is only the store's to understand.
        (["sftp://Example.ORG:22/A b%20c/../d"], "sftp://example.org/A b%20c/../d"),
        (["webdav://me:secret@Example.org:8443/x"], "webdav://example.org:8443/x"),
        (["s3://bucket/a%20b|s3://bucket/a b"], "s3://bucket/a%20b|s3://bucket/a b"),
        (["S3A://Bucket/a/Key?x#y"], "s3://Bucket/a/Key?x#y"),
        (["gcs://bucket/key"], "gs://bucket/key"),
        (["ssh://me:secret@example.org/x"], "sftp://example.org/x"),
        (["abfs://container@account.dfs.core.windows.net/x"], "abfs://container@account.dfs.core.windows.net/x"),
        (["root://eos.example.org//eos/x"], "root://eos.example.org//eos/x"),
        (["http://a.org/x|HTTP://B.org/y"], "http://a.org/x|http://b.org/y"),
        (["http://a.org/x|file:z"], "http://a.org/x|file:/home/me/z"),
        (["./a|b"], "file:/home/me/a|b"),
        (["dirac:LFN:/vo/x"], "dirac:/vo/x"),
    ],
)
def test_sources_have_one_canonical_form(words, canonical):
    """Two users who write one source in two ways get one copy, not two."""
    stack = parse_stack(words, cwd="/home/me")
    assert stack.canonical == (canonical,)
    assert parse_stack(stack.canonical, cwd="/elsewhere").canonical == stack.canonical


def test_relative_paths_are_of_the_working_directory(tmp_path, monkeypatch):
    """`sc-dtool use x` means the x that `ls` shows."""
    monkeypatch.chdir(tmp_path)
    assert parse_stack(["x"]).location == f"{tmp_path}/x"


def test_a_relative_path_in_a_removed_directory_is_an_error_in_words(tmp_path, monkeypatch):
    """A job whose directory is gone is told so, and gets no traceback."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="working directory was removed"):
        parse_stack(["x"])
    assert parse_stack(["/x"]).location == "/x"


def test_symbolic_links_in_a_source_are_not_resolved(tmp_path):
    """`/data/current` is one item, wherever it leads today."""
    (tmp_path / "current").symlink_to("/nowhere")
    assert parse_stack([f"{tmp_path}/current"]).source == f"file:{tmp_path}/current"


def test_steps_are_canonical_too():
    """A digest in capitals is the same digest."""
    stack = parse_stack(["/x.tar", f"SHA256:{SHA256.upper()}", f"md5:{MD5}", "tar"])
    assert stack.steps == (f"sha256:{SHA256}", f"md5:{MD5}", "tar")
    assert stack.canonical == ("file:/x.tar", *stack.steps)
    assert stack.source == "file:/x.tar"


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha512", "sha3_256", "blake2b"])
def test_every_digest_of_hashlib_may_be_given(algorithm):
    """A checksum that a provider publishes can be used as it is."""
    value = hashlib.new(algorithm, b"x").hexdigest()
    assert parse_stack(["/x", f"{algorithm}:{value}"]).steps == (f"{algorithm}:{value}",)


def test_no_words_are_an_empty_stack():
    """A pure reference count needs no source."""
    assert not parse_stack([])
    assert parse_stack([]) == Stack()
    assert (Stack().source, Stack().steps) == ("", ())
    assert parse_stack(["/x"])


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["s4://bucket/key"], "unknown kind of source 's4'", "http://"),
        (["s3:bucket/key"], "cannot read s3:bucket/key as a URL", "s3://"),
        (["s3://"], "as a URL", "s3://"),
        (["sftp://me@/"], "host or bucket", "sftp://HOST"),
        (["simplecache::s3://bucket/key"], "unknown kind of source", "loaders"),
        (["foo:bar"], "unknown kind of source 'foo'", "./foo:bar"),
        (["tar"], "must be a source", "./tar"),
        (["tar", "tar"], "must be a source", "./tar"),
        ([f"md5:{MD5}"], "must be a source", "path"),
        (["sha256:12"], "expected 64 hexadecimal digits, not 2", None),
        (["file:"], "does not name a file", "file:PATH"),
        (["file://server/x"], "another host", "file:///PATH"),
        (["file:///x%00"], "control character", "NUL"),
        (["file:///x%FF"], "not valid UTF-8", "symbolic link"),
        (["globus://lab/x"], "does not name a file in a Globus collection", "globus://UUID"),
        ([f"globus://{'ab' * 4}{'-0000' * 3}-{'0' * 12}/x/"], "does not name a file", "globus://UUID"),
        (["http:x"], "as a URL", "http://HOST"),
        (["http:/x"], "as a URL", "http://HOST"),
        (["http:ftp://x/y"], "as a URL", "http://HOST"),
        (["http:///x"], "host and port", "%40"),
        (["http://example.org:http/"], "host and port", "%40"),
        (["http://example.org:70000/"], "host and port", "%40"),
        (["http://exa mple.org/"], "host and port", "%40"),
        (["http://good.org\\@evil.org:x/"], "host and port", "%40"),
        (["/x", "tar", f"md5:{MD5}"], "cannot come after tar", "before tar"),
        (["/x", "tar", "tar"], "cannot come after tar", "once"),
        (["/x", "tar:gz"], "not a step", "write tar"),
        (["/x", "zip:1"], "zip:1 is not a step", "write zip"),
        (["/x", "zap"], "zap is not a step", "ALGORITHM:HEX"),
        (["/x", "y"], "y is not a step", "first word"),
        (["/x", "gopher://example.org/"], "is not a step", "first word"),
        (["/x", "zip", "gz"], "cannot come after zip", "once"),
        (["/x", "/y", "gz", f"md5:{MD5}"], "could apply to any of 2 sources", "right after"),
        (["/a/x", "/b/x"], "the same name: x", "two separate items"),
        (["/x", "adler32:1"], "expected 8 hexadecimal digits, not 1", None),
        (["/x", "sha257:00"], "unknown step or digest 'sha257'", "sha256"),
        (["/x", "shake_128:00"], "unknown step or digest", "sha256"),
        (["/x", "md5:00"], "expected 32 hexadecimal digits, not 2", None),
        (["/x", "md5:"], "expected 32 hexadecimal digits, not 0", None),
        (["/x", f"md5:{'g' * 32}"], "expected 32 hexadecimal digits", None),
        (["/x", f"md5:{'٣' * 32}"], "expected 32 hexadecimal digits", None),
        ([""], "is empty", None),
        (["/x", ""], "is empty", None),
        (["/a\nb"], "control character", None),
        (["/a\0b"], "control character", None),
        (["http://example.org/\x1b[2J"], "control character", None),
        (["/a\x9bb"], "control character", None),
        (["/a\u2028b"], "control character", None),
        (["/x", "tar\n"], "control character", None),
        (["/a\udcffb"], "not valid UTF-8", "symbolic link"),
    ],
)
def test_what_means_nothing_is_refused_in_words(words, message, hint):
    """A mistyped stack is never taken for another one, and the error says what to write."""
    with pytest.raises(UsageError, match=message) as caught:
        parse_stack(words, cwd="/home/me")
    assert caught.value.message.isprintable()
    assert hint is None or hint in (caught.value.hint or "")


def test_credentials_are_for_fetching_alone():
    """A password is not stored in the cache, and not shown by a log or a traceback."""
    stack = parse_stack(["http:https://me:hush@example.org:8443/x.tar?y=z", "tar"])
    assert stack.location == "https://me:hush@example.org:8443/x.tar?y=z"
    for shown in (*stack.canonical, stack.source, stack.label, repr(stack), repr(stack.location), f"{stack}"):
        assert "hush" not in shown
        assert "me:" not in shown


@pytest.mark.parametrize(
    "url",
    ["http://me:hu/sh@example.org/", "http://me:hu#sh@h/", "s4://me:hush@h/", "sftp://me:hush@/", "http://me:hush@/"],
)
def test_errors_show_no_credentials(url):
    """A mistyped URL with a password does not put it into a job's log."""
    with pytest.raises(UsageError) as caught:
        parse_stack([url])
    assert "sh@" not in f"{caught.value.message} {caught.value.hint}"
    assert "me:" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["/data/ref.fa"], "ref.fa"),
        (["/data/ref.tar"], "ref.tar"),
        (["/data/ref.tar", "tar"], "ref"),
        (["/data/ref.tar.gz", f"md5:{MD5}", "tar"], "ref"),
        (["/data/ref.TGZ", "tar"], "ref"),
        (["/data/ref.v1.tar.bz2", "tar"], "ref.v1"),
        (["/data/ref.tar.xz", "tar"], "ref"),
        (["/data/.tar", "tar"], ".tar"),
        (["/"], "data"),
        (["https://example.org/a/b.tar?c=/d"], "b.tar"),
        (["https://example.org/a/b/"], "b"),
        (["https://example.org"], "example.org"),
        (["https://example.org/.."], "example.org"),
        (["https://example.org/%2e%2e%2Fx"], "..%2Fx"),
        (["https://example.org/sp%20ace%2Etxt"], "sp ace.txt"),
        (["https://example.org/%E6%9D%B1%E4%BA%AC.fa"], "東京.fa"),
        (["https://example.org/東京.fa"], "東京.fa"),
        (["https://example.org/%FF%0a%1b.fa"], "%FF%0A%1B.fa"),
        (["https://example.org/x.fa?token=secret"], "x.fa"),
        (["abfs://c@a.dfs.core.windows.net/x.fa?sv=1&sig=secret"], "x.fa"),
        (["/data/ref.fa.gz", "gz"], "ref.fa"),
        (["/data/ref.tar.zst", f"md5:{MD5}", "zst", "tar"], "ref"),
        (["/data/ref.zip", "zip"], "ref"),
        (["/data/a.gz", "/data/b.gz", "gz"], "a+1"),
        (["http://h/x.bin|http://other/y.bin"], "x.bin"),
        ([], "data"),
    ],
)
def test_the_payload_has_a_name_that_people_know(words, label):
    """Programs that go by a file's extension work on the copy, and no name leads out of the work area."""
    assert parse_stack(words).label == label


def test_long_names_are_cut_and_keep_front_and_end():
    """A name of any length can be stored, and its extension is still there."""
    stack = parse_stack(["/" + "é" * 120 + ".fastq"])
    assert len(stack.label.encode()) <= 200
    assert stack.label.startswith("éé")
    assert stack.label.endswith("éé.fastq")
    assert stack.name == "é" * 120 + ".fastq"


def test_stacks_cannot_be_changed():
    """What identifies an item stays as it was checked."""
    with pytest.raises(AttributeError):
        parse_stack(["/x"]).location = "/y"  # type: ignore[misc]


def test_parsing_imports_nothing_heavy():
    """`sc-dtool use` of an item that is there starts fast."""
    # What the interpreter has loaded by itself (an editable installation's finder loads much) is not our doing.
    code = """
import sys
before = set(sys.modules)
from sccache_dtool.fetch.stack import parse_stack
parse_stack(["http://h/x", "tar"])
heavy = {"requests", "tarfile", "hashlib", "urllib", "urllib.parse", "dataclasses"}
print(*heavy & set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def chains(*words):
    return [(chain.label, chain.steps) for chain in parse_stack(words).chains]


def test_steps_are_done_with_all_sources_right_before_them():
    """`A md5:… B md5:… tar` unpacks both, each after its own check, as people who know `sc` expect."""
    assert chains("/a.tar", f"md5:{MD5}", "/b.tar", "tar") == [("a", (f"md5:{MD5}", "tar")), ("b", ("tar",))]
    assert chains("/a.gz", "/b.gz", "gz", "/c") == [("a", ("gz",)), ("b", ("gz",)), ("c", ())]
    assert chains("/a.gz", "gz", "/b.gz", "gz") == [("a", ("gz",)), ("b", ("gz",))]
    assert chains("/a.gz", f"md5:{MD5}", "gz", f"sha256:{SHA256}") == [("a", (f"md5:{MD5}", "gz", f"sha256:{SHA256}"))]


def test_an_order_is_part_of_what_an_item_is():
    """Two stacks that give different files are never one item."""
    assert parse_stack(["/a", "/b", f"md5:{MD5}"]).canonical != parse_stack(["/a", f"md5:{MD5}", "/b"]).canonical
    assert parse_stack(["/a", "/b"]).source == "file:/a"


def test_mirrors_are_one_source():
    """The second place is asked for the same file, with the same check, under the same name."""
    stack = parse_stack(["https://me:hush@a.org/x|s3://bucket/y", f"md5:{MD5}"])
    (chain,) = stack.chains
    assert [mirror.canonical for mirror in chain.mirrors] == ["https://a.org/x", "s3://bucket/y"]
    assert chain.mirrors[0].location == "https://me:hush@a.org/x"
    assert chain.label == "x"
    assert chain.steps == (f"md5:{MD5}",)
    assert "hush" not in repr(stack)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h/x", "https://h/x?X-Amz-Algorithm=A&X-Amz-Expires=6&X-Amz-Signature=SECRET"),
        ("https://h/x", "https://h/x?x-amz-security-token=SECRET&X-Amz-Signature=SECRET&x-id=GetObject"),
        ("https://h/x", "https://h/x?AWSAccessKeyId=A&Expires=1&Signature=SECRET"),
        ("https://h/x", "https://h/x?X-Goog-Credential=SECRET&X-Goog-Signature=SECRET"),
        ("https://h/x", "https://h/x?sv=2022-11-02&st=1&se=2&sr=b&sp=r&spr=https&sig=SECRET%3D"),
        ("https://h/x", "https://h/x?Policy=P&Key-Pair-Id=K&Signature=SECRET"),
        ("https://h/x", "https://h/x?temp_url_sig=SECRET&temp_url_expires=7"),
        ("https://h/x", "https://h/x?%74oken=SECRET"),
        ("https://h/x", "https://h/x?TOKEN=SECRET#access_token=SECRET"),
        ("https://h/x?versionId=7", "https://h/x?access_token=SECRET&versionId=7"),
        ("https://h/x?response-content-disposition=a", "https://h/x?response-content-disposition=a&sig=SECRET"),
        ("https://h/x?of=https%3A%2F%2Fg%2Fy", "https://h/x?of=https%3A%2F%2Fg%2Fy%3Fsig%3DSECRET"),
        ("https://h/x?of=https://g/y", "https://h/x?of=https://g/y?token=SECRET"),
        ("https://h/x", "https://SECRET@h/x"),
        ("abfs://c@a/x?versionid=1", "abfs://c@a/x?versionid=1&sv=2&sig=SECRET"),
        ("s3://b/x", "s3://SECRET:SECRET@b/x#token=SECRET"),
        ("https://a/x|https://b/y", "https://a/x?sig=SECRET|https://b/y?token=SECRET"),
    ],
)
def test_two_urls_that_differ_in_credentials_are_one_item(one, other):
    """Each renewed signature would be another download, and would be stored for all to read."""
    stack = parse_stack([other, f"md5:{MD5}"])
    assert stack.canonical == parse_stack([one, f"md5:{MD5}"]).canonical
    assert stack.label == parse_stack([one]).label
    for shown in (*stack.canonical, stack.source, stack.label, repr(stack), repr(stack.location), f"{stack}"):
        assert "SECRET" not in shown
    assert "SECRET" in f"{stack.location!s}"


@pytest.mark.parametrize(
    "query", ["versionId=1", "id=1", "sv=1", "st=1", "key=1", "policy=1", "tokens=1", "page_token=1", "x-oss-process=1"]
)
def test_a_parameter_that_says_which_object_it_is_stays(query):
    """Two objects would be one item, and the second user would be given the first one's."""
    assert parse_stack([f"https://h/x?{query}"]).source == f"https://h/x?{query}"
    assert parse_stack([f"https://h/x?{query}&token=SECRET"]).source == f"https://h/x?{query}"


def test_a_cache_may_know_more_names_of_credentials():
    """A site with a parameter of its own would have its passwords stored."""
    stack = parse_stack(["https://h/x?Ticket=SECRET&x-site-id=SECRET&a=1"], credentials=("ticket", "x-site-*"))
    assert stack.source == "https://h/x?a=1"
