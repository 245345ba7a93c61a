"""The operator's filter: it sees each picture and its prompt before it leaves, and says what becomes of it.

A filter is a function of a picture, RGB, and the prompt that it was drawn from. It returns "pass", "blur" or "refuse",
or a picture of the same size that leaves in place of it, such as one with a watermark. Threads call it, several at a
time. It is an entry point of some package in the group `jaxl.filters`, or it is named by its module, `module:function`,
or its file, `file.py:function`. What raises, or returns something else, refuses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image, ImageFilter

from jaxl.errors import InputError, nearest
from jaxl.server import logs
from jaxl.server.errors import NO_RETRY, ApiError

Verdict = Literal["pass", "blur", "refuse"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
GROUP = "jaxl.filters"
# the part of a picture's longer side over which it is blurred
BLUR = 1 / 16
TRIED = 256  # the side of the picture that a filter is tried with


@dataclass(frozen=True)
class Filter:
    """A filter, and how it was named."""

    name: str
    look: Callable[[Image.Image, str], Any]

    def verdict(self, picture: Image.Image, prompt: str) -> Verdict | Image.Image:
        """Return what becomes of a picture. Raises whatever the filter does, and TypeError for what is no verdict."""
        said = self.look(picture.copy(), prompt)  # so that what it draws on is its own
        if isinstance(said, Image.Image):
            if (said.mode, said.size) != ("RGB", picture.size):
                raise TypeError(f"the filter {self.name} returned a picture, {said.mode}, of another mode or size")
        elif said not in VERDICTS:
            raise TypeError(f"the filter {self.name} returned {said!r}, which is none of {', '.join(VERDICTS)}")
        return said


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) * BLUR))


def refused(verdict: Verdict | None) -> ApiError:
    """Return the error of a picture that does not leave: because of the verdict, or as there is none."""
    if verdict is None:
        message = "this server's filter failed, so the picture is not given out; the log has it under the request's id"
        return ApiError(500, message, type="server_error", code="filter_failed", headers=NO_RETRY)
    message = "this server's filter refused the picture"
    return ApiError(400, message, type="image_generation_user_error", code="moderation_blocked")


def judge(filter: Filter, picture: Image.Image, prompt: str) -> Verdict | Image.Image | None:
    """Return the verdict on a picture, or None, and a line in the log, if the filter gives none; it takes a while."""
    try:
        return filter.verdict(picture, prompt)
    except Exception as error:
        logs.log.error("the filter failed, so its picture is not given out", exc_info=error)
        return None


@cache
def load(name: str) -> Filter:
    """Return the filter of a name, after it has judged a black picture. Raises InputError."""
    try:
        look = _find(name)
        if not callable(look):
            raise TypeError("it cannot be called")
        filter = Filter(name, look)
        filter.verdict(Image.new("RGB", (TRIED, TRIED)), "")
    except InputError:
        raise
    except Exception as error:  # whatever is in the module
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        remedy = "give module:function, file.py:function, or the name of an entry point"
        raise InputError("filter", name, f"it does not work ({said}); {remedy}") from None
    return filter


def _find(name: str) -> Any:
    module, mark, function = name.rpartition(":")
    if not mark:
        known = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name not in known:
            remedy = f"no entry point in the group {GROUP}; {nearest(name, known)}" if known else "give module:function"
            raise InputError("filter", name, remedy)
        return known[name].load()
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), function)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, loaded)  # dataclasses look for their module there
    spec.loader.exec_module(loaded)
    return getattr(loaded, function)
