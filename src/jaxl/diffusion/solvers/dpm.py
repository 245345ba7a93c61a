"""DPM-Solver++ with one network call a step, on latents of unit variance (EDM's, CFG++: `image + sigma * noise`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxl.config import Json
from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack, pack_sigmas, precondition
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.multistep import growing_orders, latent_scales
from jaxl.diffusion.solvers.solver import EDM_FIXED, DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, dpm_levels, edm_levels, euler_levels

SOLVER_TYPES = ("midpoint", "heun")


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

    With `solver_type` "heun" and without `lower_order_final`, as by its name, this is k-diffusion's
    `sample_dpmpp_3m_sde`. diffusers differs in the weight of the bend alone, where a wrong sign makes it -1 instead of
    0 for small steps.
    """
    return _multistep(config, levels, randomness, 3)


def dpmpp_2m_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver++(2M) along the unguided noise, as in ComfyUI's `dpmpp_2m_cfg_pp`, on latents `image + sigma * noise`.

    CFG++ is that of Chung et al. 2024 (arXiv:2406.08070). The guided estimate is extrapolated with the unguided one
    before; the scale of guidance is meant as it is.
    """
    here, there = levels.sigmas[:-1], levels.sigmas[1:]
    kept = there / here
    way = -np.log(np.where(kept > 0, kept, 1.0))
    before = np.append(0.0, way[:-1])
    ahead = np.divide((1 - kept) * way, 2 * before, out=np.zeros_like(way), where=before > 0)
    return pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        x_x=kept,
        x_d=1 + ahead,
        x_u=-kept,
        x_h1=-ahead,
        push_u=1,
        guidance=1,
    )


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


def _chosen(config: Json) -> str:
    order = "3m" if config.get("solver_order") == 3 else "2m"
    return f"dpm++{order}_sde" if config.get("algorithm_type") == "sde-dpmsolver++" else f"dpm++{order}"


def _chosen_edm(config: Json) -> str:
    name = _chosen(config)
    return f"edm_{name}" if name == "dpm++2m" else name


_MULTISTEP = DiffusersClass(
    "DPMSolverMultistepScheduler",
    _chosen,
    options=("solver_order", "solver_type", "lower_order_final", "euler_at_final"),
    fixed={
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": SOLVER_TYPES,
        "solver_order": (2, 1, 3),
    },
)
_EDM_MULTISTEP = replace(
    _MULTISTEP,
    name="EDMDPMSolverMultistepScheduler",
    choose=_chosen_edm,
    fixed={**_MULTISTEP.fixed, **EDM_FIXED},
    edm=True,
)

SOLVERS = (
    Solver("dpm++2m_cfg++", dpmpp_2m_cfgpp, euler_levels),
    Solver(
        "dpm++2m",
        dpmpp_2m,
        dpm_levels,
        finals=True,
        solver_types=SOLVER_TYPES,
        diffusers=_MULTISTEP,
        a1111="DPM++ 2M",
        automatic="karras",
        aliases=("DPMSolver", "DPMSolver++", "DPMSolverMultistep"),
    ),
    Solver(
        "dpm++2m_sde",
        dpmpp_2m_sde,
        dpm_levels,
        eta=1.0,
        brownian=True,
        finals=True,
        solver_types=SOLVER_TYPES,
        diffusers=_MULTISTEP,
        a1111="DPM++ 2M SDE",
        automatic="exponential",
        aliases=("dpmpp_2m_sde_gpu",),
    ),
    Solver(
        "dpm++2m_sde_heun",
        dpmpp_2m_sde,
        dpm_levels,
        eta=1.0,
        brownian=True,
        finals=True,
        options={"solver_type": "heun"},
        diffusers=_MULTISTEP,
        a1111="DPM++ 2M SDE Heun",
        automatic="exponential",
        aliases=("dpmpp_2m_sde_heun_gpu",),
    ),
    Solver("dpm++3m", dpmpp_3m, dpm_levels, finals=True, solver_types=SOLVER_TYPES, diffusers=_MULTISTEP),
    Solver(
        "dpm++3m_sde",
        dpmpp_3m_sde,
        dpm_levels,
        eta=1.0,
        brownian=True,
        finals=True,
        options={"solver_type": "heun", "lower_order_final": False},
        solver_types=SOLVER_TYPES,
        diffusers=_MULTISTEP,
        a1111="DPM++ 3M SDE",
        automatic="exponential",
        aliases=("dpmpp_3m_sde_gpu",),
    ),
    # models that were trained with EDM noise are spaced as Karras et al. do
    Solver(
        "edm_dpm++2m",
        dpmpp_2m,
        edm_levels,
        finals=True,
        custom=("sigmas",),
        schedules=("exponential",),
        solver_types=SOLVER_TYPES,
        diffusers=_EDM_MULTISTEP,
        a1111="DPM++ 2M",
        aliases=("edm_dpmpp",),
        form_of="dpm++2m",
    ),
)
