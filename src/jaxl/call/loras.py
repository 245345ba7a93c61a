"""The LoRAs of each image: those that a call names, and those that its prompt has tags for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxl.errors import CheckpointError, InputError, nearest
from jaxl.presets import Preset, lora_preset
from jaxl.text.tags import Tag, shares
from jaxl.weights.adapters.adapter import Adapter
from jaxl.weights.adapters.combined import AdapterSet, during
from jaxl.weights.adapters.strength import Strength

# the adapters that are asked for, in their order, each with a strength or a tag
Asked = Sequence[tuple[Adapter, Strength | Tag]]
# names that an error lists; folders may have hundreds of files
MOST_NAMES = 10


def read_loras(value: Any, tags: Sequence[Sequence[Tag]], known: Mapping[str, Adapter], *, each: int) -> list[Asked]:
    """Return what is asked for each image: first those of `loras`, then those of its `tags`, in their order.

    `value` maps names to strengths, for all images, or is a list with one such mapping for each image or for each
    prompt of `each` images. Raises InputError for a name that is not in `known` or whose file cannot be used, and for a
    strength that cannot work.
    """
    given = [{}] if value is None else [value] if isinstance(value, Mapping) else value
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(own, Mapping) for own in given):
        raise InputError(
            "loras", value, 'give names with strengths, such as {"pencil": 0.8}, or one such for each image'
        )
    images = len(tags)
    if len(given) not in (1, images // each, images):
        raise InputError("loras", value, f"{len(given)} mappings for {images} images; give one, or one for each image")
    found: list[Asked] = []
    for i, own in enumerate(tags):
        named = given[i * len(given) // images]
        asked: list[tuple[Adapter, Strength | Tag]] = [
            (_known("loras", name, known), Strength.read("loras", strength)) for name, strength in named.items()
        ]
        asked += [(_known("prompt", tag.name, known), tag) for tag in own]
        names = [adapter.name for adapter, _ in asked]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError("loras", twice, "it is asked for twice for one image; leave one out")
        found.append(asked)
    return found


def distilled_preset(asked: Sequence[Asked]) -> Preset | None:
    """Return the preset of the step-distilled LoRA that all images have, if they have one."""
    presets = {
        next((lora_preset(adapter.source, adapter.distilled) for adapter, _ in own if adapter.distilled), None)
        for own in asked
    }
    return presets.pop() if len(presets) == 1 else None


def adapter_set(asked: Asked, steps: int) -> AdapterSet:
    """Return the adapters of an image with their strengths over so many steps."""
    return tuple((adapter, _strength(how, steps) if isinstance(how, Tag) else how) for adapter, how in asked)


def starts(sets: Sequence[AdapterSet], steps: int) -> list[int]:
    """Return the steps at which the adapters of an image change."""
    return [step for step in range(1, steps) if any(_at(own, step, steps) != _at(own, step - 1, steps) for own in sets)]


def at_step(sets: Sequence[AdapterSet], step: int, steps: int) -> list[AdapterSet]:
    """Return the adapters of each image as they are in a step."""
    return [_at(own, step, steps) for own in sets]


def _at(own: AdapterSet, step: int, steps: int) -> AdapterSet:
    return during(own, step / steps)


def _known(argument: str, name: Any, known: Mapping[str, Adapter]) -> Adapter:
    try:
        return known[name]
    except CheckpointError as error:
        raise InputError(argument, name, str(error)) from None
    except KeyError:
        pass
    if not known:
        remedy = "no LoRA is loaded; add it first, with Pipeline.add_lora, --lora or --lora-dir, or leave it out"
        raise InputError(argument, name, remedy)
    raise InputError(argument, name, f"no LoRA of this name is loaded; {nearest(str(name), known, most=MOST_NAMES)}")


def _strength(tag: Tag, steps: int) -> Strength:
    start, end = shares(tag, steps)
    strength = Strength(tag.unet, tag.text, start=start, end=end)
    try:
        return strength if tag.blocks is None else replace(strength, blocks=tag.blocks)
    except InputError as error:
        raise InputError("prompt", f"lbw={tag.blocks}", error.remedy) from None
