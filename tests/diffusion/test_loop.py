from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxl.diffusion.loop import GivenNoise, Row, Slots, advance, init_slots
from jaxl.diffusion.noise import image_key, initial_noise, step_noise
from jaxl.diffusion.rows import COLUMNS, MIXED
from jaxl.diffusion.schedule import EDM, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.schedulers import SOLVERS
from jaxl.diffusion.sigma_schedules import SIGMA_SCHEDULES
from jaxl.diffusion.tables import build_table

SHAPE = (5, 6, 4)
CONFIG = SchedulerConfig(
    NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), timestep_spacing="leading"
)
EDM_CONFIG = SchedulerConfig(NoiseSchedule(edm=EDM()), scheduler="edm_euler")
# these end at their estimate, and keep it in the history
NAMES = ["euler", "euler_a", "ddim", "dpm++2m", "dpm++3m_sde", "heun", "dpm++sde", "dpm2_a_karras"]

pytestmark = pytest.mark.usefixtures("optimised")  # equal to the last bit in vector loops too


def network(x: jax.Array, row: Row, features: None = None) -> tuple[jax.Array, jax.Array, None]:
    return jnp.tanh(1.5 * x + row["t"][:, None, None, None] / 500 - 1) - 0.1 * x, jnp.sin(x), features


program = jax.jit(lambda slots, n, given=None: advance(network, slots, n, given))
begin = jax.jit(init_slots)
draw = jax.jit(initial_noise, static_argnums=1)
predict = jax.jit(network)
noises = jax.jit(step_noise, static_argnums=2)


def run(slots: Slots, n: int, given: GivenNoise | None = None) -> Slots:
    return program(slots, np.int32(n), given)


def start(names: list[str], first_seed: int = 0) -> Slots:
    """One image for each scheduler, the i-th with seed `first_seed + i` and 3 to 6 steps."""
    seeds = range(first_seed, first_seed + len(names))
    tables = [
        build_table(EDM_CONFIG if name.startswith("edm") else CONFIG, 3 + seed % 4, name)
        for name, seed in zip(names, seeds, strict=True)
    ]
    keys = np.stack([image_key(seed) for seed in seeds])
    return begin(
        np.stack([table.rows[:20] for table in tables]),
        np.array([table.used for table in tables]),
        keys,
        draw(keys, SHAPE),
        np.array([table.init_scale for table in tables]),
    )


def assert_same(a: Slots, b: Slots) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_slots_start_at_row_0_with_scaled_noise() -> None:
    slots = jax.device_get(start(NAMES))
    unit = draw(slots.keys, SHAPE)
    ddim = NAMES.index("ddim")
    np.testing.assert_allclose(slots.latents[0], unit[0] * build_table(CONFIG, 3, "euler").init_scale, rtol=1e-6)
    np.testing.assert_array_equal(slots.latents[ddim], unit[ddim])
    np.testing.assert_array_equal(slots.row, np.zeros(len(NAMES)))
    assert slots.end[:4].tolist() == [3, 4, 5, 6]
    assert not slots.saved.any()
    assert not slots.history.any()
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), run(slots, 1))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), slots)


def test_every_scheduler_side_by_side_gives_what_it_gives_alone(compilations: Any) -> None:
    names = [*SOLVERS, *(f"euler_{each}" for each in SIGMA_SCHEDULES)]
    for some in (NAMES, NAMES[:1]):
        run(start(some), 20)
    with compilations() as seen:  # one program for any of them, and one for any eight
        for first in range(0, len(names), len(NAMES)):
            some = [names[i % len(names)] for i in range(first, first + len(NAMES))]
            together = jax.device_get(run(start(some, first), 20))
            for i, name in enumerate(some):
                alone = run(start([name], first + i), 20)
                np.testing.assert_array_equal(np.asarray(alone.latents)[0], together.latents[i], err_msg=name)
            np.testing.assert_array_equal(together.row, together.end)
            assert np.isfinite(together.latents).all()
    assert seen == []


