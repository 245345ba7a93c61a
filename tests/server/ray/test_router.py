"""The router's choice, without the rest of Ray's."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.request_router import PendingRequest

from jaxl.engine import Request
from jaxl.server.ray.router import BucketAffineRouter
from jaxl.server.ray.scale import Scale, by_images

REPLICAS: Any = [SimpleNamespace(replica_id=name, routing_stats={"places": 4}) for name in ("a", "b")]


@pytest.fixture
def router() -> BucketAffineRouter:
    one = BucketAffineRouter.__new__(BucketAffineRouter)  # Ray's own part of it needs a cluster
    one.initialize_state()
    return one


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[BucketAffineRouter], None]:
    def run(router: BucketAffineRouter) -> None:
        asyncio.run(test(router))

    run.__name__ = test.__name__
    return run


def pending(name: str, images: int, width: int = 32, **more: Any) -> Any:
    arguments = {"prompt": "a", "width": width, "height": 32, "num_images": images, **more}
    return PendingRequest([Request(arguments)], {}, SimpleNamespace(internal_request_id=name))  # pyright: ignore[reportArgumentType]


async def choice(router: BucketAffineRouter, request: Any, replicas: Any = REPLICAS) -> Any:
    ((chosen,),) = await router.choose_replicas(replicas, request)
    return chosen.replica_id


def knowing(**loras: list[str]) -> Any:
    """Replicas by name, with the LoRAs that they have read."""
    told = {"places": 4, "image_seconds": 0.5}
    return [SimpleNamespace(replica_id=name, routing_stats={**told, "loras": own}) for name, own in loras.items()]


@in_loop
async def test_one_size_meets_while_there_is_room(router: BucketAffineRouter) -> None:
    first = await choice(router, pending("1", 2))
    assert await choice(router, pending("2", 1)) == first
    other = await choice(router, pending("3", 1, width=64))
    assert other != first
    assert await choice(router, pending("4", 1)) == first
    assert await choice(router, pending("5", 1)) == other  # as the first is full
    router.on_request_completed(other, "1")  # by a replica that does not have it any more
    assert await choice(router, pending("6", 2)) == other
    router.on_request_completed(first, "1")
    assert await choice(router, pending("7", 2)) == first


@in_loop
async def test_who_leaves_before_it_is_sent_counts_no_more(router: BucketAffineRouter) -> None:
    left = pending("1", 4)
    first = await choice(router, left)
    left.future.cancel()
    sent = pending("2", 4)
    assert {await choice(router, sent)} < {"a", "b"}
    sent.future.set_result(None)
    await asyncio.sleep(0)
    assert [share.asked.images for share in router._shares.values()] == [4]
    router.on_request_completed(first, "1")


@in_loop
async def test_who_did_not_answer_is_not_asked_again(router: BucketAffineRouter) -> None:
    for _ in range(10):
        request = pending("1", 4)
        first = await choice(router, request)
        assert await choice(router, request) != first
        assert await choice(router, request, REPLICAS[:1]) == "a"
        router.on_request_completed("a", "1")


@in_loop
async def test_a_lora_goes_where_it_is_warm(router: BucketAffineRouter) -> None:
    replicas = knowing(a=["ink"], b=["pencil"], c=[])
    tag: Any = {"prompt": "a <lora:pencil:0.5>", "prompt_syntax": "lenient"}
    assert await choice(router, pending("1", 1, **tag), replicas) == "b"
    assert await choice(router, pending("2", 2, loras={"ink": 1.0}), replicas) == "b"  # which draws with LoRAs already
    assert await choice(router, pending("3", 2, loras={"ink": 1.0}), replicas) == "a"  # as b has a place for one
    assert await choice(router, pending("4", 4), replicas) == "c"
    router._shares.clear()
    first = await choice(router, pending("5", 4, loras={"new": 1.0}), replicas)
    assert await choice(router, pending("6", 4, loras={"new": 1.0}), replicas) != first  # which is full


@in_loop
async def test_a_lora_on_its_way_to_a_replica_is_warm_there(router: BucketAffineRouter) -> None:
    replicas = knowing(a=[], b=[])
    first = await choice(router, pending("1", 1, loras={"new": 1.0}), replicas)
    assert await choice(router, pending("2", 1, width=64, loras={"new": 1.0}), replicas) == first
    assert await choice(router, pending("3", 1, width=96), replicas) != first


@in_loop
async def test_other_calls_count_for_nothing(router: BucketAffineRouter) -> None:
    call: Any = PendingRequest([], {}, SimpleNamespace(internal_request_id="1"))  # pyright: ignore[reportArgumentType]
    assert {await choice(router, call) for _ in range(50)} == {"a", "b"}
    assert not router._shares
    assert await router.choose_replicas([], call) == [[]]


@pytest.mark.parametrize(
    ("known", "requests", "replicas"), [({"a": 6.0, "b": 3.0}, 3, 2.25), ({}, 5, 1.25), ({"a": 0.0}, 0, 0)]
)
def test_as_many_replicas_as_images_need(known: dict[str, float], requests: int, replicas: float) -> None:
    config = Scale(least=0, most=9, images=4.0).number()["autoscaling_config"]
    context: Any = SimpleNamespace(config=config, total_num_requests=requests, aggregated_metrics={"images": known})
    assert by_images(context) == (replicas, {})
