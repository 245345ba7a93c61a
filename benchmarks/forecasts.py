"""Forecasts of what the steps between whole ones would give, against keeping what the last whole one gave.

    python benchmarks/forecasts.py [--pictures 6] [--steps 20] [--scheduler euler] [--every 2 3 5]

The first fifth of the steps and every N-th after it are whole; in the others the features that enter the U-Net's last
block, its output, or the estimate of the result are a sum of those of the last whole steps, with the weights of a
forecast. PSNR and SSIM against the exact pictures with the same seeds, median and least, of `tiny`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxl
from jaxl.bench.quality import compare
from jaxl.call.plan import WHOLE_SHARE
from jaxl.diffusion import loop
from jaxl.diffusion.loop import Row, Slots
from jaxl.run import steps
from jaxl.run.bucket import Bucket, Conditioning
from jaxl.run.model import Model
from jaxl.run.programs import DECODE, START
from quality import captions

KEPT = 4
WHOLE, FEATURES, OUTPUT, ESTIMATE = range(4)
# places of whole steps, the latest first, and the place of a step between -> a weight for each of them
Weights = Callable[[Sequence[int], int], np.ndarray]


def through(points: int, places: Sequence[int], place: int) -> np.ndarray:
    """Return the weights of the polynomial through the latest points (Lagrange)."""
    known = np.asarray(places[:points], float)
    return np.array([np.prod((place - np.delete(known, i)) / (x - np.delete(known, i))) for i, x in enumerate(known)])


def part_of_line(share: float, places: Sequence[int], place: int) -> np.ndarray:
    """Return the weights of a line that rises so much less than the one through the last two points."""
    line = share * through(2, places, place)
    line[0] += 1 - share
    return line


def spectrum(last: int, places: Sequence[int], place: int) -> np.ndarray:
    """Return the mean of a line and a ridge fit of Chebyshev polynomials over 0 to `last` (arXiv:2603.01623)."""
    known = np.asarray(places[:KEPT], float)
    at, wanted = (np.polynomial.chebyshev.chebvander(2 * x / last - 1, 2) for x in (known, np.array([float(place)])))
    fit = (wanted @ np.linalg.solve(at.T @ at + 0.1 * np.eye(3), at.T))[0]
    fit[:2] += through(2, places, place)
    return fit / 2


def forecasts(last: int) -> dict[str, tuple[int, Weights]]:
    return {
        "features kept": (FEATURES, partial(through, 1)),
        "output kept": (OUTPUT, partial(through, 1)),
        "features on a line": (FEATURES, partial(through, 2)),
        "features on a parabola": (FEATURES, partial(through, 3)),
        "output on a line": (OUTPUT, partial(through, 2)),
        "output on half a line": (OUTPUT, partial(part_of_line, 0.5)),
        "output by Spectrum": (OUTPUT, partial(spectrum, last)),
        "estimate on a line": (ESTIMATE, partial(through, 2)),
    }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """What the last whole steps gave, the latest first, [KEPT, B, ...]."""

    features: Array
    outputs: Array
    estimates: Array


def run_step(
    model: Model, bucket: Bucket, params: Any, cond: Conditioning, slots: Slots, known: Known, kind: Array, weights: Any
) -> tuple[Slots, Known]:
    """Run a row: a whole one, or one of another kind by what is known."""
    features, output, estimate = (jnp.tensordot(weights, each, 1) for each in jax.tree.leaves(known))

    def denoise(x: Array, row: Row, _: Any) -> tuple[Array, Array, Any]:
        c_in, c_skip, c_out = (row[name][:, None, None, None] for name in ("c_in", "c_skip", "c_out"))
        told = {**row, "shallow": jnp.broadcast_to(kind == FEATURES, row["shallow"].shape).astype(jnp.float32)}

        def forecast() -> tuple[Array, Array]:
            return jnp.where(kind == OUTPUT, output, (estimate - c_skip * x / c_in) / c_out), features

        def network() -> tuple[Array, Array]:
            given, _, kept = steps.denoise(model, bucket, params, (), cond, x, told, steps.Features(features, None))
            assert kept is not None
            assert kept.deep is not None
            return given, jnp.asarray(kept.deep)

        given, deep = jax.lax.cond(kind >= OUTPUT, forecast, network)
        return given, given, (deep, given)

    after = loop.advance(denoise, replace(slots, features=(features, output)), 1)
    new = Known(after.features[0], after.features[1], after.denoised)

    def pushed(old: Array, new: Array) -> Array:
        return jnp.where(kind == WHOLE, jnp.concatenate([new[None], old[:-1]]), old)

    return replace(after, features=None), jax.tree.map(pushed, known, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scheduler", default="euler", help="one with a call of the network a step")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3, 5])
    args = parser.parse_args()
    pipe, params = jaxl.from_pretrained("tiny", dtype="float32", mesh=jaxl.make_mesh(jax.devices()[:1]))
    how = {"seed": list(range(args.pictures)), "steps": args.steps, "scheduler": args.scheduler}
    plan = pipe.plan(captions(args.pictures), **how, cache_interval=2)
    inputs, bucket, count = pipe.inputs(params, plan), plan.bucket, plan.count
    begun, cond = pipe.programs.get(START, bucket)(inputs.beginning()), inputs.conditioning(plan.segments[0], bucket)
    none = pipe.programs.no_features(bucket)
    assert none is not None
    deep = none.deep
    assert deep is not None
    step = jax.jit(partial(run_step, pipe.model, bucket))

    def draw(kinds: Sequence[int], weigh: Weights) -> np.ndarray:
        nothing = jnp.zeros((KEPT, *begun.latents.shape))
        slots, known = begun, Known(jnp.zeros((KEPT, *deep.shape), deep.dtype), nothing, nothing)
        places: list[int] = []
        for place, kind in enumerate(kinds):
            weights = np.zeros(KEPT, np.float32)
            if kind == WHOLE:
                places.insert(0, place)
            else:
                own = weigh(places, place)
                weights[: own.size] = own
            slots, known = step(params["unet"], cond, slots, known, np.int32(kind), weights)
        return np.asarray(pipe.programs.get(DECODE, bucket)(params["vae"], slots.latents)[0])

    exact = draw([WHOLE] * count, partial(through, 1))
    print(f"| {'':24} | N | PSNR, dB | SSIM |\n| --- | --- | --- | --- |")
    for every in args.every:
        for name, (kind, weigh) in forecasts(count - 1).items():
            kinds = [WHOLE if i % every == 0 or i < WHOLE_SHARE * count else kind for i in range(count)]
            far = compare(exact, draw(kinds, weigh)).summary()
            psnr, ssim = (
                f"{far[f'{measure}_median']:.{digits}f} ({far[f'{measure}_least']:.{digits}f})"
                for measure, digits in (("psnr", 1), ("ssim", 3))
            )
            print(f"| {name:24} | {every} | {psnr} | {ssim} |", flush=True)


if __name__ == "__main__":
    main()
