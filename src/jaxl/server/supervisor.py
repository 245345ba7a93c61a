"""What runs a server: in threads HTTP, loading and the engine, and in the main thread the decisions and the signals."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from starlette.types import ASGIApp
from uvicorn import Config, Server

from jaxl.engine import AnyEngine, Engine
from jaxl.errors import DrainingError, EngineError, InputError, JaxlError
from jaxl.residency.memory import give_back
from jaxl.server.app import Front, create_app
from jaxl.server.connections import Connection
from jaxl.server.service import Service
from jaxl.server.settings import EngineOptions, HttpOptions, Settings
from jaxl.server.sizes import as_text

# seconds in which answers that are done leave after the last image
GRACE = 5

# what the system says of an address that is somebody else's
NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass
class ModelLoaded:
    """News of the thread that loads: the backend, and how many seconds it took."""

    backend: Any
    seconds: float


@dataclass
class LoadingFailed:
    """News of the thread that loads: why there is no backend."""

    error: BaseException


@dataclass
class ModelWanted:
    """News of a request that needs the model loaded, or unloaded; `done` says whether that could be."""

    loaded: bool
    done: Future[bool] = field(default_factory=Future)

    def end(self, outcome: bool | JaxlError) -> None:
        with suppress(InvalidStateError):  # whoever has waited is gone
            if isinstance(outcome, bool):
                self.done.set_result(outcome)
            else:
                self.done.set_exception(outcome)


@dataclass
class ThreadEnded:
    """News of the thread with the HTTP server, or of the one that waits for running requests."""


News = int | ModelLoaded | LoadingFailed | ModelWanted | ThreadEnded


@dataclass(kw_only=True, eq=False)
class Supervisor:
    """Runs the HTTP server, the loading and the engine in threads, and in the main thread decides what comes next.

    The inbox has signals as numbers, and what the threads report. No thread but the main one gets signals, so these are
    obeyed at once, whatever is being compiled.

    server: the HTTP server, which answers with `front` on `listener`. load: opens the model and returns its backend; it
    is given the one that this comes in place of, if there is one.
    engine_options: of the engine before it. announce: is called when the HTTP server runs. say: tells the operator a
    line. usd_per_hour: returns what so many chips of a kind cost together, or None if that is not known.
    """

    server: Server
    listener: socket.socket
    front: Front
    load: Callable[..., Any]
    settings: Settings
    engine_options: EngineOptions
    announce: Callable[[], None]
    say: Callable[[str], None]
    usd_per_hour: Callable[[str, int], float | None]
    engine: AnyEngine | None = field(default=None, init=False)
    service: Service | None = field(default=None, init=False)
    loading: bool = field(default=False, init=False)
    waiting: list[ModelWanted] = field(default_factory=list, init=False)
    inbox: SimpleQueue[News] = field(default_factory=SimpleQueue, init=False)

    def run(self) -> None:
        """Serve until a signal ends it. Raises what loading the model for the first time does."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: self.inbox.put(number))
        serving = threading.Thread(target=self._serve, name="http", daemon=True)
        serving.start()
        self.announce()
        self._begin_loading()
        try:
            self._watch()
            if self.engine is not None:
                self._drain(self.engine)
        finally:
            self.server.should_exit = True
            serving.join(2 * GRACE)

    def want_loaded(self, loaded: bool) -> Future[bool]:
        """Have the model loaded, or unloaded; by any thread. What waits for it hears of it at the end."""
        wanted = ModelWanted(loaded)
        self.inbox.put(wanted)
        return wanted.done

    # what is different where several replicas draw

    def _load(self) -> Any:
        """Return a backend; called in a thread of its own."""
        return self.load(getattr(self.engine, "backend", None))

    def _take(self, loaded: ModelLoaded) -> None:
        """Draw with a backend from now on."""
        backend, name = loaded.backend, self.settings.model
        if isinstance(self.engine, Engine):
            self.engine.replace(backend)
            _tidy()
            self._learn(backend.defaults)
            self.say(f"loaded {name} anew in {loaded.seconds:.1f} s")
            return
        _tidy()
        engine = Engine(backend, **vars(self.engine_options))
        app = self._app(engine, backend.defaults, backend.chips, self.want_loaded)
        engine.start()
        self._open(engine, app, f"ready after {loaded.seconds:.1f} s")

    def _kept(self) -> str:
        """Return what draws after a new backend could not be loaded."""
        return "the old one is kept" if self._is_loaded() else "none is there"

    def _watch(self) -> None:
        """Obey until the server is to stop."""
        while self._obey(self.inbox.get()):
            pass

    def _obey(self, news: News) -> bool:
        """Do what news ask for, and return whether the server goes on. A backend in the news is not held any longer."""
        match news:
            case signal.SIGHUP:
                if self.loading:
                    self.say("the model is being loaded already")
                else:
                    self._begin_loading()
            case ModelLoaded():
                self.loading = False
                self._take(news)
                self._tell(True)
            case LoadingFailed(error):
                self.loading = False
                if self.engine is None:
                    raise error
                self.say(f"the model was not loaded anew, and {self._kept()}: {error}")
                self._tell(EngineError("the model could not be loaded; the log says why"))
            case ModelWanted(loaded=True):
                self.waiting.append(news)
                if self._is_loaded():
                    self._tell(True)
                elif not self.loading:
                    self._begin_loading()
            case ModelWanted():
                news.end(self._unload())
            case ThreadEnded():
                raise JaxlError("the HTTP server ended by itself")
            case _:
                self._tell(DrainingError("the server is stopping; try again later"))
                return False
        return True

    def _tell(self, outcome: bool | JaxlError) -> None:
        """Tell those who wait for the model."""
        for wanted in self.waiting:
            wanted.end(outcome)
        self.waiting = []

    def _is_loaded(self) -> bool:
        return getattr(self.engine, "backend", None) is not None

    def _unload(self) -> bool:
        if self.loading or not isinstance(self.engine, Engine) or not self.engine.unload():
            return False
        _tidy()
        self.say(f"unloaded {self.settings.model}; the next request loads it again")
        return True

    def _app(
        self,
        engine: AnyEngine,
        defaults: Mapping[str, Any],
        chips: tuple[str, int],
        want_loaded: Callable[[bool], Future[bool]] | None = None,
    ) -> ASGIApp:
        """Return the application before an engine, with what the model says of itself."""
        self._learn({**defaults, "usd_per_hour": self.usd_per_hour(*chips)})
        page = None
        if self.settings.ui:
            from jaxl.server.web.page import Page  # needs an extra

            page = Page(self.settings)
        self.service = Service(engine, self.settings, want_loaded)
        return create_app(self.service, page)

    def _learn(self, told: Mapping[str, Any]) -> None:
        """Know what a model says of itself; files that were read anew may say something else."""
        self.settings = replace(self.settings, **told)
        if self.service is not None:
            self.service.settings = self.settings

    def _open(self, engine: AnyEngine, app: ASGIApp, said: str) -> None:
        self.engine = engine
        self.front.open(app)
        self.say(f"{said}: {self.settings.model}, {', '.join(map(as_text, self.settings.sizes))}")

    def _drain(self, engine: AnyEngine) -> None:
        """Let running requests end, until the time is over or a second signal comes."""
        self.say(f"stopping; running requests have {self.settings.drain_timeout:g} s")

        def wait() -> None:
            engine.drain(self.settings.drain_timeout)
            self.inbox.put(ThreadEnded())

        threading.Thread(target=wait, name="drain", daemon=True).start()
        while True:
            match self.inbox.get():
                case signal.SIGINT | signal.SIGTERM | ThreadEnded():
                    break
                case ModelWanted() as wanted:
                    wanted.end(DrainingError("the server is stopping; try again later"))
        for ticket in engine.tickets():
            ticket.cancel()

    def _serve(self) -> None:
        try:
            self.server.run(sockets=[self.listener])
        finally:
            self.inbox.put(ThreadEnded())

    def _begin_loading(self) -> None:
        def work() -> None:
            began = time.perf_counter()
            try:
                backend = self._load()
            except BaseException as error:  # handed to the main thread
                self.inbox.put(LoadingFailed(error))
            else:
                self.inbox.put(ModelLoaded(backend, time.perf_counter() - began))

        self.loading = True
        self.say(f"loading {self.settings.model}")
        threading.Thread(target=work, name="load", daemon=True).start()


def http_server(front: Front, options: HttpOptions) -> Server:
    """Return the HTTP server that answers with `front`, on the socket that it is run with."""
    config = Config(
        front,
        http=Connection,
        limit_concurrency=options.max_connections,
        timeout_keep_alive=options.keep_alive,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    return Server(config)


def listen(options: HttpOptions) -> socket.socket:
    """Return the socket that the HTTP server is to listen on. Raises InputError."""
    host, port = options.host, options.port
    if not 0 <= port < 2**16:
        raise InputError("port", port, "give a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise InputError("host", host, "no address of this machine; give 127.0.0.1, or 0.0.0.0 for all") from None
    try:
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        name, value = ("host", host) if error.errno in NO_ADDRESS else ("port", port)
        remedy = "give an address of this machine" if name == "host" else "give another, or 0 for any that is free"
        raise InputError(name, value, f"{os.strerror(error.errno or 0).lower()}; {remedy}") from None


def _tidy() -> None:
    """Free what loading, compiling, or a backend that is gone leave: it has circles."""
    gc.collect()
    give_back()
