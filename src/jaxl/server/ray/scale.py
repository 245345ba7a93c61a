"""The number of replicas: a fixed one, or as many as the images need that wait or are in the making."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from jaxl.errors import InputError


@dataclass(frozen=True)
class Scale:
    """The number of replicas, and the resources of each.

    replicas: the number to begin with. least, most: the number follows the load between these, if they differ; 0 is
        allowed for the least. images: the images, waiting or in the making, that a replica is to have on average.
    upscale_delay, downscale_delay: seconds that a load must last.
    cpus, gpus, tpus: of a replica, as Ray counts them; 1, 2, 4 or 8 chips of a TPU host.
    """

    replicas: int = 1
    least: int = 1
    most: int = 1
    images: float = 4.0
    upscale_delay: float = 10.0
    downscale_delay: float = 300.0
    cpus: float = 1.0
    gpus: float = 0.0
    tpus: int = 0

    def check(self) -> None:
        """Raise InputError for numbers that cannot be."""
        if not 0 <= self.least <= self.replicas <= self.most or self.most < 1:
            shown = f"{self.least} to {self.most}, {self.replicas} to begin with"
            raise InputError("replicas", shown, "give 1 or more, from the least to the most")
        if self.images <= 0:
            raise InputError("images", self.images, "give more than 0")

    def number(self) -> dict[str, Any]:
        """Return a deployment's arguments for the number of replicas."""
        if self.least == self.most:
            return {"num_replicas": self.replicas}
        config = AutoscalingConfig(
            min_replicas=self.least,
            initial_replicas=self.replicas,
            max_replicas=self.most,
            target_ongoing_requests=self.images,
            upscale_delay_s=self.upscale_delay,
            downscale_delay_s=self.downscale_delay,
            policy=AutoscalingPolicy(policy_function=by_images),
        )
        return {"autoscaling_config": config}


def by_images(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return how many replicas there should be now, and no state; Ray adds the bounds and the delays.

    Ray counts requests, each of at least one image, also those that wait for a replica. So its count is taken where the
    replicas know of fewer images.
    """
    config: AutoscalingConfig = cast(Any, context.config)
    known = (context.aggregated_metrics or {}).get("images", {})
    images = max(sum(known.values()), context.total_num_requests)
    return images / config.get_target_ongoing_requests(), {}
