"""A second pass in A1111's text, where its names begin with "Hires", but for its strength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxl.call.hires import Hires, a1111_upscaler
from jaxl.call.sizes import read_size
from jaxl.diffusion.names import AUTOMATIC, a1111_name, find_name
from jaxl.errors import InputError

STRENGTH = "Denoising strength"
SCALE, SIZE, UPSCALER, SAMPLER, SCHEDULE = (
    f"Hires {name}" for name in ("upscale", "resize", "upscaler", "sampler", "schedule type")
)
TEXTS = {"Hires prompt": "prompt", "Hires negative prompt": "negative_prompt"}
NUMBERS = {"Hires steps": "steps", "Hires CFG Scale": "guidance_scale", STRENGTH: "strength", SCALE: "scale"}
LABELS = (SCALE, SIZE, "Hires steps", UPSCALER, SAMPLER, SCHEDULE, *TEXTS, "Hires CFG Scale", STRENGTH)
# A1111's, where a text does not say
USUAL = {"strength": 0.75, "scale": 2.0}


def hires_texts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pairs of the line of settings for the facts of a `Hires`."""
    own = Hires(**facts)
    size = {SCALE: f"{own.scale:g}"} if own.size is None else {SIZE: "{}x{}".format(*own.size)}
    sampler = {} if own.scheduler is None else dict(zip((SAMPLER, SCHEDULE), a1111_name(own.scheduler), strict=True))
    texts = {label: getattr(own, name) for label, name in TEXTS.items() if getattr(own, name)}
    return {
        STRENGTH: f"{own.strength:g}",
        **size,
        **({"Hires steps": own.steps} if own.steps else {}),
        UPSCALER: a1111_upscaler(str(own.upscaler)),
        **sampler,
        **({} if own.guidance_scale is None else {"Hires CFG Scale": f"{own.guidance_scale:.10g}"}),
        **texts,
    }


def take_hires(pairs: dict[str, str]) -> tuple[Hires | None, dict[str, str]]:
    """Take the second pass out of such pairs: what it is, if it can be read, and what of it could not be."""
    if not any(label in pairs for label in (SCALE, SIZE, UPSCALER)):
        return None, {}
    told = {label: pairs.pop(label) for label in LABELS if label in pairs}
    facts: dict[str, Any] = {**USUAL, **{name: told[label] for label, name in TEXTS.items() if label in told}}
    unread = {}
    for label, name in NUMBERS.items():
        if label in told:
            try:
                facts[name] = int(told[label]) if name == "steps" else float(told[label])
            except ValueError:
                unread[label] = told[label]
    if SIZE in told:
        facts["size"] = read_size(told[SIZE])
        if facts["size"] is None:
            unread[SIZE] = told[SIZE]
    if UPSCALER in told:
        facts["upscaler"] = told[UPSCALER]
    if SAMPLER in told or SCHEDULE in told:
        sampler, schedule = told.get(SAMPLER, pairs.get("Sampler", "")), told.get(SCHEDULE, pairs.get("Schedule type"))
        try:
            facts["scheduler"] = _scheduler(sampler, schedule)
        except InputError:
            unread |= {label: told[label] for label in (SAMPLER, SCHEDULE) if label in told}
    try:
        return Hires(**facts), unread
    except InputError:
        return None, told


def _scheduler(sampler: str, schedule: str | None) -> str:
    """Return the full name of a scheduler for what A1111 writes. Raises InputError."""
    name = find_name(sampler)
    if schedule is None or schedule.lower() == "automatic":
        choice = AUTOMATIC.get(name)
        return f"{name}_{choice}" if choice else name
    return find_name(f"{name} {schedule}")
