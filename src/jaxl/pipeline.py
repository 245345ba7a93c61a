"""From text to pictures: the public way in.

pipe, params = jaxl.from_pretrained("tiny")
result = pipe.generate(params, "a red apple on a blue background, flat style", seed=7, num_images=4)
result.images[0].save("apple.png")
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from jaxl import presets
from jaxl.call import arguments
from jaxl.call.detail import check_parts, detail_options, laid_over
from jaxl.call.hires import WITHOUT_NETWORK
from jaxl.call.images import read_image
from jaxl.call.inputs import Encoder, Inputs
from jaxl.call.lexicon import Lexicon
from jaxl.call.loras import adapter_set, read_loras
from jaxl.call.options import REFINER_AT, DrawOptions, LoadOptions, Options
from jaxl.call.plan import Devices, Plan, make_plan
from jaxl.call.prompts import open_tokenizers
from jaxl.call.refining import Make, check_refiner, plan_refined
from jaxl.call.row_noise import DrawnAhead, calls
from jaxl.call.second_pass import plan_second_pass
from jaxl.call.starts import Picture
from jaxl.call.tiles import tiles_for
from jaxl.call.trials import Trials
from jaxl.config import Split
from jaxl.diffusion.loop import Slots
from jaxl.errors import InputError, NonFiniteError, nearest
from jaxl.kernels import Kernels
from jaxl.nn.layers import Shapes
from jaxl.run.adapted import AdaptedNetworks
from jaxl.run.bucket import Bucket, Conditioning
from jaxl.run.controls import ControlNet, ControlNets, parameter_shapes
from jaxl.run.embeddings import Embeddings
from jaxl.run.image_prompts import CONTEXT, ENCODER, IPAdapter, context_shapes, encoder_shapes
from jaxl.run.model import Model, read_dtype
from jaxl.run.programs import (
    ADVANCE,
    DECODE,
    ENCODE_IMAGE,
    OBSERVE,
    PREVIEW,
    PROGRAMS,
    START,
    Programs,
    of_pictures,
    shared_programs,
)
from jaxl.run.sharding import gathered, make_mesh, on_host, own_images, place_parameters
from jaxl.run.tiles import Tiles
from jaxl.run.upscaler import Upscaler
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.adapters.adapter import Adapter, read_adapter
from jaxl.weights.adapters.changes import NETWORKS
from jaxl.weights.adapters.combined import AdapterSet
from jaxl.weights.adapters.library import Library, check_tag_name
from jaxl.weights.adapters.source import open_adapter
from jaxl.weights.adapters.strength import Strength
from jaxl.weights.checkpoint import Checkpoint, first_broken
from jaxl.weights.control_lora import Change
from jaxl.weights.controls import COMPONENT as CONTROLNET
from jaxl.weights.entries import FILE_DTYPES, Entries, entries_of_checkpoint, entries_of_params
from jaxl.weights.folder import TOKENIZERS
from jaxl.weights.inversions import Summary, check_name, read_folder, read_inversions
from jaxl.weights.ip_adapter import open_ip_adapter
from jaxl.weights.layout import flatten
from jaxl.weights.params import read_params
from jaxl.weights.quantise import (
    PROMPTS,
    Precision,
    check_prompts,
    layers,
    quantise_params,
    quantised_shapes,
    read_precision,
    read_scales,
    scales_file,
    tried,
    tried_shapes,
    with_rounded,
    write_scales,
)
from jaxl.weights.save import is_single_file, save_folder
from jaxl.weights.sensitivity import (
    Choice,
    choice_file,
    fewest,
    groups,
    in_order,
    read_choice,
    share,
    write_choice,
)
from jaxl.weights.single_file_writer import refused, save_single_file
from jaxl.weights.source import open_control, own_controlnets, own_loras
from jaxl.weights.winograd import with_winograd_shapes

Params = dict[str, Any]
ShowPreview = Callable[[int, int, np.ndarray], None]
ShowProgress = Callable[[Literal["load", "calibrate", "compile", "generate", "upscale", "write"], int, int], None]
Callback = Callable[[int, int, np.ndarray], bool | None]
Decoded = tuple[jax.Array, jax.Array, jax.Array]  # floats, bytes, whether all is finite
Output = Literal["pil", "numpy", "latents"]

log = logging.getLogger(__name__)


class Shown(TypedDict):
    """Who is told of a call while it runs."""

    callback: Callback | None
    preview: ShowPreview | None
    progress: ShowProgress | None


class Quantised(NamedTuple):
    """The precision of a pipeline, the prompts that its scales are measured on and the file that keeps them, and which
    layers were chosen to stay exact, if it has a distance and that was measured before.
    """

    precision: Precision
    prompts: list[str]
    scales_file: Path
    choice: Choice | None = None

    @property
    def chosen(self) -> Precision | None:
        """The precision with the layers that stay exact; None where they are not known yet."""
        if self.choice is None:
            return self.precision if self.precision.decibels is None else None
        return replace(self.precision, exact=frozenset(self.choice.exact))

    @property
    def measured(self) -> bool:
        """Whether loading finds all that is measured of the checkpoint."""
        return self.chosen is not None and self.scales_file.exists()

    @property
    def choice_file(self) -> Path:
        return choice_file(self.scales_file, self.precision.name)


@dataclass(frozen=True)
class Result:
    """What one call of `generate` made.

    `images`: PIL images, or one float32 array [B, H, W, 3] in 0..1 (`output="numpy"`), or an empty list (`"latents"`).
    `latents`: float32 [B, H/8, W/8, 4], as the last row left them. `seeds`: one per image. `scheduler`: its full name.
    `steps`: calls of the network, of which some schedulers make two a step; less if the callback stopped. `timings`:
    seconds of `compile`, `text`, `picture`, `denoise`, `decode` and `total`. On several hosts (`run.hosts`) images,
    latents and seeds are those of this host's devices, of which there may be none.
    """

    images: list[Image.Image] | np.ndarray
    latents: np.ndarray
    seeds: list[int]
    scheduler: str
    steps: int
    timings: dict[str, float]


class Pipeline:
    """A loaded checkpoint without its parameters, which every call is given: see `from_pretrained`."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions):
        """Make the programs and tokenizers of a checkpoint that was opened. Raises InputError and CheckpointError."""
        mesh = options.mesh or make_mesh()
        if options.shard_params and mesh.is_multi_process:
            raise InputError("shard_params", True, "each host needs all parameters; leave it out with several")
        device = mesh.devices.flat[0]
        kernels = options.kernels or Kernels.of_device(device)
        if options.shard_params or mesh.is_multi_process:  # parameters are gathered once; nothing goes to other hosts
            kernels = replace(kernels, evaluations="together")
        self.checkpoint = checkpoint
        self.model = Model.from_configs(checkpoint.configs, kernels)
        self.mesh = mesh
        self.dtype = read_dtype("dtype", options.dtype, jnp.float32 if device.platform == "cpu" else jnp.bfloat16)
        own = presets.preset_by_name(checkpoint.source) or self.model.preset
        # a U-Net on its own knows best how it wants to be sampled
        self.preset = presets.choose_preset(options.preset, checkpoint.source_of("unet"), own)
        predicted = self.model.scheduler.noise.prediction_type
        log.info("preset %s; the network predicts %s, by %s", self.preset, predicted, checkpoint.predicts_by)
        sizes = [arguments.whole_number("batch_sizes", size, least=1) for size in options.batch_sizes]
        if options.split not in get_args(Split):
            raise InputError("split", options.split, f"give one of {', '.join(get_args(Split))}")
        split = None if options.shard_params else options.split
        self.devices = Devices(mesh.size, sizes, split)
        of_vae = read_dtype("vae_dtype", options.vae_dtype or "auto", self.model.vae_dtype(self.dtype))
        shapes = self.model.shapes(self.dtype, of_vae)
        if options.vae_tile is not None:
            arguments.image_size("vae_tile", options.vae_tile, 0, self.model.vae.factor)

        def programs(unet: Shapes) -> Programs:
            own = {**shapes, "unet": with_winograd_shapes(unet) if kernels.conv == "winograd" else unet}
            placed = place_parameters(own, mesh, split=options.shard_params)
            return shared_programs(self.model, mesh, placed, options.vae_tile, options.shard_params, split)

        self.tokenizers = open_tokenizers(checkpoint, self.model)
        self.lexicon = Lexicon.of(self.model, self.tokenizers)
        self.embeddings = Embeddings({})
        own_folders = own_loras(checkpoint.source)
        self.loras = Library(
            lambda name, file, **how: read_adapter(name, file, self.model.shapes(), **how), own_folders
        )
        self.controls = ControlNets(own_controlnets(checkpoint.source), lambda name: self.add_control(name, name))
        self.ip_adapters: dict[str, IPAdapter] = {}
        self.upscalers: dict[str, Upscaler] = {}
        self._networks: AdaptedNetworks | None = None
        self._programs_of, self._unet = programs, shapes["unet"]
        self.exact = self.programs = programs(shapes["unet"])
        self.quantised = None
        if options.precision is not None:
            prompts = check_prompts(PROMPTS if options.calibration is None else options.calibration)
            precision = read_precision(options.precision, device.platform)
            self.quantised = Quantised(precision, prompts, scales_file(checkpoint, prompts))
            if precision.decibels is not None:
                choice = read_choice(self.quantised.choice_file, shapes["unet"])
                self.quantised = self.quantised._replace(choice=choice)
            if (chosen := self.quantised.chosen) is not None:
                self.programs = programs(quantised_shapes(shapes["unet"], chosen, checkpoint.tensors["unet"]))

    def load_params(self, progress: ShowProgress | None = None) -> Params:
        """Read, cast and place the checkpoint's tensors, one at a time; with a `precision`, quantise them then.

        The scales of the inputs are those of its file, or are measured and written there; so are the layers that stay
        exact, if it has a distance. Until those are known, the programs are those of exact parameters.
        """
        tell = _telling(progress)
        if self.quantised is None:
            return read_params(self.checkpoint, self.exact.shapes, tell)
        _, prompts, file, _ = self.quantised
        largest = read_scales(file, layers(self.exact.shapes["unet"]))
        params = read_params(self.checkpoint, self.exact.shapes, tell)
        # several hosts draw together, so all measure if one has to
        if not gathered(largest is not None, self.mesh).all() or largest is None:
            largest = self.calibrate(params, prompts, progress)
            if not np.isfinite(list(largest.values())).all():
                raise self.not_finite(params, "what was drawn to measure the ranges")
            write_scales(file, largest)
        chosen, tensors = self.quantised.chosen, self.checkpoint.tensors["unet"]
        if not gathered(chosen is not None, self.mesh).all() or chosen is None:
            chosen = self._choose(params, largest, progress)
            self.programs = self._programs_of(quantised_shapes(self._unet, chosen, tensors))
        unet = self.programs.shapes["unet"]
        wanted = flatten(unet)  # no transformed weights of convolutions that are quantised
        leaves = {key: leaf for key, leaf in flatten(params.pop("unet")).items() if key in wanted}
        return {"unet": quantise_params(leaves, largest, chosen, unet, tensors), **params}

    def _choose(self, params: Params, largest: Mapping[str, float], progress: ShowProgress | None) -> Precision:
        """Measure which layers have to stay exact for the precision's distance, and keep that in its file."""
        assert self.quantised is not None
        precision, prompts, *_ = self.quantised
        programs, at_once = self._programs_of(tried_shapes(self._unet, precision)), self.devices.count
        unet = tried(params["unet"], largest, precision, programs.shapes["unet"])
        own = {**params, "unet": unet}
        encoder = Encoder(programs, own, Embeddings({}), AdaptedNetworks(programs.target, own))
        starts = range(0, len(prompts), at_once)
        plans = [self.plan(prompts[first : first + at_once], seed=first) for first in starts]
        trials = Trials(programs, own, [Inputs(plan, encoder) for plan in plans], partial(with_rounded, unet))
        every = layers(self._unet, precision.pattern)
        order = in_order(trials.errors(groups(every), partial(progress, "calibrate") if progress else None), self._unet)
        measured: dict[frozenset[str], float] = {}

        def psnr(exact: frozenset[str]) -> float:
            measured[exact] = trials.psnr(frozenset(every) - exact)
            log.info("precision %s: %d layers exact, %.1f dB", precision.name, len(exact), measured[exact])
            return measured[exact]

        exact = fewest(order, psnr, precision.decibels or 0.0)
        rounded = [path for path in every if path not in exact]
        found = measured.get(exact, np.inf)
        choice = Choice(
            tuple(path for group in order for path in group if path in exact),
            found if np.isfinite(found) else None,
            share(self._unet, rounded),
        )
        write_choice(self.quantised.choice_file, choice)
        self.quantised = self.quantised._replace(choice=choice)
        return replace(precision, exact=exact)

    def calibrate(
        self, params: Params, prompts: Sequence[str] = PROMPTS, progress: ShowProgress | None = None
    ) -> dict[str, float]:
        """Return the greatest magnitude that each layer of the U-Net that may be quantised is fed for some prompts.

        One image of each is drawn, in the steps of the model's preset, with exact parameters.
        """
        largest = dict.fromkeys(layers(params["unet"]), np.float32(0.0))
        encoder = Encoder(self.exact, params, Embeddings({}), AdaptedNetworks(self.exact.target, params))
        at_once = self.devices.count
        for first in range(0, len(prompts), at_once):
            some = list(prompts[first : first + at_once])
            plan = self.plan(some, seed=first)
            inputs = Inputs(plan, encoder)
            slots = self.exact.get(START, plan.bucket)(inputs.beginning())
            done = first // at_once * plan.count
            for segment, cond in zip(plan.segments, inputs.conditionings(), strict=True):
                bucket = plan.bucket_of(segment)
                run = self.exact.get(OBSERVE, bucket)
                slots = replace(slots, features=self.exact.no_features(bucket, slots.features))
                for _ in range(segment.rows):
                    slots, largest = run(params["unet"], slots, cond, largest)
                    done += 1
                    if progress is not None:
                        slots.row.block_until_ready()
                        progress("calibrate", done, -(-len(prompts) // at_once) * plan.count)
        return {path: float(value) for path, value in largest.items()}

    def add_lora(
        self, name: str, source: str | os.PathLike[str], *, weight_name: str | None = None, strict: bool = True
    ) -> Adapter:
        """Read a LoRA, or what else goes by that name, so that `generate` can be asked for it.

        Args:
            name: by which `loras` and tags in prompts, `<lora:name:0.8>`, ask for it.
            source: a `.safetensors` file, a folder, or a hub id.
            weight_name: the file in the folder or on the hub, where there are several.
            strict: refuse a file that has something for a layer which the model lacks. Otherwise that is left out; the
                result's `left` says what it is.

        Raises InputError for a name that cannot stand in a prompt or that another file has, and CheckpointError for a
        file that is missing, damaged, or not for models of SDXL's kind.
        """
        check_tag_name("name", name)
        file, shapes = open_adapter(source, weight_name=weight_name), self.model.shapes()
        adapter = read_adapter(name, file, shapes, strict=strict, source=os.fspath(source))
        self.loras.add(adapter)
        if adapter.embeddings and not set(adapter.embeddings) <= set(self.lexicon.inversions):
            self.add_embedding(None, file)
        return adapter

    def add_control(
        self,
        name: str,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        variant: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        progress: ShowProgress | None = None,
    ) -> ControlNet:
        """Load a ControlNet or one of its kin, so that `generate` can be asked for it.

        Its parameters stay on the devices. The kin are T2I-Adapters, ControlNet-LLLites, and Control-LoRAs, which are
        made ControlNets with the weights of the checkpoint that this pipeline was opened from.

        Args:
            name: by which a `jaxl.Control` asks for it.
            source: a folder in diffusers' layout, a `.safetensors` file in diffusers' names or in the original ones, a
                hub id, which the other arguments are for, or the name of one that comes with the model.
            progress: called with ("load", tensors placed, tensors in all).

        Raises InputError for a name that is taken, and CheckpointError for what is missing, damaged, or not a
        ControlNet for this model.
        """
        _check_new_name(name, self.controls, "ControlNet")
        hub: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub |= {"variant": variant, "local_files_only": local_files_only}
        source = self.controls.own.get(os.fspath(source), source)
        opened = open_control(source, self.model.unet, self.checkpoint.tensors["unet"], **hub)
        shapes = {CONTROLNET: parameter_shapes(self.exact.target, opened.config)}
        checkpoint = Checkpoint(opened.source, {}, {CONTROLNET: opened.tensors}, {})
        params = read_params(checkpoint, shapes, _telling(progress))[CONTROLNET]
        of_model = any(isinstance(tensor, Change) for tensor in opened.tensors.values())
        self.controls[name] = ControlNet(name, opened.source, opened.config, params, of_model)
        return self.controls[name]

    def remove_control(self, name: str) -> None:
        """Forget a ControlNet. Raises InputError for a name that there is not."""
        _forget(name, self.controls)

    def add_ip_adapter(
        self,
        name: str,
        source: str | os.PathLike[str],
        *,
        image_encoder: str | os.PathLike[str] | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        progress: ShowProgress | None = None,
    ) -> IPAdapter:
        """Load an IP-Adapter, so that `generate` can be asked for it; its parameters stay on the devices.

        Args:
            name: by which a `jaxl.ImagePrompt` asks for it.
            source: a `.safetensors` file of a plain IP-Adapter, Plus or Plus Face, or a folder or a hub id, such as
                "h94/IP-Adapter", with a `weight_name`.
            image_encoder: the folder or the hub id of its image encoder; by default it is looked for beside the file,
                where it was published. Adapters with the encoder of one source share it.
            weight_name: the file in the folder or on the hub, such as "sdxl_models/ip-adapter_sdxl.safetensors".
            progress: called with ("load", tensors placed, tensors in all).

        Raises InputError for a name that is taken, and CheckpointError for what is missing, damaged, or not an
        IP-Adapter for this model.
        """
        _check_new_name(name, self.ip_adapters, "IP-Adapter")
        hub: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        opened = open_ip_adapter(
            source,
            self.model.unet,
            image_encoder=image_encoder,
            weight_name=weight_name,
            **hub,
            local_files_only=local_files_only,
        )
        target, known = self.exact.target, self.ip_adapters.values()
        shapes = {**encoder_shapes(target, opened.config), CONTEXT: context_shapes(target)}
        same = next((each for each in known if each.encoder_source == opened.encoder_source), None)
        shared = {} if same is None else {ENCODER: same.params[ENCODER]}
        wanted = {part: own for part, own in shapes.items() if part not in shared}
        sources = {ENCODER: opened.encoder_source}
        checkpoint = Checkpoint(opened.source, {}, {part: opened.tensors[part] for part in wanted}, {}, sources=sources)
        params = shared | read_params(checkpoint, wanted, _telling(progress))
        adapter = IPAdapter(name, opened.source, opened.encoder_source, opened.config, params)
        self.ip_adapters[name] = adapter
        return adapter

    def remove_ip_adapter(self, name: str) -> None:
        """Forget an IP-Adapter. Raises InputError for a name that there is not."""
        _forget(name, self.ip_adapters)

    def add_upscaler(self, name: str, source: str | os.PathLike[str] | Upscaler, **options: Any) -> Upscaler:
        """Load a network that enlarges pictures, so that a `jaxl.Hires` can ask for it.

        name: by which it does. source: a file, or a network that is loaded. options: those of `Upscaler.from_file`.

        Raises InputError for a name that is taken, and CheckpointError as `Upscaler.from_file` does.
        """
        _check_new_name(name, dict.fromkeys((*WITHOUT_NETWORK, *self.upscalers)), "upscaler")
        loaded = source if isinstance(source, Upscaler) else Upscaler.from_file(source, name=name, **options)
        self.upscalers[name] = loaded
        return loaded

    def remove_upscaler(self, name: str) -> None:
        """Forget an upscaler. Raises InputError for a name that there is not."""
        _forget(name, self.upscalers)

    def fuse(self, params: Params, loras: Mapping[str, float | Strength]) -> Params:
        """Return parameters with LoRAs in them for good, for `generate`, `save_pretrained` and `save_single_file`.

        They share all arrays that no LoRA changes. A layer's weight is computed in float32 and rounded once.
        """
        self._exact_only("fused")
        networks, adapters = self.networks(params), self._for_good(loras)
        return {
            name: networks.merged(params, adapters, name, all_kinds=True) if name in NETWORKS else own
            for name, own in params.items()
        }

    def save_fused(
        self,
        path: str | os.PathLike[str],
        loras: Mapping[str, float | Strength],
        *,
        dtype: DTypeLike | None = None,
        progress: ShowProgress | None = None,
    ) -> None:
        """Write the checkpoint with LoRAs in it, tensor by tensor, so that the model is never in memory as a whole.

        path: a folder, or a file whose name ends in `.safetensors`, as `save_pretrained` and `save_single_file` write
            them.
        dtype: of all tensors; by default each has its own, or float16 in place of eight bits.
        progress: called with ("write", tensors written, tensors in all).

        A weight is computed in float32 and rounded once. Raises InputError, CheckpointError and OutputError, leaving
        nothing behind.
        """
        shapes, adapters = _without_preview(self.model.shapes()), self._for_good(loras)
        entries = entries_of_checkpoint(self.checkpoint, shapes, adapters, _read_file_dtype(dtype))
        parts = [Path(self.checkpoint.source).name, *(f"{own.name}:{how.unet:g}" for own, how in adapters)]
        self._save(Path(path), entries, ", ".join(parts), progress)

    def save_pretrained(self, folder: str | os.PathLike[str], params: Params) -> None:
        """Write a folder that diffusers and jaxl open. Raises OutputError, leaving nothing behind."""
        self._exact_only("saved")
        if is_single_file(Path(folder)):
            raise InputError("folder", str(folder), "that is the name of a file; use `Pipeline.save_single_file`")
        self._save(Path(folder), entries_of_params(_without_preview(params)))

    def save_single_file(self, file: str | os.PathLike[str], params: Params, *, dtype: DTypeLike | None = None) -> None:
        """Write a `.safetensors` file in the original layout, which A1111, Forge, ComfyUI, diffusers and jaxl open.

        dtype: of all tensors; by default the parameters' own. Raises CheckpointError for a model that the layout has no
        names for, and OutputError, leaving nothing behind.
        """
        self._exact_only("saved")
        if not is_single_file(Path(file)):
            raise InputError("file", str(file), "give a name that ends in .safetensors")
        self._save(Path(file), entries_of_params(_without_preview(params), _read_file_dtype(dtype)))

    def _save(
        self, path: Path, networks: Mapping[str, Entries], merged_from: str = "", progress: ShowProgress | None = None
    ) -> None:
        configs, tell = _without_preview(self.checkpoint.configs), progress and partial(progress, "write")
        if is_single_file(path):
            words, clip = self.tokenizers["text_encoder_2"].vocab_size, Tokenizer.clip().vocab_size
            if words != clip:
                raise refused(path, f"its tokenizer has {words} words, where readers take CLIP's {clip}")
            save_single_file(path, configs, networks, merged_from, tell)
        else:
            tokenizers = {TOKENIZERS[encoder]: tokenizer.save for encoder, tokenizer in self.tokenizers.items()}
            save_folder(path, configs, networks, tokenizers, tell)

    def _exact_only(self, done: str) -> None:
        """Raise InputError where parameters have eight bits."""
        if self.quantised is not None:
            remedy = f"only exact parameters are {done}; load without it"
            raise InputError("precision", self.quantised.precision.name, remedy)

    def _for_good(self, loras: Mapping[str, float | Strength]) -> AdapterSet:
        """Return the LoRAs that are to be in weights. Raises InputError, also for one that some steps are to have."""
        (asked,) = read_loras(loras, [[]], self.loras, each=1)
        adapters = adapter_set(asked, 1)
        for adapter, strength in adapters:
            if (strength.start, strength.end) != (0.0, 1.0):
                raise InputError(
                    "loras", adapter.name, "weights are the same in all steps; leave out `start` and `end`"
                )
        return adapters

    def add_embedding(self, name: str | None, source: str | os.PathLike[str]) -> list[Summary]:
        """Have prompts know a textual inversion, or all that are in the files of a folder; nothing is compiled anew.

        name: what prompts call it; by default, and in a folder always, as its file. source: a `.safetensors` file, with
        `clip_l` and `clip_g` or one of them, that of a LoRA with such in it, or a folder.

        Returns what was found; of a folder also what was passed over, each with its `problem`, which is logged too.
        Raises CheckpointError for a file that is no textual inversion for the model, InputError for a name that prompts
        know already, and for a folder of which nothing can be loaded.
        """
        path = Path(source)
        widths = {encoder: cfg.width for encoder, cfg in self.model.text_encoders.items()}
        most = min(tokenizer.max_length for tokenizer in self.tokenizers.values()) - 2
        found, left = read_folder(path, widths, most) if path.is_dir() else (read_inversions(path, widths, most), [])
        if not found:
            problems = [each.problem for each in left if each.problem] or ["there is no .safetensors file in it"]
            raise InputError("embedding", str(path), problems[0])
        if name is not None:
            if path.is_dir() or len(found) > 1:
                raise InputError("name", name, f"what is in {path} has names of its own; leave it out")
            found = [replace(found[0], name=check_name(path, name))]
        self.lexicon = Lexicon.of(self.model, self.tokenizers, [*self.lexicon.inversions.values(), *found])
        for each in left:
            log.warning("not loaded: %s", each.problem)
        return [*(each.summary for each in found), *left]

    def remove_embedding(self, name: str) -> None:
        """Have prompts forget a textual inversion. Raises InputError for a name that they do not know."""
        self.lexicon = self.lexicon.without(self.model, self.tokenizers, name)

    def bucket(
        self,
        images: int,
        height: int | None = None,
        width: int | None = None,
        *,
        guided: bool = True,
        tiles: Tiles | None = None,
    ) -> Bucket:
        """The bucket that `images` images of a size run in: filled up where devices would have nothing to do.

        They are drawn in `tiles` if they have more pixels than one.
        """
        size, factor = self.model.default_size, self.model.vae.factor
        height, width = (
            arguments.image_size(name, side, size, factor) for name, side in (("height", height), ("width", width))
        )
        return self.filled(Bucket(images, height, width, guided, tiles=tiles_for(tiles, width, height, self.model)))

    def filled(self, bucket: Bucket) -> Bucket:
        """The bucket with as many images as its devices draw at a time."""
        return self.devices.filled(bucket, bucket.parts(self.model.parts(bucket.height)))

    def generate(
        self,
        params: Params,
        prompt: str | Sequence[str],
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance_scale: Any = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        scheduler: str | None = None,
        latents: Any = None,
        clip_skip: int = 0,
        output: Output = "pil",
        callback: Callback | None = None,
        preview: ShowPreview | None = None,
        progress: ShowProgress | None = None,
        refiner: tuple[Pipeline, Params] | None = None,
        refiner_at: float = REFINER_AT,
        **options: Unpack[Options],
    ) -> Result:
        """Make pictures of a prompt, or of each prompt of a list.

        Args:
            params: what `from_pretrained` returned.
            prompt, negative_prompt: for both text encoders; `prompt_2`, `negative_prompt_2` for the second one alone. A
                negative prompt that is not given is zeros in SDXL and the empty text in models that were trained so.
            seed: 0 to 2**64 - 1, counting up from image to image, or one for each image. A seed gives the same
                image in any batch and on any number of devices.
            steps: 1 to the schedule's training steps; 25 by default, or what the model's preset says.
            guidance_scale: finite, one, one for each image, or [images or 1, steps]; 5 by default, or what the preset
                says. Where it is 1 or below the negative branch is not computed, but for CFG++, which takes any.
            width, height: pixels, multiples of 8; by default the size the model was trained for, or, with `image`, the
                one of SDXL's sizes that is nearest to its shape.
            num_images: for each prompt.
            scheduler: a name, such as "euler" or "dpm++2m_karras"; the checkpoint's own by default.
            latents: initial noise of unit variance, [B, height/8, width/8, 4], in place of the seeds' own.
            clip_skip: layers of the encoders to skip for `prompt`, beyond the last one that SDXL never reads.
            output: "pil", "numpy" (float32 [B, H, W, 3] in 0..1) or "latents" (nothing is decoded).
            callback: called after each step with (steps done, steps in all, latents); False stops there, of one host
                all hosts.
            preview: called after each step with (steps done, steps in all, pictures), uint8 [B, h, w, 3]: small
                pictures of what the images are going to be.
            progress: called with ("compile" or "generate", done, in all).
            refiner: the pipeline and the parameters of a second model, as `from_pretrained` gives them, which draws the
                last steps (arXiv:2307.01952, section 2.5), from the share `refiner_at` of the noise levels on; with
                `hires`, of the second pass. Any model of the same latents does. It heeds no masks, ControlNets and
                image prompts, which are refused. Where the callback stops before that, there are latents alone.
            **options: `Options` in `jaxl.call.options`: pictures and masks to start from (`Start`), guidance
                (`Guidance`), choices of sampling (`Sampling`), less work at some distance from the exact picture
                (`Caching`), LoRAs (`Adapters`), ControlNets (`Controls`), IP-Adapters (`ImagePrompts`), parts with
                prompts of their own (`Regions`), images without seams (`Edges`) or in tiles (`TiledDiffusion`), the
                syntax of prompts, and what SDXL is told of sizes (`MicroConditioning`).

        No argument compiles anything anew but the number of images, their size, whether any of them is guided, is
        guided by perturbed attention, has FreeU, keeps features from step to step, or has a prompt of more than 75
        tokens, the most regions that one has, whether they are seamless, their tiles, and the rank that an image's
        LoRAs have together, to the next power of two. Raises InputError for an argument that cannot work and
        NonFiniteError rather than return a broken image; warns with TruncationWarning when a prompt was cut.
        """
        given = locals()  # by name, so that no option is forgotten on the way
        named = {name: given[name] for name in DrawOptions.__annotations__ if name in given}
        asked = cast(DrawOptions, {**named, **options})
        shown: Shown = {"callback": callback, "preview": preview, "progress": progress}
        if refiner is None:
            return self.run(params, self.plan(prompt, **asked), output=output, **shown)
        plan = self.plan_refined(refiner[0], refiner_at, prompt, **asked)
        return self.run(params, plan, output=output, refiner=refiner, **shown)

    def detail(
        self,
        params: Params,
        picture: Any,
        parts: Any,
        prompt: str | Sequence[str],
        *,
        feather: float = 4.0,
        progress: ShowProgress | None = None,
        **options: Unpack[DrawOptions],
    ) -> Image.Image:
        """Return a picture with parts of it drawn anew, each enlarged to a size of the model.

        Args:
            picture: a path, a PIL image, or an array.
            parts: boxes (left, top, right, bottom), as shares of the picture if none is above 1, else in pixels, or
                masks of the picture's size, white where to draw. They are images of one batch.
            prompt: what they show, one for all or one for each.
            feather: pixels over which they go over into the picture.
            **options: of `generate`, but for those that a part has already. `strength` is 0.4, and `padding_mask_crop`,
                the pixels around a part that are seen with it, 32 by default.

        Raises InputError, also for parts that the picture does not hold, and NonFiniteError.
        """
        image = read_image(picture, "picture")
        prompts, masks = check_parts(image, parts, prompt, feather)
        plan = self.plan(prompts, **detail_options(image, masks, options))
        result = self.run(params, replace(plan, pastes=None), output="pil", progress=progress)
        return laid_over(image, plan.pastes or [], list(result.images))

    def plan(self, prompt: str | Sequence[str], **options: Unpack[DrawOptions]) -> Plan:
        """Check the arguments of `generate` and give each image its own, before anything is loaded or compiled."""
        return self._plan(self._make, prompt, options)

    def plan_refined(
        self, refiner: Pipeline, refiner_at: float, /, prompt: str | Sequence[str], **options: Unpack[DrawOptions]
    ) -> Plan:
        """Return a plan that `refiner` goes on with, from the share `refiner_at` of the noise levels on."""
        check_refiner(self.model, refiner.model, options)
        if self.mesh.is_multi_process:
            raise InputError("refiner", "a second model", "several hosts do not do that; leave it out")
        return self._plan(partial(plan_refined, self._make, refiner._make, self.model, refiner_at), prompt, options)

    def _make(self, prompt: Any, options: DrawOptions, earlier: int | None = None) -> Plan:
        """Return the plan of one pass, which is a second one if there are steps of an `earlier` one."""
        known = self.model, self.tokenizers, self.lexicon, self.preset, self.devices, self.loras
        made = make_plan(*known, self.controls, self.ip_adapters, prompt, options, earlier)
        if made.bucket.seamless and self.exact.target.tile:
            remedy = "tiles do not see the opposite edge, which `seamless` is about; leave one of the two out"
            raise InputError("vae_tile", self.exact.target.tile, remedy)
        return made

    def _plan(self, make_last: Make, prompt: str | Sequence[str], options: DrawOptions) -> Plan:
        """Return a plan with the passes that options ask for; `make_last` makes the plan of the last of them."""
        if (hires := options.get("hires")) is None:
            return make_last(prompt, options, None)
        if self.mesh.is_multi_process:
            raise InputError("hires", hires, "several hosts do not do that; leave it out")
        first = self._make(prompt, options)
        second = plan_second_pass(make_last, self.model, first, prompt, options, self.upscalers)
        return replace(first, second=second)

    def run(
        self,
        params: Params,
        plan: Plan,
        *,
        output: Output = "pil",
        callback: Callback | None = None,
        preview: ShowPreview | None = None,
        progress: ShowProgress | None = None,
        refiner: tuple[Pipeline, Params] | None = None,
    ) -> Result:
        """Make the pictures of a plan; arguments and errors are those of `generate`."""
        if output not in ("pil", "numpy", "latents"):
            raise InputError("output", output, "give 'pil', 'numpy' or 'latents'")
        if plan.second is not None:
            shown: Shown = {"callback": callback, "preview": preview, "progress": progress}
            return self._run_passes(params, plan, output, shown, refiner)
        if output == "numpy" and plan.pastes:
            raise InputError("output", output, "`padding_mask_crop` gives several sizes; use `output='pil'`")
        self._check_params(params)
        began = time.perf_counter()
        timings: dict[str, float] = {}
        with _stopwatch(timings, "compile"):
            futures = self.compile(plan, decode=output != "latents", preview=preview is not None)
            for done, future in enumerate(futures):
                if progress is not None:
                    progress("compile", done, len(futures))
                future.result()
            if progress is not None:
                progress("compile", len(futures), len(futures))
        total, rows, stopped = plan.count * len(plan.rounds), 0, False
        latents: list[np.ndarray] = []
        images: list[Any] = []
        seeds: list[int] = []

        def watch(slots: Slots, part: Plan, done: int) -> bool:
            """Tell whoever wants to hear of a row; True if that stops here."""
            done += plan.count * len(latents)
            if progress is not None:
                slots.row.block_until_ready()
                progress("generate", done, total)
            if preview is not None:
                show = self.programs.get(PREVIEW, part.bucket)
                preview(done, total, on_host(show(params.get("preview"), slots.denoised), self._own(part)))
            if callback is None:
                return False
            stop = callback(done, total, on_host(slots.latents, self._own(part))) is False
            return bool(gathered(stop, self.mesh).any())

        watched = any(each is not None for each in (callback, preview, progress))
        for inputs in self.inputs(params, plan).by_round():
            part = inputs.plan
            with _stopwatch(timings, "picture"):
                beginning = inputs.beginning()
            with _stopwatch(timings, "text"):
                told = inputs.conditionings()
            with _stopwatch(timings, "denoise"):
                slots = self.programs.get(START, part.bucket)(beginning)
                slots, rows, stopped = self._advance(inputs, slots, told, watch if watched else None)
                final = on_host(slots.latents, self._own(part))
            self._check_finite(params, part, np.asarray(np.isfinite(final).all((1, 2, 3))))
            with _stopwatch(timings, "decode"):
                images.extend([] if output == "latents" else self._decode(params, part, slots.latents, output))
            latents.append(final)
            seeds += [part.seeds[i] for i in self._own(part)]
            if stopped:
                break
        timings["total"] = time.perf_counter() - began
        made = np.concatenate(images) if output == "numpy" else images
        return Result(made, np.concatenate(latents), seeds, plan.scheduler, rows, timings)

    def _run_passes(
        self, params: Params, plan: Plan, output: Output, shown: Shown, refiner: tuple[Pipeline, Params] | None
    ) -> Result:
        """Make the pictures of a plan of several passes. Where the callback stops before the last, there are latents.

        Whoever is told of steps hears of those of all passes together.
        """
        passes, done, seconds = plan.passes, list[Result](), 0.0
        rows = [each.count * len(each.rounds) for each in passes]
        self.compile(plan, decode=output != "latents", preview=shown["preview"] is not None)
        for number, own in enumerate(passes):
            began = time.perf_counter()
            own = _begun(own, done[-1], shown["progress"]) if done else own
            seconds += time.perf_counter() - began
            after = passes[number + 1] if number + 1 < len(passes) else None
            ends: Output = output if after is None else "pil" if after.encodes else "latents"
            pipe, its_params = refiner if own.refines and refiner is not None else (self, params)
            part = _shifted(shown, sum(rows[:number]), sum(rows))
            done.append(pipe.run(its_params, own, output=ends, **part))
            if done[-1].steps < own.count:
                break
        last = done[-1]
        timings = {name: sum(each.timings.get(name, 0.0) for each in done) for name in last.timings}
        timings |= {name: timings[name] + seconds for name in ("picture", "total")}
        images = last.images if len(done) == len(passes) else []
        steps = sum(each.steps for each in done)
        return replace(last, images=images, scheduler=done[0].scheduler, steps=steps, timings=timings)

    def compile(self, plan: Plan, *, decode: bool = True, preview: bool = False) -> list[Future[Any]]:
        """Begin to compile what a plan needs of this pipeline, the longest programs first."""
        if plan.second is not None:
            passes = plan.passes
            ends = [*(after.encodes for after in passes[1:]), decode]
            own = [pair for pair in zip(passes, ends, strict=True) if not pair[0].refines]
            return list(dict.fromkeys(f for each, end in own for f in self.compile(each, decode=end, preview=preview)))
        asked = {DECODE: decode, ENCODE_IMAGE: plan.encodes, PREVIEW: preview}
        wanted = [program for program in PROGRAMS if asked.get(program, program.always)]
        buckets = dict.fromkeys(plan.bucket_of(segment) for segment in plan.segments)
        pairs = [(program, bucket) for program in wanted for bucket in buckets]
        makers = [each.shown.adapter.config for own in plan.image_prompts for each in own]
        pairs += [pair for bucket in buckets for pair in of_pictures(bucket, makers)]
        return list(dict.fromkeys(self.programs.begin(*pair) for pair in pairs))

    def _check_params(self, params: Params) -> None:
        """A tree of another dtype or structure would otherwise fail deep inside jax, with a page of shapes."""
        wanted = jax.tree.map(lambda s: (s.shape, s.dtype), self.programs.shapes)
        if jax.tree.map(lambda a: (a.shape, a.dtype), params) != wanted:
            raise InputError(
                "params",
                type(params).__name__,
                f"not the {self.dtype} parameters that from_pretrained gave with this pipeline",
            )

    def inputs(self, params: Params, plan: Plan) -> Inputs:
        """What the programs are fed for a plan."""
        encoders = {name: params[name] for name in self.tokenizers}
        if not self.embeddings.made_with(encoders):
            self.embeddings = Embeddings(encoders)
        return Inputs(plan, Encoder(self.programs, params, self.embeddings, self.networks(params)))

    def networks(self, params: Params) -> AdaptedNetworks:
        """What is known of these parameters with adapters."""
        if self._networks is None or not self._networks.made_with(params):
            self._networks = AdaptedNetworks(self.programs.target, params)
        return self._networks

    def forget(self) -> None:
        """Give up what was worked out with parameters, so that these leave the memory when nobody else has them."""
        self.embeddings, self._networks = Embeddings({}), None

    def _advance(
        self,
        inputs: Inputs,
        slots: Slots,
        told: Sequence[Conditioning],
        watch: Callable[[Slots, Plan, int], bool] | None,
    ) -> tuple[Slots, int, bool]:
        """Run each segment in one dispatch, or row by row for a watcher; also the rows done, and whether it stopped."""
        done, plan = 0, inputs.plan
        noises = plan.row_noise or []
        drawn = {place: DrawnAhead(noises[place]) for place in self._own(plan) if noises}
        for own in drawn.values():
            own.begin()
        for segment, cond in zip(plan.segments, told, strict=True):
            bucket, network = plan.bucket_of(segment), inputs.network(segment)
            run = self.programs.get(ADVANCE, bucket)
            controls = tuple(each.params for each in plan.networks)
            slots = replace(slots, features=self.programs.no_features(bucket, slots.features))
            most = segment.rows if watch is None else 1
            for n, given in calls(self.programs, plan.bucket, drawn, segment.rows, most):
                slots = run(network, slots, cond, n, controls, given)
                done += int(n)
                if watch is not None and watch(slots, plan, done):
                    return slots, done, True
        return slots, done, False

    def _decode(self, params: Params, plan: Plan, latents: jax.Array, output: Output) -> list[Any]:
        decoded = self.programs.get(DECODE, plan.bucket)(params["vae"], latents)
        if output == "numpy":
            self._check_finite(params, plan, on_host(decoded[2], self._own(plan)))
            return [on_host(decoded[0], self._own(plan))]
        return self.to_images(params, plan, decoded)

    def to_images(self, params: Params, plan: Plan, decoded: Decoded) -> list[Image.Image]:
        """The pictures of a plan from what `decode` made, when that is done. Raises NonFiniteError."""
        own = self._own(plan)
        self._check_finite(params, plan, on_host(decoded[2], own))
        pixels = (on_host(decoded[0], own) * 255).astype(np.uint8) if plan.truncates else on_host(decoded[1], own)
        images = [Image.fromarray(image) for image in pixels]
        return [plan.pastes[i](image) for i, image in zip(own, images, strict=True)] if plan.pastes else images

    def _own(self, plan: Plan) -> list[int]:
        """Which images of a plan of one round are this process's."""
        return [i for i in own_images(self.mesh, plan.bucket.batch) if i < plan.batch]

    def _check_finite(self, params: Params, plan: Plan, finite: np.ndarray) -> None:
        """Raise NonFiniteError if an image is not finite; `finite` are the flags of this process's own.

        All processes raise it, so that none goes on alone.
        """
        all_finite = np.ones(plan.batch, bool)
        all_finite[self._own(plan)] = finite
        bad = np.flatnonzero(~gathered(all_finite, self.mesh).all(0))
        if bad.size:
            raise self.not_finite(params, f"the image of seed {plan.seeds[bad[0]]} ({bad.size} of {plan.batch})")

    def not_finite(self, params: Params, what: str) -> NonFiniteError:
        """The error where `what` became NaN or infinite: it names the parameter that is so itself, if one is."""
        broken = first_broken(params)
        if broken is not None:
            remedy = f"{broken} of the checkpoint is so itself: get the checkpoint again, or another one"
        else:
            remedy = "lower `guidance_scale`"
            if self.dtype != np.float32:
                remedy = f"use `dtype=float32`, or {remedy}"
        return NonFiniteError(f"{what} became NaN or infinite; {remedy}")


def _begun(plan: Plan, drawn: Result, progress: ShowProgress | None) -> Plan:
    """Return the plan of a pass that begins with what the one before it left."""
    enlarging, tell = plan.enlarging, progress and partial(progress, "upscale")
    if enlarging is None:
        pictures = [Picture(own[None], encoded=True) for own in drawn.latents]
    elif plan.encodes:
        pictures = [enlarging.pixels(image, tell) for image in drawn.images]
    else:
        pictures = enlarging.latents(drawn.latents)
    return replace(plan, pictures=pictures)


def _shifted(shown: Shown, before: int, total: int) -> Shown:
    """Return who is told of a part of a call, after so many rows of `total` in all."""
    progress = shown["progress"]

    def later(tell: Callable[[int, int, np.ndarray], Any] | None) -> Any:
        return None if tell is None else lambda done, _, arrays: tell(before + done, total, arrays)

    def tell_progress(what: Any, done: int, of: int) -> None:
        assert progress is not None  # else nobody calls this
        progress(what, *((before + done, total) if what == "generate" else (done, of)))

    return {
        "callback": later(shown["callback"]),
        "preview": later(shown["preview"]),
        "progress": None if progress is None else tell_progress,
    }


def _check_new_name(name: Any, known: Mapping[str, Any], what: str) -> None:
    """Raise InputError for what cannot be the name of a further network; `what` says of which kind those known are."""
    if not isinstance(name, str) or not name.strip() or ":" in name or name in known:
        raise InputError("name", name, f"give a name without colons that no other {what} has")


def _forget(name: str, known: dict[str, Any]) -> None:
    """Remove a network. Raises InputError for a name that there is not."""
    if name not in known:
        raise InputError("name", name, nearest(str(name), known) if known else "none is loaded")
    del known[name]


def _telling(progress: ShowProgress | None) -> Callable[[int, int], None]:
    """Return what tells `progress`, if that is there, how many tensors are loaded."""
    return lambda done, total: None if progress is None else progress("load", done, total)


def _read_file_dtype(value: DTypeLike | None) -> DTypeLike | None:
    """Return a dtype that files have, or None for each tensor's own. Raises InputError for others."""
    if value is not None and value not in (*FILE_DTYPES, *map(jnp.dtype, FILE_DTYPES)):
        raise InputError("dtype", value, f"give one of {', '.join(FILE_DTYPES)}, or leave it out")
    return value


def _without_preview(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is there for each component, but for that of previews, which is no part of a saved model."""
    return {name: part for name, part in parts.items() if name != "preview"}


@contextmanager
def _stopwatch(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - began
