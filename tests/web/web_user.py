"""A server that can be killed, and people at its page in browsers of their own."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Request

from jaxl.engine import Engine, Lora
from jaxl.engine.fake import FakeBackend
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.server.web.page import Page

# milliseconds; two cores draw in a browser and in the server at once
A_WHILE = 120_000
STEPS = 8

SIZES = ((64, 64), (96, 64), (64, 96))
SCHEDULERS = ("euler", "euler_karras", "dpm++2m", "dpm++2m_karras", "lcm")
DESKTOP = {"width": 1280, "height": 900}
SCREENSHOTS = os.environ.get("JAXL_SCREENSHOTS")


class Server:
    """`jaxl serve --ui`, a process that can be killed and started anew, at the same address."""

    def __init__(self, *options: str, cache: Path):
        self.options = options
        self.environment = os.environ | {"JAXL_CACHE_DIR": str(cache)}
        self.port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "jaxl", "serve", "--ui", "--port", self.port, *self.options]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.url = lines.readline().strip()
        self.port = self.url.rpartition(":")[2]

    def wait(self) -> None:
        """Until it draws."""
        for _ in range(1200):
            assert self.process.poll() is None, "the server ended"
            try:
                with urlopen(f"{self.url}/health/ready"):
                    return
            except OSError:
                time.sleep(0.25)
        raise AssertionError("the server is not ready after five minutes")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def metric(self, name: str) -> float:
        with urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"jaxl:{name} "))


IDLE = "!document.body.classList.contains('jaxl-drawing')"


class User:
    """Somebody at the page, in a browser of their own."""

    def __init__(self, browser: Browser, server: Server | Quick, **context: Any):
        self.context = browser.new_context(viewport=context.pop("viewport", DESKTOP), **context)
        self.context.set_default_timeout(A_WHILE)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[Request] = []
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.troubles.append(error.stack or str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("console", lambda line: line.type == "error" and self.troubles.append(line.text))
        self.page.goto(server.url)
        self.page.wait_for_selector("#jaxl-generate")
        self.wait_for("sessionStorage.getItem('jaxl-form')")  # the page has begun, and keeps what is filled in

    def _dialog(self, dialog: Any) -> None:
        self.troubles.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def ask(self, prompt: str, *, images: int = 4, steps: int = STEPS, seed: str = "") -> None:
        """Fill in the form."""
        page = self.page
        page.fill("#jaxl-prompt textarea", prompt)
        page.fill("#jaxl-seed input, #jaxl-seed textarea", seed)
        page.fill("#jaxl-images input[type=number]", str(images))
        if not page.locator("#jaxl-steps").is_visible():
            page.get_by_text("Steps, guidance").click()
        page.fill("#jaxl-steps input[type=number]", str(steps))
        page.press("#jaxl-steps input[type=number]", "Tab")
        filled = {"prompt": prompt, "seed": seed, "num_images": images, "steps": steps}
        kept = "JSON.parse(sessionStorage.getItem('jaxl-form') ?? '{}')"
        self.wait_for(f"Object.entries({json.dumps(filled)}).every(([name, value]) => {kept}[name] === value)")

    def generate(self, prompt: str, **asked: Any) -> list[bytes]:
        """Draw, and return the files."""
        self.ask(prompt, **asked)
        self.press_generate()
        return self.drawn(asked.get("images", 4))

    def press_generate(self) -> None:
        self.page.evaluate("document.querySelector('jaxl-board').tiles.replaceChildren()")  # the last ones
        self.page.click("#jaxl-generate")

    def drawn(self, images: int) -> list[bytes]:
        self.wait_for(f"document.querySelectorAll('.jaxl-done').length === {images} && {IDLE}")
        return [self.file(f".jaxl-tile:nth-child({i + 1}) img") for i in range(images)]

    def file(self, selector: str) -> bytes:
        """The bytes behind a picture."""
        script = """async (image) => {
            const {pictures} = await import("/web/history.js");
            const {blob} = pictures.find((picture) => picture.url === image.src);
            const bytes = new Uint8Array(await blob.arrayBuffer());
            return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
        }"""
        return base64.b64decode(self.page.locator(selector).first.evaluate(script))

    def wait_for_preview(self) -> None:
        self.wait_for("document.querySelector('.jaxl-tile img')")

    def wait_for(self, condition: str) -> None:
        # by default it looks at each frame, of which there may be none while nothing moves on the page
        self.page.wait_for_function(f"() => {condition}", polling=50)

    def said(self) -> str:
        return self.page.inner_text("jaxl-board [role=status]")

    def alert(self) -> str:
        return self.page.inner_text("jaxl-board [role=alert]")

    def screenshot(self, name: str, **options: Any) -> None:
        """For the docs, if their folder is given as JAXL_SCREENSHOTS."""
        if SCREENSHOTS:
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", **options)


class Quick:
    """The page on an engine without a model, which draws patterns; `row_seconds` is what a step takes.

    `settings` are the server's.
    """

    def __init__(self, row_seconds: float = 0.0, known: Sequence[Lora] = (), **settings: Any):
        self.settings = Settings(sizes=SIZES, schedulers=SCHEDULERS, ui=True, **settings)
        self.backend = FakeBackend(row_seconds, SIZES[0], sizes_of_images=SIZES, known=known)
        self.asked: list[Mapping[str, Any]] = []
        read = self.backend.read
        self.backend.read = lambda arguments: self.asked.append(arguments) or read(arguments)

    def __enter__(self) -> Quick:
        self.engine = Engine(self.backend)
        app = create_app(Service(self.engine.__enter__(), self.settings), Page(self.settings))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # who comes before the server runs waits for it
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        return self

    def until_idle(self) -> None:
        for _ in range(1000):
            if not self.engine.tickets():
                return
            time.sleep(0.02)
        raise AssertionError("still drawing after 20 seconds")

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.engine.__exit__(None, None, None)


def drop(user: User, selector: str, name: str, data: bytes, kind: str = "image/png") -> None:
    """Drop a file on an element, once the page's own program is there to take it."""
    user.wait_for("window.jaxl !== undefined")
    script = """([text, name, type]) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, {type}));
        return transfer;
    }"""
    transfer = user.page.evaluate_handle(script, [base64.b64encode(data).decode(), name, kind])
    user.page.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(data, "PNG")
    return data.getvalue()
