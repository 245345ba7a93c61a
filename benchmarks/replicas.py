"""Replicas under load: one is killed, all are drained, and their number follows the load, to none.

    python benchmarks/replicas.py kill|drain|scale|zero [OPTIONS OF jaxl serve ...]

`kill`: one of two replicas gets SIGKILL. `drain`: the server with two gets SIGTERM. `scale`: the load rises above what
one replica draws, and falls again. `zero`: nobody asks for a while, and then one does. These two take the arguments of
`jaxl.server.ray:app` as NAME=VALUE in place of options.
Requests of one image come evenly, whether or not earlier ones were answered. The last line is JSON.
"""

import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil

STEPS = 8
SECONDS = 60.0
# of what the replicas that there are draw at most
SHARE = 0.6

SERVE = (sys.executable, "-m", "jaxl", "serve", "--port", "0", "--replicas", "2")
SCALED = """
import socket, sys, threading, ray
from ray import serve
from jaxl.server.ray.local import start_ray
from jaxl.server.ray.application import app
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
start_ray(3)
serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
given = dict(each.split("=", 1) for each in sys.argv[1:])
serve.run(app({"least": 1, "most": 2, "upscale_delay": 5, "downscale_delay": 20, **given}))
print(f"http://127.0.0.1:{port}", flush=True)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Answer:
    """`status` is HTTP's, or the name of a failure of the connection; times are seconds from the beginning."""

    number: int
    status: str
    sent: float
    ended: float
    digest: str = ""


class Server:
    def __init__(self, *command: str):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.until(lambda: httpx.get(f"{self.url}/health/ready", timeout=60).status_code == 200)

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.process.poll() is not None:
                sys.exit("the server ended; run it by itself to see why")
            time.sleep(0.1)

    def slots(self) -> int:
        """Images that the replicas there are draw at once."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return int(next(float(line.split()[1]) for line in lines if line.startswith("jaxl:slots ")))

    def replicas(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in found if "ServeReplica" in " ".join(each.cmdline()) and "Ingress" not in each.name()]


@contextmanager
def running(*command: str) -> Iterator[Server]:
    server = Server(*command)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


async def ask(client: httpx.AsyncClient, number: int, began: float) -> Answer:
    body = {"prompt": f"a red apple, number {number}", "seed": number, "num_inference_steps": STEPS}
    sent, digest = time.monotonic() - began, ""
    try:
        response = await client.post("/v1/images/generations", json=body)
        status = str(response.status_code)
        if status == "200":
            digest = hashlib.sha256(response.json()["data"][0]["b64_json"].encode()).hexdigest()
    except httpx.HTTPError as error:
        status = type(error).__name__
    return Answer(number, status, sent, time.monotonic() - began, digest)


async def load(url: str, rate: float, seconds: float, stop: threading.Event | None = None) -> list[Answer]:
    """So many requests a second, until `stop` at the latest, and the answers to all of them."""
    began = time.monotonic()
    tasks = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client, asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(began + number / rate - time.monotonic())
            if stop is not None and stop.is_set():
                break
            tasks.append(group.create_task(ask(client, number, began)))
    return [task.result() for task in tasks]


async def capacity(url: str, in_flight: int = 16) -> float:
    """Images a second with so many requests at any time, after as many that do not count."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for _ in range(2):
            began = time.monotonic()
            await asyncio.gather(*(ask(client, number, began) for number in range(in_flight)))
    return in_flight / (time.monotonic() - began)


def summary(answers: list[Answer]) -> dict[str, object]:
    done = sorted(answer.ended - answer.sent for answer in answers if answer.status == "200")
    return {
        "requests": len(answers),
        "statuses": dict(Counter(answer.status for answer in answers)),
        "latency_p50_s": round(statistics.median(done), 2),
        "latency_max_s": round(done[-1], 2),
    }


def after(seconds: float, act: Callable[[], None]) -> threading.Thread:
    thread = threading.Timer(seconds, act)
    thread.start()
    return thread


