"""The application that `serve run jaxl.server.ray:app` or a RayService runs, and its arguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jaxl.call.lanes import check_lanes
from jaxl.config import Dtype, Split
from jaxl.errors import InputError
from jaxl.server.origins import read_origin
from jaxl.server.paths import read_root
from jaxl.server.ray.deployment import replicas, with_ingress
from jaxl.server.ray.scale import Scale
from jaxl.server.service import LEAST_DEADLINE
from jaxl.server.settings import (
    EngineOptions,
    Loading,
    ModelOptions,
    ResidencyOptions,
    Settings,
    SizePolicy,
    public_name,
    read_bytes,
    read_models,
    read_name,
    read_named,
    read_scales,
    read_sizes,
    read_upscalers,
)

T = TypeVar("T")

JOBS = {"jobs", "jobs_hours", "jobs_space", "webhook_allow"}


class Arguments(BaseModel):
    """`serve run jaxl.server.ray:app model=... size=1024x1024,832x1216`, or `args` of an application in a config file.

    They mean what the options of `jaxl serve` do. Keys of clients are in the environment, as JAXL_API_KEYS, or in the
    file `keys`, which lies where the ingress runs.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(ModelOptions.model, description="MODEL or NAME=MODEL, with commas between several.")
    model_dir: str | None = ResidencyOptions.model_dir
    device_memory: str | None = Field(None, description="Bytes of each replica's devices for several models: 24GB.")
    host_memory: str | None = Field(None, description="Bytes of each replica's host memory for those that left.")
    pin: str = Field("", description="Names of models that stay on the devices, with commas between several.")
    name: str | None = Field(None, description="What clients call the model.")
    keys: Path | None = Settings.keys
    alias: str = Field("", description="Other names that clients may use, with commas between several.")
    size: str = Field("", description="WIDTHxHEIGHT; with commas between several, the first is the default.")
    size_policy: SizePolicy = Settings.size_policy
    slots: int | None = Field(ModelOptions.slots, ge=1)
    chunks: int = Field(ModelOptions.chunks, ge=1)
    lanes: str = Field("", description="What requests may ask for besides, with commas between several.")
    lora_dir: str | None = ModelOptions.lora_dir
    lora_rank: int | None = Field(ModelOptions.lora_rank, ge=1)
    lora_partial: bool = ModelOptions.lora_partial
    controlnet: str = Field("", description="NAME=MODEL of each ControlNet, with commas between several.")
    ip_adapter: str = Field("", description="NAME=FILE of each IP-Adapter, with commas between several.")
    image_encoder: str | None = ModelOptions.image_encoder
    upscaler: str = Field("", description="FILE or NAME=FILE of each upscaler, with commas between several.")
    hires: str = Field("", description="How many times larger second passes may be, with commas between several.")
    dtype: Dtype = ModelOptions.dtype
    unet: str | None = ModelOptions.unet
    vae: str | None = ModelOptions.vae
    vae_tile: int | None = ModelOptions.vae_tile
    split: Split = ModelOptions.split
    preview_vae: str | None = ModelOptions.preview
    embedding_dir: str | None = ModelOptions.embedding_dir
    preset: str | None = ModelOptions.preset
    prediction_type: str | None = ModelOptions.prediction_type
    precision: str | None = ModelOptions.precision
    variant: str | None = ModelOptions.variant
    revision: str | None = ModelOptions.revision
    local_files_only: bool = ModelOptions.local_files_only
    max_waiting: int = Field(EngineOptions.max_waiting, ge=1)
    max_images: int = Field(Settings.max_images, ge=1)
    deadline: float = Field(Settings.deadline, ge=LEAST_DEADLINE, allow_inf_nan=False)
    drain_timeout: float = Field(Settings.drain_timeout, ge=0, allow_inf_nan=False)
    origin: str = Field("", description="Web pages that may call, with commas between several.")
    root_path: str = Field(
        Settings.root_path, description="Where a proxy has the server, if it takes that or more off paths."
    )
    urls: bool = Settings.urls
    styles_file: Path | None = Settings.styles_file
    log_prompts: bool = Settings.log_prompts
    mark: bool = Settings.mark
    filter: str | None = Field(Settings.filter, description="A name that can be imported where the ingress runs.")
    replicas: int = Field(
        Scale.replicas, ge=0, description="To begin with, and always unless `least` and `most` differ."
    )
    least: int | None = Field(None, ge=0)
    most: int | None = Field(None, ge=1)
    images: float = Field(
        Scale.images, gt=0, description="That a replica is to have on average, waiting or in the making."
    )
    upscale_delay: float = Field(Scale.upscale_delay, ge=0)
    downscale_delay: float = Field(Scale.downscale_delay, ge=0)
    cpus: float = Field(Scale.cpus, ge=0)
    gpus: float = Field(Scale.gpus, ge=0)
    tpus: int = Field(Scale.tpus, ge=0)


def app(arguments: dict[str, Any]) -> Any:
    """Return the application; see `Arguments`. Raises pydantic's ValidationError, and InputError."""
    for name in sorted(JOBS & arguments.keys()):
        remedy = "Ray may move what would keep jobs to another disk; leave it out: `jaxl serve --replicas` has jobs"
        raise InputError(name, arguments[name], remedy)
    given = Arguments.model_validate(arguments)
    sizes = read_sizes(_several(given.size))
    models = read_models(_models(given), given.name)
    first, source = models[0] if models else (public_name(given.model_dir or ""), ModelOptions.model)
    model = _part(
        given,
        ModelOptions,
        model=source,
        sizes=sizes,
        lanes=check_lanes(_several(given.lanes)),
        preview=given.preview_vae,
        controlnets=read_named("controlnet", _several(given.controlnet)),
        ip_adapters=read_named("ip_adapter", _several(given.ip_adapter)),
        upscalers=read_upscalers(_several(given.upscaler)),
        hires=read_scales(_several(given.hires)),
    )
    settings = _part(
        given,
        Settings,
        model=first,
        aliases=tuple(read_name(text, "alias") for text in _several(given.alias)),
        sizes=sizes,
        origins=tuple(read_origin(text) for text in _several(given.origin)),
        root_path=read_root(given.root_path),
    )
    least, most = (given.replicas if number is None else number for number in (given.least, given.most))
    scale = _part(given, Scale, least=least, most=most)
    residency = ResidencyOptions(
        models,
        given.model_dir,
        read_bytes("device_memory", given.device_memory),
        read_bytes("host_memory", given.host_memory),
        tuple(_several(given.pin)),
    )
    loading = Loading(model, residency)
    return with_ingress(
        replicas(loading.open, scale, _part(given, EngineOptions), settings), settings, given.max_waiting
    )


def _part(given: Arguments, kind: type[T], **read: Any) -> T:
    """Return the arguments that a kind of options has by the same names, and what is read from others."""
    names = Arguments.model_fields.keys() & kind.__annotations__.keys() - read.keys()
    return kind(**{name: getattr(given, name) for name in names}, **read)


def _models(given: Arguments) -> list[str]:
    """Return the models that are named: none of a folder's, and the usual one only where there is no folder."""
    usual = given.model == ModelOptions.model and given.model_dir is not None
    return [] if usual else [given.model] if os.path.exists(given.model) else _several(given.model)


def _several(text: str) -> list[str]:
    """Return what commas separate."""
    return [each for each in text.split(",") if each]
