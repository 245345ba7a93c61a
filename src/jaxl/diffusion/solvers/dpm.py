"""DPM-Solver++ with one network call a step, on latents of unit variance (EDM's: `image + sigma * noise`)."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.preconditioning import precondition
from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.multistep import growing_orders, latent_scales
from jaxl.diffusion.spacing import Levels


def dpmpp_2m(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), algorithm 2; `solver_order` 1 is DDIM in log-SNR."""
    return _multistep(config, levels, randomness, 1 if config.solver_order == 1 else 2)


def dpmpp_2m_sde(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), section 5 and appendix B.

    `eta` scales the noise as in k-diffusion's `sample_dpmpp_2m_sde`: 1 is the paper's, 0 is `dpmpp_2m`.
    """
    return _multistep(config, levels, randomness, 1 if config.solver_order == 1 else 2)


def dpmpp_3m(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver++(3M): the authors' multistep code of order 3 for Lu et al. 2022 (arXiv:2211.01095).

    diffusers has it as `solver_order` 3. The code counts the estimate's bend by half, so that the error still falls
    with the square of the step.
    """
    return _multistep(config, levels, randomness, 3)


def dpmpp_3m_sde(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`dpmpp_3m` with the noise of `dpmpp_2m_sde`.

    With `solver_type` "heun" and without `lower_order_final` this is k-diffusion's `sample_dpmpp_3m_sde`. diffusers
    differs in the weight of the bend alone, where a wrong sign makes it -1 instead of 0 for small steps.
    """
    return _multistep(config, levels, randomness, 3)


def _multistep(config: SchedulerConfig, levels: Levels, randomness: Randomness, most: int) -> Table:
    """Rows of order up to `most`, from estimates D, h1 and h2 over steps in log-SNR / 2."""
    ratios, eta = levels.sigmas, randomness.eta
    alphas, sigmas, init_scale = latent_scales(config.noise, ratios)
    decay = ratios[1:] / ratios[:-1]  # exp(-h), where h is the step; 0 at the very end, which has order 1
    h = -np.log(np.where(decay > 0, decay, 1.0))
    before = np.append(0.0, h[:-1])
    earlier = np.append(0.0, before[:-1])
    order = _orders(config, levels, most, before > 0)
    second, third = order == 2, order == 3

    def over(step: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.divide(h, step, out=np.zeros_like(h), where=where)

    # what the estimate, its slope and its bend weigh when they are integrated over the step
    reach = alphas[1:] * (1 - decay ** (1 + eta))
    span = np.where(h > 0, (1 + eta) * h, 1.0)
    slope = np.where(h > 0, alphas[1:] * (1 + np.expm1(-span) / span), 0.0)
    bend = np.where(h > 0, alphas[1:] * (0.5 - (span + np.expm1(-span)) / span**2), 0.0)

    both = before + earlier
    mixed = slope * np.divide(before, both, out=np.zeros_like(h), where=third) + bend * over(both, third)
    latest = np.select([third, second], [slope + mixed, slope if config.solver_type == "heun" else reach / 2])
    d_h1, h1_h2 = latest * over(before, second | third), mixed * over(earlier, third)
    return pack(
        timesteps=levels.times,
        init_scale=init_scale,
        alphas=alphas,
        sigmas=sigmas,
        **precondition(config.noise, alphas[:-1], sigmas[:-1]),
        x_x=sigmas[1:] / sigmas[:-1] * decay**eta,
        x_d=reach + d_h1,
        x_h1=-d_h1 - h1_h2,
        x_h2=h1_h2,
        x_noise=randomness.s_noise * sigmas[1:] * np.sqrt(np.maximum(1 - decay ** (2 * eta), 0)),
        push_d=1,
    )


def _orders(config: SchedulerConfig, levels: Levels, most: int, moved: np.ndarray) -> np.ndarray:
    """The order of each step, [n]: it grows from 1 at the start, and falls again at the end of short schedules."""
    order = growing_orders(moved, most)
    lowers = config.lower_order_final and levels.total < 15
    if lowers:
        order[-2:] = np.minimum(order[-2:], 2)
    if lowers or config.euler_at_final or levels.sigmas[-1] == 0:
        order[-1] = 1
    return order
