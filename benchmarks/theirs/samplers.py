"""The samplers of other programs in PyTorch, in float32 as there, written from their formulas.

Those of https://github.com/crowsonkb/k-diffusion, of A1111's web UI and of ComfyUI, for latents `x = image + sigma *
noise`. A sampler is `sampler(run) -> latents` with all that it may ask for in a `Run`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Sampler = Callable[["Run"], Tensor]


@dataclass
class Run:
    """What a sampler has: the latents at the first of its sigmas, estimates of the image, and noise.

    `estimates(x, sigma)` are the guided and the unguided one. `normal()` is the next block of unit numbers, `path(here,
    there)` the unit increment of a Brownian path, and `eta` the share of noise that is asked for.
    """

    estimates: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    x: Tensor
    sigmas: Tensor
    normal: Callable[[], Tensor]
    path: Callable[[Tensor, Tensor], Tensor]
    eta: float = 1.0

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.estimates(x, sigma)[0]

    def slope(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x - self.denoised(x, sigma)) / sigma


def split(here: Tensor, there: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The level to go down to, and the noise back up."""
    up = torch.minimum(there, eta * (there**2 * (here**2 - there**2) / here**2).sqrt())
    return (there**2 - up**2).sqrt(), up


def exponential(x: Tensor, estimate: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """A step along a constant estimate, in log sigma."""
    return there / here * x + (1 - there / here) * estimate


def euler(run: Run) -> Tensor:
    x = run.x
    for here, there in pairwise(run.sigmas):
        x = x + (there - here) * run.slope(x, here)
    return x


def euler_ancestral(run: Run) -> Tensor:
    x = run.x
    for here, there in pairwise(run.sigmas):
        down, up = split(here, there, run.eta)
        x = x + (down - here) * run.slope(x, here)
        if there > 0:
            x = x + up * run.normal()
    return x


def heun(run: Run) -> Tensor:
    x = run.x
    for here, there in pairwise(run.sigmas):
        x = _heun_step(run, x, here, there)
    return x


def _heun_step(run: Run, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
    first = run.slope(x, here)
    end = x + (there - here) * first
    return end if there == 0 else x + (there - here) * (first + run.slope(end, there)) / 2


def dpm_2(run: Run, ancestral: bool = False) -> Tensor:
    x = run.x
    for here, there in pairwise(run.sigmas):
        down, up = split(here, there, run.eta) if ancestral else (there, torch.zeros(()))
        first = run.slope(x, here)
        if down == 0:
            x = x + (down - here) * first
        else:
            middle = ((here.log() + down.log()) / 2).exp()
            x = x + (down - here) * run.slope(x + (middle - here) * first, middle)
        if ancestral and there > 0:
            x = x + up * run.normal()
    return x


def dpmpp_2s_ancestral(run: Run, cfg_pp: bool = False) -> Tensor:
    """With CFG++ both halves of a step begin at latents that guidance has moved."""
    x = run.x
    for here, there in pairwise(run.sigmas):
        down, up = split(here, there, run.eta)
        estimate, unguided = run.estimates(x, here)
        if down == 0:
            x = estimate
        else:
            middle = ((here.log() + down.log()) / 2).exp()
            begun = x + (estimate - unguided) if cfg_pp else x
            x = exponential(begun, run.denoised(exponential(begun, estimate, here, middle), middle), here, down)
        if there > 0:
            x = x + up * run.normal()
    return x


def dpmpp_sde(run: Run) -> Tensor:
    x = run.x
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        if there == 0:
            return estimate
        # in terms of minus log sigma, so that all three are rounded
        start, end = -here.log(), -there.log()
        here, middle, there = ((-time).exp() for time in (start, start + (end - start) / 2, end))
        down, up = split(here, middle, run.eta)
        halfway = exponential(x, estimate, here, down) + up * run.path(here, middle)
        estimate = run.denoised(halfway, middle)
        down, up = split(here, there, run.eta)
        x = exponential(x, estimate, here, down) + up * run.path(here, there)
    return x


def dpmpp_2m(run: Run) -> Tensor:
    x, last, before = run.x, None, torch.zeros(())
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        way = here.log() - there.log()
        used = estimate
        if last is not None and there > 0:
            used = estimate + (estimate - last) * way / (2 * before)
        x = exponential(x, used, here, there)
        last, before = estimate, way
    return x


def dpmpp_2m_sde(run: Run, heuns: bool = False) -> Tensor:
    x, last, before = run.x, None, torch.zeros(())
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        if there == 0:
            return estimate
        way = here.log() - there.log()
        longer = (1 + run.eta) * way
        gone = -(-longer).expm1()
        x = there / here * (-run.eta * way).exp() * x + gone * estimate
        if last is not None:
            x = x + (1 - gone / longer if heuns else gone / 2) * (way / before) * (estimate - last)
        x = x + run.path(here, there) * there * (-(-2 * run.eta * way).expm1()).sqrt()
        last, before = estimate, way
    return x


def dpmpp_3m_sde(run: Run) -> Tensor:
    x, estimates, ways = run.x, [], []
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        if there == 0:
            return estimate
        way = here.log() - there.log()
        longer = (1 + run.eta) * way
        gone = -(-longer).expm1()
        second = 1 - gone / longer
        third = second / longer - 0.5
        x = (-longer).exp() * x + gone * estimate
        estimates, ways = [estimate, *estimates][:3], [way, *ways][:3]
        slopes = [(new - old) * way / each for (new, old), each in zip(pairwise(estimates), ways[1:], strict=True)]
        if len(slopes) == 1:
            x = x + second * slopes[0]
        elif slopes:
            near, far = (each / way for each in ways[1:])
            bend = (slopes[0] - slopes[1]) / (near + far)
            x = x + second * (slopes[0] + bend * near) - third * bend
        x = x + run.path(here, there) * there * (-(-2 * run.eta * way).expm1()).sqrt()
    return x


def lms(run: Run, ends_clean: bool = False) -> Tensor:
    """Adams and Bashforth's, with weights for sigmas at any distances; order 4. ComfyUI's ends with the estimate."""
    x, slopes = run.x, []
    levels = run.sigmas.double().numpy()
    for i, (here, there) in enumerate(pairwise(run.sigmas)):
        estimate = run.denoised(x, here)
        slopes = [(x - estimate) / here, *slopes][:4]
        if ends_clean and there == 0:
            return estimate
        known = levels[i - len(slopes) + 1 : i + 1][::-1]
        for j, each in enumerate(slopes):
            others = np.delete(known, j)
            whole = np.polyint(np.atleast_1d(np.poly(others)) / np.prod(known[j] - others))
            x = x + float(np.polyval(whole, levels[i + 1]) - np.polyval(whole, levels[i])) * each
    return x


def lcm(run: Run) -> Tensor:
    x = run.x
    for here, there in pairwise(run.sigmas):
        x = run.denoised(x, here)
        if there > 0:
            x = x + there * run.normal()
    return x


def restart(run: Run) -> Tensor:
    """Xu et al. 2023 (arXiv:2306.14878) with the plan of A1111's web UI for 20 to 35 steps."""
    n, times = len(run.sigmas) - 1, 9
    way = torch.cat([karras(run.sigmas[0], run.sigmas[-2], n - times), torch.zeros(1)])
    low, high = (int((way - level).abs().argmin()) for level in (0.1, 2.0))
    again = karras(way[high], way[low], times + 1)
    steps = [*pairwise(way[: low + 1]), *pairwise(again), *pairwise(way[low:])]
    x, last = run.x, steps[0][0]
    for here, there in steps:
        if here > last:
            x = x + run.normal() * (here**2 - last**2).sqrt()
        x, last = _heun_step(run, x, here, there), there
    return x


def karras(highest: Tensor, lowest: Tensor, n: int) -> Tensor:
    ramp = torch.linspace(0, 1, n)
    return (highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7


def dpm_fast(run: Run) -> Tensor:
    """Lu et al. 2022 (arXiv:2206.00927), section 3.3: steps of three calls, then of fewer, to the lowest sigma."""
    x, n = run.x, len(run.sigmas) - 1
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    start, end = -run.sigmas[0].log(), -run.sigmas[-2].log()
    for order, (here, there) in zip(orders, pairwise(torch.linspace(start, end, len(orders) + 1)), strict=True):
        down, _ = split((-here).exp(), (-there).exp(), run.eta)
        to = torch.minimum(end, -down.log())
        up = ((-2 * there).exp() - (-2 * to).exp()).clamp(min=0).sqrt()
        x = _singlestep(run, x, here, to, order) + up * run.normal()
    return x


def _singlestep(run: Run, x: Tensor, here: Tensor, there: Tensor, order: int) -> Tensor:
    """A step of so many calls, in terms of noise and of minus log sigma."""
    way = there - here
    shares = [i / order for i in range(1, order)]
    first = run.slope(x, (-here).exp())

    def forward(share: float) -> tuple[Tensor, Tensor, Tensor]:
        sigma = (-(here + share * way)).exp()
        gone = (share * way).expm1()
        return sigma, gone, gone / (share * way) - 1

    sigma, gone, bend = forward(1.0)
    plain = x - sigma * gone * first
    if order == 1:
        return plain
    at, part, _ = forward(shares[0])
    second = run.slope(x - at * part * first, at)
    if order == 2:
        return plain - sigma * gone * (second - first)
    at, part, curve = forward(shares[1])
    third = run.slope(x - at * part * first - 2 * at * curve * (second - first), at)
    return plain - 1.5 * sigma * bend * (third - first)


def ddpm(run: Run) -> Tensor:
    """ComfyUI's: Ho et al. 2020 (arXiv:2006.11239), a step of the reverse process on latents of unit variance."""
    x = run.x
    for here, there in pairwise(run.sigmas):
        noise = run.slope(x, here)
        total, next_total = 1 / (here**2 + 1), 1 / (there**2 + 1)
        kept = total / next_total
        unit = x / (1 + here**2).sqrt()
        mean = (unit - (1 - kept) * noise / (1 - total).sqrt()) / kept.sqrt()
        if there > 0:
            mean = mean + ((1 - kept) * (1 - next_total) / (1 - total)).sqrt() * run.normal()
        x = mean * (1 + there**2).sqrt()
    return x


def res_multistep(run: Run) -> Tensor:
    """Exponential integrators of second order (Zhang et al. 2023, arXiv:2308.02157)."""
    x, last, before = run.x, None, torch.zeros(())
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        if last is None or there == 0:
            x = x + (there - here) * (x - estimate) / here
        else:
            way = here.log() - there.log()
            first = (-way).expm1() / -way
            second = (first - 1) / -way
            share = -before / way
            x = (-way).exp() * x + way * ((first - second / share) * estimate + second / share * last)
        last, before = estimate, here.log() - there.log()
    return x


def gradient_estimation(run: Run) -> Tensor:
    """Permenter and Yuan 2023 (openreview.net/forum?id=o2ND9v0CeK), with gamma 2."""
    x, last = run.x, None
    for here, there in pairwise(run.sigmas):
        slope = run.slope(x, here)
        x = x + (there - here) * slope
        if last is not None and there > 0:
            x = x + (there - here) * (slope - last)
        last = slope
    return x


def ipndm(run: Run) -> Tensor:
    """Zhang and Chen 2022 (arXiv:2204.13902): Adams and Bashforth's weights of even steps, order 4."""
    adams = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    x, slopes = run.x, []
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        slopes = [(x - estimate) / here, *slopes][:4]
        if there == 0:
            return estimate
        x = x + (there - here) * sum(w * each for w, each in zip(adams[len(slopes) - 1], slopes, strict=True))
    return x


def er_sde(run: Run) -> Tensor:
    """Cui et al. 2023 (arXiv:2309.06169): order 3, with integrals as sums of 200 points."""

    def noise(sigma: Tensor) -> Tensor:
        return sigma * ((sigma**0.3).exp() + 10)

    x, estimates, slopes, levels = run.x, [], [], []
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        if there == 0:
            return estimate
        ratio = noise(there) / noise(here)
        x = ratio * x + (1 - ratio) * estimate
        step = (here - there) / 200
        points = there + torch.arange(200.0) * step
        if estimates:
            slope = (estimate - estimates[0]) / (here - levels[0])
            x = x + (there - here + (step / noise(points)).sum() * noise(there)) * slope
            if slopes:
                bend = (slope - slopes[0]) / ((here - levels[1]) / 2)
                whole = ((points - here) / noise(points) * step).sum()
                x = x + ((there - here) ** 2 / 2 + whole * noise(there)) * bend
            slopes = [slope]
        x = x + run.normal() * (there**2 - (here * ratio) ** 2).clamp(min=0).sqrt()
        estimates, levels = [estimate], [here, *levels][:2]
    return x


def seeds_2(run: Run) -> Tensor:
    """Gonzalez et al. 2023 (arXiv:2305.14267), algorithm 2, in terms of minus log sigma."""
    x = run.x
    for here, there in pairwise(run.sigmas):
        estimate = run.denoised(x, here)
        if there == 0:
            return estimate
        way = here.log() - there.log()
        longer = (1 + run.eta) * way
        middle = (here * there).sqrt()
        first, second = run.normal(), run.normal()
        up = (-(-run.eta * way).expm1()).sqrt()
        halfway = middle / here * (-run.eta * way / 2).exp() * x - (-longer / 2).expm1() * estimate
        later = run.denoised(halfway + middle * up * first, middle)
        shift = (-run.eta * way / 2).exp()
        x = there / here * (-run.eta * way).exp() * x - (-longer).expm1() * later
        x = x + there * up * (shift * first + second)
    return x


def deis(run: Run) -> Tensor:
    """zju-pi's diff-sampler, "tab", order 3: polynomials in the time of betas that grow linearly, by sums."""
    early, late = np.log(0.002**2 + 1), np.log(80.0**2 + 1)
    rise = 2 * (early / 1e-3 - late) / (1e-3 - 1)
    base = late - rise / 2
    times = ((base**2 + 2 * rise * (run.sigmas**2 + 1).log()).sqrt() - base) / rise
    x, slopes = run.x, []
    for i, (here, there) in enumerate(pairwise(run.sigmas)):
        slopes = [run.slope(x, here), *slopes][:3]
        if len(slopes) == 1 or there == 0:
            x = x + (there - here) * slopes[0]
            continue
        points = torch.linspace(float(times[i]), float(times[i + 1]), 10000)
        alphas = (-rise / 2 * points**2 - base * points).exp()
        speed = (rise * points + base) / 2 / (alphas * (1 - alphas)).sqrt() * (times[i + 1] - times[i]) / 10000
        for j, slope in enumerate(slopes):
            others = [k for k in range(len(slopes)) if k != j]
            basis = [(points - times[i - k]) / (times[i - j] - times[i - k]) for k in others]
            x = x + torch.stack(basis).prod(0).mul(speed).sum() * slope
    return x


def ddim(run: Run, cfg_pp: bool = False) -> Tensor:
    """A1111's: from timestep to timestep on latents of unit variance, which are left at the last one.

    With CFG++ the noise that is left is the unguided one.
    """
    alphas = 1 / (1 + run.sigmas**2)
    x = run.x * alphas[0].sqrt()
    for here, there, sigma in zip(alphas, alphas[1:], run.sigmas, strict=False):
        scaled = x / here.sqrt()
        noise, unguided = ((scaled - each) / sigma for each in run.estimates(scaled, sigma))
        fresh = run.eta * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
        image = (x - (1 - here).sqrt() * noise) / here.sqrt()
        left = unguided if cfg_pp else noise
        x = there.sqrt() * image + (1 - there - fresh**2).sqrt() * left + fresh * run.normal()
    return x


def euler_cfg_pp(run: Run, ancestral: bool = False) -> Tensor:
    """Chung et al. 2024 (arXiv:2406.08070): to the guided estimate, and from there along the unguided slope."""
    x = run.x
    for here, there in pairwise(run.sigmas):
        down, up = split(here, there, run.eta) if ancestral else (there, torch.zeros(()))
        guided, unguided = run.estimates(x, here)
        x = guided + down * (x - unguided) / here
        if ancestral and there > 0:
            x = x + up * run.normal()
    return x


def dpmpp_2m_cfg_pp(run: Run) -> Tensor:
    x, last, before = run.x, None, torch.zeros(())
    for here, there in pairwise(run.sigmas):
        guided, unguided = run.estimates(x, here)
        way = here.log() - there.log()
        mixed = -(-way).exp() * unguided
        if last is not None and there > 0:
            mixed = mixed - (-way).expm1() * way / (2 * before) * (guided - last)
        x = guided + mixed + (-way).exp() * x
        last, before = unguided, way
    return x


def res_multistep_cfg_pp(run: Run, ancestral: bool = False) -> Tensor:
    """Second order from the second step on, in unguided estimates, of latents that guidance has moved."""
    x, last, reached, begun = run.x, None, torch.zeros(()), torch.zeros(())
    for here, there in pairwise(run.sigmas):
        down, up = split(here, there, run.eta) if ancestral else (there, torch.zeros(()))
        guided, unguided = run.estimates(x, here)
        if last is None or down == 0:
            x = guided + down * (x - unguided) / here
        else:
            way = here.log() - down.log()
            first = (-way).expm1() / -way
            second = (first - 1) / -way
            share = (reached.log() - begun.log()) / way
            moved = x + (guided - unguided)
            x = (-way).exp() * moved + way * ((first - second / share) * unguided + second / share * last)
        if ancestral and there > 0:
            x = x + up * run.normal()
        last, reached, begun = unguided, down, here
    return x


def gradient_estimation_cfg_pp(run: Run) -> Tensor:
    x, last = run.x, None
    for here, there in pairwise(run.sigmas):
        guided, unguided = run.estimates(x, here)
        slope = (x - unguided) / here
        if there == 0:
            return guided
        x = guided + there * slope
        if last is not None:
            x = x + (there - here) * (slope - last)
        last = slope
    return x


def plms(run: Run) -> Tensor:
    """A1111's: Liu et al. 2022 (arXiv:2202.09778), whose first step is done again with the mean of two noises."""
    alphas = 1 / (1 + run.sigmas**2)
    x, noises = run.x * alphas[0].sqrt(), []

    def moved(x: Tensor, noise: Tensor, i: int) -> Tensor:
        here, there = alphas[i], alphas[i + 1]
        image = (x - (1 - here).sqrt() * noise) / here.sqrt()
        return there.sqrt() * image + (1 - there).sqrt() * noise

    def noise_of(x: Tensor, i: int) -> Tensor:
        return run.slope(x / alphas[i].sqrt(), run.sigmas[i])

    for i in range(len(alphas) - 1):
        noises = [noise_of(x, i), *noises][:4]
        if i == 0:
            mean = (noises[0] + noise_of(moved(x, noises[0], 0), 1)) / 2
        else:
            adams = ((3, -1), (23, -16, 5), (55, -59, 37, -9))[len(noises) - 2]
            mean = torch.stack([w * each for w, each in zip(adams, noises, strict=True)]).sum(0) / sum(adams)
        x = moved(x, mean, i)
    return x


def uni_pc(run: Run, variant: str = "bh1", ends_clean: bool = True) -> Tensor:
    """Zhao et al. 2023 (arXiv:2302.04867) as its authors wrote it: order 3, for images, on latents of unit variance.

    What ends clean goes to sigma 0.001 where that is 0, and its image's scale is taken off the result, as in ComfyUI.
    """
    sigmas = run.sigmas.clone()
    sigmas[-1] = sigmas[-1].clamp(min=0.001)
    alphas = 1 / (1 + sigmas**2).sqrt()
    logs = -sigmas.log()
    steps = len(sigmas) - 1

    def estimate(x: Tensor, i: int) -> Tensor:
        return run.denoised(x / alphas[i], sigmas[i])

    x = run.x * alphas[0]
    past = [estimate(x, 0)]
    for step in range(1, steps + 1):
        order = min(step, 3, steps + 1 - step)
        h = logs[step] - logs[step - 1]
        base = (-h).expm1()
        whole = -h if variant == "bh1" else base
        nodes = [(logs[step - 1 - k] - logs[step - 1]) / h for k in range(1, order)]
        changes = [(past[k] - past[0]) / node for k, node in enumerate(nodes, 1)]
        nodes = torch.stack([*nodes, torch.tensor(1.0)])
        wanted, phi, factorial = [], base / -h - 1, 1
        for i in range(1, order + 1):
            wanted.append(phi * factorial / whole)
            factorial *= i + 1
            phi = phi / -h - 1 / factorial
        powers, wanted = torch.stack([nodes**i for i in range(order)]), torch.stack(wanted)
        plain = sigmas[step] * alphas[step] / (sigmas[step - 1] * alphas[step - 1]) * x - alphas[step] * base * past[0]

        half = torch.tensor([0.5])
        weights = half if order == 2 else torch.linalg.solve(powers[:-1, :-1], wanted[:-1])
        x = plain - alphas[step] * whole * sum(w * each for w, each in zip(weights, changes, strict=True))
        if step < steps:
            now = estimate(x, step)
            weights = half if order == 1 else torch.linalg.solve(powers, wanted)
            changes = [*changes, now - past[0]]
            x = plain - alphas[step] * whole * sum(w * each for w, each in zip(weights, changes, strict=True))
            past = [now, *past][:3]
    return x / alphas[-1] if ends_clean else x


SAMPLERS: dict[str, Sampler] = {
    "Euler": euler,
    "Euler a": euler_ancestral,
    "Heun": heun,
    "LMS": lms,
    "DPM2": dpm_2,
    "DPM2 a": partial(dpm_2, ancestral=True),
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M": dpmpp_2m,
    "DPM++ 2M SDE": dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": partial(dpmpp_2m_sde, heuns=True),
    "DPM++ 3M SDE": dpmpp_3m_sde,
    "DPM fast": dpm_fast,
    "LCM": lcm,
    "Restart": restart,
    "DDIM": ddim,
    "DDIM CFG++": partial(ddim, cfg_pp=True),
    "Euler CFG++": euler_cfg_pp,
    "Euler a CFG++": partial(euler_cfg_pp, ancestral=True),
    "DPM++ 2M CFG++": dpmpp_2m_cfg_pp,
    "PLMS": plms,
    "UniPC": partial(uni_pc, ends_clean=False),
    "ddim": euler,
    "deis": deis,
    "uni_pc": uni_pc,
    "uni_pc_bh2": partial(uni_pc, variant="bh2"),
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "lms": partial(lms, ends_clean=True),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "lcm": lcm,
    "ddpm": ddpm,
    "res_multistep": res_multistep,
    "gradient_estimation": gradient_estimation,
    "ipndm": ipndm,
    "er_sde": er_sde,
    "seeds_2": seeds_2,
    "euler_cfg_pp": euler_cfg_pp,
    "euler_ancestral_cfg_pp": partial(euler_cfg_pp, ancestral=True),
    "dpmpp_2s_ancestral_cfg_pp": partial(dpmpp_2s_ancestral, cfg_pp=True),
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "res_multistep_cfg_pp": res_multistep_cfg_pp,
    "res_multistep_ancestral_cfg_pp": partial(res_multistep_cfg_pp, ancestral=True),
    "gradient_estimation_cfg_pp": gradient_estimation_cfg_pp,
}
