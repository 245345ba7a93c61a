"""Options that several commands have, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from jaxl.cli.machine import find_chips
from jaxl.cli.terminal import in_background
from jaxl.config import Dtype, Split
from jaxl.errors import InputError, JaxlError

ModelOption = Annotated[str, typer.Option(help="A hub id, a folder, a .safetensors file, or tiny (embedded).")]
VaeOption = Annotated[str | None, typer.Option(metavar="MODEL", help="Another autoencoder, also of TAESD's kind.")]
SplitOption = Annotated[
    Split,
    typer.Option(help="How devices share pictures: images first and then their rows, never rows, or rows first."),
]
VaeTileOption = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", help="Decode in tiles of this size: less memory, not quite the same."),
]
PreviewVaeOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A tiny autoencoder (TAESD) for previews in full size.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="fp8 or int8 for most of the model: faster on chips with units for them. int8+all@40: all but the layers "
        "that pictures at 40 dB from the exact ones need.",
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="auto is float32 on a CPU, else bfloat16.")]
VaeDtypeOption = Annotated[Dtype, typer.Option(help="Of the autoencoder; auto is what the model asks for.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
ServedSizesOption = Annotated[
    list[str] | None,
    typer.Option(metavar="WxH", help="Of images; repeatable, the first is the default; the model's own if none."),
]
VariantOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of the weight files, such as fp16.")]
RevisionOption = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")]
LocalOption = Annotated[bool, typer.Option("--local-files-only", help="Use what was downloaded before, no network.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="turbo, turbo_finetune, lightning, hyper, lcm, tcd, dmd2, playground or sdxl; by default, the model's.",
    ),
]
PredictionOption = Annotated[
    str | None,
    typer.Option(
        "--prediction-type",
        metavar="TYPE",
        help="epsilon, v_prediction, sample or flow, where the checkpoint does not say what it predicts.",
    ),
]
UnetOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Another U-Net, such as SDXL-Lightning's; also alone in a file.")
]
LorasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="FILE_OR_NAME[:STRENGTH]", help="Add a LoRA: a file, a hub id, or one of --lora-dir."
    ),
]
LoraDirOption = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A folder of LoRAs that prompts may ask for, as in <lora:name:0.8>."),
]
LoraPartialOption = Annotated[
    bool, typer.Option("--lora-partial", help="Leave out what a LoRA's file has for layers that the model lacks.")
]
ControlNetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet", metavar="NAME=MODEL", help="Load a ControlNet: a file, a folder or a hub id; repeatable."
    ),
]
IPAdapterOption = Annotated[
    list[str] | None,
    typer.Option("--ip-adapter", metavar="NAME=FILE", help="Load an IP-Adapter, for pictures to be like; repeatable."),
]
ImageEncoderOption = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The IP-Adapters' image encoder; by default the one that lies beside them."),
]
EmbeddingDirOption = Annotated[
    str | None, typer.Option(metavar="DIR", help="Textual inversions, which prompts call as their files are called.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]

DistributedOption = Annotated[
    bool, typer.Option("--distributed", help="Run on all hosts of a TPU pod or of a Slurm job: the same line on each.")
]
CoordinatorOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where host 0 listens, and the others find it: elsewhere.")
]
HostsOption = Annotated[int | None, typer.Option(metavar="N", help="How many hosts.")]
HostOption = Annotated[int | None, typer.Option(metavar="I", help="Which this is, from 0 on.")]
TimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", help="How long hosts wait for each other.")]
TIMEOUT, PATIENCE = 300.0, 5.0


@dataclass(frozen=True)
class Hosts:
    """The hosts that run one program, as the options say: see `jaxl.run.hosts.join`."""

    distributed: bool
    coordinator: str | None
    hosts: int | None
    host: int | None
    timeout: float

    @property
    def several(self) -> bool:
        """Whether there may be others."""
        return self.distributed or any(each is not None for each in (self.coordinator, self.hosts, self.host))

    @contextmanager
    def joined(self) -> Iterator[int | None]:
        """The number of this host, once the others are there; they are waited for at the end. None if it is alone."""
        if not self.several:
            yield None
            return
        if self.distributed and self.coordinator is not None:
            raise InputError("distributed", True, "it finds the hosts by itself; leave out --coordinator")
        import jax

        from jaxl.run import hosts

        number = in_background(self._join)
        try:
            yield number
        except Exception as error:
            in_background(lambda: hosts.leave(PATIENCE))  # most likely the others have the same error, and tell it too
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise JaxlError(f"host {number} cannot go on; see what the others say ({error})") from error
            raise
        in_background(hosts.leave)

    def _join(self) -> int:
        import jax

        from jaxl.run import hosts

        hosts.join(self.coordinator, self.hosts, self.host, timeout=self.timeout)
        find_chips()
        return jax.process_index()


def read_counts(argument: str, text: str) -> list[int]:
    """Whole numbers of at least 1, each once."""
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        raise InputError(argument, text, "give whole numbers with commas between them")
    return list(dict.fromkeys(read_count(argument, int(part)) for part in parts))


def read_count(argument: str, value: int) -> int:
    """A whole number of at least 1."""
    if value < 1:
        raise InputError(argument, value, "give 1 or more")
    return value
