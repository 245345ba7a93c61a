"""Every option of a server with its default: how its model is loaded, its engine, its HTTP, and what it allows.

`jaxl serve` and `jaxl.server.ray.application` take their defaults from here, and hand over these values.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxl.call.hires import MOST_SCALE
from jaxl.call.sizes import Size, check_size
from jaxl.config import Dtype, Split
from jaxl.errors import InputError

# which needs numpy, and the command's help does without
if TYPE_CHECKING:
    from jaxl.weights.inversions import Summary

MOST_NAME = 100
# what A1111 calls what enlarges pictures and is no network, in lower case
WITHOUT_NETWORK = ("none", "lanczos", "nearest")
# "auto" is the API's own: "nearest" for A1111's and for whoever names an alias, else "strict"
SizePolicy = Literal["auto", "nearest", "strict"]
# the variable with keys of clients, and commas between them
KEYS = "JAXL_API_KEYS"


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded: the arguments of `jaxl.backend.open_backend`.

    model: a hub id, a folder, a .safetensors file, or tiny. sizes: (width, height) of images, the first is the default;
        the model's own if there are none.
    slots: images in the making at once. batch_sizes: smaller batches that are compiled too.
    chunks: parts of 75 tokens that a prompt may have. dtype: auto is float32 on a CPU, else bfloat16.
    lanes: what requests may ask for besides, each in lanes of its own: pag, seg, freeu, cached, shaped, perp_neg,
        regions, seamless, tiled, unguided.
    lora_dir: a folder of LoRAs that requests may ask for. lora_rank: the sum of the ranks that an image may have, 128
        by default; without a folder, requests may ask for the model's own LoRAs.
    lora_partial: leave out what a LoRA has for layers that the model lacks.
    controlnets: names of ControlNets that requests may ask for, each with what it is loaded from.
    ip_adapters: the same for IP-Adapters. image_encoder: theirs, where none lies beside them.
    upscalers: names of networks that enlarge pictures, each with its file.
    hires: how many times larger the second passes may be that requests ask for.
    unet, vae, preview: models in place of the checkpoint's U-Net and autoencoder, and a tiny one for previews.
    embedding_dir: a folder with textual inversions for prompts.
    vae_tile: pixels of the tiles that images are decoded in. preset, prediction_type, precision: see
        `jaxl.from_pretrained`.
    split: how devices share pictures, see there; with "rows" one image is in the making at once by default.
    variant: of the weight files. revision: branch, tag or commit on the hub. local_files_only: use no network.
    """

    model: str = "tiny"
    sizes: tuple[Size, ...] = ()
    slots: int | None = None
    batch_sizes: tuple[int, ...] = ()
    chunks: int = 3
    lanes: tuple[str, ...] = ()
    lora_dir: str | None = None
    lora_rank: int | None = None
    lora_partial: bool = False
    controlnets: tuple[tuple[str, str], ...] = ()
    ip_adapters: tuple[tuple[str, str], ...] = ()
    image_encoder: str | None = None
    upscalers: tuple[tuple[str, str], ...] = ()
    hires: tuple[float, ...] = ()
    dtype: Dtype = "auto"
    unet: str | None = None
    vae: str | None = None
    vae_tile: int | None = None
    split: Split = "auto"
    preview: str | None = None
    embedding_dir: str | None = None
    preset: str | None = None
    prediction_type: str | None = None
    precision: str | None = None
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class ResidencyOptions:
    """Several models in one server: the arguments of `jaxl.residency.models.open_models`.

    models: the names of all that were named, the usual one first, each with what it is loaded from; none where the
        server has one model.
    model_dir: a folder of further ones, which may come and go.
    device_memory: bytes on each device for parameters of models; two thirds of what it has by default, or half of the
        machine's memory on a CPU. host_memory: bytes for those of models that had to leave; a quarter of the machine's
        by default, and none on a CPU.
    pin: the names of models that stay on the devices, the first by default.
    """

    models: tuple[tuple[str, str], ...] = ()
    model_dir: str | None = None
    device_memory: int | None = None
    host_memory: int | None = None
    pin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError for an option that needs several models, where there is one."""
        if not self.several:
            for name in ("device_memory", "host_memory", "pin"):
                if getattr(self, name):
                    raise InputError(name, getattr(self, name), "there is one model; give more, or `model_dir`")

    @property
    def several(self) -> bool:
        return len(self.models) > 1 or self.model_dir is not None


@dataclass(frozen=True)
class Loading:
    """What a server loads."""

    model: ModelOptions
    residency: ResidencyOptions = ResidencyOptions()

    def open(self, progress: Callable[[Any, int, int], None] | None = None, before: Any | None = None) -> Any:
        """Return the backend, loaded and compiled; `before` is the one that it comes in place of.

        Raises what `open_backend` or `open_models` does.
        """
        if not self.residency.several:
            from jaxl.backend import open_backend  # which imports jax: only where the devices are

            return open_backend(**vars(self.model), progress=progress)
        from jaxl.residency.models import open_models

        options = {name: value for name, value in vars(self.model).items() if name != "model"}
        return open_models(**vars(self.residency), **options, before=before, progress=progress)


@dataclass(frozen=True)
class EngineOptions:
    """What an `Engine` is made with.

    max_waiting: images that may wait; more are turned away. joins: requests begin while others are drawn.
    """

    max_waiting: int = 64
    joins: bool = True


@dataclass(frozen=True)
class HttpOptions:
    """Where the HTTP server listens, and how it treats connections.

    host: the address, 0.0.0.0 for every one of this machine. port: 0 is any that is free.
    max_connections: at once; requests on more are turned away. keep_alive: seconds that one stays open without any.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_connections: int = 500
    keep_alive: int = 75


