"""Webhooks: addresses of clients that are told when a job has its answer, of those that the operator allows.

Nothing is sent anywhere else: an address is compared with the allowed ones part by part, redirects are not followed,
and no proxy of the environment is asked. What is sent is the job as `GET /v1/jobs/{id}` shows it, without its answer.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from jaxl.errors import InputError

# seconds before each further try; after the last one nobody is told
AGAIN = (2.0, 10.0, 60.0, 600.0, 3600.0)
SECONDS = 10.0
MOST_LETTERS = 2000
PLAIN = re.compile(r"[!-~]+")
PORTS = {"http": 80, "https": 443}


def read_allowed(text: str) -> str:
    """Return an address with which webhooks may begin, such as https://example.org/hooks/. Raises InputError."""
    split = _split(text)
    if split is None or split.query:
        raise InputError("webhook_allow", text, "give the beginning of addresses, such as https://example.org/hooks/")
    return text


def check(url: str, allowed: Sequence[str]) -> str:
    """Return the address of a webhook. Raises InputError for one that is not allowed."""
    split = _split(url)
    if split is None:
        raise InputError("X-Jaxl-Webhook", url, "give an address such as https://example.org/hooks/jobs")
    if not any(_covers(prefix, split) for prefix in map(urlsplit, allowed)):
        raise InputError("X-Jaxl-Webhook", url, "not an address that this server may call; its operator allows them")
    return url


def send(url: str, told: Mapping[str, Any]) -> str | None:
    """Send what is told as JSON; return None if it was taken, else what came instead. Waits, and raises nothing."""
    split = urlsplit(url)
    kind = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
    connection = kind(split.hostname or "", split.port, timeout=SECONDS)
    path = f"{split.path or '/'}{'?' if split.query else ''}{split.query}"
    try:
        connection.request("POST", path, json.dumps(told), {"Content-Type": "application/json", "User-Agent": "jaxl"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if 200 <= status < 300 else f"status {status}"


def _split(url: str) -> SplitResult | None:
    """Return the parts of an address, or None where programs could disagree on what they are."""
    if len(url) > MOST_LETTERS or PLAIN.fullmatch(url) is None or "\\" in url:
        return None
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        return None
    dots = any(part in (".", "..") for part in re.sub("%2e", ".", split.path, flags=re.IGNORECASE).split("/"))
    plain = split.scheme in PORTS and split.hostname and port != 0 and "@" not in split.netloc and not split.fragment
    return split if plain and not dots and "%2f" not in split.path.lower() else None


def _covers(allowed: SplitResult, url: SplitResult) -> bool:
    def place(of: SplitResult) -> tuple[str, str | None, int | None]:
        return of.scheme, of.hostname, of.port or PORTS[of.scheme]

    path = allowed.path.rstrip("/")
    return place(allowed) == place(url) and (url.path == path or url.path.startswith(f"{path}/"))
