"""`jaxl serve`."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import warnings
import webbrowser
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxl.bench.prices import Price, price_of, read_prices
from jaxl.call.lanes import check_lanes
from jaxl.cli.options import (
    ControlNetOption,
    DtypeOption,
    EmbeddingDirOption,
    ImageEncoderOption,
    IPAdapterOption,
    LocalOption,
    LoraDirOption,
    LoraPartialOption,
    PrecisionOption,
    PredictionOption,
    PresetOption,
    PreviewVaeOption,
    RevisionOption,
    ServedSizesOption,
    SplitOption,
    UnetOption,
    VaeOption,
    VaeTileOption,
    VariantOption,
    read_count,
    read_counts,
)
from jaxl.cli.terminal import note, print_line, progress_bars, to_terminal
from jaxl.errors import InputError, PromptWarning
from jaxl.extras import install_command
from jaxl.server.settings import (
    EngineOptions,
    HttpOptions,
    Loading,
    ModelOptions,
    ResidencyOptions,
    Settings,
    SizePolicy,
    public_name,
    read_bytes,
    read_keys,
    read_models,
    read_name,
    read_named,
    read_scales,
    read_sizes,
    read_upscalers,
)

# what the extra installs; jax, and what imports it, is imported while the server listens
PACKAGES = ("uvicorn", "fastapi", "prometheus_client", "python_multipart")

log = logging.getLogger("jaxl.server")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A hub id, a folder, a .safetensors file, or tiny (embedded), which is the default; NAME=MODEL names "
            "it; repeatable, the first is drawn with where a request names none.",
        ),
    ] = None,
    model_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A folder of further models, files and folders, which may come and go."),
    ] = ResidencyOptions.model_dir,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="For parameters of several models on each device, such as 24GB."),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="For those of models that had to leave the devices, such as 64GiB."),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model that stays on the devices; the first if none is named; repeatable."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="What clients call the first model; by default, its id or file name.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that clients may use, such as dall-e-3; repeatable."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine.")
    ] = HttpOptions.host,
    port: Annotated[int, typer.Option(help="0 is any that is free.")] = HttpOptions.port,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Opens the server; repeatable. JAXL_API_KEYS, with commas, hides them from ps."
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Keys with names and limits, made by `jaxl keys add`; read anew when it changes."
        ),
    ] = None,
    size: ServedSizesOption = None,
    size_policy: Annotated[
        SizePolicy,
        typer.Option(
            help="Other sizes: nearest scales to them, strict refuses; auto is nearest for A1111's API and for aliases."
        ),
    ] = Settings.size_policy,
    slots: Annotated[
        int | None, typer.Option(show_default=False, help="Images in the making at once: 4, or one for each device.")
    ] = ModelOptions.slots,
    replicas: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            help="Processes that share this machine's devices, each with an engine; needs the extra ray.",
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Smaller batches too, for accelerators: fewer images take less time, and are the same to rounding.",
        ),
    ] = None,
    chunks: Annotated[int, typer.Option(help="Parts of 75 tokens that a prompt may have.")] = ModelOptions.chunks,
    lanes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="What requests may ask for besides, in batches of their own: pag, seg, freeu, cached, shaped, "
            "perp_neg, regions, seamless, tiled, unguided.",
        ),
    ] = None,
    lora_dir: LoraDirOption = ModelOptions.lora_dir,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The ranks that an image's LoRAs may have together, 128 with --lora-dir; more takes more memory. "
            "Without a folder, requests may ask for the model's own LoRAs.",
        ),
    ] = ModelOptions.lora_rank,
    lora_partial: LoraPartialOption = ModelOptions.lora_partial,
    controlnet: ControlNetOption = None,
    ip_adapter: IPAdapterOption = None,
    image_encoder: ImageEncoderOption = ModelOptions.image_encoder,
    upscaler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A network that enlarges pictures, .safetensors or .pth; NAME=FILE names it; repeatable.",
        ),
    ] = None,
    hires: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE,...",
            help="Second passes that requests may ask for: images of each size, so many times as large, such as 1.5,2.",
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(help="Images that may wait; more are turned away with 429.")
    ] = EngineOptions.max_waiting,
    max_images: Annotated[int, typer.Option(help="Of one request.")] = Settings.max_images,
    deadline: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = Settings.deadline,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running requests have when the server stops.")
    ] = Settings.drain_timeout,
    max_connections: Annotated[
        int, typer.Option(help="Connections at once; requests on more are turned away with 503.")
    ] = HttpOptions.max_connections,
    keep_alive: Annotated[
        int, typer.Option(help="Seconds that a connection stays open without a request; more than a proxy's own.")
    ] = HttpOptions.keep_alive,
    static: Annotated[
        bool, typer.Option("--static", help="Begin no request before the running batch is done, for comparison.")
    ] = not EngineOptions.joins,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web page that may call, such as https://example.org or tauri://localhost; repeatable.",
        ),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Under which a proxy has the server, such as /jaxl.")
    ] = Settings.root_path,
    ui: Annotated[bool, typer.Option("--ui", help="With the web page, at /.")] = Settings.ui,
    open_page: Annotated[bool, typer.Option("--open", help="Open the web page in this machine's browser.")] = False,
    prices: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What devices cost, for the page; as `jaxl bench --prices` takes."),
    ] = None,
    no_urls: Annotated[
        bool, typer.Option("--no-urls", help="Keep no pictures for an hour, so that answers cannot point to them.")
    ] = not Settings.urls,
    jobs: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where requests with Prefer: respond-async are kept, and their answers."),
    ] = None,
    jobs_hours: Annotated[float, typer.Option(help="For which answers of jobs are kept.")] = Settings.jobs_hours,
    jobs_space: Annotated[float, typer.Option(help="GiB that jobs may take together.")] = Settings.jobs_space,
    webhook_allow: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="The beginning of addresses that may be told of jobs; repeatable."),
    ] = None,
    styles_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A1111's styles.csv: prompt styles that clients of its API may name."),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts to the log.")
    ] = Settings.log_prompts,
    no_mark: Annotated[
        bool, typer.Option("--no-mark", help="Do not mark pictures as machine-made.")
    ] = not Settings.mark,
    c2pa_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Sign pictures: PEM certificate, and its chain.")
    ] = None,
    c2pa_key: Annotated[str | None, typer.Option(metavar="FILE", help="The certificate's private key.")] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What sees pictures before they leave: module:function, file.py:function or its name."
        ),
    ] = Settings.filter,
    unet: UnetOption = ModelOptions.unet,
    vae: VaeOption = ModelOptions.vae,
    vae_tile: VaeTileOption = ModelOptions.vae_tile,
    split: SplitOption = ModelOptions.split,
    preview_vae: PreviewVaeOption = ModelOptions.preview,
    embedding_dir: EmbeddingDirOption = ModelOptions.embedding_dir,
    preset: PresetOption = ModelOptions.preset,
    prediction_type: PredictionOption = ModelOptions.prediction_type,
    precision: PrecisionOption = ModelOptions.precision,
    dtype: DtypeOption = ModelOptions.dtype,
    variant: VariantOption = ModelOptions.variant,
    revision: RevisionOption = ModelOptions.revision,
    local_files_only: LocalOption = ModelOptions.local_files_only,
) -> None:
    """Draw for others over HTTP, as OpenAI's, AUTOMATIC1111's and Hugging Face's servers do.

    \b
    jaxl serve --model ./sdxl.safetensors --size 1024x1024 --size 832x1216
    curl http://127.0.0.1:8000/v1/images/generations -H "Content-Type: application/json" -d '{"prompt": "a castle"}'

    The address is printed when the server listens; /health/ready answers 200 once the model is loaded and compiled.
    SIGTERM or Ctrl-C lets running requests end; a second one does not. SIGHUP loads the model's files anew.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise typer.TyperException(f"{missing[0]} is missing, which serving needs; {install_command('serve')}")
    if ui and find_spec("gradio") is None:
        raise typer.TyperException(f"gradio is missing, which the web page needs; {install_command('demo')}")
    if replicas is not None and find_spec("ray") is None:
        raise typer.TyperException(f"ray is missing, which replicas need; {install_command('ray')}")

    from jaxl.server import logs
    from jaxl.server.app import Front
    from jaxl.server.filters import load as load_filter
    from jaxl.server.jobs.store import JobStore
    from jaxl.server.jobs.webhooks import read_allowed
    from jaxl.server.keys import KeyRing
    from jaxl.server.origins import read_origin
    from jaxl.server.paths import read_root
    from jaxl.server.pictures import Signer
    from jaxl.server.service import LEAST_DEADLINE
    from jaxl.server.supervisor import Supervisor, http_server, listen
    from jaxl.text.prompt_styles import read_styles

    for argument, number in (
        ("max_waiting", max_waiting),
        ("max_images", max_images),
        ("max_connections", max_connections),
        ("keep_alive", keep_alive),
        ("slots", slots),
        ("replicas", replicas),
        ("lora_rank", lora_rank),
    ):
        if number is not None:
            read_count(argument, number)
    for argument, seconds, least in (("deadline", deadline, LEAST_DEADLINE), ("drain_timeout", drain_timeout, 0.0)):
        if not least <= seconds < float("inf"):
            raise InputError(argument, seconds, f"give seconds, at least {least:g}")
    for argument, number in (("jobs_hours", jobs_hours), ("jobs_space", jobs_space)):
        if not 0 < number < float("inf"):
            raise InputError(argument, number, "give a number above 0")
    if webhook_allow and jobs is None:
        raise InputError("webhook_allow", webhook_allow[0], "nothing is told but of jobs; give --jobs DIR too")
    if (c2pa_cert is None) != (c2pa_key is None):
        missing = "c2pa_key" if c2pa_key is None else "c2pa_cert"
        raise InputError(missing, None, "signing needs --c2pa-cert and --c2pa-key; give both")
    models = read_models(model or (() if model_dir else (ModelOptions.model,)), name)
    # a folder's first is known when that was looked at
    first, source = models[0] if models else (public_name(model_dir or ""), ModelOptions.model)
    residency = ResidencyOptions(
        models,
        model_dir,
        read_bytes("device_memory", device_memory),
        read_bytes("host_memory", host_memory),
        tuple(pin or ()),
    )
    options = ModelOptions(
        source,
        sizes=read_sizes(size or ()),
        slots=slots,
        batch_sizes=() if batch_sizes is None else tuple(read_counts("batch_sizes", batch_sizes)),
        chunks=read_count("chunks", chunks),
        lanes=check_lanes(() if lanes is None else lanes.split(",")),
        lora_dir=lora_dir,
        lora_rank=lora_rank,
        lora_partial=lora_partial,
        controlnets=read_named("controlnet", controlnet or ()),
        ip_adapters=read_named("ip_adapter", ip_adapter or ()),
        image_encoder=image_encoder,
        upscalers=read_upscalers(upscaler or ()),
        hires=read_scales(() if hires is None else hires.split(",")),
        dtype=dtype,
        unet=unet,
        vae=vae,
        vae_tile=vae_tile,
        split=split,
        preview=preview_vae,
        embedding_dir=embedding_dir,
        preset=preset,
        prediction_type=prediction_type,
        precision=precision,
        variant=variant,
        revision=revision,
        local_files_only=local_files_only,
    )
    settings = Settings(
        model=first,
        aliases=tuple(read_name(text, "alias") for text in alias or ()),
        sizes=options.sizes,
        size_policy=size_policy,
        api_keys=read_keys(api_key or ()),
        keys=None if keys is None else Path(keys),
        max_images=max_images,
        deadline=deadline,
        drain_timeout=drain_timeout,
        origins=tuple(read_origin(text) for text in origin or ()),
        root_path=read_root(root_path),
        urls=not no_urls,
        jobs=None if jobs is None else Path(jobs),
        jobs_hours=jobs_hours,
        jobs_space=jobs_space,
        webhook_allow=tuple(read_allowed(text) for text in webhook_allow or ()),
        styles_file=None if styles_file is None else Path(styles_file),
        log_prompts=log_prompts,
        mark=not no_mark,
        c2pa_certificate=None if c2pa_cert is None else Path(c2pa_cert),
        c2pa_key=None if c2pa_key is None else Path(c2pa_key),
        filter=filter,
        ui=ui,
    )
    http = HttpOptions(host, port, max_connections, keep_alive)
    if open_page and not ui:
        raise InputError("open", True, "there is no page to open; give --ui too")
    known_prices = read_prices() if prices is None else read_prices(Path(prices))
    # so that mistakes are told before anything is loaded
    if settings.c2pa_certificate is not None and settings.c2pa_key is not None:
        Signer(settings.c2pa_certificate, settings.c2pa_key)
    KeyRing(settings.api_keys, settings.keys)
    if filter is not None:
        load_filter(filter)
    if settings.styles_file is not None:
        read_styles(settings.styles_file)
    if settings.jobs is not None:
        JobStore(settings.jobs, settings.jobs_space).close()
    if not log_prompts:
        warnings.simplefilter("ignore", PromptWarning)  # which may quote the prompt
    with closing(listen(http)) as listener:
        if to_terminal():
            logs.configure()
        else:
            logs.take_over()
        front = Front(ui, settings.root_path)
        make = Supervisor
        if replicas is not None:
            from jaxl.server.ray.supervisor import ReplicaSupervisor

            make = partial(ReplicaSupervisor, count=replicas)
        supervisor = make(
            server=http_server(front, http),
            listener=listener,
            front=front,
            load=partial(load, Loading(options, residency)),
            settings=settings,
            engine_options=EngineOptions(max_waiting, joins=not static),
            announce=lambda: announce(listener, settings, open_page),
            say=say,
            usd_per_hour=partial(usd_per_hour, known_prices),
        )
        supervisor.run()