@dataclass(frozen=True)
class Settings:
    """What the operator allows, and what the model says of itself.

    model: the public name; a path would tell strangers about the machine. aliases: other names that clients may use.
    sizes: (width, height) of the pictures that are drawn, those that are warmed; the first is the default.
    larger_sizes: those of second passes, none of which are drawn without any.
    size_policy: what becomes of other sizes; see `jaxl.server.sizes`.
    schedulers: the names that are offered. embeddings: textual inversions, also those that could not be loaded.
    controlnets, ip_adapters: the names of those that requests may ask for. upscalers: the same, each with its scale.
    scheduler, steps, guidance_scale: the model's own, as pictures report them.
    chunks: parts of 75 tokens that a prompt may have.
    api_keys: any of them opens the server; none is no check. keys: a file of more, see `jaxl.server.keys`.
    max_images: of one request. max_pixels: of a picture that a client sends. max_body: bytes. max_prompt: characters.
    deadline: seconds after which nobody waits for a request any more. drain_timeout: seconds that a stop may take.
    origins: further web pages that may call, as `jaxl.server.origins` writes them.
    root_path: under which a proxy has the server, such as /jaxl; "" is /.
    urls: answers may point to pictures, which are kept for a while.
    jobs: a folder for jobs, see `jaxl.server.jobs`. jobs_hours: for which their answers are kept. jobs_space: GiB of
    them all. webhook_allow: the beginnings of addresses that may be told of jobs.
    styles_file: prompt styles that A1111's API offers, as its web UI's styles.csv.
    log_prompts: texts of users in the log. mark: pictures say that a machine made them.
    c2pa_certificate, c2pa_key: PEM files to sign pictures with.
    filter: what looks at pictures before they leave, see `jaxl.server.filters`.
    ui: with the web page, at /. usd_per_hour: what the devices cost together, if that is known.
    """

    model: str = "tiny"
    aliases: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ((256, 256),)
    larger_sizes: tuple[Size, ...] = ()
    size_policy: SizePolicy = "auto"
    schedulers: tuple[str, ...] = ()
    embeddings: tuple[Summary, ...] = ()
    controlnets: tuple[str, ...] = ()
    ip_adapters: tuple[str, ...] = ()
    upscalers: tuple[tuple[str, int], ...] = ()
    scheduler: str = "euler"
    steps: int = 25
    guidance_scale: float = 5.0
    chunks: int = ModelOptions.chunks
    api_keys: tuple[str, ...] = ()
    keys: Path | None = None
    max_images: int = 10
    max_pixels: int = 4096 * 4096
    max_body: int = 32 * 2**20
    max_prompt: int = 10_000
    deadline: float = 600.0
    drain_timeout: float = 60.0
    origins: tuple[str, ...] = ()
    urls: bool = True
    root_path: str = ""
    jobs: Path | None = None
    jobs_hours: float = 24.0
    jobs_space: float = 4.0
    webhook_allow: tuple[str, ...] = ()
    styles_file: Path | None = None
    log_prompts: bool = False
    mark: bool = True
    c2pa_certificate: Path | None = None
    c2pa_key: Path | None = None
    filter: str | None = None
    ui: bool = False
    usd_per_hour: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever clients may call the model."""
        return tuple(dict.fromkeys((self.model, *self.aliases)))


def read_keys(given: Sequence[str] = ()) -> tuple[str, ...]:
    """The keys of clients: those given, and those in the environment. Raises InputError.

    A variable that is there and has none is a mistake: whoever set it did not mean to open the server to all.
    """
    text = os.environ.get(KEYS)
    found = [key.strip() for key in (text or "").split(",") if key.strip()]
    if text is not None and not found:
        raise InputError(KEYS, text, "there is no key in it; give one, or unset it for a server without keys")
    keys = (*given, *found)
    for key in keys:
        if re.fullmatch(r"[!-~]+", key) is None:
            raise InputError("api_key", "...", "one is empty or has characters that HTTP does not carry; use ASCII")
    return keys


def read_name(text: str, argument: str) -> str:
    """What clients are to call a model. Raises InputError, naming `argument`, for what does not fit into a line."""
    if not 0 < len(text.strip()) <= len(text) <= MOST_NAME or not text.isprintable():
        raise InputError(argument, text, f"give a name of 1 to {MOST_NAME} characters, such as dall-e-3")
    return text


def read_named(argument: str, texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return names of networks, each with what it is loaded from, of texts such as edges=canny.safetensors.

    Raises InputError, naming `argument`.
    """
    pairs = [text.partition("=") for text in texts]
    for name, mark, source in pairs:
        if not (name and mark and source):
            raise InputError(argument, f"{name}{mark}{source}", "give a name and a model: edges=canny.safetensors")
    return tuple((name, source) for name, _, source in pairs)


