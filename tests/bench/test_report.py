"""Tables, Markdown, plots and merged files of results that were made up."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jaxl.bench.measure import PeerRow, WorkloadRow
from jaxl.bench.plots import write_plots
from jaxl.bench.prices import Price
from jaxl.bench.report import fastest_peer, make_report, markdown, priced, read_results, tables
from jaxl.bench.startup import Startup
from jaxl.bench.workload import Spread, Workload
from jaxl.cli import run

PRICES = [Price("TPU v5e", ["TPU v5 lite"], 1.2, "a page", "2025-01")]


class Device:
    platform = "tpu"
    device_kind = "TPU v5 lite"


def report(batches: tuple[int, ...] = (1, 2), *, peer: bool = False) -> dict[str, Any]:
    """As if each chip of four drew an image in half a second."""

    def row(batch: int) -> WorkloadRow:
        latency = Spread(0.5 * batch, 0.4 * batch, 0.8 * batch)
        beside = PeerRow(latency, Spread(30.0, 20.0, 40.0), None, 9.0, 2**30, {"step": Spread(1.5, 1.0, 2.0)})
        return WorkloadRow(
            workload=Workload(4, 256, 128, batch, 20, "euler", 5.0),
            latency_s=latency,
            images_per_s=4 * batch / latency.median,
            step_ms=Spread(20.0, 19.0, 21.0),
            decode_ms=Spread(9.0, 8.0, 10.0),
            compile_s=3.0,
            load_s=2.0,
            compilations_after_warmup=0,
            peak_memory_bytes=3 * 2**29,
            peak_memory_of="device",
            peers={"flax": beside} if peer else {},
        )

    return make_report(
        [row(batch) for batch in batches],
        [Startup(Spread(20.0, 19.0, 21.0), Spread(5.0, 4.0, 6.0)) if peer else None for _ in batches],
        command="jaxl bench",
        devices=[Device()] * 4,
        model="tiny",
        dtype="bfloat16",
        vae_dtype="float32",
        prompt="a cat",
        warmup=1,
        runs=3,
        peers={"flax": {"flax": "0.12"}} if peer else {},
    )


def test_tables_and_markdown() -> None:
    results = priced([report(peer=True)], PRICES)
    assert json.loads(json.dumps(results)) == results
    speed, parts, first, peers = tables(results)
    key = ["TPU v5 lite", "4", "256x128", "2", "20", "euler"]
    # 2 images a second and chip are 7200 in an hour, for 1.2 dollars
    assert speed.rows[1] == [*key, "1.000", "0.800 - 1.600", "8.000", "2.000", "6,000", "flax", "1.50"]
    assert parts.rows[1] == [*key, "20.0", "9.0", "2.00", "3.00", "1.50", "0"]
    assert first.rows[1] == [*key, "20.00", "19.00 - 21.00", "5.00", "4.00 - 6.00"]
    assert peers.rows[1] == [*key, "flax", "bfloat16", "30.0", "1.50", "1.00 - 2.00", "-", "-", "-"]
    for table in (speed, parts, first, peers):
        assert all(len(row) == len(table.header) for row in table.rows)
    page = markdown(results, ["latency.png"])
    for part in (
        "| 6,000 |",
        "![latency](latency.png)",
        "`jaxl bench`",
        "4 x TPU v5 lite",
        "1.2 USD",
        "peer flax: flax",
    ):
        assert part in page
    speed, parts = tables(priced([report()], []))
    assert speed.rows[0][-1] == "no price"


def test_the_fastest_peer() -> None:
    """Of those that draw pictures; a report says in which dtype each ran."""
    made = report((1,), peer=True)
    (row,) = made["rows"]
    assert fastest_peer(row) == ("flax", 1.5)
    flax = row["peers"]["flax"]
    for name, median in (("a", 2.5), ("b", 2.0)):
        image = {"median": median, "min": 1.0, "max": 3.0}
        row["peers"][name] = {**flax, "latency_s": image, "peer_ratio": {**flax["peer_ratio"], "image": image}}
    assert fastest_peer(row) == ("b", 2.0)
    made["peers"] |= {"a": {"dtype": "float32"}, "b": {}}
    speed, *_ = tables(priced([made, report((1,))], []))
    assert [line[-2:] for line in speed.rows] == [["b", "2.00"], ["-", "-"]]


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = write_plots(tmp_path, priced([report(peer=True)], PRICES))
    assert names == ["latency.png", "throughput.png", "images_per_usd.png"]
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(2**20) or ()) > 10
    assert write_plots(tmp_path, priced([report()], [])) == names[:2]


def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chips of several files are in one table, each with its own price; other models get a column."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    other = copy.deepcopy(report((1,)))
    other["machine"]["device_kind"], other["model"] = "TPU v4", "random:sdxl"
    Path("a.json").write_text(json.dumps(priced([report()], [])))
    Path("b.json").write_text(json.dumps(priced([other], [])))
    assert run(["bench", "merge", "a.json", "b.json", "--output", "joined", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    results = json.loads(out.splitlines()[-1])
    rows = [(each["machine"]["device_kind"], row) for each in results["reports"] for row in each["rows"]]
    assert [(kind, row["batch"]) for kind, row in rows] == [("TPU v5 lite", 1), ("TPU v5 lite", 2), ("TPU v4", 1)]
    assert rows[0][1]["images_per_usd"] > rows[2][1]["images_per_usd"]
    assert read_results(Path("joined/results.json")) == results["reports"]
    assert sorted(path.name for path in Path("joined").iterdir()) == [
        "images_per_usd.png",
        "latency.png",
        "results.json",
        "results.md",
        "throughput.png",
    ]
    assert "| random:sdxl bfloat16 | TPU v4 |" in Path("joined/results.md").read_text()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"reports": 1}', '{"reports": [{}]}', '{"reports": [{"rows": [{}]}]}']
)
def test_merge_of_another_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    assert run(["bench", "merge", str(file)]) == 2
    assert "RESULTS" in capsys.readouterr().err
