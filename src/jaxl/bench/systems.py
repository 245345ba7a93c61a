"""What MLPerf's LoadGen may put to the test: a pipeline, an engine, or a server over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image

from jaxl.bench.load import httpx
from jaxl.engine import Engine, Request, Result
from jaxl.errors import InputError, JaxlError

if TYPE_CHECKING:
    from jaxl.pipeline import Params, Pipeline, ShowProgress

# text_to_image/backend_pytorch.py of github.com/mlcommons/inference has this negative prompt
NEGATIVE_PROMPT = "normal quality, low quality, worst quality, low res, blurry, nsfw, nude"
IN_FLIGHT = 32  # requests that a server has at any time, where all are known from the beginning
TIMEOUT = 3600.0

Scenario = Literal["offline", "server"]
OnDrawn = Callable[[int, "Image.Image | Exception"], None]


@dataclass(frozen=True, eq=False)
class PictureSettings:
    """The settings that every picture is drawn with; the defaults are those of MLPerf's SDXL benchmark.

    size: (width, height), the model's own if None. latents: the noise that each starts from, float32 [1, h, w, C]; the
    seed's own if None, which is the same for all pictures too.
    """

    size: tuple[int, int] | None = None
    steps: int = 20
    scheduler: str = "euler"
    guidance_scale: float = 8.0
    negative_prompt: str = NEGATIVE_PROMPT
    seed: int = 0
    latents: np.ndarray | None = None

    def arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of `Pipeline.generate`. Prompts are taken literally."""
        width, height = self.size or (None, None)
        return {
            "width": width,
            "height": height,
            "steps": self.steps,
            "scheduler": self.scheduler,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
            "latents": None if self.latents is None else np.repeat(self.latents, len(prompts), axis=0),
            "prompt_syntax": "plain",
        }

    def body(self, prompt: str) -> dict[str, Any]:
        """Return a request to OpenAI's images API with jaxl's fields. The prompt is taken literally."""
        body = {
            "prompt": prompt,
            "prompt_syntax": "plain",
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "scheduler": self.scheduler,
            "guidance_scale": self.guidance_scale,
            "response_format": "b64_json",
        }
        return body if self.size is None else {**body, "size": f"{self.size[0]}x{self.size[1]}"}


class System(Protocol):
    """A system under test. `facts` go into the results as they are."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def draw(self, prompts: Sequence[str], drawn: OnDrawn) -> None:
        """Begin to draw a picture for each prompt; `drawn` is given each by its index, or its error, in any thread."""
        ...


class PipelineSystem:
    """Draws with `Pipeline.generate`, `batch` pictures in a call, one call after another."""

    def __init__(
        self, pipe: Pipeline, params: Params, picture: PictureSettings, batch: int, worker: ThreadPoolExecutor
    ):
        self._pipe, self._params, self._picture, self._batch, self._worker = pipe, params, picture, batch, worker
        self.facts = {"drawn_by": "Pipeline.generate", "batch": batch, **_facts(pipe, picture)}

    def draw(self, prompts: Sequence[str], drawn: OnDrawn) -> None:
        self._worker.submit(self._draw, prompts, drawn)

    def _draw(self, prompts: Sequence[str], drawn: OnDrawn) -> None:
        for first in range(0, len(prompts), self._batch):
            some = list(prompts[first : first + self._batch])
            try:
                images = self.generate(some)
            except Exception as error:  # whoever waits for the rest must hear of it
                for index in range(first, len(prompts)):
                    drawn(index, error)
                return
            for index, image in enumerate(images, first):
                drawn(index, image)

    def generate(self, prompts: Sequence[str]) -> list[Image.Image]:
        seeds = [self._picture.seed] * len(prompts)
        result = self._pipe.generate(self._params, list(prompts), seed=seeds, **self._picture.arguments(prompts))
        return list(result.images)


class EngineSystem:
    """Draws with an engine, whose running batch each picture joins when it is asked for."""

    def __init__(self, engine: Engine, picture: PictureSettings, facts: dict[str, Any]):
        self._engine, self._picture = engine, picture
        self.facts = {"drawn_by": "Engine", **facts}

    def draw(self, prompts: Sequence[str], drawn: OnDrawn) -> None:
        for index, prompt in enumerate(prompts):
            ask = {"prompt": prompt, "seed": self._picture.seed, **self._picture.arguments([prompt])}
            future = self._engine.submit(Request(ask)).future
            future.add_done_callback(partial(_tell, partial(drawn, index)))


class HttpSystem:
    """Draws with a server that runs, through its OpenAI route; `in_flight` requests at most, None is any number."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        loop: asyncio.AbstractEventLoop,
        picture: PictureSettings,
        in_flight: int | None,
    ):
        self._client, self._loop, self._picture = client, loop, picture
        self._places = asyncio.Semaphore(in_flight or 2**31)
        image = self._wait(self._ask("a warm-up"))
        self.facts = {
            "drawn_by": "HTTP",
            "url": str(client.base_url),
            "in_flight": in_flight,
            "model": self._wait(self._model()),
            "size": f"{image.width}x{image.height}",
        }

    def draw(self, prompts: Sequence[str], drawn: OnDrawn) -> None:
        for index, prompt in enumerate(prompts):
            asyncio.run_coroutine_threadsafe(self._draw(prompt, partial(drawn, index)), self._loop)

    async def _draw(self, prompt: str, drawn: Callable[[Image.Image | Exception], None]) -> None:
        try:
            async with self._places:
                image = await self._ask(prompt)
        except httpx.HTTPError as error:
            image = JaxlError(f"the server does not answer ({type(error).__name__} {error})")
        except Exception as error:  # LoadGen waits for an answer of any kind
            image = error
        await asyncio.to_thread(drawn, image)

    async def _ask(self, prompt: str) -> Image.Image:
        response = await self._client.post("/v1/images/generations", json=self._picture.body(prompt))
        if response.status_code != 200:
            raise JaxlError(f"the server answers with {response.status_code}: {_message(response.text)}")
        try:
            return Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"])), formats=["PNG"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise JaxlError(f"the server's answer has no picture ({error})") from None

    async def _model(self) -> str | None:
        """The name of the server's model, if it says."""
        try:
            return str((await self._client.get("/v1/models")).json()["data"][0]["id"])
        except (ValueError, KeyError, TypeError, IndexError):
            return None

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@contextmanager
def open_pipeline_system(
    model: str, picture: PictureSettings, batch: int | None, progress: ShowProgress | None, **options: Any
) -> Iterator[PipelineSystem]:
    """A model with its programs for one size of batch, by default four images or one for each device, run once.

    Raises InputError and CheckpointError.
    """
    from jaxl.backend import SLOTS
    from jaxl.call.options import LoadOptions
    from jaxl.loading import open_pipeline
    from jaxl.run.sharding import make_mesh

    mesh = make_mesh()
    batch = batch or max(SLOTS, mesh.size)
    pipe = open_pipeline(model, LoadOptions(mesh=mesh, batch_sizes=(batch,), **options))
    pipe.plan("", **picture.arguments([""]))  # what cannot be is told before the weights are read
    with ThreadPoolExecutor(1, thread_name_prefix="pipeline") as worker:
        system = PipelineSystem(pipe, pipe.load_params(progress), picture, batch, worker)
        system.generate(["a warm-up"] * batch)
        yield system


