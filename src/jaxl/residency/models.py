"""Several models as one backend of the engine: a request names one, and it is brought onto the devices for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from jaxl.backend import PipelineBackend, open_backend
from jaxl.call.options import REFINER_AT
from jaxl.engine.backend import Batch, Lora, Served
from jaxl.errors import CheckpointError, EngineError, InputError, JaxlError, is_out_of_memory, nearest
from jaxl.pipeline import ShowProgress
from jaxl.residency.catalogue import FRESH, Catalogue
from jaxl.residency.memory import give_back
from jaxl.residency.order import ModelImage, ModelLane, Order
from jaxl.residency.policy import choose, kept, total
from jaxl.residency.resident import Resident, served

# of a device's memory: the rest is for programs and the images in the making
SHARE_OF_DEVICE = 2 / 3
# of the machine's memory, where its devices have their own
SHARE_OF_HOST = 1 / 4
# what says how one model is loaded
OF_ONE = ("unet", "preset", "prediction_type", "revision")

Open = Callable[[str, PipelineBackend | None], PipelineBackend]

log = logging.getLogger(__name__)


class Models:
    """Models by name, of which as many are on the devices as `device_memory` bytes hold.

    Those that had to leave stay in host memory, as far as `host_memory` goes. Which come and go, `policy` says. The
    first model of the catalogue, or those that are `pinned`, always stay. `how` opens a model, whose parameters are
    not loaded yet, like another. Models of one structure share all programs, and equal networks are held once.
    """

    def __init__(
        self, catalogue: Catalogue, how: Open, device_memory: int, host_memory: int, pinned: Sequence[str] = ()
    ):
        self.catalogue = catalogue
        self.device_memory = device_memory
        self.host_memory = host_memory
        self._how = how
        self._lock = threading.RLock()  # of all that follows
        self._current: dict[str, Resident] = {}
        self._residents: list[Resident] = []  # also those whose files were replaced, until their images are done
        self._coming: Resident | None = None
        self._served: Sequence[Served] = ()
        self._told = float("-inf")  # when that was looked up
        self._opening = threading.Lock()
        names = list(catalogue.sources())
        if not names:
            raise InputError("model_dir", str(catalogue.folder), "there is no model in it")
        for name in pinned:
            if name not in names:
                raise InputError("pin", name, nearest(name, names, most=20))
        self._pinned = tuple(pinned) or tuple(names[:1])
        self._usual: PipelineBackend | None = None
        self.first = self.open(names[0])
        self._usual = self.first.backend

    def load(self, progress: ShowProgress | None = None, before: Models | None = None) -> None:
        """Load the pinned models, compile all their programs, and run each batch once.

        Networks that are as the pinned ones `before` have them are theirs: so one model at most is held twice.
        """
        theirs = [] if before is None else [each for each in before._others(None) if each.pinned]  # which never leave
        for name in self._pinned:
            resident = self.open(name)
            resident.load([*theirs, *self._residents], progress)
            resident.here = True
        tell = None if progress is None else partial(progress, "compile")
        pinned = [self.open(name).backend for name in self._pinned]
        for backend in {each.pipe.model.structure: each for each in [*pinned, self.first.backend]}.values():
            backend.warm_up(tell)
        self.models()  # while one thread looks again, the others have what was known

    # what the engine and a server ask of a backend

    @property
    def sizes(self) -> Sequence[int]:
        return self.first.backend.sizes

    @property
    def defaults(self) -> dict[str, Any]:
        return {**self.first.backend.defaults, "model": self.first.name}

    @property
    def chips(self) -> tuple[str, int]:
        return self.first.backend.chips

    def models(self) -> Sequence[Served]:
        """Return all models, as they stood within the last second."""
        if time.monotonic() - self._told > FRESH:
            self._told = time.monotonic()
            # without the lock, for which the engine would wait as long as the disk takes
            found, current = self.catalogue.sources().items(), dict(self._current)
            self._served = [
                current[name].served() if name in current else served(name, sources[0]) for name, sources in found
            ]
        return self._served

    def loras(self) -> Sequence[Lora]:
        return self.first.backend.loras()

    def warm_loras(self) -> Sequence[str]:
        return self.first.backend.warm_loras()

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        return self.first.backend.upscale(name, picture, size)

    def read(self, arguments: Mapping[str, Any]) -> Sequence[ModelImage]:
        given = dict(arguments)
        model, refiner = given.pop("model", None) or self.first.name, given.pop("refiner", None)
        at = given.pop("refiner_at", REFINER_AT)
        resident = self.open(model)
        if refiner in (None, model):
            return Order(resident.backend.pipe.plan(**given), resident).images()
        second = self._open_refiner(refiner, resident)
        return Order(resident.backend.pipe.plan_refined(second.backend.pipe, at, **given), resident, second).images()

    def check(self, arguments: Mapping[str, Any]) -> None:
        self.read(arguments)  # which makes nothing yet

    def attend(self, waiting: Sequence[ModelImage], running: Sequence[ModelImage], tell: Callable[[], None]) -> None:
        now, busy = time.monotonic(), {each for image in running for each in image.residents}
        firsts: dict[Resident, int] = {}
        for image in running:
            image.begun = True
        with self._lock:
            for position, image in enumerate(waiting):
                for resident in image.residents:
                    image.failed = image.failed or resident.error
                    firsts.setdefault(resident, position)
            for resident in self._residents:
                resident.error = None
            for resident in {*busy, *firsts}:
                resident.used = now
            self._forget(busy | set(firsts))
            choice = choose(
                [each.standing(firsts.get(each), each in busy, now) for each in self._residents], self.device_memory
            )
            for resident in self._residents:
                resident.open = resident.here and resident.loaded and resident not in choice.closed
            if choice.bring is None and choice.coming is not None:
                choice.coming.read_ahead()
            if choice.bring is None or self._coming is not None:
                return
            self._coming, leaving = choice.bring, choice.leave
            self._coming.here = True
            for resident in leaving:
                resident.here = resident.open = False
        for image in waiting:
            if not set(leaving).isdisjoint(image.residents):
                image.forget()  # what was made with the parameters that leave
        threading.Thread(target=self._swap, args=(choice.bring, leaving, tell), name="swap models", daemon=True).start()

    def keeps(self, lane: ModelLane) -> bool:
        return lane.resident.open and lane.resident.backend.keeps(lane.lane)

    def batch(self, lane: ModelLane, size: int) -> Batch:
        return lane.resident.backend.batch(lane.lane, size)

    def remake(self, drawing: ModelImage, stage: int, state: Any) -> Callable[[], Any]:
        return drawing.resident_at(stage - 1).backend.remake(drawing, stage, state)

    def finish(self, drawing: ModelImage, state: Any, early: int | None = None) -> Callable[[], Image.Image]:
        resident = drawing.resident_at(-1 if early is None else early)
        resident.using.add(drawing)
        picture = resident.backend.finish(drawing, state, early)
        drawing.forget()

        def wait() -> Image.Image:
            try:
                return picture()
            finally:
                resident.using.discard(drawing)

        return wait

    def _open_refiner(self, name: str, first: Resident) -> Resident:
        """Return a model that goes on with the images of another, opened. Raises InputError, naming `refiner`."""
        try:
            resident = self.open(name)
            self._check_room(resident, first)
        except InputError as error:
            raise InputError("refiner", error.value, error.remedy) from None
        return resident

    def open(self, name: str) -> Resident:
        """Return a model as its files are now, opened. Raises InputError."""
        source, known = self.catalogue.source(name), self._current.get(name)
        try:
            if known is None or known.source != source or not known.is_current:
                with self._opening:
                    known = self._opened(name, source)
        except CheckpointError as error:
            raise InputError("model", name, str(error).replace(source, name)) from None
        self._check_room(known)
        return known

    def _check_room(self, resident: Resident, *beside: Resident) -> None:
        """Raise InputError for a model that does not fit onto the devices beside others, and those that are pinned."""
        others = {*beside, *(each for each in self._others(resident) if each.pinned)} - {resident}
        left = self.device_memory - total(each.least for each in others)
        if total([*(each.least for each in others), resident.least]) > self.device_memory:
            needs, room = (f"{count / 1e9:.3g} GB" for count in (total([resident.least]), left))
            names = " and ".join(sorted(each.name for each in others))
            which = f"beside {names}" if names else "of device memory"
            raise InputError("model", resident.name, f"its parameters take {needs}, and there are {room} {which}")

    def _opened(self, name: str, source: str) -> Resident:
        known = self._current.get(name)
        if known is not None and known.source == source and known.is_current:
            return known  # another thread was faster
        resident = Resident(name, source, self._how(source, self._usual), name in self._pinned)
        with self._lock:
            if known is not None:
                log.warning("the files of %s were replaced; new requests are drawn with the new ones", name)
                known.pinned = False
            self._current[name] = resident
            self._residents.append(resident)
        return resident

    def _forget(self, used: Collection[Resident]) -> None:
        """Give up models whose files were replaced, once nobody uses them."""
        for each in [each for each in self._residents if self._current.get(each.name) is not each]:
            if each not in used and not each.using and each is not self._coming:
                self._residents.remove(each)
                each.leave()

    def _swap(self, coming: Resident, leaving: Sequence[Resident], tell: Callable[[], None]) -> None:
        try:
            for each in leaving:
                self._leave(each)
            give_back()
            coming.load(self._others(coming))
            self._check_room(coming, *(each for each in self._others(coming) if each.here))
            failed = None
        except Exception as error:
            log.error("%s was not loaded: %s", coming.name, error, exc_info=not isinstance(error, JaxlError))
            failed = _load_error(coming.name, error)
            coming.leave()
        give_back()
        with self._lock:
            coming.error = failed
            self._coming, self._told = None, float("-inf")
        tell()

    def _leave(self, resident: Resident) -> None:
        """Have a model leave the devices, for host memory if there is room."""
        with self._lock:
            held = [each for each in self._residents if each.host or each is resident]
            staying = kept([each.standing(None, False, 0.0) for each in held], self.host_memory, resident)
            for each in held:
                if each not in staying:
                    each.host = {}
        if resident in staying:
            resident.keep(self._others(resident))
        resident.leave()

    def _others(self, resident: Resident | None) -> list[Resident]:
        with self._lock:
            return [each for each in self._residents if each is not resident]


def open_models(
    models: Sequence[tuple[str, str]],
    *,
    model_dir: str | os.PathLike[str] | None = None,
    device_memory: int | None = None,
    host_memory: int | None = None,
    pin: Sequence[str] = (),
    before: Models | None = None,
    progress: ShowProgress | None = None,
    **options: Any,
) -> Models:
    """Several models as one backend, of which the pinned ones are loaded, and all programs compiled.

    models: names with what they are loaded from, the usual one first. model_dir: a folder of further ones, which may
        come and go.
    device_memory: bytes on each device for parameters of models; by default two thirds of what it has, and half of the
        machine's memory on a CPU. host_memory: bytes for those of models that had to leave; a quarter of the machine's,
        and none on a CPU, whose devices have no other.
    pin: names of models that stay on the devices, the first by default. before: models that these come in place of.
    options: those of `open_backend`, for all.

    Raises InputError and CheckpointError.
    """
    for name in OF_ONE:
        if options.get(name) is not None:
            raise InputError(name, options[name], "it is about one model, and there are several; leave it out")
    sizes = [options.pop("sizes", ())]

    def opened(source: str, like: PipelineBackend | None) -> PipelineBackend:
        backend = open_backend(source, sizes=sizes[0], like=like, load=False, progress=progress, **options)
        sizes[0] = sizes[0] or backend.defaults["sizes"]
        return backend

    catalogue = Catalogue(models, None if model_dir is None else Path(model_dir))
    of_device, of_host = _memory()
    found = Models(
        catalogue,
        opened,
        of_device if device_memory is None else device_memory,
        of_host if host_memory is None else host_memory,
        pin,
    )
    for name, _ in models:
        found.open(name)
    found.load(progress, before)
    return found


def _memory() -> tuple[int, int]:
    """Return how many bytes of a device and of the machine parameters may take."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return machine // 2, 0
    return int(stats["bytes_limit"] * SHARE_OF_DEVICE), int(machine * SHARE_OF_HOST)


def _load_error(name: str, error: Exception) -> JaxlError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, JaxlError):
        return InputError("model", name, str(error))
    if is_out_of_memory(error):
        return EngineError(f"there is not enough memory for {name}")
    return EngineError(f"{name} could not be loaded: {' '.join(str(error).split())[:200]}")
