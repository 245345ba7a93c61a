"""What a service on TPU v5e-4 costs: the table of docs/kubernetes.md.

    python deploy/costs.py

From the throughput that docs/chips.md has from `jaxl estimate`, and the prices of src/jaxl/bench/prices.toml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from jaxl.bench.prices import price_of, read_prices

PERFORMANCE = Path(__file__).parents[1] / "docs" / "chips.md"
COMMAND = "jaxl estimate --topology v5e-4 --vae-dtype float32"
CHIP, CHIPS = "TPU v5e", 4
RATES = (1, 10, 100)
# of what a host can draw; with less to spare, queues grow at every burst
SHARE = 0.8
# by which docs/chips.md takes an estimate to be too fast, at most
TOO_FAST = 0.15
HOURS_OF_A_MONTH = 730


@dataclass(frozen=True)
class Cost:
    """Of `rate` images a second, on so many hosts of four chips; `hosts_if_slower`: if the estimate is too fast."""

    rate: float
    hosts: int
    hosts_if_slower: int
    usd_per_hour: float

    @property
    def usd_per_thousand(self) -> float:
        return self.usd_per_hour / (3.6 * self.rate)


def cost(rate: float, images_per_s: float, usd_per_host_hour: float) -> Cost:
    """`images_per_s`: of one host."""
    needed = rate / (images_per_s * SHARE)
    hosts = math.ceil(needed)
    return Cost(rate, hosts, math.ceil(needed * (1 + TOO_FAST)), hosts * usd_per_host_hour)


def estimated_images_per_s(page: str) -> float:
    """Of one host, as the page has it in the row of `COMMAND`. Raises ValueError if it has no such row."""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in page.splitlines() if line[:1] == "|"]
    for number, row in enumerate(rows):
        if row[0] == f"`{COMMAND}`":
            header = next(each for each in reversed(rows[:number]) if "images/s" in each)
            return float(row[header.index("images/s")])
    raise ValueError(f"{PERFORMANCE.name} has no row `{COMMAND}`")


def table(page: str) -> str:
    """In Markdown, for the estimate of that page."""
    price = price_of(CHIP, read_prices())
    if price is None:
        raise ValueError(f"no price of {CHIP}")
    images_per_s = estimated_images_per_s(page)
    slower = f"if the estimate is {TOO_FAST * 100:.0f} % too fast"
    header = ("images/s", "hosts", slower, "USD an hour", "USD a month", "USD for 1000 images")
    lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for rate in RATES:
        each = cost(rate, images_per_s, CHIPS * price.usd_per_chip_hour)
        month = each.usd_per_hour * HOURS_OF_A_MONTH
        lines.append(
            f"| {rate} | {each.hosts} | {each.hosts_if_slower} | {each.usd_per_hour:.2f} | {month:,.0f} "
            f"| {each.usd_per_thousand:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(PERFORMANCE.read_text(encoding="utf-8")))
