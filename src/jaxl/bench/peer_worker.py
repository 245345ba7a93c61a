"""The process of a peer: `python -m jaxl.bench.peer_worker`, started by `peers.Peer`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxl.bench.memory import peak_resident
from jaxl.bench.peers import AUTO, DIFFUSERS_SCHEDULERS, SD_CPP_TWO_CALLS, Opening, find_sd_cpp
from jaxl.bench.workload import PROMPT, Stages, Workload
from jaxl.kernels.processor import cores


class Program(Protocol):
    facts: dict[str, Any]

    def run(self, workload: Workload) -> Stages: ...

    def peak_memory(self) -> int: ...


class Diffusers:
    """diffusers' own pipeline on PyTorch, as it comes, or with its networks compiled."""

    def __init__(self, opening: Opening):
        import torch
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        self.torch = torch
        self.cuda = opening.device == "cuda"
        if self.cuda and not torch.cuda.is_available():
            raise RuntimeError("this PyTorch finds no GPU; install one built for CUDA")
        pipe: Any = StableDiffusionXLPipeline.from_pretrained(
            opening.model, torch_dtype=getattr(torch, opening.dtype), add_watermarker=False
        )
        pipe.to(opening.device)
        pipe.vae.to(getattr(torch, opening.vae_dtype))
        pipe.set_progress_bar_config(disable=True)
        if opening.peer == "torch-compile":
            for network in (pipe.unet, pipe.vae):
                network.to(memory_format=torch.channels_last)
            mode = "reduce-overhead" if self.cuda else "default"
            pipe.unet = torch.compile(pipe.unet, mode=mode, dynamic=False)
            pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)
        decode = pipe.vae.decode
        # the pipeline itself has no case for an autoencoder in another precision
        pipe.vae.decode = lambda latents, **options: decode(latents.to(pipe.vae.dtype), **options)
        self.pipe = pipe
        self.config = pipe.scheduler.config
        device = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.facts = _versions("torch", "diffusers", "transformers") | {
            "device": device,
            "threads": torch.get_num_threads(),
        }

    def run(self, workload: Workload) -> Stages:
        import diffusers

        self.pipe.scheduler = getattr(diffusers, DIFFUSERS_SCHEDULERS[workload.scheduler]).from_config(self.config)
        starts: list[float] = []
        ends: list[float] = []
        scale = self.pipe.scheduler.scale_model_input

        # the first thing of each call of the network
        def begin(*arguments: Any, **options: Any) -> Any:
            starts.append(time.perf_counter() if starts else self._now())
            return scale(*arguments, **options)

        def end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == pipe.num_timesteps - 1:
                ends.append(self._now())
            return tensors

        self.pipe.scheduler.scale_model_input = begin
        began = self._now()
        self.pipe(
            [PROMPT] * workload.images,
            num_inference_steps=workload.steps,
            guidance_scale=workload.guidance_scale,
            width=workload.width,
            height=workload.height,
            callback_on_step_end=end,
        )
        done = self._now()
        return Stages(done - began, ends[0] - starts[0], len(starts), done - ends[0])

    def peak_memory(self) -> int:
        return self.torch.cuda.max_memory_allocated() if self.cuda else peak_resident()

    def _now(self) -> float:
        """The time when the device has done all that it was told to do."""
        if self.cuda:
            self.torch.cuda.synchronize()
        return time.perf_counter()


