"""The lanes of a server that its operator asks for."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxl import Region
from jaxl.backend import REGIONS, PipelineBackend, lane_kinds
from jaxl.engine import Engine, Request, Ticket
from jaxl.run.bucket import Bucket

A_WHILE = 600.0  # no measure of anything: only who fails waits so long


def drawn(ticket: Ticket) -> np.ndarray:
    return np.asarray(ticket.future.result(A_WHILE).images[0])


def test_lanes_for_what_costs_something() -> None:
    one = Bucket(1, 64, 64, guided=True)
    assert lane_kinds(one, ()) == [one]
    assert lane_kinds(one, ("freeu", "cached")) == [one, replace(one, freeu=True, cached=True)]
    pag = replace(one, pag_layers=("mid_block",))
    assert lane_kinds(one, ("unguided", "pag")) == [one, one.plain, pag]
    assert lane_kinds(one, ("pag", "seg"))[-1] == lane_kinds(one, ("seg",))[-1] == replace(pag, seg=True)
    assert lane_kinds(one, ("perp_neg",)) == [one, replace(one, perp_neg=True)]
    assert lane_kinds(one.plain, ("unguided",)) == [one.plain]
    assert lane_kinds(one, ("pag", "cached"))[-1] == replace(pag, cached=True)
    assert lane_kinds(one, ("regions",)) == [one, replace(one, regions=REGIONS)]
    assert lane_kinds(one, ("seamless",)) == [one, replace(one, seamless="xy")]


def test_a_lane_with_everything(small: Any, compilations: Any) -> None:
    """Images with perturbed attention, FreeU, kept features and regions share a batch, each as if it were alone.

    So do those with perturbed attention and with blurred queries, and with a perpendicular negative prompt. Once they
    have been drawn nothing is compiled.
    """
    lane = lane_kinds(Bucket(1, 64, 64, guided=True), ("pag", "seg", "freeu", "cached", "regions"))[-1]
    lane = replace(lane, perp_neg=True)  # for which there are lanes of its own
    pipe, params = small
    other = PipelineBackend(pipe, params, [lane], [2])
    own: list[dict[str, Any]] = [
        {},
        {"pag_scale": 3.0},
        {"seg_scale": 3.0},
        {"freeu": [0.9, 0.2, 1.2, 1.4]},
        {"cache_interval": 2},
        {"perp_neg_scale": 1.0, "negative_prompt": "a llama and a dog"},
    ]
    own.append({"regions": [Region("a cat", (0, 0, 0.5, 1)), Region("a dog", (32, 0, 64, 64))]})
    kinds = [{"prompt": "a llama", "steps": 4, "seed": 1, "width": 64, "height": 64} | each for each in own]
    with Engine(other) as engine:
        tickets = [engine.submit(Request(kind)) for kind in kinds]
        together = [drawn(ticket) for ticket in tickets]
        with compilations() as compiled:
            alone = [drawn(engine.submit(Request(kind))) for kind in kinds]
    assert compiled == []
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert len({picture.tobytes() for picture in together}) == len(kinds)
