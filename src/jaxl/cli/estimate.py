"""`jaxl estimate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxl.call.sizes import check_size
from jaxl.cli.options import JsonOption, PrecisionOption, QuietOption, VaeDtypeOption
from jaxl.cli.terminal import in_background, note, print_line
from jaxl.errors import InputError

GIB = 2**30


def estimate(
    topology: Annotated[
        str, typer.Option(metavar="NAME", help="v5e:2x2, v5e:1x1, v5e-8, v6e-4, v4-8 ...: a grid or a number of chips.")
    ] = "v5e:2x2",
    model: Annotated[
        str, typer.Option(help="random:sdxl, random:mid, tiny, or what jaxl generate takes; only its configs are read.")
    ] = "random:sdxl",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels; the model's own by default.")] = None,
    batch: Annotated[
        int | None, typer.Option(show_default=False, help="Images over all chips; one for each by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the scheduler, each with guidance.")] = 20,
    split: Annotated[bool, typer.Option("--split", help="Split the parameters over the chips.")] = False,
    vae_dtype: VaeDtypeOption = "auto",
    precision: PrecisionOption = None,
    lora_rank: Annotated[
        int | None, typer.Option(metavar="N", help="With room for LoRAs of ranks that sum up to N, and beside none.")
    ] = None,
    controlnet: Annotated[
        str | None, typer.Option(metavar="KIND", help="With a ControlNet, full, mid or small, and beside none.")
    ] = None,
    image_prompts: Annotated[
        int | None,
        typer.Option(metavar="N", help="With N pictures to be like, by IP-Adapter Plus, and beside none."),
    ] = None,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="Search for the largest batch that fits; minutes for each try.")
    ] = False,
    prices: Annotated[Path | None, typer.Option(help="A file in place of jaxl's own prices.toml.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A folder for estimate.json and estimate.md.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Estimate memory, time and cost on TPUs that are not there, by compiling the programs for them.

    \b
    jaxl estimate --topology v5e:2x2 --batch 4
    jaxl estimate --topology v6e-8 --size 1024x768 --largest-batch --output v6e

    It needs the TPU compiler (the extra tpu) and some minutes; no TPU.
    """
    from jaxl.bench.estimate import EstimateRequest
    from jaxl.bench.estimate import estimate as run
    from jaxl.bench.prices import DEFAULT, price_of, read_prices

    read = read_prices(prices or DEFAULT)
    width, height = (None, None) if size is None else _size(size)
    for name, value in (("batch", batch), ("steps", steps), ("lora_rank", lora_rank), ("image_prompts", image_prompts)):
        if value is not None and value < 1:
            raise InputError(name, value, "give 1 or more")
    if output is not None:
        from jaxl.png import check_writable

        check_writable("output", output, folder=True)
    request = EstimateRequest(
        topology=topology,
        model=model,
        width=width,
        height=height,
        batch=batch,
        steps=steps,
        split=split,
        vae_dtype=None if vae_dtype == "auto" else vae_dtype,
        largest_batch=largest_batch,
        lora_rank=lora_rank or 0,
        controlnet=controlnet,
        image_prompts=image_prompts or 0,
        precision=precision,
    )

    def tell(program: str) -> None:
        if not quiet:
            note(f"compiling {program}; this may take minutes")

    report = in_background(lambda: run(request, tell))
    price = price_of(report["chip"], read)
    if price is not None:
        usd_per_s = price.usd_per_chip_hour * report["chips"] / 3600
        report |= {"usd_per_chip_hour": price.usd_per_chip_hour, "price_date": price.date}
        report["images_per_dollar"] = report["images_per_s"] / usd_per_s
    lines = list(_lines(report))
    for line in lines:
        print_line(line)
    if output is not None:
        from jaxl.files import write_text

        write_text(output / "estimate.md", "\n".join(["```", *lines, "```", ""]))
        write_text(output / "estimate.json", json.dumps(report, indent=1) + "\n")
    if as_json:
        print_line(json.dumps(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the report."""
    where = f"{report['chips']} x {report['chip']} ({report['topology']})"
    yield f"{report['model']} on {where}: {report['batch']} images of {report['size']}, {report['steps']} guided steps"
    dtypes = f"{report['precision'] or report['dtype']}, autoencoder {report['vae_dtype']}"
    yield f"{dtypes}; estimated by the compiler, not measured"
    yield ""
    yield from _table(
        ("program", "GiB", "temporaries", "in all", "fits", "cycles", "received", "ms", "compiled in"),
        [
            (
                kind,
                f"{facts['own'] / GIB:.2f}",
                f"{facts['temporaries'] / GIB:.2f}",
                f"{facts['total'] / GIB:.2f}",
                "yes" if facts["fits"] else "no",
                f"{facts['cycles'] / 1e6:.2f} M",
                f"{facts['received']['bytes'] / 2**20:.1f} MiB",
                f"{facts['seconds'] * 1e3:.2f}",
                f"{facts['compile_s']:.0f} s",
            )
            for kind, facts in report["programs"].items()
        ],
    )
    yield ""
    yield f"a device has {report['memory_bytes'] / GIB:.0f} GiB; in all counts the parameters of every network"
    rate = f"{report['images_per_s']:.3f} images/s, {report['images_per_s_per_chip']:.3f} a chip"
    times = f"a step {report['step_s'] * 1e3:.1f} ms, all {report['call_s']:.3f} s, an image {report['image_s']:.3f} s"
    yield f"{times}: {rate}"
    step = report["programs"]["advance"]
    if step["received"]["transfers"]:
        share = step["link_seconds"] / step["seconds"]
        over = f"{step['received']['transfers']} transfers, {step['received']['bytes'] / 2**20:.1f} MiB over one link"
        yield f"of a step {share:.1%} are {over}, none of it hidden behind other work"
    for key, what in (
        ("without_loras", f"room for LoRAs of rank {report['lora_rank']}"),
        ("without_controlnet", f"a ControlNet ({report['controlnet']})"),
        ("without_image_prompts", f"image prompts ({report['image_prompts']})"),
    ):
        if key in report:
            without = report[key]
            more = f"{step['seconds'] / without['seconds'] - 1:.1%} more than the {without['seconds'] * 1e3:.1f} ms"
            memory = f"{(step['total'] - without['total']) / GIB:.2f} GiB more on a device"
            yield f"with {what}, a step takes {more} without, and {memory}"
    if "images_per_dollar" in report:
        price = f"{report['usd_per_chip_hour']:g} USD for an hour of a chip ({report['price_date']})"
        yield f"{report['images_per_dollar']:.0f} images/$ at {price}"
    if "largest_batch" in report:
        yield f"largest batch that fits: {report['largest_batch']}"
    for kind in ("advance", "decode"):
        facts = report["programs"][kind]
        yield ""
        title = "a step" if kind == "advance" else kind
        yield from _table(
            (title, "cycles", "share"),
            [
                (name, f"{cycles / 1e6:.2f} M", f"{cycles / facts['cycles']:.1%}")
                for name, cycles in facts["kinds"].items()
            ],
        )
        if facts["unknown"]:
            yield f"{facts['unknown']} operations without an estimate are not counted"
        yield ""
        yield from _table(
            ("operation", "cycles", "result", "from"),
            [
                (each["name"], f"{(each['cycles'] or 0) / 1e6:.2f} M", each["shape"], each["source"][-60:])
                for each in facts["top"]
            ],
        )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _size(text: str) -> tuple[int, int]:
    size = check_size("size", text)
    if not all(size) or any(pixels % 64 for pixels in size):
        raise InputError("size", text, "give multiples of 64")
    return size
