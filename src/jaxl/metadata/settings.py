"""The settings that made a picture, as far as its file says, and how readers put them together."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxl.call.hires import WITHOUT_NETWORK, Hires
from jaxl.call.options import DrawOptions
from jaxl.call.sizes import read_size
from jaxl.diffusion.names import find_name
from jaxl.diffusion.other_noise import SOURCES
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.errors import InputError
from jaxl.weights.adapters.strength import Strength

# of what is missing: lines, and characters of a value in one
MOST_LINES, LONGEST = 100, 200
MOST_SEED, MOST_SIDE, MOST_STEPS = 2**64, 2**16, 1000
# characters of a prompt that is read; the rest of jaxl has limits of its own
LONGEST_PROMPT = 100_000
# what files say where nothing was chosen
NOTHING = ("", "None", "none", "[]", "{}", "False", "false", "null", "Automatic", "None.safetensors")
# endings of files of weights
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft")
NUMBER = re.compile(r"[+-]?[0-9]{1,400}(?:\.[0-9]{0,400})?(?:[eE][+-]?[0-9]{1,4})?")

# what may lie beside a prompt: how it is called in a line, and what to do about it
KINDS: Mapping[str, tuple[str, str]] = {
    "model": ("the checkpoint", "draw with it, as `model`"),
    "vae": ("the autoencoder", "load it, as `vae`"),
    "lora": ("the LoRA", "load it, as one of `loras`, or take it out of `prompt`"),
    "embedding": ("the textual inversion", "load it, as `embedding`"),
    "refiner": ("the refiner", "give it, as `refiner`"),
    "upscaler": ("the upscaler of the second pass", "give its file, as `hires_upscaler`"),
}
# and what has pictures of its own, which no file has
PICTURED: Mapping[str, str] = {
    "controls": "the picture that {} followed{}; give it as one of `controls`",
    "image_prompts": "the pictures that {} read{}; give them as one of `image_prompts`",
}


# whose ways jaxl has as a style
STYLES: Mapping[str, str] = {
    "A1111": "a1111",
    **dict.fromkeys(("Forge", "reForge", "Forge Classic", "Forge Neo"), "forge"),
    **{name: name.lower() for name in ("ComfyUI", "InvokeAI", "SwarmUI")},
}


@dataclass(frozen=True)
class Network:
    """A network that a picture was drawn with, as its file names it.

    kind: model, vae, lora, embedding, refiner or upscaler. name: without folders and the ending of a file.
    hash: as the file has it, "" if it has none. detail: how it was used, such as "0.8".
    """

    kind: str
    name: str
    hash: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Settings:
    """What made a picture, as far as its file says.

    program: who drew it, such as "A1111", "ComfyUI" or "jaxl"; "unknown" if the file has settings but no name.
    version: the program's own, "" if the file does not say.
    arguments: of `Pipeline.generate`. They have a `strength`, which needs an `image`, where the picture was drawn from
        another, which no file has. LoRAs, in `loras` or in tags of the prompt, may be lacking.
    networks: the model, LoRAs and the like that it was drawn with.
    refiner_at: where a refiner among them took over, a share of the noise levels; None if the file does not say.
    controls, image_prompts: what the file says of those, by the names of `Control` and `ImagePrompt`, without pictures.
    missing: what else it was made with, a line each: what it is, and what can be done.
    """

    program: str
    version: str
    arguments: Mapping[str, Any]
    networks: tuple[Network, ...] = ()
    controls: tuple[Mapping[str, Any], ...] = ()
    image_prompts: tuple[Mapping[str, Any], ...] = ()
    missing: tuple[str, ...] = ()
    refiner_at: float | None = None

    def lacking(self, has: Mapping[str, Collection[str]] | None = None) -> list[str]:
        """Return a line for each thing that the arguments do not bring, and what can be done.

        `has` are names or hashes of networks that are there, by their kind, and names of `controls` and `image_prompts`
        whose pictures are.
        """
        there = {kind: {*map(_plain, names)} for kind, names in (has or {}).items()}
        lines = []
        for each in self.networks:
            if not {_plain(each.name), _plain(each.hash)} & (there.get(each.kind, set()) - {""}):
                called, remedy = KINDS[each.kind]
                told = ", ".join(part for part in (each.detail, each.hash and f"hash {each.hash}") if part)
                lines.append(f"{called} {shown(each.name)}{f' ({told})' if told else ''}; {remedy}")
        lines += self.missing
        for kind, told in (("controls", self.controls), ("image_prompts", self.image_prompts)):
            for each in told:
                name, facts = shown(each.get("name")), {**each, "name": None}
                if _plain(name) not in there.get(kind, ()):
                    how = ", ".join(f"{key} {shown(value)}" for key, value in facts.items() if _is_plain(value))
                    lines.append(PICTURED[kind].format(name, f" ({how[:LONGEST]})" if how else ""))
        return lines


class Reading:
    """Puts `Settings` together from values of any kind; what cannot be used becomes a line, and nothing raises."""

    def __init__(self, program: str, version: object = ""):
        self.program = program
        self.version = shown(version)[:LONGEST] if isinstance(version, str | int | float) else ""
        self.arguments: dict[str, Any] = {}
        self.noise: str | None = None
        self.style = STYLES.get(program)
        self._networks: dict[tuple[str, str], Network] = {}
        self._lines: dict[str, None] = {}
        self.controls: list[Mapping[str, Any]] = []
        self.image_prompts: list[Mapping[str, Any]] = []
        self._refiner_at: float | None = None

    def miss(self, what: str, value: object = None, remedy: str = "") -> None:
        """Say that the arguments lack something."""
        line = what if value is None else f"{what}: {shown(value)}"
        self._lines[f"{line[:LONGEST]}{f'; {remedy}' if remedy else ''}"] = None

    def give(self, name: str, value: Any, label: str | None = None) -> None:
        """Set an argument that has been checked; one that `generate` does not have is missing."""
        if name in DrawOptions.__annotations__ or name == "prompt":
            self.arguments[name] = value
        else:
            self.miss(label or name, value)

    def text(self, name: str, value: object) -> None:
        """Set a prompt."""
        if isinstance(value, str) and len(value) <= LONGEST_PROMPT:
            self.give(name, whole(value))
        elif value is not None:
            self.miss(name, f"{len(value)} characters" if isinstance(value, str) else value)

    def number(
        self,
        name: str,
        value: object,
        kind: type[int] | type[float] = float,
        label: str | None = None,
        *,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> bool:
        """Set a number, unless it is None; return whether it is one of its kind and in its range."""
        if value is None:
            return False
        found = as_number(value, kind)
        if found is None or not least <= found <= most:
            self.miss(label or name, value)
            return False
        self.give(name, found, label)
        return True

    def seed(self, value: object, label: str = "seed") -> None:
        self.number("seed", value, int, label, least=0, most=MOST_SEED - 1)

    def steps(self, value: object, label: str = "steps") -> None:
        self.number("steps", value, int, label, least=1, most=MOST_STEPS)

    def size(self, width: object, height: object, label: str = "size") -> None:
        sides = [as_number(side, int) for side in (width, height)]
        if all(side is not None and 0 < side < MOST_SIDE for side in sides):
            self.arguments["width"], self.arguments["height"] = sides
        elif (width, height) != (None, None):
            self.miss(label, f"{shown(width)}x{shown(height)}")

    def size_in(self, text: object, label: str = "size") -> None:
        """Set the size that a text such as 1024x768 has."""
        sides = read_size(text) if isinstance(text, str) else None
        if sides is not None:
            self.size(*sides, label)
        elif text is not None:
            self.miss(label, text)

    def strength(self, value: object, label: str = "strength") -> None:
        """Set the share of the steps that was run from a picture, which is missing."""
        if self.number("strength", value, label=label, least=0, most=1):
            self.miss("the picture that it was drawn from", remedy="give it as `image`")

    def second_pass(self, hires: Hires) -> None:
        """Set the second pass, whose upscaler may be a network."""
        self.arguments["hires"] = hires
        if isinstance(hires.upscaler, str) and hires.upscaler not in WITHOUT_NETWORK:
            self.network("upscaler", hires.upscaler)

    def sampler(
        self, sampler: object, schedule: object = None, labels: Sequence[str] = ("sampler", "schedule")
    ) -> None:
        """Set the scheduler of names that any program may have for a sampler and for its noise levels.

        Where jaxl lacks the sampler nothing is set, and a line names the nearest; where it lacks the levels alone, they
        are those of the checkpoint.
        """
        if not isinstance(sampler, str) or sampler in NOTHING:
            if schedule is not None and schedule not in NOTHING:
                self.miss(labels[1], schedule)
            return
        try:
            name = find_name(sampler)
        except InputError as error:
            self.miss(labels[0], sampler, _offer(error))
            if schedule is not None:
                self.miss(labels[1], schedule)
            return
        if isinstance(schedule, str) and schedule:
            solver = SCHEDULERS[name].solver.name
            try:
                full = find_name(f"{solver} {schedule}")
            except InputError:
                full = None
            if full is None or SCHEDULERS[full].solver.name != solver:
                self.miss(labels[1], schedule, "the noise levels are the checkpoint's")
            else:
                name = full
        self.arguments["scheduler"] = name

    def network(self, kind: str, name: object, hash: object = "", detail: str = "") -> None:
        """Add a network, or what more is known of one."""
        if not isinstance(name, str) or name in NOTHING:
            return
        own = stem(name)
        before = self._networks.get((kind, own), Network(kind, own))
        told = shown(hash)[:64] if isinstance(hash, str) else ""
        self._networks[kind, own] = Network(kind, own, told or before.hash, detail or before.detail)

    def refiner(self, name: object, hash: object = "", at: object = None) -> None:
        """Add a refiner, with the share of the noise levels from which on it drew."""
        self._refiner_at = as_number(at, float)
        self.network("refiner", name, hash, "" if self._refiner_at is None else f"`refiner_at`={self._refiner_at:g}")

    def lora(self, name: object, unet: object = 1.0, text: object = None, hash: object = "") -> None:
        """Add a LoRA with its strengths: that of the text encoders is that of the U-Net by default."""
        strengths = [as_number(each, float) for each in (unet, unet if text is None else text)]
        if not isinstance(name, str) or name in NOTHING or None in strengths:
            if isinstance(name, str) and name not in NOTHING:
                self.miss(f"the LoRA {stem(name)}", unet)
            return
        first, second = strengths
        if first or second:
            loras = self.arguments.setdefault("loras", {})
            loras[stem(name)] = first if first == second else Strength(first or 0.0, second or 0.0)
            self.network("lora", name, hash, f"{first:g}" if first == second else f"{first:g}, texts {second:g}")

    def done(self) -> Settings:
        """Return the settings, in the style of the program that drew the picture."""
        if self.style is not None:
            self.arguments["style"] = self.style
        if self.noise is None and self.program != "jaxl" and "seed" in self.arguments:
            own = "jaxl's own makes another picture" if self.style is None else "it is drawn in float32"
            self.miss("the noise", remedy=f"the file does not say what drew it, and {own}")
        elif self.noise in SOURCES:
            self.arguments["noise"] = self.noise
        elif self.noise is not None:
            self.miss("the noise", self.noise, "jaxl cannot draw it; the picture will be another one")
        lines = list(self._lines)
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES} more"]
        return Settings(
            self.program,
            self.version,
            self.arguments,
            tuple(self._networks.values())[:MOST_LINES],
            tuple(self.controls[:MOST_LINES]),
            tuple(self.image_prompts[:MOST_LINES]),
            tuple(lines),
            self._refiner_at,
        )


def as_number(value: object, kind: type[int] | type[float]) -> Any:
    """Return a finite number, or one that a text has; None for all else."""
    if isinstance(value, str) and len(value) < 1000 and NUMBER.fullmatch(value.strip()):
        value = value.strip()
        value = int(value) if re.fullmatch(r"[+-]?[0-9]+", value) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        if kind is int:
            return int(value) if math.isfinite(value) and int(value) == value else None
        number = float(value)
    except (OverflowError, ValueError):
        # an int of many digits is an int nevertheless
        return value if kind is int and isinstance(value, int) else None
    return number if math.isfinite(number) else None


def stem(name: str) -> str:
    """Return the name of a file of weights without its folders and its ending."""
    name = re.split(r"[\\/]", name.strip())[-1]
    ending = next((each for each in WEIGHTS if name.lower().endswith(each)), "")
    return whole(name[: len(name) - len(ending)])[:255]


def shown(value: object) -> str:
    """Return a value in a line."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, int | float) else _brief(value)
    return whole(" ".join(text[: 2 * LONGEST].split()))[:LONGEST]


def whole(text: str) -> str:
    """Replace halves of surrogate pairs: JSON may have them, UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _brief(value: object) -> str:
    """Return what JSON has in few words; the repr of a huge value would take long."""
    if isinstance(value, list | tuple):
        return (
            "[" + ", ".join(shown(each) if isinstance(each, str | int | float) else "..." for each in value[:10]) + "]"
        )
    return "an object" if isinstance(value, dict) else str(value)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _offer(error: InputError) -> str:
    """Return what an error of a name offers instead, without the list of all."""
    return error.remedy.partition("known: ")[0].strip(" ;") or "jaxl has nothing like it"


def _plain(name: str) -> str:
    return stem(name).lower()
