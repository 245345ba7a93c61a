"""A network that enlarges pictures, loaded and compiled: a value that takes pictures of any size, in tiles of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxl.errors import InputError, NonFiniteError
from jaxl.kernels import Kernels
from jaxl.nn.layers import Params, Shapes
from jaxl.nn.tiles import tile_starts, tile_weights
from jaxl.nn.upscalers.compact import CompactConfig, compact, compact_shapes
from jaxl.nn.upscalers.dat import DATConfig, dat, dat_shapes
from jaxl.nn.upscalers.rrdbnet import RRDBNetConfig, rrdbnet, rrdbnet_shapes
from jaxl.run.compiler import compiled
from jaxl.run.disk_cache import enable_disk_cache
from jaxl.run.model import read_dtype
from jaxl.run.sharding import batch_sharding, make_mesh, replicated, with_sharding
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.params import read_params
from jaxl.weights.upscalers import UpscalerConfig, open_upscaler

NETWORKS: Mapping[type[UpscalerConfig], tuple[Callable[..., Shapes], Callable[..., jax.Array]]] = {
    RRDBNetConfig: (rrdbnet_shapes, rrdbnet),
    CompactConfig: (compact_shapes, compact),
    DATConfig: (dat_shapes, dat),
}
# Tiles step on by as many pixels, so that the sizes of SDXL's pictures need few; neighbours share so many or more.
STEP, OVERLAP = 256, 16
MOST_TILE = 4096
COMPONENT = "upscaler"

Told = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A network that makes pictures `scale` times as large (Wang et al. 2018, arXiv:1809.00219, and later ones).

    Any thread may call it. It works in tiles of `tile` pixels, which are compiled once for pictures of all sizes; a
    tile for each device at a time. Neighbours share `overlap` pixels or more, over which one fades into the other.
    """

    name: str
    source: str
    config: UpscalerConfig
    params: Params
    tile: int
    overlap: int
    mesh: Mesh

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        dtype: DTypeLike = "auto",
        tile: int | None = None,
        mesh: Mesh | None = None,
    ) -> Upscaler:
        """Load an upscaler: ESRGAN, Real-ESRGAN, its compact network, or DAT.

        Args:
            path: a `.safetensors` file, or a `.pth`, of which tensors are read and nothing is executed.
            name: the file's own, by default.
            dtype: of weights and compute, bfloat16 or float32; "auto" is float32 on a CPU.
            tile: pixels of the tiles that pictures are enlarged in; about 272 by default. Larger ones take more memory
                and see more.
            mesh: the devices, by default all of this process.

        Raises CheckpointError for a file that is missing, damaged or another network's, and InputError.
        """
        file = Path(path)
        opened = open_upscaler(file)
        enable_disk_cache()
        mesh = make_mesh(None if jax.process_count() == 1 else jax.local_devices()) if mesh is None else mesh
        shapes, _ = NETWORKS[type(opened.config)]
        auto = jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
        own = with_sharding(shapes(opened.config, read_dtype("dtype", dtype, auto)), replicated(mesh))
        checkpoint = Checkpoint(opened.source, {}, {COMPONENT: opened.tensors}, {})
        params = read_params(checkpoint, {COMPONENT: own}, lambda done, total: None)[COMPONENT]
        side = _tile(tile, opened.config.multiple)
        overlap = min(OVERLAP, side // 4)
        return cls(name or file.stem, opened.source, opened.config, params, side, overlap, mesh)

    @property
    def scale(self) -> int:
        return self.config.scale

    @cached_property
    def program(self) -> Callable[[Params, Any], jax.Array]:
        """The compiled network: parameters, and a tile for each device [N, tile, tile, 3] -> [N, .., .., 3] in 0..1."""
        _, network = NETWORKS[type(self.config)]
        device = self.mesh.devices.flat[0]
        run = partial(_in_range, partial(network, cfg=self.config, kernels=Kernels.of_device(device)))
        split = batch_sharding(self.mesh)
        tiles = jax.ShapeDtypeStruct((self.mesh.size, self.tile, self.tile, 3), jnp.float32, sharding=split)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), self.params)
        traced = jax.jit(run, out_shardings=split).trace(shapes, tiles)
        return compiled(traced, device.platform, products=True)

    def warm_up(self) -> None:
        """Compile the network, and run it once."""
        tiles = np.zeros((self.mesh.size, self.tile, self.tile, 3), np.float32)
        self.program(self.params, jax.device_put(tiles, batch_sharding(self.mesh))).block_until_ready()

    def __call__(self, pictures: np.ndarray, progress: Told | None = None) -> np.ndarray:
        """Pictures [B, H, W, 3], uint8 or floating in 0..1 -> float32 [B, H * scale, W * scale, 3] in 0..1.

        progress: called with tiles done, and tiles in all. Raises NonFiniteError, and InputError for another shape.
        """
        if pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape:
            raise InputError("pictures", pictures.shape, "give an array [B, H, W, 3]")
        x = pictures.astype(np.float32) / (255.0 if pictures.dtype == np.uint8 else 1.0)
        batch, height, width, _ = x.shape
        # what is smaller than a tile is reflected at its border
        x = np.pad(x, ((0, 0), *((0, max(self.tile - side, 0)) for side in (height, width)), (0, 0)), mode="reflect")
        made = np.zeros((batch, *(side * self.scale for side in x.shape[1:3]), 3), np.float32)
        starts = [tile_starts(side, self.tile, self.overlap) for side in x.shape[1:3]]
        rows, columns = (tile_weights(own, self.tile, self.scale, self.overlap // 4) for own in starts)
        places = list(product(range(batch), range(len(rows)), range(len(columns))))
        done = 0
        for some, tiles in self._run(x, places, starts):
            if not np.isfinite(tiles).all():
                raise NonFiniteError(f"{self.name} gave NaN or infinity; is the file damaged?")
            for (image, i, j), tile in zip(some, tiles, strict=False):
                top, left = starts[0][i] * self.scale, starts[1][j] * self.scale
                side = self.tile * self.scale
                made[image, top : top + side, left : left + side] += rows[i][:, None, None] * columns[j][:, None] * tile
            done += len(some)
            if progress is not None:
                progress(done, len(places))
        return made[:, : height * self.scale, : width * self.scale].clip(0.0, 1.0)

    def _run(
        self, x: np.ndarray, places: Sequence[tuple[int, int, int]], starts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[tuple[int, int, int]], np.ndarray]]:
        """Return the enlarged tiles of some places after another; the devices have the next ones to go on with."""
        before: tuple[list[tuple[int, int, int]], jax.Array] | None = None
        rest = iter(places)
        while some := list(islice(rest, self.mesh.size)):
            tiles = np.zeros((self.mesh.size, self.tile, self.tile, 3), np.float32)
            for n, (image, i, j) in enumerate(some):
                top, left = starts[0][i], starts[1][j]
                tiles[n] = x[image, top : top + self.tile, left : left + self.tile]
            made = self.program(self.params, jax.device_put(tiles, batch_sharding(self.mesh)))
            if before is not None:
                yield before[0], np.asarray(before[1])
            before = some, made
        if before is not None:
            yield before[0], np.asarray(before[1])


def _tile(tile: int | None, multiple: int) -> int:
    if tile is None:
        return -(-(STEP + OVERLAP) // multiple) * multiple
    if isinstance(tile, bool) or not isinstance(tile, int) or not 16 <= tile <= MOST_TILE or tile % multiple:
        raise InputError("tile", tile, f"give a multiple of {multiple} pixels, from 16 to {MOST_TILE}")
    return tile


def _in_range(network: Callable[..., jax.Array], params: Params, tiles: jax.Array) -> jax.Array:
    """Return what a network makes, within 0..1: its overshoot would shine through where tiles blend."""
    return jnp.clip(network(params, pictures=tiles), 0.0, 1.0)
