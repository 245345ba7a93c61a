"""Pictures in tiles: the network sees a part at a time, with what belongs to it; nobody else in the batch notices."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from controlnets import write_folder, write_lllite, write_t2i_adapter
from ip_adapters import write
from PIL import Image

import jaxl
from jaxl import Control, ImagePrompt, Region
from jaxl.backend import PipelineBackend, tile_kinds
from jaxl.bench.measure import compilations
from jaxl.call.hires import Hires
from jaxl.engine import Engine, Request
from jaxl.errors import InputError
from jaxl.run.bucket import Bucket
from jaxl.run.tiles import Tiles, in_tiles

A_WHILE = 600.0  # no measure of anything: only who fails waits so long
RNG = np.random.default_rng(7)
LARGE: dict[str, Any] = {"width": 96, "height": 80, "tile_size": 64}


def test_parts_are_put_together_again() -> None:
    """Of a network that changes nothing, whatever the level of a picture, in rounds that do not come out even."""
    layout = Tiles(64, 16).layout(160, 96, 8, 16)
    assert (layout.rows, layout.columns, layout.count) == ((0, 6, 12), (0, 4), 6)
    whole = {"x": jnp.array(RNG.standard_normal((2, 20, 12, 3)), jnp.float32), "low": jnp.arange(120.0)}
    whole["low"] = whole["low"].reshape(2, 10, 6)
    kept = jnp.arange(12.0).reshape(2, 6, 1)
    seen: list[Any] = []

    def network(told: Any, part: Any, features: Any) -> Any:
        seen.append(jax.tree.map(jnp.shape, (told, part, features)))
        exact = part["low"] == (part["low"][:, :1, :1] + jnp.arange(4) + 6 * jnp.arange(4)[:, None])
        return jnp.where(exact.all(), part["x"], jnp.nan), told[:, None] + features

    for devices, at_once in ((1, 1), (8, 4)):
        with jax.sharding.use_abstract_mesh(jaxl.make_mesh(jax.devices()[:devices]).abstract_mesh):
            run = jax.jit(lambda told, pictures: in_tiles(network, layout, told, pictures, kept, 3))
            made, features = run(jnp.array([10.0, 20.0]), whole)
        n = 2 * at_once
        assert seen[-1] == ((n,), {"x": (n, 8, 8, 3), "low": (n, 4, 4)}, (n, 1))
        np.testing.assert_allclose(made, whole["x"], atol=1e-6)
        np.testing.assert_array_equal(features[:, :, 0], kept[:, :, 0] + np.array([[10.0], [20.0]]))


@pytest.fixture(scope="module")
def sources(small: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, model = tmp_path_factory.mktemp("networks"), small[0].model
    config, adapters = dict(small[0].checkpoint.configs["unet"]), write(folder, model.unet)
    found = {
        "edges": write_folder(folder / "edges", config, model, 0),
        "sketch": write_t2i_adapter(folder / "sketch.safetensors", model, 2),
        "lite": write_lllite(folder / "lite.safetensors", model, 3),
        "plus": adapters["plus"],
    }
    return {name: str(source) for name, source in found.items()}


def test_a_tile_has_its_part_of_all(small: Any, sources: dict[str, str]) -> None:
    """What changes in the last quarter of a picture changes nothing in the first half, another tile's."""
    mesh = jaxl.make_mesh(jax.devices()[:1])
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype=jnp.float32, mesh=mesh)
    for name in ("edges", "sketch", "lite"):
        pipe.add_control(name, sources[name])
    pipe.add_ip_adapter("plus", sources["plus"])
    lines = RNG.integers(0, 256, (64, 128, 3), np.uint8)

    def drawn(changed: bool) -> np.ndarray:
        seen, mask = lines.copy(), np.zeros((64, 128), np.uint8)
        mask[:, 16:32] = 255
        if changed:
            seen[:, 112:] = 255 - seen[:, 112:]
            mask[:, 112:] = 255
        picture, shown, where = Image.fromarray(seen), Image.fromarray(lines), Image.fromarray(mask)
        asked: dict[str, Any] = {
            # the convolutions over a sketch see far
            "controls": [Control("edges", picture), Control("lite", picture), Control("sketch", shown)],
            "image_prompts": [ImagePrompt("plus", shown, mask=where)],
            "regions": [Region("a dog", mask=where)],
        }
        size = {"width": 128, "height": 64, "tile_size": 64, "tile_overlap": 0}
        how = {"guidance_scale": 1.0, "steps": 1}
        return pipe.generate(params, "a cat", output="latents", **asked, **size, **how).latents

    changed = np.abs(drawn(True) - drawn(False)).max((0, 1, 3))
    assert changed[:8].max() == 0 < 1e-3 < changed[8:].max()


