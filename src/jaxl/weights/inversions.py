"""Textual inversions, read from the files that trainers write: vectors that a word of a prompt stands for.

Gal et al. 2022, arXiv:2208.01618. SDXL's have vectors for each of its text encoders, as many for one as for the other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxl.errors import CheckpointError
from jaxl.text.words import SUFFIXES
from jaxl.weights import kinds
from jaxl.weights.store import DTYPES, Tensor, read_header

# the names of the tensors, and the encoders whose tokens they stand beside: sd-scripts' (and ComfyUI's, OneTrainer's),
# and those of pivotal tuning
ENCODERS: Mapping[str, str] = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
# what OneTrainer has encoders add to their results
OUTPUTS = ("clip_l_out", "clip_g_out")
# an embedding in the file of a LoRA: its name, and that of the tensor
BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(clip_[lg](?:_out)?|string_to_param\..+)")
# the names that A1111 and sd-scripts have for the one tensor of older Stable Diffusions
OLD = ("emb_params", "string_to_param.*")
# the models of these vectors, where SDXL has others
FAMILIES: Mapping[int, str] = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
FLOATS = [DTYPES[name] for name in ("BF16", "F16", "F32", "F64")]
FOR_SDXL = "get one for SDXL, with clip_l and clip_g"


@dataclass(frozen=True, eq=False)
class Inversion:
    """A textual inversion: the `name` that prompts have for it, and its `vectors`, float32 [n, width], by text encoder.

    An encoder that the file has none for gets none. `sha256` is that of the `source`, None where that holds more.
    """

    name: str
    source: Path
    vectors: Mapping[str, np.ndarray]
    sha256: str | None = None

    @property
    def places(self) -> int:
        """The number n of places of a prompt that it takes."""
        return max((len(vectors) for vectors in self.vectors.values()), default=0)

    @property
    def summary(self) -> Summary:
        width = sum(vectors.shape[-1] for vectors in self.vectors.values())
        # as many digits as A1111 has
        return Summary(self.name, self.places, width, None if self.sha256 is None else self.sha256[:12])


@dataclass(frozen=True)
class Summary:
    """What people are told of a textual inversion: its places, its encoders' widths together, and its file's hash.

    Of one that was not loaded only the name is known, and why.
    """

    name: str
    places: int = 0
    width: int = 0
    hash: str | None = None
    problem: str | None = None


def read_inversions(file: Path, widths: Mapping[str, int], most: int) -> list[Inversion]:
    """Return the textual inversion of a file, by the file's name, or those that are bundled in the file of a LoRA.

    widths: those of the model's text encoders, by component; what a file has for others is left. most: the vectors that
    there is room for.

    Raises CheckpointError that says what the file is where it is none for SDXL, or damaged.
    """
    tensors = read_header(file)
    bundles: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := BUNDLED.fullmatch(key):
            bundles.setdefault(match[1], {})[match[2]] = tensor
    if bundles:
        return [
            Inversion(check_name(file, name), file, _vectors(f"{file}: {name}", own, widths, most))
            for name, own in bundles.items()
        ]
    vectors = _vectors(str(file), tensors, widths, most)
    return [Inversion(check_name(file, file.stem), file, vectors, hashlib.sha256(file.read_bytes()).hexdigest())]


def read_folder(folder: Path, widths: Mapping[str, int], most: int) -> tuple[list[Inversion], list[Summary]]:
    """Return the textual inversions of the files in a folder and its folders, and those that were not loaded.

    Pictures are passed over, which are previews most often. Of two files of a name the first is loaded. The arguments
    are those of `read_inversions`.
    """
    found: dict[str, Inversion] = {}
    left: list[Summary] = []
    for file in sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file()):
        try:
            for inversion in read_inversions(file, widths, most):
                first = found.setdefault(inversion.name.lower(), inversion)
                if first is not inversion:
                    raise CheckpointError(f"{file}: {first.source} has the name {first.name!r} already; rename one")
        except CheckpointError as error:
            left.append(Summary(file.stem, problem=str(error)))
    return list(found.values()), left


def check_name(file: Path, name: str) -> str:
    """Return the name of a file's textual inversion. Raises CheckpointError for one that no prompt can have."""
    if not name.strip() or not name.isprintable():
        raise CheckpointError(f"{str(file)!r}: {name!r} is no name that a prompt can have; rename it")
    return name


