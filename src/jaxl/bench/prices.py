"""What chips cost: a dated file that users edit."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxl.errors import InputError

DEFAULT = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Price:
    """USD for an hour of one chip, on the `date` when the `source` said so; `device_kinds` are jax's names for it."""

    name: str
    device_kinds: Sequence[str]
    usd_per_chip_hour: float
    source: str
    date: str


def read_prices(path: Path = DEFAULT) -> list[Price]:
    """Read a file of `[[chips]]`. Raises InputError naming the file and what is wrong in it."""
    try:
        chips = tomllib.loads(path.read_text(encoding="utf-8")).get("chips")
    except OSError as error:
        raise InputError("prices", str(path), f"{error.strerror}; give a file like {DEFAULT.name}") from None
    except ValueError as error:
        raise InputError("prices", str(path), f"not TOML ({error})") from None
    if not isinstance(chips, list) or not all(isinstance(chip, dict) for chip in chips):
        raise InputError("prices", str(path), "no [[chips]] in it")
    try:
        prices = [Price(**chip) for chip in chips]
    except TypeError as error:
        raise InputError("prices", str(path), f"{str(error).removeprefix('Price.__init__() ')} for [[chips]]") from None
    for price in prices:
        cost, kinds = price.usd_per_chip_hour, price.device_kinds
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 < cost < float("inf"):
            raise InputError("prices", str(path), f"usd_per_chip_hour of {price.name!r} is not a number above 0")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind for kind in kinds):
            raise InputError("prices", str(path), f"device_kinds of {price.name!r} is not a list of names")
    return prices


def price_of(device_kind: str, prices: Iterable[Price]) -> Price | None:
    """The price of the chip that jax calls `device_kind`: of the longest name that is in it as whole words."""
    found = [(len(kind), i, price) for i, price in enumerate(prices) for kind in _within(device_kind, price)]
    return max(found)[2] if found else None


def _within(device_kind: str, price: Price) -> list[str]:
    return [
        kind
        for kind in (price.name, *price.device_kinds)
        if re.search(rf"(?<!\w){re.escape(kind)}(?!\w)", device_kind, re.IGNORECASE)
    ]