def read_upscalers(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return names of upscalers, each with its file, of texts such as 4x-UltraSharp.pth or sharp=4x-UltraSharp.pth.

    Raises InputError for a name that is taken.
    """
    pairs = [text.rpartition("=") for text in texts]
    found = [(name or Path(file).stem, file) for name, _, file in pairs]
    taken = {*WITHOUT_NETWORK}
    for name, file in found:
        if not name or name.lower() in taken:
            raise InputError("upscaler", file, f"the name {name!r} is taken; give another: NAME={file}")
        taken.add(name.lower())
    return tuple(found)


def read_models(texts: Sequence[str], name: str | None = None) -> tuple[tuple[str, str], ...]:
    """Return the names of models, each with what it is loaded from, of texts such as MODEL or NAME=MODEL.

    `name` is that of the first. Raises InputError for a name that cannot be one.
    """
    found: list[tuple[str, str]] = []
    for text in texts:
        own, mark, source = text.partition("=")
        if not mark or os.path.exists(text):
            own, source = public_name(text), text
        found.append((read_name(own, "model"), source))
    if name is not None and not found:
        raise InputError("name", name, "a folder's models are called as their files; give `model` too")
    if name is not None:
        found[0] = (read_name(name, "name"), found[0][1])
    return tuple(found)


def read_bytes(argument: str, text: str | None) -> int | None:
    """Return how many bytes a text such as 24GB, 24GiB or 800M stands for, or None for none. Raises InputError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]?)(i?)B?", text.strip(), re.I)
    if match is None:
        raise InputError(argument, text, "give bytes with a unit, such as 24GB or 24GiB")
    number, unit, binary = match.groups()
    return round(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


def read_scales(texts: Iterable[str]) -> tuple[float, ...]:
    """Return how many times larger second passes are to be, of texts such as 1.5. Raises InputError, naming `hires`."""
    try:
        scales = tuple(float(text) for text in texts)
    except ValueError:
        scales = (math.nan,)
    if not all(1 <= scale <= MOST_SCALE for scale in scales):
        remedy = f"give numbers from 1 to {MOST_SCALE:g} with commas between them, such as 1.5,2"
        raise InputError("hires", ",".join(texts), remedy)
    return scales


def read_sizes(texts: Iterable[str]) -> tuple[Size, ...]:
    """Return the sizes that a server is to draw, as width and height. Raises InputError."""
    return tuple(check_size("size", text, least=1) for text in texts)


def public_name(model: str) -> str:
    """What clients call a model that nobody has named: a hub's id, or the last part of a path as it was given."""
    if model.startswith(("/", ".", "~")) or os.path.exists(model):
        # without following links: what they point to is nobody's business
        return os.path.basename(os.path.abspath(model)).removesuffix(".safetensors") or "model"
    return model
