"""The programs whose pictures are read, each by one function, and the way in."""

from __future__ import annotations

import os
from collections.abc import Callable

from jaxl.call.images import MAX_PIXELS
from jaxl.errors import InputError
from jaxl.metadata import (
    a1111,
    civitai,
    comfyui,
    draw_things,
    fooocus,
    invokeai,
    novelai,
    own,
    sdcpp,
    sdnext,
    swarmui,
)
from jaxl.metadata.container import File, Texts, read_texts
from jaxl.metadata.settings import Settings

# the first that knows the texts of a file reads it: those with texts of their own come first, and A1111's, which many
# write, also beside a graph of ComfyUI, last
READERS: tuple[Callable[[Texts], Settings | None], ...] = (
    own.read,
    swarmui.read,
    invokeai.read,
    novelai.read,
    fooocus.read,
    draw_things.read,
    civitai.read,
    sdnext.read,
    sdcpp.read,
    comfyui.read,
    a1111.read,
)
KNOWN = "jaxl, A1111 and its forks, ComfyUI, Fooocus, InvokeAI, SwarmUI, SD.Next or stable-diffusion.cpp wrote it"


def settings_of(file: File, *, argument: str = "file", max_pixels: int = MAX_PIXELS) -> Settings:
    """Return what made a picture: a PNG, JPEG or WebP file as a path, its bytes, or an image that Pillow opened.

    Nothing is run or fetched. Raises InputError, naming `argument`, for a file without settings that can be read, a
    damaged or huge one, a graph of ComfyUI with a node that is not understood, and for pictures of NovelAI, which
    cannot be drawn.
    """
    shown = "a picture" if not isinstance(file, str | os.PathLike) else str(file)
    texts = read_texts(file, argument, max_pixels)
    try:
        found = next((settings for read in READERS if (settings := read(texts)) is not None), None)
    except InputError as error:
        raise InputError(argument, shown, error.remedy) from None
    except RecursionError:
        raise InputError(argument, shown, "its settings are nested too deep; give another file") from None
    if found is None:
        raise InputError(argument, shown, f"no settings that can be read; give a file as {KNOWN}")
    return found