def test_eight_devices_give_what_one_gives() -> None:
    devices = np.array(jax.devices())
    assert devices.size == 8
    split = NamedSharding(Mesh(devices, "images"), PartitionSpec("images"))
    spread = run(jax.device_put(start(NAMES), split), 20)
    assert len(spread.latents.sharding.device_set) == 8
    assert_same(spread, run(start(NAMES), 20))


def test_rows_may_be_run_in_any_portions_by_one_program(compilations: Any) -> None:
    whole, parts = run(start(NAMES), 9), start(NAMES)
    with compilations() as seen:
        for n in (0, 1, 3, 5):
            parts = run(parts, n)
    assert seen == []
    assert_same(parts, whole)


def test_an_ended_image_stays_exactly_as_it_is_whatever_the_network_says() -> None:
    poison = jax.jit(lambda slots, n: advance(lambda x, *_: (*[jnp.full_like(x, jnp.nan)] * 2, None), slots, n))
    done = run(start(NAMES), 20)
    np.testing.assert_array_equal(done.row, done.end)
    assert_same(poison(done, 5), done)


def test_an_empty_slot_beside_a_live_one_stays_finite() -> None:
    slots = start(NAMES)

    def emptied(leaf: jax.Array) -> np.ndarray:
        array = np.array(leaf)
        array[1] = 0
        return array

    after, whole = (np.asarray(run(each, 3).latents) for each in (jax.tree.map(emptied, slots), slots))
    others = np.arange(len(NAMES)) != 1
    np.testing.assert_array_equal(after[others], whole[others])
    assert not after[1].any()


def test_the_last_denoised_estimate_is_there_to_be_shown() -> None:
    # the last step of these schedulers goes all the way to the estimate
    done = run(start(NAMES), 20)
    np.testing.assert_allclose(done.denoised, done.latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_row_does_what_its_columns_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-0.6, 0.6, (2, 6, len(COLUMNS))).astype(np.float32)
    keys = np.stack([image_key(seed), image_key(seed + 100)])
    unit = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    picture = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    mask = rng.integers(0, 2, (2, *SHAPE[:2], 1)).astype(np.float32)
    rows[:, 2, [COLUMNS.index(f"push_{term}") for term in "xdu"]] = 0
    scales = np.array([1.0, 2.0])
    others = GivenNoise(rng.standard_normal((2, 6, *SHAPE)).astype(np.float32), np.array([False, True]))
    slots = begin(rows, np.full(2, 6), keys, unit, scales, picture, 0.5 * scales, mask)
    slots = jax.device_get(run(slots, 6, others))
    drawn = [np.asarray(noises(keys, np.full(2, row), SHAPE)) for row in range(6)]
    for image in range(2):
        x, saved = (unit[image].astype(np.float64) + picture[image] / 2) * (1 + image), np.zeros(SHAPE)
        past = [np.zeros(SHAPE)] * 3
        for row in range(6):
            c = dict(zip(COLUMNS, rows[image, row].astype(np.float64), strict=True))
            predicted = predict(np.float32(c["c_in"] * x)[None], {"t": np.float32(c["t"])[None]})[:2]
            estimate, plain = (c["c_skip"] * x + c["c_out"] * np.asarray(each)[0] for each in predicted)
            noise = others.noise[image, row] if others.has[image] else drawn[row][image]
            terms = dict(zip(MIXED, (x, saved, estimate, *past, noise), strict=True))
            if row != 2:
                past = [c["push_x"] * x + c["push_d"] * estimate + c["push_u"] * plain, *past[:2]]
            x, saved = (sum(c[f"{to}_{name}"] * term for name, term in terms.items()) for to in ("x", "saved"))
            known = c["known_image"] * picture[image] + c["known_noise"] * unit[image]
            x = np.where(mask[image] == 1, x + c["x_u"] * plain, known)
        np.testing.assert_allclose(slots.latents[image], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slots.saved[image], saved, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slots.history[image], past, rtol=1e-4, atol=1e-5)
