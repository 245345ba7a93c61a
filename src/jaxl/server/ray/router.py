"""Ray Serve's choice of a replica for the images of a request: by their size, see `jaxl.server.routing`."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from jaxl.engine import Request
from jaxl.server.prompts import loras_in
from jaxl.server.routing import bucket_affine

# that a replica takes to read a LoRA: one of rank 64 for SDXL, see docs/lora.md
LORA_SECONDS = 2.0
# and a model that it does not have on its devices
MODEL_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """What a call of `Replica.draw` asks for: images of a bucket, of a model with LoRAs; other calls have no images."""

    bucket: Hashable = None
    images: int = 0
    loras: frozenset[str] = frozenset()
    model: str | None = None


@dataclass(frozen=True)
class Share:
    """What a replica was given."""

    replica: ReplicaID
    asked: Asked


class BucketAffineRouter(RequestRouter):
    """Knows which images that came through this process, the ingress, each replica has, and for which LoRAs.

    Which it has read besides, a replica tells every few seconds. Calls that are no requests for images count for
    nothing.
    """

    _shares: dict[str, Share]

    def initialize_state(self, **_: Any) -> None:
        self._shares = {}
        self._random = np.random.default_rng()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the best replica. The request counts there from now on, as others may be sent before it is."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        key = pending_request.metadata.internal_request_id
        failed = self._shares.pop(key, None)  # chosen before, but did not answer
        others = [each for each in candidate_replicas if failed is None or each.replica_id != failed.replica]
        replicas = others or candidate_replicas
        asked = _asked(pending_request.args)
        chosen = replicas[self._choose(replicas, asked)]
        if asked.images:
            self._shares[key] = Share(chosen.replica_id, asked)
            pending_request.future.add_done_callback(lambda future: self._left(key, future))
        return [[chosen]]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        share = self._shares.get(internal_request_id)
        if share is not None and share.replica == replica_id:  # else it was sent to another meanwhile
            del self._shares[internal_request_id]

    def _choose(self, replicas: Sequence[RunningReplica], asked: Asked) -> int:
        index = {replica.replica_id: i for i, replica in enumerate(replicas)}
        of_bucket, totals = [0] * len(replicas), [0] * len(replicas)
        warm = [set(replica.routing_stats.get("loras", ())) for replica in replicas]
        models = [{None, *replica.routing_stats.get("models", ())} for replica in replicas]
        for share in self._shares.values():
            i = index.get(share.replica)
            if i is not None:
                totals[i] += share.asked.images
                of_bucket[i] += share.asked.images * (share.asked.bucket == asked.bucket)
                warm[i] |= share.asked.loras
                models[i].add(share.asked.model)
        places = [replica.routing_stats.get("places", 0) for replica in replicas]
        # a replica that has drawn nothing yet counts as if a file took it as long as an image
        seconds = [replica.routing_stats.get("image_seconds") or LORA_SECONDS for replica in replicas]
        delays = [
            (len(asked.loras - own) * LORA_SECONDS + (asked.model not in here) * MODEL_SECONDS) / each
            for own, here, each in zip(warm, models, seconds, strict=True)
        ]
        return bucket_affine(asked.images, of_bucket, totals, places, self._random, delays=delays)

    def _left(self, key: str, future: asyncio.Future[Any]) -> None:
        """Forget a request that was given up before it was sent."""
        if future.cancelled():
            self._shares.pop(key, None)


def _asked(args: Sequence[Any]) -> Asked:
    if not args or not isinstance(args[0], Request):
        return Asked()
    arguments = args[0].arguments
    loras = frozenset(loras_in(arguments))
    # images with LoRAs, and those of another model, have batches of their own
    model = arguments.get("model")
    bucket = arguments.get("width"), arguments.get("height"), bool(loras), model
    return Asked(bucket, arguments.get("num_images", 1), loras, model)
