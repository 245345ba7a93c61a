"""Load on a server that runs: requests that come whether or not earlier ones were answered.

Arrivals are a Poisson process, drawn ahead from a seed: an open loop, as many users are one (Schroeder et al. 2006,
"Open Versus Closed: A Cautionary Tale"). Latency counts from when a request was meant to be sent, so that time in which
the client is late is not lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxl.bench.workload import PROMPT
from jaxl.errors import InputError, JaxlError
from jaxl.extras import install_command

try:
    import httpx
except ImportError:
    raise InputError("bench", "serve", f"it needs httpx; {install_command('bench')}") from None

Kind = Literal["plain", "stream", "cancel", "malformed"]

KINDS: Sequence[Kind] = ("plain", "stream", "cancel", "malformed")
PATH = "/v1/images/generations"
MALFORMED = (
    b"{",
    b"{}",
    b'{"prompt": 5}',
    b'{"prompt": "a", "n": 1000000}',
    b'{"prompt": "a", "size": "1x100000"}',
    b'{"prompt": "a", "num_inference_steps": -1}',
)
LONE_RUNS = 3
TIMEOUT = 600.0


@dataclass(frozen=True)
class Load:
    """The requests that are sent to a server: how many, how often, and for what.

    rate: images a second. seconds: how long requests come.
    steps: each request has one of these. size: WxH; the server's own if None. images: of each request.
    stream_share, cancel_share, malformed_share: parts of the requests that are streamed, with `previews` of each image;
        whose client goes away before a lone request would be answered; and that the server must refuse.
    deadline: seconds after which an answer is worth nothing, for goodput.
    models, api_keys: each request names one of these, and comes with one of these; the server's own, and no key, if
        there are none. The first of each is that of lone requests.
    variety: how many different prompts and seeds there are.
    """

    url: str
    rate: float = 1.0
    seconds: float = 60.0
    steps: Sequence[int] = (20,)
    size: str | None = None
    images: int = 1
    stream_share: float = 0.0
    previews: int = 2
    cancel_share: float = 0.0
    malformed_share: float = 0.0
    deadline: float | None = None
    models: Sequence[str] = ()
    api_keys: Sequence[str] = field(default=(), repr=False)
    variety: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for what cannot be."""
        for name in ("rate", "seconds", "images", "variety", "deadline"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(name, value, "give more than 0")
        if not self.steps or min(self.steps) < 1:
            raise InputError("steps", self.steps, "give 1 or more")
        shares = {name: getattr(self, f"{name}_share") for name in KINDS[1:]}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name}_share", share, "give a number from 0 to 1")
        if sum(shares.values()) > 1:
            raise InputError("stream_share", self.stream_share, "the shares are more than 1 together")


@dataclass(frozen=True)
class Arrival:
    """A request: when it is sent, in seconds from the beginning, and what it asks for.

    `patience` is the part of a lone request's time after which a client of kind "cancel" goes away. `model` and `key`
    are places among those of the load, if it has any.
    """

    at: float
    number: int
    steps: int
    kind: Kind = "plain"
    patience: float = 1.0
    model: int = 0
    key: int = 0

    @property
    def wanted(self) -> bool:
        """Tell whether somebody waits for its images."""
        return self.kind in ("plain", "stream")


@dataclass(frozen=True)
class Answer:
    """The end of a request; times are seconds from the beginning.

    `status` is HTTP's, "cancelled" if the client went away, "error event" if a stream says so, "images missing", or the
    name of a failure of the connection. `message` is the server's. `digests` are those of the images' files.
    """

    arrival: Arrival
    status: str
    sent: float
    ended: float
    first_preview: float | None = None
    digests: tuple[str, ...] = ()
    message: str = ""

    @property
    def latency(self) -> float:
        return self.ended - self.arrival.at

    @property
    def expected(self) -> bool:
        """Tell whether a server that works may answer so."""
        if self.arrival.kind == "malformed":
            return self.status.startswith("4") and self.status != "429"
        return self.status in ("200", "429") or (self.arrival.kind == "cancel" and self.status == "cancelled")


