"""How fast is stable-diffusion.cpp with a model that is smaller than SDXL? Build it for one, and `jaxl bench` can tell.

    python benchmarks/stable_diffusion_cpp.py FOLDER [--model random:mid] [--jobs N]
    SD_CPP=FOLDER/sd-cli-mid jaxl bench --model random:mid --peer stable-diffusion.cpp

The program reads no config: SDXL's sizes and CLIP's vocabulary are constants in its source. Those of the model take
their place, and nothing else is changed. The source is that of stable-diffusion-cpp-python on PyPI; CMake and a C++
compiler build it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxl.bench.random_model import RANDOM, source_of
from jaxl.weights.source import open_checkpoint

PACKAGE = "stable-diffusion-cpp-python"
PROGRAM = "sd-cli"

# of text encoders: the program's names, those of a config, and the sizes of SDXL's two
TEXT_SIZES = {
    "hidden_size": ("hidden_size", 768, 1280),
    "intermediate_size": ("intermediate_size", 3072, 5120),
    "n_head": ("num_attention_heads", 12, 20),
    "n_layer": ("num_hidden_layers", 12, 32),
}


@dataclass(frozen=True)
class Edit:
    """What comes in place of a pattern in a file of the source."""

    file: str
    pattern: str
    new: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=f"{RANDOM}mid", help="as in jaxl bench")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()

    checkpoint = open_checkpoint(source_of(args.model))
    merges = (checkpoint.files()[0].parents[1] / "tokenizer" / "merges.txt").read_text(encoding="utf-8")
    source, build = args.folder / "source", args.folder / "build"
    unpack(args.folder, source, list(edits(checkpoint.configs, merges.strip())))
    run("cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DSD_WEBP=OFF", "-DSD_WEBM=OFF")
    run("cmake", "--build", build, "--target", PROGRAM, "--parallel", args.jobs)
    program = args.folder / f"{PROGRAM}-{args.model.removeprefix(RANDOM)}"
    shutil.copy2(build / "bin" / PROGRAM, program)
    print(f"SD_CPP={program.absolute()} jaxl bench --model {args.model} --peer stable-diffusion.cpp")


def unpack(folder: Path, source: Path, edits: Iterable[Edit]) -> None:
    """Fetch the source unless it is there, and write it with the edits; what stays the same is not built again."""
    if not list(folder.glob("*.tar.gz")):
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--dest", folder, PACKAGE)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as stream:
        if not source.exists():
            stream.extractall(folder, filter="data")
            (folder / inside(archive)).rename(source)
        texts: dict[str, str] = {}
        for edit in edits:
            if edit.file not in texts:
                member: Any = stream.extractfile(f"{inside(archive)}/{edit.file}")
                texts[edit.file] = member.read().decode()
            texts[edit.file], found = re.subn(edit.pattern, edit.new, texts[edit.file])
            if not found:
                raise SystemExit(f"{archive.name}: {edit.file} has no {edit.pattern}; this is for version 0.4.7")
    for file, text in texts.items():
        if (source / file).read_text(encoding="utf-8") != text:
            (source / file).write_text(text, encoding="utf-8")


def inside(archive: Path) -> str:
    return f"{archive.name.removesuffix('.tar.gz')}/vendor/stable-diffusion.cpp"


def edits(configs: Mapping[str, Any], merges: str) -> Iterator[Edit]:
    """Yield what stands where the source has sizes of SDXL."""
    unet, vae, first, second = (configs[part] for part in ("unet", "vae", "text_encoder", "text_encoder_2"))

    file, channels = "src/unet.hpp", unet["block_out_channels"]
    yield constant(file, "model_channels", 320, channels[0])
    yield constant(file, "time_embed_dim", 1280, 4 * channels[0])
    yield constant(file, "channel_mult", "{1, 2, 4}", numbers(channels))  # need not be multiples of the first
    yield Edit(file, r"mult \* model_channels", "mult")
    yield constant(file, "transformer_depth", "{1, 2, 10}", numbers(unet["transformer_layers_per_block"]))
    yield constant(file, "num_head_channels", 64, channels[0] // unet["attention_head_dim"][0])
    yield constant(file, "context_dim", 2048, unet["cross_attention_dim"])
    yield constant(file, "adm_in_channels", 2816, unet["projection_class_embeddings_input_dim"])
    yield constant("src/conditioner.hpp", "out_dim", 256, unet["addition_time_embed_dim"])

    file, channels = "src/auto_encoder_kl.hpp", vae["block_out_channels"]
    yield constant(file, "ch", 128, channels[0])
    yield constant(file, "ch_mult", "{1, 2, 4, 4}", numbers(each // channels[0] for each in channels))
    yield constant(file, "num_res_blocks", 2, vae["layers_per_block"])
    norm = f"VAEGroupNorm(int64_t n) : GroupNorm({vae['norm_num_groups']}, n, 1e-06f) {{}}"
    yield Edit(file, r"\bGroupNorm32\b", "VAEGroupNorm")
    yield Edit(file, '#include "vae.hpp"', rf"\g<0>\nstruct VAEGroupNorm : GroupNorm {{ {norm} }};")

    file = "src/clip.hpp"
    for name, (key, small, _) in TEXT_SIZES.items():
        yield constant(file, name, small, first[key])
    # other encoders share some of the larger one's sizes
    together = r"\s+".join(rf"\b{name}\s*= {large};" for name, (_, _, large) in TEXT_SIZES.items())
    yield Edit(file, together, " ".join(f"{name} = {second[key]};" for name, (key, _, _) in TEXT_SIZES.items()))
    yield constant(file, "projection_dim", 1280, second["projection_dim"])
    yield Edit(file, "d_model == 1280", f"d_model == {second['hidden_size']}")  # which has another activation
    yield Edit(file, r"\b49408\b", str(first["vocab_size"]))

    file = "src/tokenizers/clip_tokenizer.cpp"
    for each in (file, "src/tokenizers/clip_tokenizer.h", "src/conditioner.hpp"):
        yield Edit(each, r"\b49407\b", str(first["vocab_size"] - 1))
    yield Edit(file, r"\b49406\b", str(first["vocab_size"] - 2))
    yield Edit(file, r"\b48895\b", str(len(merges.splitlines())))
    yield Edit(file, r"load_clip_merges\(\)", f'R"jaxl({merges}\n)jaxl"'.replace("\\", r"\\"))


def constant(file: str, name: str, old: Any, new: Any) -> Edit:
    return Edit(file, rf"\b{name}(\s*)= {re.escape(str(old))}(?!\d)", rf"{name}\1= {new}")


def numbers(values: Iterable[Any]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def run(*command: Any) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    main()
