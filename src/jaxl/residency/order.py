"""A request for images of one or two of several models; what these are fed is made when the models are there."""

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
    """One image of an order. Once it has begun, it goes on, whoever else wants its models' places."""

    order: Order
    begun: bool = False

    @property
    def residents(self) -> tuple[Resident, ...]:
        """The model that it begins with, and the refiner that goes on, if there is one."""
        return self.order.residents

    def resident_at(self, stage: int) -> Resident:
        """Return the model that draws a stage."""
        lane: Any = self.stages[stage].lane
        return lane.resident

    @property
    def ready(self) -> bool:
        return super().ready and (self.begun or (self._open and self._fed))

    def prepare(self, tell: Callable[[], None]) -> None:
        super().prepare(tell)
        if self._open and not self._fed:
            self.order.prepare(tell)

    @property
    def _open(self) -> bool:
        return all(resident.open for resident in self.residents)

    @property
    def _fed(self) -> bool:
        return all(own.inputs is not None for own in self.passes)

    @property
    def facts(self) -> Mapping[str, Any]:
        names = dict(zip(("model", "refiner"), self.residents, strict=False))
        hashes = {f"{name}_hash": each.sha256[:10] for name, each in names.items() if each.sha256 is not None}
        return {**super().facts, "model": self.residents[0].name, **hashes}


class Order:
    """A request, as a plan for one of the models, or for two of which the second refines.

    Raises InputError for what these have no lane for.
    """

    def __init__(self, plan: Plan, *residents: Resident):
        self.residents = residents
        self._passes = [(residents[own.refines], own) for own in plan.passes]
        # weakly: what images are fed holds parameters, which must be free as soon as the images are gone
        self._images: list[ref[ModelImage]] = []

    def images(self) -> list[ModelImage]:
        """Return its images; it knows them from then on."""
        of_each = [self._of_pass(*each) for each in self._passes]
        images = [self._image(PlannedImage.of(made)) for made in zip(*of_each, strict=True)]
        self._images = [ref(image) for image in images]
        return images

    def _of_pass(self, resident: Resident, plan: Plan) -> list[PlannedImage]:
        """Return the images of a pass, whose lanes are those of its model."""
        return [
            replace(image, stages=tuple(replace(each, lane=ModelLane(resident, each.lane)) for each in image.stages))
            for image in resident.backend.of_pass(plan)
        ]

    def _image(self, planned: PlannedImage) -> ModelImage:
        return ModelImage(planned.plan, planned.stages, planned.noise, planned.second, order=self)

    def prepare(self, tell: Callable[[], None]) -> None:
        """Make what its images are fed in another thread, which calls `tell` then; more calls change nothing."""
        if self not in self.residents[0].using:
            for resident in self.residents:
                resident.using.add(self)
            _PREPARERS.submit(self._prepare, tell)

    def _prepare(self, tell: Callable[[], None]) -> None:
        try:
            for number, (resident, plan) in enumerate(self._passes):
                images = (known() for known in self._images)
                resident.backend.feed([image and image.passes[number] for image in images], plan)
        except Exception as error:
            if not isinstance(error, JaxlError):
                log.exception("a request could not be prepared", exc_info=error)
                error = EngineError(f"the devices failed: {' '.join(str(error).split())[:200]}")
            for image in filter(None, (known() for known in self._images)):
                image.failed = error
        for resident in reversed(self.residents):  # the first, which `prepare` looks at, as the last
            resident.using.discard(self)
        tell()
