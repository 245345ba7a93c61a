"""The web page that calls, and the name by which it calls: the headers Origin and Host.

An origin is written as browsers do (https://url.spec.whatwg.org/#origin): in lower case, with Punycode for other
alphabets and without the port that its scheme implies. Apps with a browser inside have schemes of their own, such as
`tauri://localhost`; files and sandboxed frames send `null`, whoever made them.
"""

from __future__ import annotations

import ipaddress
import re

from jaxl.errors import InputError

ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(:(?P<port>[0-9]{1,5}))?")
HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:[0-9]{1,5})?")
PORTS = {"http": "80", "https": "443"}


def read_origin(text: str) -> str:
    """Return an origin as browsers send it. Raises InputError."""
    if text == "null":
        return text
    match = ORIGIN.fullmatch(text.lower())
    try:
        if match is None:
            raise ValueError
        scheme, host, port = match["scheme"], match["host"], match["port"]
        if scheme in PORTS and not host.startswith("["):
            host = host.encode("idna").decode()
    except ValueError:  # the codec raises it too
        remedy = "give scheme and host alone, such as https://example.org or tauri://localhost, or null"
        raise InputError("origin", text, remedy) from None
    return f"{scheme}://{host}" + ("" if port in (None, PORTS.get(scheme)) else f":{port}")


def web_host(origin: str) -> str | None:
    """Return host and port of an origin, or None if it is none of the web."""
    scheme, _, host = origin.partition("://")
    return host if scheme in PORTS else None


def is_own(origin: str, host: str) -> bool:
    """Return whether a page was loaded from the host that it calls."""
    try:
        return web_host(origin) is not None and origin == read_origin(f"{origin.partition('://')[0]}://{host}")
    except InputError:
        return False


def names_itself(host: str) -> bool:
    """Return whether a Host header is an address or a name for this machine: no name server answers for these."""
    match = HOST.fullmatch(host.lower())
    name = (match["address"] or match["name"]) if match else ""
    return name == "localhost" or name.endswith(".localhost") or is_address(name)


def is_address(name: str, *, loopback: bool = False) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not loopback
