"""Credentials in URLs: recognises them, removes them from stored texts, and hides them in printed ones.

Two URLs that differ only in credentials mean the same item. A parameter is therefore listed only if it never selects
*which* object is meant. Names that other sites use for other purposes count only next to the signature that they belong
to. `[fetch] credentials` in config.toml adds names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

#: Replaces a credential in printed texts.
HIDDEN = "***"

#: Names of query parameters in lower case, as patterns. If the value is not empty: only next to one of its names.
NAMES: dict[str, str] = {
    # Signed URLs of Amazon S3 and compatible servers (version 4 and 2), of CloudFront, and of Google.
    "x-amz-*": "", "awsaccesskeyid": "", "accesskeyid": "", "signature": "", "expires": "",
    "key-pair-id": "", "policy": "signature", "hash-algorithm": "signature", "x-id": "x-amz-signature",
    "x-goog-*": "", "googleaccessid": "",
    # Azure: shared access signatures.
    "sig": "", "se": "", "sp": "sig", "sv": "sig", "st": "sig rlkey", "sr": "sig", "si": "sig", "ss": "sig",
    "srt": "sig",
    "spr": "sig", "sip": "sig", "ses": "sig", "sdd": "sig", "skoid": "sig", "sktid": "sig", "skt": "sig",
    "ske": "sig", "sks": "sig", "skv": "sig", "saoid": "sig", "suoid": "sig", "scid": "sig",
    # Alibaba, Huawei and Tencent; OpenStack's temporary URLs; Akamai and other content delivery networks.
    "ossaccesskeyid": "", "security-token": "", "x-oss-signature*": "", "x-oss-credential": "", "x-oss-date": "",
    "x-oss-expires": "", "x-oss-security-token": "", "x-oss-additional-headers": "x-oss-signature",
    "x-obs-security-token": "", "x-cos-security-token": "", "q-sign-*": "", "q-ak": "", "q-key-time": "",
    "q-header-list": "q-signature", "q-url-param-list": "q-signature", "q-signature": "",
    "temp_url_sig": "", "temp_url_expires": "", "temp_url_prefix": "temp_url_sig", "temp_url_ip_range": "temp_url_sig",
    "hdnea": "", "hdnts": "", "hdntl": "", "hmac": "", "__token__": "", "__gda__": "", "token_path": "token",
    # Tokens, keys and passwords of various services.
    "token": "", "access_token": "", "access-token": "", "accesstoken": "", "x-access-token": "",
    "auth_token": "", "auth-token": "", "authtoken": "", "x-auth-token": "", "id_token": "", "refresh_token": "",
    "oauth_token": "", "oauth_signature": "", "oauth_nonce": "oauth_signature", "oauth_timestamp": "oauth_signature",
    "private_token": "", "private-token": "", "job_token": "", "job-token": "", "session_token": "", "bearer": "",
    "jwt": "", "delegation": "", "authz": "", "authorization": "", "auth": "", "authkey": "", "tempauth": "",
    "api_key": "", "api-key": "", "apikey": "", "x-api-key": "", "subscription-key": "", "secret": "",
    "client_secret": "", "password": "", "passwd": "", "rlkey": "", "private_link": "",
}  # fmt: skip

# A parameter with its value, even in a URL that is percent-encoded within another.
_MARK = r"[?&;#]|%(?:25)*(?:3F|26|3B|23)"
_PAIR = rf"(?i)({_MARK})([^\s=&;#?'\"<>%]+)(=|%(?:25)*3D)((?:(?!{_MARK})[^\s'\"<>])*)"

# The same without encoding: parts of the name may then be encoded, and encoded separators belong to the value.
_PLAIN_PAIR = r"([?&;#])([^\s=&;#?'\"<>]+)=([^\s&;#'\"<>]*)"

_also: set[str] = set()


def hide_also(names: Iterable[str]) -> None:
    """Let `hide` also hide these parameters, in the whole process."""
    _also.update(name.lower() for name in names)


def hide(text: str) -> str:
    """`text` without the user names and passwords in its URLs, and with ``***`` for other credentials."""
    if not text:
        return text
    return _pairs(_plain_pairs(re.sub(r"\S+", _without_user, text)), _also, rf"\1\2\3{HIDDEN}")


def _plain_pairs(text: str) -> str:
    if "=" not in text:
        return text
    names = frozenset(_decoded(match[2]) for match in re.finditer(_PLAIN_PAIR, text))

    def hidden(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]}={HIDDEN}" if _is(_decoded(match[2]), names, _also) else match[0]

    return re.sub(_PLAIN_PAIR, hidden, text)


def _decoded(name: str) -> str:
    if "%" in name:
        from urllib.parse import unquote

        name = unquote(name)
    return name.strip().lower()


def _without_user(word: re.Match[str]) -> str:
    """A word without the part between ``//`` and the last ``@``, in linear time.

    The last ``@`` counts, because a password may contain one that is not encoded.
    """
    before, slashes, after = word[0].partition("//")
    return before + slashes + after.rpartition("@")[2]


def hide_those_of(url: str, text: str) -> str:
    """`text` with ``***`` for each credential of `url`, even outside of a URL.

    The errors of libraries contain what they parsed as the name of a bucket or a host.
    """
    for secret in _secrets(url):
        text = text.replace(secret, HIDDEN)
    return text


#: Shortest credential that is hidden, in characters: shorter texts occur everywhere.
_SHORTEST = 4


def _secrets(url: str) -> list[str]:
    from urllib.parse import unquote

    user, _, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    query = f"{url.partition('?')[2]}".replace("#", "&")
    parts = [part.partition("=")[::2] for part in query.split("&")]
    names = [_decoded(name) for name, _ in parts]
    beside = frozenset(names)
    values = [value for (_, value), name in zip(parts, names, strict=True) if _is(name, beside, _also)]
    found = {form for one in (user, user.partition(":")[2], *values) for form in (one, unquote(one))}
    return sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True)


def without(url: str, also: Collection[str] = ()) -> str:
    """`url`, or the part of it after the host, without the credentials in its query and fragment.

    `also`: further names of parameters, as patterns in lower case. User names are not removed.
    """
    if "?" not in url and "#" not in url:
        return url
    before, mark, fragment = url.partition("#")
    path, asked, query = before.partition("?")
    query, fragment = _kept(query, also), _kept(fragment, also)
    return path + (f"?{query}" if asked and query else "") + (f"#{fragment}" if mark and fragment else "")


def is_credential(name: str) -> bool:
    """Whether a parameter with this name, in lower case, is one by itself."""
    return _is(name, frozenset(), _also)


def _kept(query: str, also: Collection[str]) -> str:
    parts = query.split("&")
    names = [_decoded(part.partition("=")[0]) for part in parts]
    beside = frozenset(names)
    kept = [part for part, name in zip(parts, names, strict=True) if not ("=" in part and _is(name, beside, also))]
    return _pairs("&".join(kept), also, "")


def _pairs(text: str, also: Collection[str], instead: str) -> str:
    """`text` with `instead` in place of each parameter that is a credential."""
    if not re.search(r"=|%(?:25)*3D", text, re.IGNORECASE):
        return text
    names = frozenset(match[2].lower() for match in re.finditer(_PAIR, text))
    return re.sub(_PAIR, lambda match: match.expand(instead) if _is(match[2].lower(), names, also) else match[0], text)


def _is(name: str, beside: frozenset[str], also: Collection[str]) -> bool:
    for pattern, partner in NAMES.items():
        if fnmatchcase(name, pattern) and (not partner or not beside.isdisjoint(partner.split())):
            return True
    return any(fnmatchcase(name, pattern) for pattern in also)
