"""Jobs of a server that is killed again and again: whether each is answered, once, with its own picture.

    python benchmarks/jobs.py [--fake] [--jobs 200] [--kills 5] [OPTIONS OF jaxl serve ...]

Clients send jobs under ids of their own while the server is killed with SIGKILL at random times and started again; a
client whose request was not answered sends it again. At the end all answers are fetched, and some pictures drawn again
alone. With --fake the server's engine draws patterns without a model, which show as well whose picture one is.
"""

import argparse
import base64
import collections
import io
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import httpx
from PIL import Image

CHECKED = 10
STEPS = (4, 6, 8)
FAKE = """
import sys, types
from jaxl.engine.fake import FakeBackend

class Backend(FakeBackend):
    defaults = {"sizes": ((32, 32),), "scheduler": "euler", "steps": 10, "guidance_scale": 4.0}

sys.modules["jaxl.backend"] = types.SimpleNamespace(open_backend=lambda model, **options: Backend(0.02))
import jaxl.cli
sys.exit(jaxl.cli.run(sys.argv[1:]))
"""


class Server:
    """`jaxl serve` on a port of its own, which is started again and again."""

    def __init__(self, options: list[str], fake: bool):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        program = ["-c", FAKE] if fake else ["-m", "jaxl"]
        self.command = [sys.executable, *program, "serve", "--port", str(port), *options]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    sys.exit("jaxl serve ended; run it by itself to see why")
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def asked(number: int) -> dict[str, Any]:
    return {"prompt": f"a red apple, {number}", "seed": number, "num_inference_steps": STEPS[number % 3]}


def pixels(answer: dict[str, Any]) -> bytes:
    (made,) = answer["data"]
    return Image.open(io.BytesIO(base64.b64decode(made["b64_json"]))).tobytes()


def send(url: str, number: int, counts: collections.Counter[str]) -> None:
    """Send a job until the server says that it has it."""
    headers = {"Prefer": "respond-async", "X-Request-Id": f"job-{number}"}
    while True:
        try:
            status = httpx.post(f"{url}/v1/images/generations", json=asked(number), headers=headers).status_code
        except httpx.TransportError:
            status = 0
        if status == 202:
            return
        counts["sent again"] += 1
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    given, options = parser.parse_known_args()
    counts: collections.Counter[str] = collections.Counter()
    chance = random.Random(0)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(["--jobs", folder, *options], given.fake)

        def send_all() -> None:
            for number in range(given.jobs):
                send(server.url, number, counts)
                time.sleep(0.05)

        sending = threading.Thread(target=send_all)
        sending.start()
        for _ in range(given.kills):
            time.sleep(chance.uniform(0.5, 2))
            server.kill()
            states = [job["state"] for job in _after(server)]
            counts["had ended at a kill"] = sum(state == "done" for state in states)
        sending.join()
        answers = {}
        while len(answers) < given.jobs:
            for number in set(range(given.jobs)) - set(answers):
                answer = httpx.get(f"{server.url}/v1/jobs/job-{number}/answer")
                if answer.status_code != 202:
                    answers[number] = answer
            time.sleep(0.5)
        drawn = {number: pixels(answer.json()) for number, answer in answers.items() if answer.status_code == 200}
        checked = chance.sample(range(given.jobs), CHECKED)
        same = 0
        for number in checked:
            again = httpx.post(f"{server.url}/v1/images/generations", json=asked(number), timeout=None).json()
            same += pixels(again) == drawn[number]
        server.process.terminate()
        server.process.wait()
    print(
        json.dumps(
            {
                "jobs": given.jobs,
                "kills": given.kills,
                "answers": len(answers),
                "pictures": len(drawn),
                "different pictures": len(set(drawn.values())),
                "drawn again alone": CHECKED,
                "the same": same,
                **counts,
                "seconds": round(time.perf_counter() - began),
            }
        )
    )


def _after(server: Server) -> list[dict[str, Any]]:
    """Start the server again, and return the latest jobs that it then has."""
    server.start()
    return httpx.get(f"{server.url}/v1/jobs").json()["data"]


if __name__ == "__main__":
    main()