@dataclass(frozen=True)
class Quantiles:
    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles | None:
        """Return the quantiles of some values, or None if there are none."""
        array = np.array(list(values))
        if not array.size:
            return None
        return cls(float(array.mean()), *(float(value) for value in np.quantile(array, (0.5, 0.95, 0.99, 1.0))))


@dataclass(frozen=True)
class Report:
    """How a server did under a load. Rates are of the last three quarters of its time, in which the load is steady.

    offered: images a second that clients waited for. achieved: those they got. goodput: those they got in time.
    latency_s, first_preview_s: of requests that were answered. slowdown: latency over that of a lone request of as many
        steps, `lone_s`. refusal_s: of those answered with 429.
    statuses: how many requests ended how. unexpected: those that should have ended otherwise.
    wrong_images: requests, of `checked_images` compared, whose images were not those of a lone request.
    utilisation: the part of the time that the devices were busy. memory_bytes: of the server, before and after.
    lag_s: by how much the latest request was sent too late.
    """

    rate: float
    offered: float
    achieved: float
    goodput: float | None
    requests: int
    latency_s: Quantiles | None
    slowdown: Quantiles | None
    first_preview_s: Quantiles | None
    refusal_s: Quantiles | None
    lone_s: Mapping[int, float]
    statuses: Mapping[str, int]
    unexpected: int
    checked_images: int
    wrong_images: int
    utilisation: float
    memory_bytes: tuple[float | None, float | None]
    lag_s: float


def measure(load: Load, *, check: int = 0) -> Report:
    """Put a load on a server, and say what became of it.

    check: of so many different requests that were answered, the images are compared with those of a lone one, to the
        byte: not with a server that signs them.

    Raises InputError if nothing answers at the address, JaxlError if a lone request fails.
    """
    load.check()
    planned = arrivals(load)
    if not planned:
        raise InputError(
            "rate", load.rate, f"no request comes in {load.seconds:g} s; give a higher one, or more seconds"
        )
    return asyncio.run(_measure(load, planned, check))


def measure_capacity(load: Load, in_flight: int) -> float:
    """Images a second while so many are always asked for: a closed loop, whatever the load's rate."""
    load.check()
    return asyncio.run(_measure_capacity(load, in_flight))


def arrivals(load: Load) -> list[Arrival]:
    """The requests of a load, which depend on nothing but the load."""
    random = np.random.default_rng(load.seed)
    shares = (load.stream_share, load.cancel_share, load.malformed_share)
    planned, at = [], 0.0
    while (at := at + float(random.exponential(load.images / load.rate))) < load.seconds:
        number, steps = int(random.integers(load.variety)), int(random.choice(load.steps))
        kind = KINDS[int(random.choice(len(KINDS), p=(max(1 - sum(shares), 0.0), *shares)))]
        patience = float(random.random())
        model, key = (int(random.integers(len(each))) if each else 0 for each in (load.models, load.api_keys))
        planned.append(Arrival(at, number, steps, kind, patience, model, key))
    return planned


def summarise(
    load: Load,
    answers: Sequence[Answer],
    *,
    lone_s: Mapping[int, float],
    utilisation: float = 0.0,
    memory_bytes: tuple[float | None, float | None] = (None, None),
    checked_images: int = 0,
    wrong_images: int = 0,
) -> Report:
    """The report of a load, from the answers to all its requests."""
    steady = load.seconds / 4, load.seconds
    done = [answer for answer in answers if answer.arrival.wanted and answer.status == "200"]

    def rate(times: Iterable[float]) -> float:
        return sum(steady[0] < at <= steady[1] for at in times) * load.images / (steady[1] - steady[0])

    in_time = (answer.ended for answer in done if load.deadline is None or answer.latency <= load.deadline)
    previews = ((answer, answer.first_preview) for answer in done)
    return Report(
        rate=load.rate,
        offered=rate(answer.arrival.at for answer in answers if answer.arrival.wanted),
        achieved=rate(answer.ended for answer in done),
        goodput=None if load.deadline is None else rate(in_time),
        requests=len(answers),
        latency_s=Quantiles.of(answer.latency for answer in done),
        slowdown=Quantiles.of(answer.latency / lone_s[answer.arrival.steps] for answer in done),
        first_preview_s=Quantiles.of(shown - answer.arrival.at for answer, shown in previews if shown is not None),
        refusal_s=Quantiles.of(answer.latency for answer in answers if answer.status == "429"),
        lone_s=lone_s,
        statuses=dict(sorted(Counter(answer.status for answer in answers).items())),
        unexpected=sum(not answer.expected for answer in answers),
        checked_images=checked_images,
        wrong_images=wrong_images,
        utilisation=utilisation,
        memory_bytes=memory_bytes,
        lag_s=max(answer.sent - answer.arrival.at for answer in answers),
    )


