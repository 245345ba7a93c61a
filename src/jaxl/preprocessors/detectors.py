"""The detectors of controlnet_aux, networks whose weights people have at hand, in a folder. Nothing is downloaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from jaxl.errors import CheckpointError, InputError

# PyTorch then reads tensors alone out of a file, and runs nothing that is in it
TENSORS_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class Detector:
    """A detector: its class, the files it takes, and what its call is told."""

    kind: str
    about: str
    files: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, picture: Image.Image, weights: Path) -> Image.Image:
        """Return what it makes of a picture, at its size.

        Raises CheckpointError for weights that it cannot read, and InputError where the package lacks others.
        """
        side = min(picture.size)
        how = {"detect_resolution": side, "image_resolution": side, "output_type": "pil", **self.options}
        with _tensors_alone(), redirect_stdout(sys.stderr):  # it says what it loads
            try:
                import controlnet_aux  # pyright: ignore[reportMissingImports]
            except Exception as error:  # whatever its own imports raise
                raise InputError("name", self.kind, f"controlnet_aux cannot be imported ({_line(error)})") from error
            try:
                detector = getattr(controlnet_aux, self.kind).from_pretrained(str(weights))
            except Exception as error:  # what files of all kinds can make of a loader
                raise CheckpointError(f"{weights}: no weights that {self.kind} can read ({_line(error)})") from error
            made = detector(picture, **how)
        return made.convert("RGB").resize(picture.size, Image.Resampling.BICUBIC)


HED, PIDI, LINEART = ("ControlNetHED.pth",), ("table5_pidinet.pth",), ("sk_model.pth", "sk_model2.pth")
POSE = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")

DETECTORS: Mapping[str, Detector] = {
    "hed": Detector("HEDdetector", "soft edges", HED),
    "scribble_hed": Detector("HEDdetector", "rough strokes", HED, {"scribble": True}),
    "pidi": Detector("PidiNetDetector", "soft edges", PIDI),
    "scribble_pidi": Detector("PidiNetDetector", "rough strokes", PIDI, {"scribble": True}),
    "lineart": Detector("LineartDetector", "lines as drawn by hand", LINEART),
    "lineart_coarse": Detector("LineartDetector", "fewer lines as drawn by hand", LINEART, {"coarse": True}),
    "lineart_anime": Detector("LineartAnimeDetector", "lines as in anime", ("netG.pth",)),
    "mlsd": Detector("MLSDdetector", "straight lines", ("mlsd_large_512_fp32.pth",)),
    "openpose": Detector("OpenposeDetector", "poses of bodies", POSE),
    "openpose_full": Detector(
        "OpenposeDetector", "poses of bodies, hands and faces", POSE, {"include_hand": True, "include_face": True}
    ),
    "midas": Detector("MidasDetector", "depth", ("dpt_hybrid-midas-501f0c75.pt",)),
    "zoe": Detector("ZoeDetector", "depth", ("ZoeD_M12_N.pt",)),
    "normalbae": Detector("NormalBaeDetector", "normals of surfaces", ("scannet.pt",)),
}


@contextmanager
def _tensors_alone() -> Iterator[None]:
    before = os.environ.get(TENSORS_ALONE)
    os.environ[TENSORS_ALONE] = "1"
    try:
        yield
    finally:
        os.environ.pop(TENSORS_ALONE) if before is None else os.environ.update({TENSORS_ALONE: before})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
