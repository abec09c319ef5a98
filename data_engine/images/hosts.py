"""File systems for inputs. http and https do not reach private addresses unless the settings allow it.

A manifest may come from anyone, and what it names is fetched from inside the network. The address is therefore checked
where a socket is made for it: after the name was resolved, and for every redirect.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from data_engine import storage
from data_engine.errors import UsageError
from data_engine.images.settings import InputSettings
from data_engine.images.shard import existing_path

_VALID_URL = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")


class PrivateHost(UsageError):
    """An http or https address that leads to this machine, a private network or a metadata service."""


def input_filesystem(uri: str, settings: InputSettings) -> tuple[AbstractFileSystem, str]:
    """`storage.filesystem` for inputs: (file system, path inside it). Raises UsageError."""
    fs, path = storage.filesystem(uri)
    scheme = storage.scheme_of(uri)
    if scheme in ("http", "https"):
        client = _open_client if settings.allow_private_hosts else _guarded_client
        # What is a valid URL is sent as it stands: a store's signature covers every %2F in it.
        fs = fsspec.filesystem(
            scheme, get_client=client, use_listings_cache=False, encoded=_VALID_URL.fullmatch(uri) is not None
        )
    elif scheme == "file":
        path = str(existing_path(Path(path)))
    return fs, path


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, (host, *_rest) = address
    ip = ipaddress.ip_address(str(host).split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global:
        raise PrivateHost("it leads to a private address; input.allow_private_hosts=true permits that")
    return socket.socket(family, kind, protocol)


async def _guarded_client(**options: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=_public_socket), timeout=_timeout(), **options
    )


async def _open_client(**options: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(timeout=_timeout(), **options)


def _timeout() -> Any:
    """None for the whole, because a tar may take hours; each read must go on."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, connect=60, sock_connect=20, sock_read=60)
