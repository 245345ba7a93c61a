"""What `serve run jaxl.server.ray:app` runs, and a RayService: its arguments and the application made of them."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxl.errors import InputError
from jaxl.server.origins import read_origin
from jaxl.server.paths import read_root
from jaxl.server.ray.deployment import replicas, with_ingress
from jaxl.server.ray.scale import Scale
from jaxl.server.settings import EngineOptions, Settings, SizePolicy, public_name, read_name


class Arguments(BaseModel):
    """`serve run jaxl.server.ray:app model=... size=1024x1024,832x1216`, or `args` of an application in a config file.

    They mean what the options of `jaxl serve` do. Keys of clients are in the environment, as JAXL_API_KEYS.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "tiny"
    name: str | None = Field(None, description="What clients call the model.")
    alias: str = Field("", description="Other names that clients may use, with commas between several.")
    size: str = Field("", description="WIDTHxHEIGHT; with commas between several, the first is the default.")
    size_policy: SizePolicy = "auto"
    slots: int | None = Field(None, ge=1)
    chunks: int = Field(3, ge=1)
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    unet: str | None = None
    vae: str | None = None
    vae_tile: int | None = None
    preview_vae: str | None = None
    preset: str | None = None
    prediction_type: str | None = None
    precision: str | None = None
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    max_waiting: int = Field(64, ge=1)
    max_images: int = Field(10, ge=1)
    deadline: float = Field(600.0, ge=1, allow_inf_nan=False)
    drain_timeout: float = Field(60.0, ge=0, allow_inf_nan=False)
    origin: str = Field("", description="Web pages that may call, with commas between several.")
    root_path: str = Field("", description="Where a proxy has the server, if it takes that or more off paths.")
    urls: bool = True
    log_prompts: bool = False
    mark: bool = True
    replicas: int = Field(1, ge=0, description="To begin with, and always unless `least` and `most` differ.")
    least: int | None = Field(None, ge=0)
    most: int | None = Field(None, ge=1)
    images: float = Field(4.0, gt=0, description="That a replica is to have on average, waiting or in the making.")
    upscale_delay: float = Field(10.0, ge=0)
    downscale_delay: float = Field(300.0, ge=0)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    tpus: int = Field(0, ge=0)


def app(arguments: dict[str, Any]) -> Any:
    """The application; see `Arguments`. Raises pydantic's ValidationError, and InputError."""
    given = Arguments.model_validate(arguments)
    sizes = tuple(_size(text) for text in given.size.split(",") if text)
    options = {
        "sizes": sizes,
        "preview": given.preview_vae,
        **given.model_dump(
            include={
                "slots",
                "chunks",
                "dtype",
                "unet",
                "vae",
                "vae_tile",
                "preset",
                "prediction_type",
                "precision",
                "variant",
                "revision",
                "local_files_only",
            }
        ),
    }
    settings = Settings(
        model=public_name(given.model) if given.name is None else read_name(given.name, "name"),
        aliases=tuple(read_name(text, "alias") for text in given.alias.split(",") if text),
        sizes=sizes,
        origins=tuple(read_origin(text) for text in given.origin.split(",") if text),
        root_path=read_root(given.root_path),
        **given.model_dump(
            include={"max_images", "deadline", "drain_timeout", "size_policy", "urls", "log_prompts", "mark"}
        ),
    )
    scale = Scale(
        least=given.replicas if given.least is None else given.least,
        most=given.replicas if given.most is None else given.most,
        **given.model_dump(include={"replicas", "images", "upscale_delay", "downscale_delay", "cpus", "gpus", "tpus"}),
    )
    load = partial(open_model, given.model, options)
    engine_options = EngineOptions(given.max_waiting)
    return with_ingress(replicas(load, scale, engine_options, settings), settings, given.max_waiting)


def open_model(model: str, options: dict[str, Any]) -> Any:
    """The backend of a replica, in its process."""
    from jaxl.backend import open_backend  # which imports jax

    return open_backend(model, **options)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if found is None:
        raise InputError("size", text, "give WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(found[1]), int(found[2])
