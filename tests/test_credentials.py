"""What is hidden in texts: as libraries, servers and people write URLs into them."""

from __future__ import annotations

import pytest

from sccache_dtool.credentials import NAMES, hide, hide_those_of, without
from sccache_dtool.fetch.reasons import without_credentials


@pytest.mark.parametrize(
    "text",
    [
        "https://me:SECRET@h/x",
        "https://SECRET@h/x",
        "https://me:SE@CRET/SECRET@h/x",
        "https://h/x?sig=SECRET",
        "https://h/x?a=1&X-Amz-Signature=SECRET&b=2",
        "https://h/x;token=SECRET",
        "https://h/x#access_token=SECRET",
        "HTTPSConnectionPool(host='h', port=443): Max retries exceeded with url: /x?Token=SECRET (Caused by",
        "InvalidURL('/x?sig=SECRET')",
        '"GET /x?sig=SECRET HTTP/1.1" 403',
        "https://h/x?of=https%3A%2F%2Fg%2Fy%3Fsig%3DSECRET%26v%3D1",
        "https://h/x?token=a%26b=SECRET",
        "https://h/x?token=a?b=SECRET&c=d",
        "https://h/x?%74oken=SECRET",
        "https://h/x?a=b&%20to%6Ben=SECRET%3D",
        "https://h/x?of=https%253A%252F%252Fg%252Fy%253Fa%253D1%2526sig%253DSECRET",
    ],
)
def test_no_credential_is_shown(text: str) -> None:
    """A log would have it in it."""
    assert "SECRET" not in hide(text)


@pytest.mark.parametrize("text", ["/", "//x", "?%74oken=%26", "&a%", "?a=", "?token=x&st=1"])
def test_a_long_text_of_a_server_is_hidden_in_time_that_grows_with_its_length(text: str) -> None:
    """A server that redirects to a long enough URL would hold a job for hours, while an error is worded."""
    assert "token=x" not in hide(text * 20_000)


@pytest.mark.parametrize(
    "text", ["https://h/x?versionId=1&sv=2", "a = b & c", "x?a=1#sig", "cannot fetch https://h/x: 404", "?token", ""]
)
def test_what_is_no_credential_stays(text: str) -> None:
    """An error would not say which object it is about."""
    assert hide(text) == text
    assert without(text) == text


def test_a_text_keeps_what_is_around_a_credential() -> None:
    """An error would lose its reason."""
    assert hide("see 'http://h/x?a=1&sig=SECRET&b=2' (refused)") == "see 'http://h/x?a=1&sig=***&b=2' (refused)"


@pytest.mark.parametrize("name", [name for name, beside in NAMES.items() if not beside])
def test_every_name_is_one(name: str) -> None:
    """A line of the list would have no effect."""
    name = name.replace("*", "x").upper()
    assert without(f"/x?a=1&{name}=SECRET&b=2#c") == "/x?a=1&b=2#c"
    assert "HUSH" not in hide(f"/x?{name}=HUSH")


@pytest.mark.parametrize(("name", "beside"), [(name, beside) for name, beside in NAMES.items() if beside])
def test_a_companion_is_one_beside_its_signature_only(name: str, beside: str) -> None:
    """`st`, `sp` and the like are names of other things on other sites."""
    assert without(f"/x?{name}=1") == f"/x?{name}=1"
    for signature in beside.split():
        assert without(f"/x?{name}=1&a=1&{signature}=2") == "/x?a=1"


@pytest.mark.parametrize(
    ("url", "text", "shown"),
    [
        ("s3://me:HUSH@bucket/x", "no bucket 'me:HUSH@bucket'", "no bucket '***@bucket'"),
        ("sftp://me:HU%2FSH@h/x", "HU/SH was refused", "*** was refused"),
        ("https://h/x?sig=HU%2FSH&v=long", "HU/SH, HU%2FSH: long", "***, ***: long"),
        ("s3://me@bucket/x", "some files", "some files"),
        ("file:/x", "x", "x"),
    ],
)
def test_credentials_of_a_source_are_hidden_anywhere(url: str, text: str, shown: str) -> None:
    """What a library says of a URL that it has taken apart would end in the cache, and in a report of a fault."""
    assert hide_those_of(url, text) == shown
    error = ValueError("outer")
    error.__cause__ = ValueError(text)
    assert str(without_credentials(error, url).__cause__) == shown