def kill(options: list[str]) -> dict[str, object]:
    """How long until two replicas are ready again; and whether images that were drawn twice are what they should be."""
    times: dict[str, float] = {}
    with running(*SERVE, *options) as server:
        server.until(lambda: len(server.replicas()) == 2)
        rate = SHARE * asyncio.run(capacity(server.url))
        both = server.slots()

        def act() -> None:
            began = time.monotonic()
            server.replicas()[0].kill()
            server.until(lambda: server.slots() < both)
            times["noticed_s"] = time.monotonic() - began
            server.until(lambda: server.slots() == both)
            times["ready_again_s"] = time.monotonic() - began

        killing = after(SECONDS / 3, act)
        answers = asyncio.run(load(server.url, rate, SECONDS))
        killing.join()
        late = [answer.number for answer in answers if answer.status == "200" and answer.sent > SECONDS / 3 - 10][:12]

        async def again() -> list[Answer]:
            async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
                return [await ask(client, number, 0.0) for number in late]

        known = {answer.number: answer.digest for answer in answers}
        wrong = sum(known[answer.number] != answer.digest for answer in asyncio.run(again()))
    return {"images_per_s": rate, **times, **summary(answers), "compared": len(late), "wrong_images": wrong}


def drain(options: list[str]) -> dict[str, object]:
    """What becomes of requests that were sent before SIGTERM, and of those after it."""
    with running(*SERVE, *options) as server:
        rate = 2 * SHARE * asyncio.run(capacity(server.url))  # so that some wait
        stop = threading.Event()
        signalled: list[float] = []
        began = time.monotonic()

        def act() -> None:
            server.process.terminate()
            signalled.append(time.monotonic() - began)
            server.process.wait()
            signalled.append(time.monotonic() - began)
            stop.set()

        stopping = after(SECONDS / 3, act)
        answers = asyncio.run(load(server.url, rate, SECONDS, stop))
        stopping.join()
    before = [answer for answer in answers if answer.sent < signalled[0]]
    later = [answer for answer in answers if answer.sent >= signalled[0]]
    return {
        "images_per_s": rate,
        "stopped_after_s": signalled[1] - signalled[0],
        "exit_status": server.process.returncode,
        "running_or_waiting": sum(answer.ended >= signalled[0] for answer in before),
        "before": summary(before),
        "after": dict(Counter(answer.status for answer in later)),
    }


def scale(arguments: list[str]) -> dict[str, object]:
    """When a second replica is there after the load has risen, and when it has gone after it has fallen."""
    times: dict[str, float] = {}
    with running(sys.executable, "-c", SCALED, *arguments) as server:
        most = asyncio.run(capacity(server.url, in_flight=8))
        server.until(lambda: server.slots() > 0)
        one = server.slots()
        low = asyncio.run(load(server.url, 0.3 * most, 20))
        began = time.monotonic()

        def act() -> None:
            server.until(lambda: server.slots() == 2 * one)
            times["second_ready_s"] = time.monotonic() - began

        watching = after(0, act)
        high = asyncio.run(load(server.url, 1.3 * most, SECONDS))
        watching.join()
        began_low = time.monotonic()

        def wait() -> None:
            server.until(lambda: server.slots() == one)
            times["second_gone_s"] = time.monotonic() - began_low

        watching = after(0, wait)
        low_again = asyncio.run(load(server.url, 0.3 * most, SECONDS))
        watching.join()
    return {
        "one_draws_per_s": most,
        **times,
        "low": summary(low),
        "high": summary(high),
        "low_again": summary(low_again),
    }


def zero(arguments: list[str]) -> dict[str, object]:
    """When the last replica is gone, and how long a request takes that comes then."""
    with running(sys.executable, "-c", SCALED, "least=0", "most=1", "downscale_delay=5", *arguments) as server:
        warm = asyncio.run(load(server.url, 1.0, 2))[-1]
        began = time.monotonic()
        server.until(lambda: server.slots() == 0)
        gone = time.monotonic() - began
        (cold,) = asyncio.run(load(server.url, 1.0, 1))
    return {"gone_s": gone, "warm_s": warm.ended - warm.sent, "cold_s": cold.ended - cold.sent, "status": cold.status}


def main() -> None:
    commands = {"kill": kill, "drain": drain, "scale": scale, "zero": zero}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    print(json.dumps(commands[sys.argv[1]](sys.argv[2:])))


if __name__ == "__main__":
    main()
