"""Ray Serve's choice of a replica for the images of a request: by their size, see `jaxl.server.routing`."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from jaxl.engine import Request
from jaxl.server.routing import bucket_affine


@dataclass(frozen=True)
class Share:
    """Images of one bucket that a replica was given."""

    replica: ReplicaID
    bucket: Hashable
    images: int


class BucketAffineRouter(RequestRouter):
    """Knows which images that came through this process, the ingress, each replica has.

    Calls that are no requests for images count for nothing.
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
        bucket, images = _asked(pending_request.args)
        chosen = replicas[self._choose(replicas, bucket, images)]
        if images:
            self._shares[key] = Share(chosen.replica_id, bucket, images)
            pending_request.future.add_done_callback(lambda future: self._left(key, future))
        return [[chosen]]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        share = self._shares.get(internal_request_id)
        if share is not None and share.replica == replica_id:  # else it was sent to another meanwhile
            del self._shares[internal_request_id]

    def _choose(self, replicas: Sequence[RunningReplica], bucket: Hashable, images: int) -> int:
        index = {replica.replica_id: i for i, replica in enumerate(replicas)}
        of_bucket, totals = [0] * len(replicas), [0] * len(replicas)
        for share in self._shares.values():
            i = index.get(share.replica)
            if i is not None:
                totals[i] += share.images
                of_bucket[i] += share.images * (share.bucket == bucket)
        places = [replica.routing_stats.get("places", 0) for replica in replicas]
        return bucket_affine(images, of_bucket, totals, places, self._random)

    def _left(self, key: str, future: asyncio.Future[Any]) -> None:
        """Forget a request that was given up before it was sent."""
        if future.cancelled():
            self._shares.pop(key, None)


def _asked(args: Sequence[Any]) -> tuple[Hashable, int]:
    """Return the bucket and the number of images of a call of `Replica.draw`; None and 0 for other calls."""
    if not args or not isinstance(args[0], Request):
        return None, 0
    arguments = args[0].arguments
    return (arguments.get("width"), arguments.get("height")), arguments.get("num_images", 1)