def test_many_devices_draw_the_same(small: Any) -> None:
    """Each has a tile of a branch at a time."""
    mesh, how = jaxl.make_mesh(jax.devices()[:4]), {"steps": 2, "seed": 1, "output": "latents"}
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype=jnp.float32, mesh=mesh)
    assert pipe.plan("a cat", **LARGE).bucket.batch == 1
    many, one = (run.generate(own, "a cat", **LARGE, **how).latents for run, own in ((pipe, params), small))
    np.testing.assert_allclose(many, one, rtol=2e-5, atol=1e-4)


@pytest.fixture(scope="module")
def backend(small: Any) -> PipelineBackend:
    """Images of 64 pixels, and of 96 in tiles, of second passes too."""
    pipe, params = small
    plain = Bucket(1, 64, 64, guided=True)
    tiled = tile_kinds(replace(plain, width=96, height=80), pipe.model, ("tiled",))
    assert [each.tiles for each in tiled] == [None, Tiles(64, 16)]
    backend = PipelineBackend(pipe, params, [plain, tiled[1]], [3], larger=tiled[1:])
    backend.warm_up()
    return backend


def test_in_a_running_batch(backend: PipelineBackend) -> None:
    """Beside others each image is as alone, and as `generate` draws it; nothing is compiled."""
    kinds: list[dict[str, Any]] = [
        {"prompt": "a cat", "seed": 1, "steps": 3},
        {"prompt": "a dog", "seed": 2, "steps": 4, "scheduler": "euler_a", **LARGE},
        {"prompt": "a red apple", "seed": 3, "steps": 3, "tile_size": 64, "hires": Hires(size=(96, 80))},
        {"prompt": "a blue star", "seed": 4, "steps": 2, "noise": "nv", **LARGE},
    ]
    with compilations() as compiled, Engine(backend) as engine:
        tickets = [engine.submit(Request(kind)) for kind in kinds]
        together = [np.asarray(ticket.future.result(A_WHILE).images[0]) for ticket in tickets]
        alone = [np.asarray(engine.submit(Request(kind)).future.result(A_WHILE).images[0]) for kind in kinds]
    assert compiled == []
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    (drawn,) = backend.pipe.generate(backend.params, **kinds[1]).images
    assert drawn.size == (96, 80)
    assert np.abs(np.asarray(drawn).astype(int) - alone[1]).max() <= 1


@pytest.mark.parametrize("more", [{"tile_size": 48}, {"tile_overlap": 32}, {"tile_size": None}])
def test_other_tiles_than_the_servers_are_refused(backend: PipelineBackend, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^tile_size=.*: the server draws 96x80 in tiles of 64 that share 16"):
        backend.read({"prompt": "a cat", **LARGE, **more})


def test_lanes_in_tiles(small: Any) -> None:
    def kinds(width: int, height: int, *lanes: str) -> list[bool]:
        bucket = Bucket(1, height, width, guided=True)
        return [each.tiles is not None for each in tile_kinds(bucket, small[0].model, lanes)]

    assert kinds(128, 128) == [False]
    assert [kinds(*size, "tiled") for size in ((96, 32), (128, 128), (256, 128))] == [[False], [False, True], [True]]


def test_no_larger_than_a_tile_is_the_whole(small: Any) -> None:
    pipe = small[0]
    for size in ((64, 64), (96, 32), (48, 64)):
        assert pipe.plan("a cat", width=size[0], height=size[1], tile_size=64).bucket.tiles is None
    picture = Image.new("RGB", (167, 100))
    bucket = pipe.plan("a cat", image=picture, tile_size=64).bucket
    assert (bucket.width, bucket.height, bucket.tiles) == (160, 96, Tiles(64, 16))
    assert bucket.layout(pipe.model).count == 6


def test_a_tile_is_told_its_size(small: Any) -> None:
    plan = small[0].plan("a cat", **{**LARGE, "height": 48, "width": 128})
    assert {tuple(ids) for ids in plan.time_ids.values()} == {(48, 64, 0, 0, 48, 64)}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tile_size": 40}, "tile_size=40: give a positive multiple of 16, such as 32 or 48"),
        ({"tile_size": "64"}, "tile_size='64': "),
        ({"tile_size": 16}, "tile_size=16: a tile has to be larger than 16 pixels"),
        ({"tile_overlap": 64}, "tile_overlap=64: give a whole number from 0 to 48, less than the tile's 64"),
        ({"tile_overlap": -1}, "tile_overlap=-1: "),
        ({"tile_size": None, "tile_overlap": 8}, "tile_overlap=8: there are no tiles; give `tile_size` too"),
        ({"width": 104}, "width=104: in tiles it has to be a multiple of 16, such as 96 or 112"),
        ({"seamless": "x"}, "seamless='x': tiles do not see the opposite edge"),
        ({"hires": Hires(scale=1.25)}, "hires.scale=1.25: width 120: in tiles it has to be a multiple of 16"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(small: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        small[0].plan("a cat", **{**LARGE, **asked})
