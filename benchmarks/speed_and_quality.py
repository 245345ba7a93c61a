"""Less work against the exact run: how much sooner pictures are there, and how far they are from the exact ones.

    python benchmarks/speed_and_quality.py [--model tiny] [--precision int8] [--pictures 8] [--steps 20] [--runs 5]
                                           [--dtype float32] [--scheduler euler] [--processor]
                                           [--plot speed_and_quality.png]

The same prompts and seeds every way. Seconds are those of one picture's steps, medians of runs in turns, or with
--processor what the processor worked for them, which others on the machine disturb less; PSNR and SSIM are those of the
pictures, median and least. Prints a table, draws speed-up against PSNR, and ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import jaxl
from jaxl.bench.quality import compare
from jaxl.png import write_png
from jaxl.presets import SPEEDS
from quality import captions, draw

VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},
    **{f"guided to {end}": {"guidance_interval": (0.0, end)} for end in (0.8, 0.6, 0.4)},
    **{f"cached {every}": {"cache_interval": every} for every in (2, 3, 5, 8)},
    **{f"every {every}": {"step_interval": every} for every in (2, 3, 5, 8)},
    **{name: {"speed": name} for name in SPEEDS if name != "exact"},
}

# of the ways in the plot, by the first words of their names
COLOURS = {"guided": "tab:gray", "cached": "tab:blue", "every": "tab:red", "int8": "tab:green"}


def plot(rows: dict[str, dict[str, float]]) -> Image.Image:
    """Speed-up against PSNR, a point for each way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 5.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, row in rows.items():
        (point,) = axes.plot(row["psnr_median"], row["speed_up"], "o", color=COLOURS.get(name.split()[0]))
        axes.annotate(
            *(name, (row["psnr_median"], row["speed_up"]), (5, 4)),
            textcoords="offset points",
            fontsize=8,
            color=point.get_color(),
        )
    axes.set_xlabel("PSNR against the exact pictures, dB (median)")
    axes.set_ylabel("times as fast as the exact steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.12)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image.open(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--precision", nargs="*", default=["int8"], help="also these, alone and with each speed")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--scheduler", help="the model's own by default")
    parser.add_argument("--processor", action="store_true", help="measure processor time")
    parser.add_argument("--plot", type=Path, default=Path("speed_and_quality.png"))
    args = parser.parse_args()
    prompts = captions(args.pictures)
    mesh = jaxl.make_mesh(jax.devices()[:1])
    loaded = {
        name: jaxl.from_pretrained(args.model, dtype=args.dtype, mesh=mesh, precision=name)
        for name in (None, *args.precision)
    }
    ways = {name: (None, options) for name, options in VARIANTS.items()}
    for precision in args.precision:
        ways |= {precision if s == "exact" else f"{precision} {s}": (precision, {"speed": s}) for s in SPEEDS}

    settings = {"steps": args.steps, "scheduler": args.scheduler}
    images = {name: draw(*loaded[p], prompts, 0, **settings, **options) for name, (p, options) in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.runs):
        for name, (precision, options) in ways.items():
            pipe, params = loaded[precision]
            began = time.process_time()
            result = pipe.generate(params, prompts[0], output="latents", **settings, **options)
            worked = time.process_time() - began
            seconds[name].append(worked if args.processor else result.timings["denoise"])

    rows: dict[str, dict[str, float]] = {}
    for name in ways:
        rows[name] = {
            "seconds": float(np.median(seconds[name])),
            "speed_up": float(np.median(seconds["exact"]) / np.median(seconds[name])),
        }
        if name != "exact":
            rows[name] |= compare(images["exact"], images[name]).summary()
    columns = ["seconds", "speed_up", "psnr_median", "psnr_least", "ssim_median", "ssim_least"]
    print(f"| {'':16} | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for name, row in rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in columns]
        print(f"| {name:16} | " + " | ".join(cells) + " |")
    write_png(args.plot, plot({name: row for name, row in rows.items() if name != "exact"}), None)
    results = {name: {key: round(value, 4) for key, value in row.items()} for name, row in rows.items()}
    print(json.dumps({**vars(args), "plot": str(args.plot), "results": results}))


if __name__ == "__main__":
    main()
