"""Signed links: which parts of a web address are secrets, and what stays when they are taken out.

A store signs a link by adding parameters to it: who signs, until when, the signature. They open the object, change with
every renewal and say nothing of the content, so plans, ids, footers and messages know the address without them. Other
parameters, such as ?id=5 or versionId, choose the content and stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, unquote, urlsplit

_WEB = ("http://", "https://")
_URL = re.compile(r"https?://[^\s'\"<>]+", re.IGNORECASE)
_USER = re.compile(r"(?i)^((?!abfss?://)[a-z][a-z0-9+.-]*://)[^/?#@]*@")

# What the signers of stores and content networks add, whatever else is in the link, in lower case.
_OF_SIGNERS = {
    # AWS version 4 and 2, and those that speak it
    *(f"x-amz-{name}" for name in ("algorithm", "credential", "date", "expires", "signedheaders", "signature")),
    "x-amz-security-token",
    "x-amz-content-sha256",
    "awsaccesskeyid",
    # Google version 4 and 2
    *(f"x-goog-{name}" for name in ("algorithm", "credential", "date", "expires", "signedheaders", "signature")),
    "googleaccessid",
    # CloudFront, with which Hugging Face signs too
    "key-pair-id",
    # Alibaba OSS, Huawei OBS, Tencent COS
    *(f"x-oss-{name}" for name in ("signature", "signature-version", "credential", "date", "expires")),
    *("x-oss-security-token", "x-oss-additional-headers", "ossaccesskeyid", "x-obs-security-token", "accesskeyid"),
    *(f"q-{name}" for name in ("sign-algorithm", "ak", "sign-time", "key-time", "header-list", "url-param-list")),
    *("q-signature", "x-cos-security-token"),
    # Akamai
    *("hdnts", "hdnea", "hdntl", "__token__", "__gda__"),
}
# What a signer adds that is an ordinary word elsewhere: taken out only beside a signature.
_BESIDE_A_SIGNATURE = {
    *("expires", "expiry", "exp", "policy", "hash-algorithm", "signaturemethod", "signatureversion", "timestamp"),
    # Azure's shared access signature
    *("sv", "ss", "srt", "sp", "st", "se", "sr", "si", "sip", "spr", "sdd", "ses"),
    *("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid"),
}
_SECRET_WORD = re.compile(
    r"(?:.*[-_.])?(?:secret|token|password|passwd|pwd|signature|sig|sign|hmac|credentials?|auth|jwt"
    r"|(?:api|access|auth|secret|private|subscription)?[-_]?key)"
    r"|.*(?:apikey|token|secret|password|signature|accesskey|secretkey)"
)


def unsigned(uri: str) -> str:
    """`uri` without the secrets of a signed http(s) link or of user:password@; anything else unchanged."""
    return _without_user(_edited(uri, lambda name: None) if uri.lower().startswith(_WEB) else uri)


def without_query(uri: str) -> str:
    """An http(s) link up to its query; anything else unchanged."""
    return uri.partition("#")[0].partition("?")[0] if uri.lower().startswith(_WEB) else uri


def mask_urls(text: str) -> str:
    """`text` with *** for the value of every secret parameter of the http(s) links in it."""
    return _URL.sub(lambda match: _edited(match[0], lambda name: f"{name}=***"), text)


def expires_at(url: str) -> datetime | None:
    """When a signed link ends to be good, as it says itself; None if it does not say."""
    try:
        given = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
        for signer in ("x-amz", "x-goog"):
            if f"{signer}-expires" in given:
                signed_at = datetime.strptime(given[f"{signer}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
                return signed_at + timedelta(seconds=int(given[f"{signer}-expires"]))
        if "sig" in given and "se" in given:
            until = datetime.fromisoformat(given["se"].replace("Z", "+00:00"))
            return until if until.tzinfo else until.replace(tzinfo=timezone.utc)
        if "signature" in given and "expires" in given:
            return datetime.fromtimestamp(int(given["expires"]), timezone.utc)
    except (KeyError, ValueError, OverflowError, OSError):
        return None
    return None


def is_secret(name: str) -> bool:
    """Whether a parameter of this name is one, by its name alone."""
    return name.lower() in _OF_SIGNERS or _SECRET_WORD.fullmatch(name.lower()) is not None


def _without_user(uri: str) -> str:
    return _USER.sub(r"\1***@", uri)


def _edited(url: str, replaced: Callable[[str], str | None]) -> str:
    """The URL with each secret parameter replaced, or left out; the others stay to the letter."""
    address, mark, rest = url.partition("?")
    if not mark:
        return url
    query, hash_mark, fragment = rest.partition("#")
    parts = query.split("&")
    names = [unquote(part.partition("=")[0]).lower() for part in parts]
    secret = _secret_names(names)
    if not secret:
        return url
    kept = [
        replaced(part.partition("=")[0]) if name in secret else part for part, name in zip(parts, names, strict=True)
    ]
    left = [part for part in kept if part is not None]
    return address + ("?" + "&".join(left) if left else "") + hash_mark + fragment


def _secret_names(names: list[str]) -> set[str]:
    secret = {name for name in names if is_secret(name)}
    return secret | _BESIDE_A_SIGNATURE.intersection(names) if secret else set()
