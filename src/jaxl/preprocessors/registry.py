"""The preprocessors by name: those that need no weights, and the detectors of controlnet_aux."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from jaxl.errors import InputError, nearest
from jaxl.extras import install_command
from jaxl.preprocessors import detectors, lines, pixels
from jaxl.preprocessors.preprocessor import Library, Parameter, Preprocessor

OPENCV = Library("cv2", "OpenCV", partial(install_command, "control"))
AUX = Library("controlnet_aux", "controlnet_aux", lambda: "install it with pip, and give its weights' folder")
LINES = ("Canny", "Lineart", "Scribble", "Sketch", "MLSD")
FROM_BLACK = "(from white bg & black line)"
GAMMA = Parameter("gamma", 1.0, 0.1, 2.0, slider="Gamma Correction")

WITHOUT_WEIGHTS = (
    Preprocessor(
        "canny",
        "edges, white on black",
        lines.canny,
        (
            Parameter("low", 100, 0, 255, whole=True, slider="Canny Low Threshold"),
            Parameter("high", 200, 0, 255, whole=True, slider="Canny High Threshold"),
        ),
        ("canny",),
        ("Canny",),
        scaled=True,
        needs=OPENCV,
    ),
    Preprocessor(
        "lineart_standard",
        "lines of a drawing in black on white, in white on black",
        lines.lineart_standard,
        (Parameter("sigma", 6.0, 0.5, 16.0), Parameter("threshold", 8, 0, 255)),
        ("lineart_standard", f"lineart_standard {FROM_BLACK}"),
        ("Lineart",),
        scaled=True,
        needs=OPENCV,
    ),
    Preprocessor(
        "scribble_xdog",
        "rough strokes, white on black",
        lines.scribble_xdog,
        (Parameter("threshold", 32, 1, 64, slider="XDoG Threshold"),),
        ("scribble_xdog",),
        ("Scribble", "Sketch"),
        scaled=True,
        needs=OPENCV,
    ),
    Preprocessor(
        "invert",
        "white lines on black of black lines on white",
        pixels.invert,
        modules=("invert", f"invert {FROM_BLACK}"),
        types=LINES,
    ),
    Preprocessor(
        "threshold",
        "white where all colours are above a threshold, else black",
        pixels.threshold,
        (Parameter("threshold", 127, 0, 255, slider="Binarization Threshold"),),
        ("threshold",),
        scaled=True,
    ),
    Preprocessor(
        "tile",
        "the picture without details: scaled down by a rate, and up again",
        pixels.tile,
        (Parameter("rate", 1.0, 1.0, 8.0, slider="Down Sampling Rate"),),
        ("tile_resample",),
        ("Tile", "Blur"),
    ),
    Preprocessor(
        "blur",
        "the picture, blurred",
        pixels.blur,
        (Parameter("sigma", 9.0, 0.01, 64.0, slider="Sigma"),),
        ("blur_gaussian",),
        ("Tile", "Blur"),
        scaled=True,
    ),
    Preprocessor(
        "recolor_luminance",
        "how light each pixel looks, to colour it anew",
        pixels.recolor_luminance,
        (GAMMA,),
        ("recolor_luminance",),
        ("Recolor",),
    ),
    Preprocessor(
        "recolor_intensity",
        "each pixel's strongest colour, to colour it anew",
        pixels.recolor_intensity,
        (GAMMA,),
        ("recolor_intensity",),
        ("Recolor",),
    ),
    Preprocessor(
        "shuffle",
        "the colours alone, in random waves",
        lines.shuffle,
        (Parameter("seed", 0, 0, 2**32 - 1, whole=True),),
        ("shuffle",),
        ("Shuffle",),
        scaled=True,
        needs=OPENCV,
    ),
    Preprocessor(
        "inpaint",
        "the picture with black where a mask is white, as ControlNet++ ProMax repaints it",
        pixels.inpaint,
        modules=("inpaint_promax",),
        types=("Inpaint",),
        masked=True,
    ),
)

PREPROCESSORS: Mapping[str, Preprocessor] = {
    each.name: each
    for each in (
        *WITHOUT_WEIGHTS,
        *(
            Preprocessor(name, each.about, each.draw, needs=AUX, files=each.files)
            for name, each in detectors.DETECTORS.items()
        ),
    )
}


def find(name: str) -> Preprocessor:
    """Return the preprocessor of this name. Raises InputError."""
    if name not in PREPROCESSORS:
        raise InputError("name", name, f"no such preprocessor; {nearest(name, PREPROCESSORS)}")
    return PREPROCESSORS[name]
