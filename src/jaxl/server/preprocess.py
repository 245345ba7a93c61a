"""Preprocessors of a server: pictures for ControlNets, made of those that clients send."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from jaxl.call.images import read_image, read_mask
from jaxl.errors import InputError, nearest
from jaxl.preprocessors.preprocessor import Preprocessor
from jaxl.preprocessors.registry import WITHOUT_WEIGHTS
from jaxl.server.errors import RESPONSES
from jaxl.server.limits import Name
from jaxl.server.pictures import decode, encode
from jaxl.server.service import CurrentService

T = TypeVar("T")

router = APIRouter(prefix="/v1", tags=["jaxl"], responses=RESPONSES)

# at once: a large picture takes memory, and other work with pictures goes on meanwhile
WORKERS = ThreadPoolExecutor(2, "preprocess")

OFFERED: Mapping[str, Preprocessor] = {each.name: each for each in WITHOUT_WEIGHTS if each.installed}


class PreprocessField(BaseModel):
    """A preprocessor by name, with its parameters beside it; see `jaxl.preprocess`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat]

    name: Name
    resolution: int | None = Field(
        None, description="Pixels of the shorter side, to which the picture is scaled first."
    )
    mask: str | None = Field(None, description="White where it is painted anew, of the picture's size, in base64.")

    @property
    def facts(self) -> dict[str, Any]:
        """What it is but its mask, as settings in files have it."""
        size = {} if self.resolution is None else {"resolution": self.resolution}
        return {"name": self.name, **size, **self.__pydantic_extra__}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


# a name alone will do
Preprocess = Annotated[PreprocessField, BeforeValidator(_named)]


class PreprocessRequest(PreprocessField):
    image: str = Field(description="A PNG, JPEG or WebP picture, in base64 or as a data URL.")


class Preprocessed(BaseModel):
    """The picture, a PNG file in base64."""

    image: str
    width: int
    height: int


class ParameterItem(BaseModel):
    name: str
    default: float
    minimum: float
    maximum: float
    whole: bool


class PreprocessorItem(BaseModel):
    """A preprocessor: requests ask for it by its `id`. `modules` are the names that A1111's extension has for it."""

    id: str
    object: str
    about: str
    parameters: list[ParameterItem]
    mask: bool
    modules: list[str]


class PreprocessorList(BaseModel):
    object: str
    data: list[PreprocessorItem]


@router.get("/preprocessors")
async def preprocessors() -> PreprocessorList:
    """The preprocessors that there are."""
    return PreprocessorList(object="list", data=[_item(each) for each in OFFERED.values()])


@router.post("/preprocess")
async def preprocess(asked: PreprocessRequest, service: CurrentService) -> Preprocessed:
    """Make a picture as a ControlNet takes it."""

    def make() -> Preprocessed:
        most = service.settings.max_pixels
        picture = read_image(decode(asked.image, "image", most), "image")
        made = prepared(picture, asked.facts, asked.mask, most)
        return Preprocessed(image=encoded(made), width=made.width, height=made.height)

    return await in_turn(make)


async def in_turn(work: Callable[..., T], *arguments: Any) -> T:
    """Return what `work` does in a thread, after the preprocessing that was asked for before."""
    return await asyncio.get_running_loop().run_in_executor(WORKERS, partial(work, *arguments))


def prepared(
    picture: Image.Image, facts: Mapping[str, Any], mask: str | Image.Image | None, max_pixels: int
) -> Image.Image:
    """Return what a preprocessor makes of a picture in mode RGB; `facts` are its name, resolution and parameters.

    Takes a while. Raises InputError.
    """
    parameters = dict(facts)
    chosen, resolution = offered(parameters.pop("name")), parameters.pop("resolution", None)
    painted = decode(mask, "mask", max_pixels) if isinstance(mask, str) else mask
    read = None if painted is None else read_mask(painted, "mask", picture.size)
    return chosen.apply(picture, parameters, max_pixels=max_pixels, resolution=resolution, mask=read)


def encoded(picture: Image.Image) -> str:
    """Return a picture that no model drew as a PNG file in base64."""
    return base64.b64encode(encode(picture, None, mark=False)).decode()


def offered(name: str) -> Preprocessor:
    """Return a preprocessor that this server has. Raises InputError."""
    if name not in OFFERED:
        raise InputError("name", name, f"no preprocessor of this server; {nearest(name, OFFERED)}")
    return OFFERED[name]


def _item(each: Preprocessor) -> PreprocessorItem:
    parameters = [
        ParameterItem(name=one.name, default=one.default, minimum=one.least, maximum=one.most, whole=one.whole)
        for one in each.parameters
    ]
    return PreprocessorItem(
        id=each.name,
        object="preprocessor",
        about=each.about,
        parameters=parameters,
        mask=each.masked,
        modules=list(each.modules),
    )
