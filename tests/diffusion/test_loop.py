from __future__ import annotations

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


run = jax.jit(lambda slots, n, given=None: advance(network, slots, n, given))
draw = jax.jit(initial_noise, static_argnums=1)


def start(names: list[str], first_seed: int = 0) -> Slots:
    """One image for each scheduler, the i-th with seed `first_seed + i` and 3 to 6 steps."""
    seeds = range(first_seed, first_seed + len(names))
    tables = [
        build_table(EDM_CONFIG if name.startswith("edm") else CONFIG, 3 + seed % 4, name)
        for name, seed in zip(names, seeds, strict=True)
    ]
    keys = np.stack([image_key(seed) for seed in seeds])
    return init_slots(
        np.stack([table.rows[:20] for table in tables]),
        np.array([table.used for table in tables]),
        keys,
        draw(keys, SHAPE),
        np.array([table.init_scale for table in tables]),
    )


def assert_same(a: Slots, b: Slots) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_slots_start_at_row_0_with_scaled_noise() -> None:
    slots = start(["euler", "ddim"])
    unit = draw(slots.keys, SHAPE)
    np.testing.assert_allclose(slots.latents[0], unit[0] * build_table(CONFIG, 3, "euler").init_scale, rtol=1e-6)
    np.testing.assert_array_equal(slots.latents[1], unit[1])
    np.testing.assert_array_equal(slots.row, [0, 0])
    np.testing.assert_array_equal(slots.end, [3, 4])
    assert not slots.saved.any()
    assert not slots.history.any()
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), run(slots, 1))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), slots)


def test_every_scheduler_side_by_side_gives_what_it_gives_alone() -> None:
    names, traced = [*SOLVERS, *(f"euler_{each}" for each in SIGMA_SCHEDULES)], []

    def counted(slots: Slots) -> Slots:
        traced.append(slots.latents.shape)
        return advance(network, slots, 20)

    program = jax.jit(counted)
    together = program(start(names))
    for i, name in enumerate(names):
        alone = program(start([name], first_seed=i))
        np.testing.assert_array_equal(alone.latents[0], together.latents[i], err_msg=name)
    np.testing.assert_array_equal(together.row, together.end)
    assert np.isfinite(together.latents).all()
    assert traced == [(len(names), *SHAPE), (1, *SHAPE)]  # one program for all of them, and one for any of them


def test_eight_devices_give_what_one_gives() -> None:
    devices = np.array(jax.devices())
    assert devices.size == 8
    split = NamedSharding(Mesh(devices, "images"), PartitionSpec("images"))
    spread = run(jax.device_put(start(NAMES), split), 20)
    assert len(spread.latents.sharding.device_set) == 8
    assert_same(spread, run(start(NAMES), 20))


def test_rows_may_be_run_in_any_portions_by_one_program() -> None:
    traced = []

    def counted(slots: Slots, n: jax.Array) -> Slots:
        traced.append(n)
        return advance(network, slots, n)

    program = jax.jit(counted)
    whole = program(start(NAMES), np.int32(9))
    parts = start(NAMES)
    for n in (0, 1, 3, 5):
        parts = program(parts, np.int32(n))
    assert_same(parts, whole)
    assert len(traced) == 1


def test_an_ended_image_stays_exactly_as_it_is_whatever_the_network_says() -> None:
    poison = jax.jit(lambda slots, n: advance(lambda x, *_: (*[jnp.full_like(x, jnp.nan)] * 2, None), slots, n))
    done = run(start(["dpm++2m", "euler_a"]), 10)
    np.testing.assert_array_equal(done.row, done.end)
    assert_same(poison(done, 5), done)


def test_an_empty_slot_beside_a_live_one_stays_finite() -> None:
    slots = start(["euler", "dpm++2m_sde"])
    empty = jax.tree.map(lambda leaf: leaf.at[1].set(0), slots)
    after = run(empty, 3)
    np.testing.assert_array_equal(after.latents[0], run(slots, 3).latents[0])
    assert not after.latents[1].any()


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
    slots = init_slots(rows, np.full(2, 6), keys, unit, scales, picture, 0.5 * scales, mask)
    slots = run(slots, 6, others)
    for image in range(2):
        x, saved = (unit[image].astype(np.float64) + picture[image] / 2) * (1 + image), np.zeros(SHAPE)
        past = [np.zeros(SHAPE)] * 3
        for row in range(6):
            c = dict(zip(COLUMNS, rows[image, row].astype(np.float64), strict=True))
            predicted = network(jnp.float32(c["c_in"] * x)[None], {"t": jnp.float32(c["t"])[None]})[:2]
            estimate, plain = (c["c_skip"] * x + c["c_out"] * np.asarray(each)[0] for each in predicted)
            drawn = np.asarray(step_noise(keys, np.full(2, row), SHAPE))[image]
            noise = others.noise[image, row] if others.has[image] else drawn
            terms = dict(zip(MIXED, (x, saved, estimate, *past, noise), strict=True))
            if row != 2:
                past = [c["push_x"] * x + c["push_d"] * estimate + c["push_u"] * plain, *past[:2]]
            x, saved = (sum(c[f"{to}_{name}"] * term for name, term in terms.items()) for to in ("x", "saved"))
            known = c["known_image"] * picture[image] + c["known_noise"] * unit[image]
            x = np.where(mask[image] == 1, x + c["x_u"] * plain, known)
        np.testing.assert_allclose(slots.latents[image], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slots.saved[image], saved, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slots.history[image], past, rtol=1e-4, atol=1e-5)
