"""The layer between HTTP and the engine: limits, seeds and sizes, and events from the engine's threads."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Annotated, Any

import numpy as np
from fastapi import Depends
from PIL import Image
from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from jaxl import __version__
from jaxl.call.hires import PREFIX
from jaxl.call.images import read_image
from jaxl.call.options import REFINER_AT, WITH_FACTS
from jaxl.call.sizes import Size, nearest_size
from jaxl.call.styles import syntax_of
from jaxl.engine import AnyEngine, Channel, Event, Lora, Request, Result, Ticket
from jaxl.engine.request import new_id
from jaxl.errors import CancelledError, DeadlineError, InputError, UnloadedError, nearest
from jaxl.server import logs
from jaxl.server.errors import ApiError
from jaxl.server.filters import load
from jaxl.server.hires import drawn_at, ends_at
from jaxl.server.jobs.runner import Runner
from jaxl.server.jobs.store import JobStore
from jaxl.server.kept import MOST_BYTES, MOST_REQUESTS, File, KeptRequest, Shelf
from jaxl.server.keys import ANYBODY, Key, KeyRing
from jaxl.server.limits import MOST_LORAS
from jaxl.server.metrics import Metrics, Outcome
from jaxl.server.pictures import Format, Signer, encode
from jaxl.server.prompts import embeddings_in, loras_in, remarks
from jaxl.server.quotas import Quotas
from jaxl.server.settings import Settings
from jaxl.server.sizes import Policy, as_text, drawn_for, framed
from jaxl.text.prompt_styles import read_styles

# seconds; a shorter deadline, which nobody could keep, is a mistake
LEAST_DEADLINE = 1.0


class Service:
    """The state that the routes share: an engine that has been started, and the settings of the server.

    want_loaded: loads the model, or unloads it; the future tells at the end whether it could. None where the model
    stays loaded.
    """

    def __init__(
        self, engine: AnyEngine, settings: Settings, want_loaded: Callable[[bool], Future[bool]] | None = None
    ):
        """Raises InputError for settings that cannot be followed: of signatures, keys, jobs, styles or the filter."""
        self.created = int(time.time())
        self.want_loaded = want_loaded
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.keys = KeyRing(settings.api_keys, settings.keys)
        self.quotas = Quotas(self.metrics.refuse)
        self.signer = None
        if settings.c2pa_certificate is not None and settings.c2pa_key is not None:
            self.signer = Signer(settings.c2pa_certificate, settings.c2pa_key)
        self.filter = None if settings.filter is None else load(settings.filter)
        self.styles = {} if settings.styles_file is None else read_styles(settings.styles_file)
        self.live: dict[str, Stream] = {}
        self._ids: set[str] = set()  # of requests that are live, or on their way into the queue
        self.files: Shelf[File] = Shelf(MOST_BYTES)
        self.requests: Shelf[KeptRequest] = Shelf(MOST_REQUESTS)
        self.enlarging = 0  # requests for larger pictures that wait, or are worked on
        self._tasks: set[asyncio.Task[None]] = set()
        self.jobs = None
        if settings.jobs is not None:
            store = JobStore(settings.jobs, settings.jobs_space)
            self.jobs = Runner(store, engine, self.keys, self.live, settings.jobs_hours * 3600)
            self.metrics.add_jobs(self.jobs)

    @property
    def ready(self) -> bool:
        return self.engine.healthy and not self.engine.draining

    async def submit(
        self,
        arguments: Mapping[str, Any],
        *,
        previews: int = 0,
        priority: int | None = None,
        deadline: float | None = None,
        id: str | None = None,
        key: Key = ANYBODY,
        keep: bool = False,
        policy: Policy = "strict",
    ) -> Stream:
        """Put a request with arguments of `Pipeline.generate` in the queue; None counts as not given.

        key: whose it is. keep: whether it is drawn although its client is gone. policy: what to do with a size that is
        not drawn here.

        Raises InputError, QueueFullError and DrainingError, and ApiError for an id that is in use and for what the key
        may not have.
        """
        given = self._allowed(arguments, key, policy, deadline)
        drawn = ends_at((given["width"], given["height"]), given.get("hires"))
        # a crop around a mask is drawn at a size of its own, not the picture's
        wanted = drawn if "padding_mask_crop" in given else ends_at(self.wanted(arguments), arguments.get("hires"))
        if wanted != drawn:
            given |= await asyncio.to_thread(_framed, given, wanted, drawn)
        # before there is a ticket: after that, giving up would have to cancel it
        remarked = await asyncio.to_thread(remarks, given)
        used = await asyncio.to_thread(embeddings_in, given, self.settings.steps, self.settings.embeddings)
        deadline = deadline or self.settings.deadline
        previews = 0 if self.filter else previews  # no picture leaves that it has not seen
        request = Request(given, id or new_id(), key.priority_of(priority), deadline, previews)
        if request.id in self._ids:
            raise ApiError(
                409, f"a request with the id {request.id} is being drawn; give another", param="X-Request-Id"
            )
        self.quotas.take(key, given["num_images"])
        self._ids.add(request.id)
        logs.note(**logs.facts_of(given, prompts=self.settings.log_prompts))
        if wanted != drawn:
            logs.note(resized_to=as_text(wanted))
        channel = Channel()
        events = channel.follow()
        try:
            ticket = await self._ticket(request, channel)
        except BaseException:
            self._ids.discard(request.id)
            self.quotas.give_back(key, given["num_images"], begun=False)
            raise
        self.requests.take(ticket.id)
        stream = self.live[ticket.id] = Stream(ticket, key, given, channel, events, wanted, remarked, used, keep)
        ticket.future.add_done_callback(lambda _: channel.call(self._end, stream))
        return stream

    async def check(
        self,
        arguments: Mapping[str, Any],
        *,
        key: Key,
        policy: Policy,
        deadline: float | None,
    ) -> dict[str, Any]:
        """Return the arguments as `checked` does. Raises what `submit` would, as far as that can be told now."""
        given = self._allowed(arguments, key, policy, deadline)
        await asyncio.to_thread(self.engine.check, given)
        return given

    def _allowed(
        self, arguments: Mapping[str, Any], key: Key, policy: Policy, deadline: float | None
    ) -> dict[str, Any]:
        given, most, asked = self.checked(arguments, policy), self.settings.deadline, arguments.get("model")
        self.quotas.check(key, asked if asked in key.models else given.get("model", self.settings.model), given)
        if deadline is not None and not LEAST_DEADLINE <= deadline <= most:
            raise InputError("deadline", deadline, f"give seconds, from {LEAST_DEADLINE:g} to {most:g}")
        return given

    async def begin(self, http: HttpRequest, arguments: Mapping[str, Any], **how: Any) -> Stream:
        """Submit a request under the id of the HTTP request, whose answer will say how it is drawn.

        `how` are further arguments of `submit`. Raises what `submit` does.
        """
        stream = await self.submit(arguments, id=http.state.request_id, key=http.state.key, **how)
        http.state.drawn = as_text(stream.drawn)
        http.state.remarks = stream.remarks
        return stream

    @asynccontextmanager
    async def attended(self, http: HttpRequest, arguments: Mapping[str, Any], **how: Any) -> AsyncIterator[Stream]:
        """Submit a request as `begin` does, and cancel it when the client is gone, unless it is kept.

        `how` are further arguments of `submit`. Raises what `submit` does.
        """

        async def cancel_when_gone() -> None:
            await gone(http.receive)
            stream.leave()

        async with await self.begin(http, arguments, **how) as stream:
            watch = asyncio.create_task(cancel_when_gone())
            try:
                yield stream
            finally:
                watch.cancel()

    def checked(self, arguments: Mapping[str, Any], policy: Policy = "strict") -> dict[str, Any]:
        """Return the given arguments with a seed and a size of the server. Raises InputError beyond its limits."""
        given = {name: value for name, value in arguments.items() if value not in (None, {})}
        model, hires = self.model_named(given.pop("model", None)), given.get("hires")
        refiner, at = self.model_named(given.pop("refiner", model), "refiner"), given.pop("refiner_at", REFINER_AT)
        if self.engine.models():
            given["model"] = model
        if refiner != model:
            given |= {"refiner": refiner, "refiner_at": at}
        for name in logs.TEXTS:
            self.check_text(name, given.get(name, ""))
            self.check_text(f"{PREFIX}{name}", getattr(hires, name, None) or "")
        for region in given.get("regions", ()):
            for text in (region.prompt, region.negative_prompt or ""):
                self.check_text("regions", text)
        given.setdefault("num_images", 1)
        given.setdefault("prompt_syntax", syntax_of(given) or "literal")
        if given["num_images"] > self.settings.max_images:
            raise InputError("num_images", given["num_images"], f"give at most {self.settings.max_images}")
        own = {"": given} if hires is None else {"": given, PREFIX: {**given, "prompt": hires.prompt}}
        for prefix, texts in own.items():
            if (asked := len(loras_in(texts))) > MOST_LORAS:
                raise InputError(f"{prefix}prompt", texts["prompt"], f"{asked} LoRAs; give at most {MOST_LORAS}")
        if given.get("seed", -1) == -1:
            given["seed"] = secrets.randbelow(2**32)  # 32 bits, because many other programs read no more
        given["width"], given["height"] = size = drawn_for(self.wanted(given), self.settings.sizes, policy)
        if hires is not None:
            given["hires"] = drawn_at(hires, size, self.settings.larger_sizes, policy)
        return given

    def upscaled(self, name: str, picture: Image.Image, size: Size) -> Image.Image:
        """Return a picture in another size by an upscaler of the engine's; if the model is unloaded, load it first.

        It takes a while, and is not for the event loop. Raises what `AnyEngine.upscale` does.
        """
        while True:
            try:
                return self.engine.upscale(name, picture, size)
            except UnloadedError:
                if self.want_loaded is None:
                    raise
                self.want_loaded(True).result()

    async def loras(self) -> Sequence[Lora]:
        """Return the LoRAs that requests may ask for now."""
        return await asyncio.to_thread(self.engine.loras)

    def model_named(self, name: Any, param: str = "model") -> str:
        """Return the name of the model that a client means; the usual one for None.

        Raises ApiError for one that is not here; `param` is the field that names it.
        """
        usual, names = self.settings.model, self.settings.names
        if name in (None, "", *names, *(f"{each}.safetensors" for each in names)):
            return usual
        served = self.engine.models()
        found = next((each.name for each in served if name in each.names), None)
        if found is None:
            known = nearest(str(name), [each.name for each in served], most=20) if served else ""
            message = str(InputError(param, name, f"not here; {known or f'this server has {usual!r}'}"))
            raise ApiError(404, message, param=param, code="model_not_found")
        return found

    @property
    def model_names(self) -> list[str]:
        """The names by which clients may choose a model, the usual one's first."""
        return list(dict.fromkeys((*self.settings.names, *(each.name for each in self.engine.models()))))

    def check_text(self, name: str, text: str) -> None:
        """Raise InputError for a text that is too long or not Unicode."""
        most = self.settings.max_prompt
        if len(text) > most:
            raise InputError(name, text, f"{len(text)} characters; give at most {most}")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can have half of a surrogate pair
            raise InputError(name, text, "not Unicode; send each character whole") from None

    def wanted(self, arguments: Mapping[str, Any]) -> Size:
        """Return the size asked for, else the one nearest to the picture to start from, else the server's first."""
        sizes = self.settings.sizes
        width, height, image = (arguments.get(name) for name in ("width", "height", "image"))
        if width is None and height is None:
            return nearest_size(image.size, sizes) if isinstance(image, Image.Image) else sizes[0]
        return sizes[0][0] if width is None else width, sizes[0][1] if height is None else height

    def policy(self, own: Policy, model: str | None = None, asked: Policy | None = None) -> Policy:
        """Return the policy for a size that is not drawn here, for a request that names a model.

        The request's own, `asked`, comes first, then the operator's; `own` is that of its API.
        """
        if asked is not None:
            return asked
        if self.settings.size_policy != "auto":
            return self.settings.size_policy
        return "nearest" if model in self.settings.aliases else own

    def settings_of(
        self,
        arguments: Mapping[str, Any],
        picture: Image.Image,
        seed: int,
        scheduler: str,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return an image's settings for `encode`, by their names in `Pipeline.generate`.

        `arguments` are those of its request, of which pictures are left out; `scheduler` and `facts` are those of its
        ticket.
        """
        own = {name: getattr(self.settings, name) for name in ("model", "steps", "guidance_scale")}
        given = {name: value for name, value in arguments.items() if not isinstance(value, Image.Image | None)}
        given.pop("num_images", None)
        given |= {name: [each.facts for each in given[name]] for name in WITH_FACTS if name in given}
        given |= {"hires": given["hires"].facts} if "hires" in given else {}
        size = {"width": picture.width, "height": picture.height}
        return {"version": __version__, **own, **(facts or {}), **size, **given, "seed": seed, "scheduler": scheduler}

    async def encode(
        self,
        picture: Image.Image,
        settings: Mapping[str, Any] | None,
        *,
        format: Format = "png",
        quality: int | None = None,
        composite: bool = False,
    ) -> bytes:
        """Return a picture as a file, marked and signed as the operator wants it; a thread encodes it."""
        return await asyncio.to_thread(
            encode,
            picture,
            settings,
            format=format,
            quality=quality,
            composite=composite,
            mark=self.settings.mark,
            signer=self.signer,
        )

    async def encode_preview(self, pixels: np.ndarray, *, format: Format = "jpeg", quality: int | None = None) -> bytes:
        """Return the pixels of a `Preview` as a file that is marked but not signed."""
        picture = Image.fromarray(pixels)
        return await asyncio.to_thread(encode, picture, None, format=format, quality=quality, mark=self.settings.mark)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that nobody waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself does not hold on to it
        task.add_done_callback(self._tasks.discard)

    async def _ticket(self, request: Request, channel: Channel) -> Ticket:
        """Submit a request, and load the model first if somebody has unloaded it."""
        while True:
            try:
                return await asyncio.to_thread(self.engine.submit, request, channel.tell)
            except UnloadedError:
                if self.want_loaded is None:
                    raise
                await asyncio.wrap_future(self.want_loaded(True))

    def _end(self, stream: Stream) -> None:
        """Forget a request that has its end, whatever that is; the event loop calls it."""
        self.live.pop(stream.id, None)
        self._ids.discard(stream.id)
        self.quotas.give_back(stream.key, len(stream.ticket.seeds))
        self.metrics.observe(stream.ticket, outcome(stream.ticket), stream.key)
        stream.channel.end()


class Stream:
    """A request on its way: `async for` gives its events.

    Leaving `async with` before its end cancels it, unless it is to be kept.
    `key` is whose it is. `arguments` are those that it is drawn with; the seed is among them, that of the first image.
    `wanted` is the size of the pictures that its client gets. `remarks` and `embeddings` are those of
    `jaxl.server.prompts`.
    """

    def __init__(
        self,
        ticket: Ticket,
        key: Key,
        arguments: Mapping[str, Any],
        channel: Channel,
        events: AsyncIterator[Event],
        wanted: Size,
        remarks: str,
        embeddings: Mapping[str, str | None],
        keep: bool = False,
    ) -> None:
        self.ticket = ticket
        self.key = key
        self.arguments = arguments
        self.channel = channel
        self.wanted = wanted
        self.remarks = remarks
        self.embeddings = embeddings
        self.keep = keep
        self._events = events

    @property
    def id(self) -> str:
        return self.ticket.id

    @property
    def drawn(self) -> Size:
        return ends_at((self.arguments["width"], self.arguments["height"]), self.arguments.get("hires"))

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Cancel the request, as the client is gone, unless it is to be kept."""
        if not self.keep:
            self.ticket.cancel()  # does nothing once it has ended

    async def result(self) -> Result:
        """Wait for the result. Raises NonFiniteError, DeadlineError, CancelledError and EngineError."""
        await self.channel.ended.wait()
        return self.ticket.future.result()


def outcome(ticket: Ticket) -> Outcome:
    """Return how a request ended."""
    match ticket.future.exception():
        case None:
            return "done"
        case CancelledError():
            return "cancelled"
        case DeadlineError():
            return "deadline"
        case _:
            return "failed"


def current_service(http: HttpRequest) -> Service:
    return http.app.state.service


CurrentService = Annotated[Service, Depends(current_service)]


async def know_models(service: CurrentService) -> None:
    """Have the models looked for in a thread, after which all know them for a second: the disk may be slow."""
    await asyncio.to_thread(service.engine.models)


async def gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _framed(given: Mapping[str, Any], wanted: Size, drawn: Size) -> dict[str, Image.Image]:
    """Return the picture and mask that a request starts from, if any, `framed` for the size that is drawn."""
    found = {}
    if isinstance(given.get("image"), Image.Image):
        found["image"] = framed(read_image(given["image"], "image"), wanted, drawn)
    if isinstance(given.get("mask"), Image.Image):
        found["mask"] = framed(given["mask"].convert("L"), wanted, drawn)
    return found
