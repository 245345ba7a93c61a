"""What AUTOMATIC1111's web UI and its forks write: Forge, reForge, Forge Classic, and who else writes the same text.

https://github.com/AUTOMATIC1111/stable-diffusion-webui, `modules/infotext_utils.py` and `infotext_versions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from jaxl.call.hires_texts import take_hires
from jaxl.call.infotext import EMBEDDINGS, LABELS, READERS, RESIZED
from jaxl.call.sizes import read_size
from jaxl.call.tile_texts import take_tiles
from jaxl.call.unit_texts import take_units
from jaxl.diffusion.names import AUTOMATIC, find_name
from jaxl.diffusion.other_noise import RNG_NAMES
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.errors import InputError
from jaxl.metadata.container import Texts, read_json
from jaxl.metadata.settings import NOTHING, Reading, Settings, as_number
from jaxl.text.tags import split_tags

# whose pictures these are, by the beginning of the version; the first that fits
PROGRAMS = {
    r"jaxl\b": "jaxl",
    r"ComfyUI\b": "ComfyUI",
    r"classic": "Forge Classic",
    r"neo": "Forge Neo",
    r"f[0-9][^-]*-v[0-9]": "reForge",
    r"f[0-9]": "Forge",
    r"v?[0-9]+\.[0-9]": "A1111",
}
WEB_UIS = ("A1111", "Forge", "reForge", "Forge Classic", "Forge Neo")
# the noise that programs draw where the text does not say; A1111's is a GPU's
NOISE = {**dict.fromkeys(WEB_UIS, "cuda"), "ComfyUI": "torch", "Fooocus": "torch"}
# SDXL's usual layer, as A1111 counts from the last one
USUAL_CLIP_SKIP = 2
# names that tell of a picture but change nothing in it
NOTES = {"Version", "App", "Created Date", "User", "Init image hash", "Source Identifier", "Hardware", "Time taken"}
HYPERNETWORK = re.compile(r"<hypernet:([^<>:]+)[^<>]*>")
MASKED = ("Mask ", "Masked ", "Inpaint area")


def read(texts: Texts) -> Settings | None:
    """Read the text of a web UI, or of a program that is not known by name."""
    pairs = texts.pairs()
    return None if pairs is None else from_pairs(Reading(program_of(pairs), pairs.get("Version", "")), pairs)


def program_of(pairs: Mapping[str, str]) -> str:
    """Return who wrote a text, by its version; "unknown" where that does not tell."""
    version = pairs.get("Version", "")
    return next((name for start, name in PROGRAMS.items() if re.match(start, version)), "unknown")


def from_pairs(reading: Reading, pairs: Mapping[str, str]) -> Settings:
    """Return the settings of A1111's pairs. Those that cannot be read are missing."""
    left = dict(pairs)
    reading.text("prompt", left.pop("Prompt", ""))
    if negative := left.pop("Negative prompt", ""):  # an empty one is zeros in SDXL there, as none is here
        reading.text("negative_prompt", negative)
    reading.arguments["prompt_syntax"] = "lenient"  # A1111 read it so
    _second_pass(reading, left)
    _sampler(reading, left)
    if LABELS["strength"] in left:
        reading.strength(left.pop(LABELS["strength"]), LABELS["strength"])
    for name, label in LABELS.items():
        value = left.pop(label, None)
        if name == "seed":
            reading.seed(value, label)
        elif name == "steps":
            reading.steps(value, label)
        else:
            reading.number(name, value, READERS[name], label)
    if resized := read_size(left.get(RESIZED, "")):
        reading.arguments["seed_resize_from"] = resized
        del left[RESIZED]
    rng = left.pop("RNG", None)
    if rng is not None:
        reading.noise = RNG_NAMES.get(rng, f"RNG {rng}")
    else:  # what nobody but web UIs has means theirs
        of_web_ui = {"seed_resize_from", "eta_noise_seed_delta"} & {*reading.arguments}
        reading.noise = NOISE["A1111"] if of_web_ui else NOISE.get(reading.program)
    reading.size_in(left.pop("Size", None), "Size")
    if left.get("Tiling") == "True":
        reading.arguments["seamless"] = "xy"
        del left["Tiling"]
    if (skip := left.pop("Clip skip", None)) is not None:
        beyond = as_number(skip, int)
        if beyond is None:
            reading.miss("Clip skip", skip)
        elif beyond > USUAL_CLIP_SKIP and reading.program != "A1111":  # which has one layer for SDXL
            reading.arguments["clip_skip"] = min(beyond, 100) - USUAL_CLIP_SKIP
    if tiles := take_tiles(left):
        reading.arguments |= tiles
        if reading.program != "jaxl":
            reading.miss("Tiled Diffusion", remedy="tiles lie and fade otherwise here, so the picture is not the same")
    _networks(reading, left)
    units = take_units(left)
    reading.controls += units["controls"]
    reading.image_prompts += units["image_prompts"]
    mask = [f"{name}: {left.pop(name)}" for name in [*left] if name.startswith(MASKED)]
    if mask:
        reading.miss("the mask", ", ".join(mask), "give it as `mask`")
    for name, value in left.items():
        if name not in NOTES and value not in NOTHING:
            reading.miss(name, value)
    return reading.done()


