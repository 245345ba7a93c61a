"""Prices: the file, and which chip it means."""

from pathlib import Path

import pytest

from jaxl.bench.prices import price_of, read_prices
from jaxl.errors import InputError

KINDS = {
    "TPU v4": "TPU v4",
    "TPU v5 lite": "TPU v5e",
    "TPU v6 lite": "TPU v6e",
    "NVIDIA A100-SXM4-40GB": "A100 40 GB",
    "NVIDIA A100-SXM4-80GB": "A100 80 GB",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA L4": "L4",
}


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_chips_have_prices(kind: str, name: str) -> None:
    price = price_of(kind, read_prices())
    assert price is not None
    assert price.name == name
    assert price.source
    assert price.date[:2] == "20"


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "TPU v5", "NVIDIA GH200"])
def test_other_chips_have_none(kind: str) -> None:
    assert price_of(kind, read_prices()) is None


def test_a_price_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    entry = (
        '[[chips]]\nname = "mine"\ndevice_kinds = ["cpu"]\nusd_per_chip_hour = 0.5\nsource = "bill"\ndate = "2026"\n'
    )
    file.write_text(entry)
    price = price_of("cpu", read_prices(file))
    assert price is not None
    assert price.usd_per_chip_hour == 0.5
    for wrong in (
        "x",
        "x = 1",
        "chips = 1",
        entry.replace("0.5", "0"),
        entry.replace("0.5", '"5"'),
        entry.replace("0.5", "nan"),
        entry.replace('["cpu"]', '"cpu"'),
        entry.replace("source", "sauce"),
    ):
        file.write_text(wrong)
        with pytest.raises(InputError, match=r"prices=.*prices\.toml"):
            read_prices(file)