@contextmanager
def open_engine_system(
    model: str,
    picture: PictureSettings,
    batch: int | None,
    progress: ShowProgress | None,
    *,
    joins: bool = True,
    **options: Any,
) -> Iterator[EngineSystem]:
    """A model behind an engine with so many places, warmed up; `joins` as there.

    Raises InputError and CheckpointError.
    """
    from jaxl.backend import open_backend

    sizes = () if picture.size is None else (picture.size,)
    backend = open_backend(model, sizes=sizes, slots=batch, progress=progress, **options)
    facts = {"batch": backend.sizes[-1], "joins": joins, **_facts(backend.pipe, picture)}
    with Engine(backend, max_waiting=2**31, joins=joins) as engine:  # LoadGen gives up on nobody
        backend.read({"prompt": "", **picture.arguments([""])})
        yield EngineSystem(engine, picture, facts)


@contextmanager
def open_http_system(
    url: str, picture: PictureSettings, scenario: Scenario, api_key: str | None
) -> Iterator[HttpSystem]:
    """A server that runs, asked for one picture. Raises InputError if nothing answers, JaxlError if not with a picture.

    In the offline scenario, where all is asked for at once, it has `IN_FLIGHT` requests at any time.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with ExitStack() as stack:
        loop = stack.enter_context(_running_loop())
        try:
            client = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=TIMEOUT)
            stack.callback(lambda: asyncio.run_coroutine_threadsafe(_close(client), loop).result())
            system = HttpSystem(client, loop, picture, IN_FLIGHT if scenario == "offline" else None)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            remedy = "give the address of one that runs, such as http://127.0.0.1:8000"
            raise InputError("url", url, f"no server answers there ({error}); {remedy}") from None
        yield system


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="http", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(client: httpx.AsyncClient) -> None:
    """End what is still asked, after a failure, and the connections."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()
    await asyncio.get_running_loop().shutdown_default_executor()


def _tell(drawn: Callable[[Image.Image | Exception], None], future: Any) -> None:
    """Hand on what became of a request of the engine's."""
    error = future.exception()
    result: Result | None = None if error else future.result()
    drawn(error if result is None else result.images[0])


def _facts(pipe: Pipeline, picture: PictureSettings) -> dict[str, Any]:
    from jaxl.weights.contents import family

    width, height = picture.size or (pipe.model.default_size,) * 2
    device = pipe.mesh.devices.flat[0]
    return {
        "model": pipe.checkpoint.source,
        "family": family(pipe.model.unet),
        "size": f"{width}x{height}",
        "dtype": str(pipe.dtype),
        "devices": f"{pipe.mesh.size} x {device.device_kind}",
    }


def _message(text: str) -> str:
    """Return the message in the body of an error, in OpenAI's form or any other."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
