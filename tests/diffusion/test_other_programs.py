"""Levels and timesteps of other programs, by their formulas in PyTorch."""

import numpy as np
import pytest
import torch
from trajectories import SDXL

from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.tables import build_table

CONFIG = SchedulerConfig(NoiseSchedule(**SDXL))


@pytest.mark.parametrize(("schedule", "more"), [("uniform", 0), ("sgm_uniform", 1)])
def test_a_level_half_way_between_two_timesteps(schedule: str, more: int) -> None:
    """ComfyUI makes its sigma of the timestep, and the timestep of that again, in float32; half of 999 becomes 500."""
    logs = torch.from_numpy(np.log(CONFIG.noise.sigmas())).float()
    for steps in (9, 20, 21):
        times = torch.linspace(999, 0, steps + more)[:steps]
        sigmas = ((1 - times.frac()) * logs[times.floor().long()] + times.frac() * logs[times.ceil().long()]).exp()
        wanted = (sigmas.log() - logs[:, None]).abs().argmin(0)
        table = build_table(CONFIG, steps, f"euler_{schedule}", timestep_rounding="nearest")
        assert table.timesteps.tolist() == wanted.tolist()
        assert (500 in wanted) == ((steps + more) % 2 == 1)


def test_a1111s_unipc_from_a_picture() -> None:
    """It goes evenly from the timestep that DDIM would begin at, on a picture that has the noise of the one before."""
    shares = CONFIG.noise.alphas_cumprod()
    table = build_table(CONFIG, 20, "unipc_a1111", places=range(8, 20))
    np.testing.assert_allclose(table.timesteps, np.linspace(551, 0, 13)[:-1], rtol=1e-6)
    np.testing.assert_allclose([table.alphas[0] ** 2, table.alphas[-1] ** 2], shares[[601, 0]])
    np.testing.assert_allclose(table.alphas**2 + table.sigmas**2, 1)
    whole = build_table(CONFIG, 20, "unipc_a1111")
    after = build_table(CONFIG, 20, "unipc_a1111", places=range(8, 20), hands_over=True)
    np.testing.assert_array_equal(after.timesteps, whole.timesteps[8:])
    np.testing.assert_array_equal(after.alphas, whole.alphas[8:])