def _vectors(where: str, tensors: Mapping[str, Tensor], widths: Mapping[str, int], most: int) -> dict[str, np.ndarray]:
    """Return the vectors by text encoder."""
    outputs = [key for key in OUTPUTS if key in tensors]
    if outputs:
        raise CheckpointError(
            f"{where}: {outputs[0]} is to be added to the result of a text encoder (OneTrainer's output embedding), "
            "which jaxl does not do; train it without"
        )
    found: dict[str, np.ndarray] = {}
    for key, tensor in _by_encoder(where, tensors, widths).items():
        encoder = ENCODERS[key]
        if encoder in found:
            raise CheckpointError(f"{where}: two tensors for {encoder}; keep one of {', '.join(tensors)}")
        found[encoder] = _read(where, tensor, most)
    if len({len(vectors) for vectors in found.values()}) > 1:
        numbers = " and ".join(f"{len(vectors)} for {encoder}" for encoder, vectors in found.items())
        raise CheckpointError(f"{where}: {numbers}, but each text encoder needs as many vectors; {FOR_SDXL}")
    for encoder, vectors in found.items():
        width = vectors.shape[-1]
        if encoder in widths and width != widths[encoder]:
            family = f", as those of {FAMILIES[width]} are" if width in FAMILIES else ""
            raise CheckpointError(
                f"{where}: vectors of {width} for {encoder}{family}, but this model's are {widths[encoder]}; {FOR_SDXL}"
            )
    return {encoder: vectors for encoder, vectors in found.items() if encoder in widths}


def _by_encoder(where: str, tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> Mapping[str, Tensor]:
    """Return the tensors by names of ENCODERS: their own, or the one whose width says where one tensor belongs."""
    unknown = [key for key in tensors if key not in ENCODERS]
    if not unknown and tensors:
        return tensors
    if len(unknown) < len(tensors):
        raise CheckpointError(f"{where}: beside its vectors there is {unknown[0]}, which jaxl does not know")
    key = next(iter(unknown), "")
    if len(tensors) != 1 or (key not in OLD and kinds.other(tensors)) or not 1 <= len(tensors[key].shape) <= 2:
        raise CheckpointError(f"{where}: not a textual inversion, but {kinds.kind(tensors)}")
    width = tensors[key].shape[-1]
    own = [name for name in ("clip_l", "clip_g") if widths.get(ENCODERS[name]) == width]
    if key not in OLD and own == ["clip_g"]:
        return {"clip_g": tensors[key]}
    if width in FAMILIES or key in OLD:
        family = FAMILIES.get(width, "another Stable Diffusion")
        first = "; if it is SDXL's first half, call it clip_l" if own == ["clip_l"] and key not in OLD else ""
        raise CheckpointError(f"{where}: an embedding of {family}, {key} of width {width}; {FOR_SDXL}{first}")
    raise CheckpointError(
        f"{where}: {key} of width {width} does not say which text encoder it is for; call it clip_l or clip_g"
    )


def _read(where: str, tensor: Tensor, most: int) -> np.ndarray:
    """Return vectors as float32 [n, width]."""
    shape = tensor.shape
    if not 1 <= len(shape) <= 2 or 0 in shape:
        raise CheckpointError(f"{where}: {tensor.key} has shape {shape}, which is no list of vectors; {FOR_SDXL}")
    if tensor.dtype not in FLOATS:
        raise CheckpointError(f"{where}: {tensor.key} holds {tensor.dtype}, not floating-point numbers")
    with np.errstate(over="ignore"):  # infinity is found below
        vectors = np.atleast_2d(tensor.read().astype(np.float32))
    if len(vectors) > most:
        raise CheckpointError(f"{where}: {tensor.key} has {len(vectors)} vectors, but there is room for {most}")
    if not np.isfinite(vectors).all():
        raise CheckpointError(f"{where}: {tensor.key} holds NaN or infinity; get the file again, or another one")
    return vectors