def _sampler(reading: Reading, left: dict[str, str]) -> None:
    """Read the sampler with its type of schedule, which was a part of its name before A1111 1.9."""
    sampler, label = left.pop("Sampler", None), "Schedule type" if "Schedule type" in left else "Scheduler"
    schedule = left.pop(label, None) or None
    with suppress(InputError):
        name = find_name(sampler or "")
        if schedule is None and SCHEDULERS[name].sigma_schedule is None:
            # without a schedule, A1111 took uniform steps
            schedule = "Uniform" if reading.program in WEB_UIS or name in AUTOMATIC else None
        elif schedule is not None and schedule.lower() == "automatic":
            # web UIs write what was chosen in its place, and it where nothing but uniform steps was
            schedule = "Uniform" if reading.program in WEB_UIS else AUTOMATIC.get(name)
    reading.sampler(sampler, schedule, ("Sampler", label))


def _second_pass(reading: Reading, left: dict[str, str]) -> None:
    """Take the second pass, whose strength stands without its name."""
    hires, unread = take_hires(left)
    if hires is not None:
        reading.second_pass(hires)
    unread |= {name: left.pop(name) for name in [*left] if name.startswith("Hires ")}
    if unread:
        reading.miss("the second pass", ", ".join(f"{name}: {value}" for name, value in unread.items()))


def _networks(reading: Reading, left: dict[str, str]) -> None:
    """Take the networks that the text names, with hashes."""
    hashes = read_json(left.pop("Hashes", ""))
    known = {str(name): hash for name, hash in hashes.items()} if isinstance(hashes, dict) else {}
    hash = left.pop("Model hash", None) or known.get("model")
    reading.network("model", left.pop("Model", None) or hash, hash)
    reading.network("vae", left.pop("VAE", None), left.pop("VAE hash", None) or known.get("vae"))
    if refiner := left.pop("Refiner", None):
        name, _, hash = refiner.partition(" [")
        reading.refiner(name, hash.rstrip("]"), left.pop("Refiner switch at", None))
    for kind, label, start in (("lora", "Lora hashes", "lora:"), ("embedding", EMBEDDINGS, "embed:")):
        named = dict(_named(left.pop(label, "").split(",")))
        named |= {name.removeprefix(start): hash for name, hash in known.items() if name.startswith(start)}
        for name, hash in named.items():
            reading.network(kind, name, hash)
    prompt = reading.arguments.get("prompt", "")
    with suppress(InputError):
        for tag in split_tags(prompt)[1]:
            reading.network("lora", tag.name, detail=f"{tag.unet:g}")
    for name in HYPERNETWORK.findall(prompt):
        reading.miss("the hypernetwork", name, "jaxl has none; take it out of `prompt`")


def _named(parts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield name and hash of parts such as "pencil: 0123456789ab"."""
    for part in parts:
        name, colon, hash = part.rpartition(":")
        if colon:
            yield name.strip(), hash.strip()
