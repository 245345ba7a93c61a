"""A request for images of one of several models; what these are fed is made when the model is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

from jaxl.backend import PlannedImage
from jaxl.call.plan import Plan
from jaxl.errors import EngineError, JaxlError
from jaxl.residency.resident import Resident

# neither the engine's thread nor that of a client has to wait for it
_PREPARERS = ThreadPoolExecutor(2, thread_name_prefix="prepare images")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelLane:
    """A lane of one of the models."""

    resident: Resident
    lane: Any


@dataclass(eq=False, kw_only=True)
class ModelImage(PlannedImage):
    """One image of an order. Once it has begun, it goes on, whoever else wants its model's place."""

    order: Order
    begun: bool = False

    @property
    def resident(self) -> Resident:
        return self.order.resident

    @property
    def ready(self) -> bool:
        return super().ready and (self.begun or (self.resident.open and self.inputs is not None))

    def prepare(self, tell: Callable[[], None]) -> None:
        super().prepare(tell)
        if self.resident.open and self.inputs is None:
            self.order.prepare(tell)

    @property
    def facts(self) -> Mapping[str, Any]:
        sha256 = self.resident.sha256
        hashes = {} if sha256 is None else {"model_hash": sha256[:10]}
        return {**super().facts, "model": self.resident.name, **hashes}


class Order:
    """A request, as a plan for one of the models. Raises InputError for what that has no lane for."""

    def __init__(self, resident: Resident, plan: Plan):
        self.resident = resident
        self.plan = plan
        # weakly: what images are fed holds parameters, which must be free as soon as the images are gone
        self._images: list[ref[ModelImage]] = []

    def images(self) -> list[ModelImage]:
        """Return its images; it knows them from then on."""
        images = [self._image(planned) for planned in self.resident.backend.images(self.plan)]
        self._images = [ref(image) for image in images]
        return images

    def _image(self, planned: PlannedImage) -> ModelImage:
        stages = tuple(replace(stage, lane=ModelLane(self.resident, stage.lane)) for stage in planned.stages)
        return ModelImage(planned.plan, stages, planned.noise, planned.second, order=self)

    def prepare(self, tell: Callable[[], None]) -> None:
        """Make what its images are fed in another thread, which calls `tell` then; more calls change nothing."""
        if self not in self.resident.using:
            self.resident.using.add(self)
            _PREPARERS.submit(self._prepare, tell)

    def _prepare(self, tell: Callable[[], None]) -> None:
        try:
            self.resident.backend.feed([known() for known in self._images], self.plan)
        except Exception as error:
            if not isinstance(error, JaxlError):
                log.exception("a request could not be prepared", exc_info=error)
                error = EngineError(f"the devices failed: {' '.join(str(error).split())[:200]}")
            for image in filter(None, (known() for known in self._images)):
                image.failed = error
        self.resident.using.discard(self)
        tell()