def load(loading: Loading, before: Any | None = None) -> Any:
    """Return the backend of what is loaded, in place of the one before, and show how far it is."""
    with progress_bars(to_terminal()) as progress:
        return loading.open(progress, before)


def announce(listener: socket.socket, settings: Settings, open_page: bool) -> None:
    """Tell where the server is, and what the operator should know of who reaches it."""
    address, port = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    print_line(url)
    if open_page and has_screen():
        threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()
    if not settings.api_keys and settings.keys is None and not ip_address(address.partition("%")[0]).is_loopback:
        warn(f"whoever reaches {address} may draw; --api-key asks for a key")
    if "null" in settings.origins:
        warn("any web page can call as null; --origin null lets them all")


def usd_per_hour(prices: Sequence[Price], kind: str, count: int) -> float | None:
    """Return what so many chips of a kind cost together, or None if their price is not known."""
    price = price_of(kind, prices)
    return None if price is None else price.usd_per_chip_hour * count


def has_screen() -> bool:
    """Whether a browser would have a window; one that runs in the terminal would take it away."""
    return sys.platform != "linux" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def say(line: str) -> None:
    """Tell a person at a terminal, or else the log."""
    if to_terminal():
        note(line)
    else:
        log.info(line)


def warn(line: str) -> None:
    """The same for what the operator should look into."""
    if to_terminal():
        note(f"warning: {line}")
    else:
        log.warning(line)