async def _measure(load: Load, planned: Sequence[Arrival], check: int) -> Report:
    async with _client(load) as client:
        await _read_metrics(client)  # or there is no need to go on
        lone_s = await _lone_seconds(client, load)
        before, began = await _read_metrics(client), time.monotonic()
        answers = await _send_all(client, load, planned, lone_s)
        seconds, after = time.monotonic() - began, await _read_metrics(client)
        checked, wrong = await _compare(client, load, answers, check)
    busy, memory = "jaxl:busy_seconds_total", "process_resident_memory_bytes"
    return summarise(
        load,
        answers,
        lone_s=lone_s,
        utilisation=(after[busy] - before[busy]) / seconds,
        memory_bytes=(before.get(memory), after.get(memory)),
        checked_images=checked,
        wrong_images=wrong,
    )


async def _measure_capacity(load: Load, in_flight: int) -> float:
    ended: list[float] = []
    async with _client(load) as client:
        await _read_metrics(client)
        await _lone(client, load, Arrival(0.0, 0, load.steps[0]))
        began = time.monotonic()

        async def keep_asking(number: int) -> None:
            while time.monotonic() - began < load.seconds:
                steps, model = load.steps[number % len(load.steps)], number % max(len(load.models), 1)
                await _lone(client, load, Arrival(0.0, number, steps, model=model))
                ended.append(time.monotonic() - began)
                number += in_flight

        await asyncio.gather(*(keep_asking(number) for number in range(max(in_flight // load.images, 1))))
    steady = sum(load.seconds / 4 < at <= load.seconds for at in ended)
    return steady * load.images / (load.seconds * 3 / 4)


@asynccontextmanager
async def _client(load: Load) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # nobody queues on this side
    try:
        async with httpx.AsyncClient(base_url=load.url, limits=limits, timeout=TIMEOUT) as client:
            yield client
    except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        remedy = "give the address of one that runs, such as http://127.0.0.1:8000"
        raise InputError("url", load.url, f"no server answers there ({error}); {remedy}") from None


async def _send_all(
    client: httpx.AsyncClient, load: Load, planned: Sequence[Arrival], lone_s: Mapping[int, float]
) -> list[Answer]:
    began = time.monotonic()
    tasks = []
    async with asyncio.TaskGroup() as group:
        for arrival in planned:
            await asyncio.sleep(began + arrival.at - time.monotonic())
            patience = arrival.patience * lone_s[arrival.steps] if arrival.kind == "cancel" else None
            tasks.append(group.create_task(_send(client, load, arrival, began, patience)))
    return [task.result() for task in tasks]


async def _lone_seconds(client: httpx.AsyncClient, load: Load) -> dict[int, float]:
    """The median time of a request that has the server to itself, by its steps; a first one does not count."""
    await _lone(client, load, Arrival(0.0, 0, load.steps[0]))
    seconds = {}
    for steps in sorted(set(load.steps)):
        runs = [await _lone(client, load, Arrival(0.0, number, steps)) for number in range(LONE_RUNS)]
        seconds[steps] = statistics.median(answer.latency for answer in runs)
    return seconds


async def _lone(client: httpx.AsyncClient, load: Load, arrival: Arrival) -> Answer:
    """Send a request now. Raises JaxlError, with what the server says, unless it answers with images."""
    answer = await _send(client, load, arrival, time.monotonic())
    if answer.status != "200":
        raise JaxlError(f"the server answers a request with {answer.status} that should give images: {answer.message}")
    return answer


async def _compare(client: httpx.AsyncClient, load: Load, answers: Sequence[Answer], most: int) -> tuple[int, int]:
    """Compare answers to at most `most` different requests with lone ones; return how many, and how many differ."""
    found: dict[Arrival, list[tuple[str, ...]]] = {}
    for answer in answers:
        if answer.digests and answer.status == "200":
            asked = answer.arrival
            found.setdefault(Arrival(0.0, asked.number, asked.steps, model=asked.model), []).append(answer.digests)
    compared = wrong = 0
    for asked, all_digests in list(found.items())[:most]:
        lone = await _lone(client, load, asked)
        compared += len(all_digests)
        # those of a stream come as they are done
        wrong += sum(sorted(digests) != sorted(lone.digests) for digests in all_digests)
    return compared, wrong


async def _send(
    client: httpx.AsyncClient, load: Load, arrival: Arrival, began: float, patience: float | None = None
) -> Answer:
    """Send a request, and wait for its end at most `patience` seconds."""
    heard = _Heard(began)
    sent = heard.seconds()
    try:
        async with asyncio.timeout(patience):
            status = await _ask(client, load, arrival, heard)
    except TimeoutError:
        status = "cancelled"
    except (httpx.HTTPError, ValueError, KeyError) as error:  # or it is no answer of jaxl's
        status, heard.message = type(error).__name__, str(error)
    return Answer(
        arrival,
        status,
        sent,
        heard.seconds(),
        heard.first_preview,
        tuple(heard.digests),
        " ".join(heard.message.split()),
    )


@dataclass
class _Heard:
    """The part of an answer that has come so far."""

    began: float
    first_preview: float | None = None
    digests: list[str] = field(default_factory=list)
    message: str = ""

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def preview(self) -> None:
        self.first_preview = self.first_preview or self.seconds()

    def image(self, text: str) -> None:
        self.digests.append(hashlib.sha256(text.encode()).hexdigest())


async def _ask(client: httpx.AsyncClient, load: Load, arrival: Arrival, heard: _Heard) -> str:
    """The status of an answer."""
    if arrival.kind == "malformed":
        content = MALFORMED[arrival.number % len(MALFORMED)]
    else:
        content = json.dumps(_body(load, arrival)).encode()
    headers = {"Content-Type": "application/json"}
    if load.api_keys:
        headers["Authorization"] = f"Bearer {load.api_keys[arrival.key]}"
    async with client.stream("POST", PATH, content=content, headers=headers) as response:
        if response.status_code != 200:
            heard.message = _message(await response.aread())
            return str(response.status_code)
        if arrival.kind != "stream":
            for image in json.loads(await response.aread())["data"]:
                heard.image(image["b64_json"])
        else:
            async for line in response.aiter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
                if event.get("type") == "image_generation.partial_image":
                    heard.preview()
                elif event.get("type") == "image_generation.completed":
                    heard.image(event["b64_json"])
                elif "error" in event:
                    heard.message = str(event["error"])
                    return "error event"
    return "200" if len(heard.digests) == load.images else "images missing"


def _message(data: bytes) -> str:
    """Return the message in the body of an error, in OpenAI's form or any other."""
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace")[:200]


def _body(load: Load, arrival: Arrival) -> dict[str, Any]:
    body = {
        "prompt": f"{PROMPT}, number {arrival.number}",
        "seed": arrival.number,
        "n": load.images,
        "num_inference_steps": arrival.steps,
        "response_format": "b64_json",
    }
    if load.size is not None:
        body["size"] = load.size
    if load.models:
        body["model"] = load.models[arrival.model]
    if arrival.kind == "stream":
        body |= {"stream": True, "partial_images": load.previews}
    return body


async def _read_metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The server's metrics that have no labels."""
    response = await client.get("/metrics")
    lines = [line.split() for line in response.text.splitlines() if not line.startswith("#")]
    found = {line[0]: float(line[1]) for line in lines if len(line) == 2 and "{" not in line[0]}
    if "jaxl:busy_seconds_total" not in found:
        raise InputError("url", str(client.base_url), "no metrics of jaxl at /metrics; give the address of jaxl serve")
    return found