class OpenVino(Diffusers):
    """diffusers' pipeline whose U-Net and decoder OpenVINO runs, in the precision that it chooses or that is given."""

    def __init__(self, opening: Opening):
        os.environ.setdefault("CI", "true")  # elsewhere it reports conversions to its makers
        import openvino  # pyright: ignore[reportMissingImports]

        super().__init__(replace(opening, dtype="float32", vae_dtype="float32"))
        self.convert = openvino.convert_model
        self.core = core = openvino.Core()
        hint = "INFERENCE_PRECISION_HINT"
        names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
        wanted = {dtype: name for name, dtype in names.items()}
        if opening.dtype != AUTO:
            core.set_property("CPU", {hint: wanted[opening.dtype]})
        dtype = names[core.get_property("CPU", hint).get_type_name()]
        self.facts |= {"openvino": openvino.__version__, "dtype": dtype, "vae_dtype": dtype}

        unet, decoder = self.pipe.unet, self.pipe.vae.decoder
        call = unet.forward

        def of_tensors(x: Any, t: Any, text: Any, pooled: Any, ids: Any) -> Any:
            added = {"text_embeds": pooled, "time_ids": ids}
            return call(x, t, text, added_cond_kwargs=added, return_dict=False)[0]

        compiled = self._compiled(unet, of_tensors)

        def forward(x: Any, t: Any, encoder_hidden_states: Any, added_cond_kwargs: Any, **_: Any) -> Any:
            added = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
            return (compiled(x, t.float(), encoder_hidden_states, *added),)

        unet.forward = forward
        decoder.forward = self._compiled(decoder, decoder.forward)

    def _compiled(self, network: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call` of the network as OpenVINO runs it, compiled once for all tensors of the same shapes."""

        class Traced(self.torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, *tensors: Any) -> Any:
                return call(*tensors)

        made: dict[Any, Any] = {}

        def run(*tensors: Any) -> Any:
            shapes = tuple(tuple(each.shape) for each in tensors)
            if shapes not in made:
                model = self.convert(Traced().eval(), example_input=tensors, input=list(shapes))
                made[shapes] = self.core.compile_model(model, "CPU")
            return self.torch.from_numpy(made[shapes]([each.numpy() for each in tensors])[0])

        return run


class Flax:
    """The U-Net of diffusers' removed Flax code, called in one jit for each step."""

    def __init__(self, opening: Opening):
        import jax
        import jax.numpy as jnp
        from diffusers import FlaxUNet2DConditionModel  # pyright: ignore[reportAttributeAccessIssue]
        from diffusers.models.modeling_flax_pytorch_utils import (  # pyright: ignore[reportMissingImports]
            convert_pytorch_state_dict_to_flax,
        )
        from safetensors.torch import load_file

        self.jax, self.jnp, self.dtype = jax, jnp, opening.dtype
        folder = Path(opening.model) / "unet"
        self.config = json.loads((folder / "config.json").read_text())
        # as in the article, https://huggingface.co/blog/sdxl_jax
        model: Any = FlaxUNet2DConditionModel.from_config(
            self.config, dtype=jnp.dtype(opening.dtype), split_head_dim=True
        )
        # read as float32, because NumPy, on the way, has no bfloat16
        files = sorted(folder.glob("*.safetensors"))
        state = {key: tensor.float() for file in files for key, tensor in load_file(file).items()}
        params = convert_pytorch_state_dict_to_flax(state, model)
        self.params = jax.tree.map(lambda a: jnp.asarray(a, opening.dtype), params)

        @jax.jit
        def step(params: Any, x: Any, t: Any, text: Any, added: Any) -> Any:
            times = jnp.full(len(x), t)
            return model.apply({"params": params}, x, times, text, added_cond_kwargs=added).sample

        self.step = step
        self.facts = _versions("diffusers", "flax", "jax") | {"device": jax.devices()[0].device_kind}

    def run(self, workload: Workload) -> Stages:
        rows = workload.images * (1 + (workload.guidance_scale > 1))
        added = self.config["projection_class_embeddings_input_dim"] - 6 * self.config["addition_time_embed_dim"]
        inputs = {
            "x": (rows, 4, workload.height // 8, workload.width // 8),
            "text": (rows, 77, self.config["cross_attention_dim"]),
            "text_embeds": (rows, added),
        }
        keys = self.jax.random.split(self.jax.random.key(0), len(inputs))
        x, text, pooled = (
            self.jax.random.normal(key, shape, self.dtype) for key, shape in zip(keys, inputs.values(), strict=True)
        )
        sizes = self.jnp.full((rows, 6), 1024, self.dtype)
        self.jax.block_until_ready((x, text, pooled, sizes))
        began = time.perf_counter()
        for t in np.linspace(999, 1, workload.steps, dtype=np.int32):
            x = self.step(self.params, x, t, text, {"text_embeds": pooled, "time_ids": sizes})
        x.block_until_ready()
        return Stages(None, time.perf_counter() - began, workload.steps, None)

    def peak_memory(self) -> int:
        return (self.jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or peak_resident()


class StableDiffusionCpp:
    """The program of stable-diffusion.cpp, started anew for each call; what counts is what it says of its stages.

    It reads a single file, which is written for it: of a folder it does not find the second text encoder.
    """

    def __init__(self, opening: Opening):
        program = find_sd_cpp()
        assert program is not None  # `read_peer` looked
        file = Path(opening.scratch) / "model.safetensors"
        write_original(opening.model, file)
        kind = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[opening.dtype]
        # its own choice are all physical cores, even where this process may use less
        allowed = cores()
        threads = [] if allowed == os.cpu_count() else ["-t", str(allowed)]
        self.command = [program, "-m", str(file), "--type", kind, *threads]
        self.facts = {"program": Path(program).name, "device": opening.device, "threads": allowed}

    def run(self, workload: Workload) -> Stages:
        options = {
            "-p": PROMPT,
            "-W": workload.width,
            "-H": workload.height,
            "-b": workload.images,
            "--steps": workload.steps,
            "--cfg-scale": workload.guidance_scale,
            "--sampling-method": workload.scheduler,
        }
        with tempfile.TemporaryDirectory(prefix="jaxl-bench-") as folder:
            flags = [str(part) for option in options.items() for part in option]
            done = subprocess.run(
                [*self.command, *flags, "-o", os.path.join(folder, "image.png")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        if done.returncode:
            raise RuntimeError(complaint(done.stdout) or f"exit status {done.returncode}")
        calls = 2 * workload.steps - 1 if workload.scheduler in SD_CPP_TWO_CALLS else workload.steps
        return read_log(done.stdout, calls)

    def peak_memory(self) -> int:
        return peak_resident(children=True)


def write_original(model: str, file: Path) -> None:
    """Write the model as a single file in the original layout, whatever its sizes."""
    # here, because jax would count as memory of the other peers
    from jaxl.run.model import Model
    from jaxl.weights.entries import entries_of_checkpoint, write_entries
    from jaxl.weights.single_file import PREFIXES
    from jaxl.weights.single_file_writer import original_entries
    from jaxl.weights.source import open_checkpoint

    checkpoint = open_checkpoint(model)
    shapes = {part: tree for part, tree in Model.from_configs(checkpoint.configs).shapes().items() if part in PREFIXES}
    networks = entries_of_checkpoint(checkpoint, shapes)
    write_entries(file, original_entries(file, checkpoint.configs, networks), tell=lambda: None)


def complaint(log: str) -> str:
    """The first error in what stable-diffusion.cpp prints, else the last line."""
    errors = re.findall(r"\[ERROR\] \S+ +- (.+)", log)
    if errors and "wrong shape" in errors[0]:
        return f"{errors[0]}; it reads models of SDXL's sizes alone, such as random:sdxl"
    return (errors or log.strip().splitlines()[-1:] or [""])[0]


def read_log(log: str, calls: int) -> Stages:
    """The stages in what stable-diffusion.cpp prints; images of a batch are drawn one after the other."""
    patterns = (
        r"generate_image completed in ([\d.]+)s",
        r"sampling completed, taking ([\d.]+)s",
        r"decode_first_stage completed, taking ([\d.]+)s",
    )
    total, denoise, decode = ([float(seconds) for seconds in re.findall(pattern, log)] for pattern in patterns)
    if not total or not denoise or not decode:
        raise RuntimeError("its output tells no times; use a newer version")
    return Stages(sum(total), sum(denoise), calls, sum(decode))


PROGRAMS = {
    "diffusers": Diffusers,
    "torch-compile": Diffusers,
    "openvino": OpenVino,
    "flax": Flax,
    "stable-diffusion.cpp": StableDiffusionCpp,
}


def main() -> None:
    # libraries print where they like, so answers have a stream of their own
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    program: Program | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if program is None:
                opening = Opening(**request["open"])
                program = opened = PROGRAMS[opening.peer](opening)
                answer = opened.facts
            elif "run" in request:
                answer = asdict(program.run(Workload(**request["run"])))
            else:
                answer = {"bytes": program.peak_memory()}
        except Exception as error:  # told to whoever asked
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), file=answers, flush=True)


def _versions(*names: str) -> dict[str, Any]:
    return {name: metadata.version(name) for name in names}


if __name__ == "__main__":
    main()
