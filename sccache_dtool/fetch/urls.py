"""One form for all spellings of a URL of the web: RFC 3986, 6.2.2, and RFC 3987 for what is not ASCII.

Every use of the cache parses URLs, so that nothing heavy is imported here.
"""

from __future__ import annotations

import re

from sccache_dtool.fetch.reasons import CONTROL

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

# What need not be encoded in a path, and in a query. A percent sign is left only before two digits.
_IN_PATH = r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9._~!$&'()*+,;=:@/-]"
_IN_QUERY = r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9._~!$&'()*+,;=:@/?-]"
_ENCODED = r"(?:%[0-9A-Fa-f]{2})+"


def path_of(text: str) -> str:
    """The path of a URL in its one form: ``%7e`` is ``~``, a space is ``%20``, and ``/a/../b`` is ``/b``."""
    kept: list[str] = []
    *directories, last = re.sub(_IN_PATH, _one_form, text).split("/")[1:] or [""]
    for segment in (*directories, last):
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if last in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def query_of(text: str) -> str:
    """The query of a URL in its one form; the order of its parameters may mean something, and stays."""
    return re.sub(_IN_QUERY, _one_form, text)


def host_of(text: str) -> str:
    """A host in its one form; what cannot be one is left to whoever looks it up. Raises ValueError for bad IPv6."""
    if text.startswith("["):
        from ipaddress import IPv6Address

        address, encoded, zone = text[1:-1].partition("%25")
        return f"[{IPv6Address(address).compressed}{encoded}{zone}]"
    if text.isascii():
        return text.lower()
    import idna  # of requests, which connects to the host by the same rules

    try:
        return idna.encode(text, uts46=True).decode().lower()
    except UnicodeError:
        return text.lower()


def readable(segment: str) -> str:
    """A segment of a path as people write it, fit for a file's name; what is not stays percent-encoded."""
    return re.sub(_ENCODED, _decoded, segment)


def _one_form(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) == 1:
        return "".join(f"%{byte:02X}" for byte in text.encode())
    character = chr(int(text[1:], 16))
    return character if character in _UNRESERVED else text.upper()


def _decoded(match: re.Match[str]) -> str:
    try:
        text = bytes.fromhex(match[0].replace("%", "")).decode()
    except UnicodeDecodeError:
        return match[0]
    return match[0] if CONTROL.search(text) or "/" in text else text
