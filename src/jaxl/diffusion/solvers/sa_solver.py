"""SA-Solver, a predictor and a corrector with noise, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.multistep import growing_orders
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.spacing import Levels, euler_levels

PREDICTOR, CORRECTOR = 3, 4  # orders
NOISY = (0.2, 0.8)  # the part of the way in which noise is added


def sa_solver(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Xue et al. 2023 (arXiv:2309.05019), algorithm 1 in its PEC form: ComfyUI's `sa_solver`.

    The corrector of a row does the step before it again with the estimate that the row has made, and the predictor goes
    on from there. `eta` is the paper's tau where noise is added. Orders grow to 3 and 4, and fall to 1 at the end.
    """
    return _table(config, levels, randomness, twice=False)


def sa_solver_pece(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`sa_solver` with another call of the network at the corrected latents, whose estimate alone is kept."""
    return _table(config, levels, randomness, twice=True)


def _table(config: SchedulerConfig, levels: Levels, randomness: Randomness, *, twice: bool) -> Table:
    sigmas, n = levels.sigmas, levels.times.size
    ends = sigmas[-1] == 0
    logs = -np.log(np.where(sigmas > 0, sigmas, 1.0))
    highest, lowest = (_level(config.noise, share) for share in NOISY)
    tau = np.where((sigmas[1:] <= highest) & (sigmas[1:] >= lowest), randomness.eta, 0.0)
    order = growing_orders(np.append(False, sigmas[1:-1] != sigmas[:-2]), CORRECTOR)
    left = np.arange(n, 0, -1)  # rows up to the end, this one among them

    # what the estimates of a row and of the three before it weigh in the step from it, and in that to it
    predicted, corrected = np.zeros((n, 4)), np.zeros((n, 4))
    for i in range(n):
        most = min(order[i], PREDICTOR, left[i] - 1 if ends else PREDICTOR)
        if sigmas[i + 1] == 0:
            predicted[i, 0] = 1.0
        else:
            nodes = logs[i - most + 1 : i + 1][::-1]
            predicted[i, :most] = _weights(nodes, logs[i], logs[i + 1], tau[i])
        most = min(order[i], left[i] if ends else CORRECTOR)
        if order[i] > 1 and (twice or sigmas[i + 1] > 0):
            nodes = logs[i - most + 1 : i + 1][::-1]
            corrected[i, :most] = _weights(nodes, logs[i - 1], logs[i], tau[i - 1])
            corrected[i, 1:] -= predicted[i - 1, :-1]  # which the latents have in them

    decay = sigmas[1:] / sigmas[:-1]
    kept = decay ** (1 + tau**2)
    fresh = randomness.s_noise * sigmas[1:] * np.sqrt(np.maximum(1 - decay ** (2 * tau**2), 0))
    if not twice:
        weights = kept[:, None] * corrected + predicted
        rows, timesteps, here, steps = kept, levels.times, sigmas[:-1], np.arange(n)
        noise, pushes = fresh, np.ones(n)
    else:
        corrects = order > 1
        second = np.cumsum(1 + corrects) - 1  # the row that predicts
        first = second[corrects] - 1
        total = second[-1] + 1
        rows, weights, noise, pushes = np.ones(total), np.zeros((total, 4)), np.zeros(total), np.zeros(total)
        rows[second], weights[second], noise[second], pushes[second] = kept, predicted, fresh, 1.0
        weights[first] = corrected[corrects]
        steps = np.repeat(np.arange(n), 1 + corrects)
        timesteps, here = levels.times[steps], sigmas[steps]
    return pack_sigmas(
        config.noise,
        timesteps=timesteps,
        init_scale=start_scale(config, levels),
        sigmas=np.append(here, sigmas[-1]),
        steps=steps,
        x_x=rows,
        x_d=weights[:, 0],
        x_h1=weights[:, 1],
        x_h2=weights[:, 2],
        x_h3=weights[:, 3],
        x_noise=noise,
        push_d=pushes,
    )


def _weights(nodes: np.ndarray, start: float, end: float, tau: float) -> np.ndarray:
    """What estimates at `nodes` weigh, [k]: the paper's equations 15 and 18, all in -log sigma."""
    rate = 1 + tau**2
    decay = np.exp(rate * (start - end))
    moments = np.zeros(nodes.size)
    for power in range(nodes.size):
        # of exp(rate * u) * u^power over the step, where u counts from its end
        before = power / rate * moments[power - 1] if power else 0.0
        moments[power] = (1.0 if power == 0 else 0.0) - (start - end) ** power * decay - before
    return np.linalg.solve(np.vander(nodes - end, increasing=True).T, moments)


def _level(noise: NoiseSchedule, share: float) -> float:
    """The sigma at a share of the way: of the timesteps, or of EDM's range in log sigma."""
    if noise.edm is not None:
        return noise.edm.sigma_max ** (1 - share) * noise.edm.sigma_min**share
    logs = np.log(noise.sigmas())
    return float(np.exp(np.interp((1 - share) * (logs.size - 1), np.arange(logs.size), logs)))


SOLVERS = (
    Solver("sa_solver", sa_solver, euler_levels, eta=1.0),
    Solver("sa_solver_pece", sa_solver_pece, euler_levels, eta=1.0),
)
