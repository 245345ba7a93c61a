"""Samplers beside their formulas, written down here in float64 from papers and the programs that have them.

ComfyUI: `comfy/k_diffusion/sampling.py` and `sa_solver.py`; k-diffusion: `sampling.py`; A1111:
`modules/sd_samplers_extra.py`. The network is an elementwise function, and nothing is compiled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from jaxl.diffusion.rows import COLUMNS, MIXED, Table
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.spacing import karras_sigmas
from jaxl.diffusion.tables import build_table
from jaxl.errors import InputError

SDXL = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CONFIG = SchedulerConfig(noise=SDXL, timestep_spacing="trailing")
LEVELS = [*karras_sigmas(14.6, 0.03, 12), 0.0]
MANY = [*karras_sigmas(14.6, 0.03, 40), 0.0]
GUIDANCE = 1.7

Array = np.ndarray
Draw = Callable[[int, int], Array]  # of a step and a row of it
Reference = Callable[[Array, list[float], Draw], Array]


def denoise(x: Array, sigma: float, scale: float = 1.0) -> Array:
    """The guided estimate; the unguided one has `scale` 0."""
    seen = x / np.sqrt(sigma**2 + 1)
    plain, prompted = np.tanh(1.5 * seen + np.log(sigma) / 3), np.tanh(seen - np.log(sigma) / 5)
    return x - sigma * (plain + scale * (prompted - plain)) + 0.1 * sigma * seen


def slope(x: Array, sigma: float) -> Array:
    return (x - denoise(x, sigma)) / sigma


def split(here: float, there: float, eta: float) -> tuple[float, float]:
    """The level to go down to, and the noise back up."""
    up = min(there, eta * np.sqrt(there**2 * (here**2 - there**2) / here**2))
    return np.sqrt(there**2 - up**2), up


def ipndm(x: Array, s: list[float], draw: Draw) -> Array:
    past: list[Array] = []
    weights = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    for here, there in itertools.pairwise(s):
        past = [slope(x, here), *past[:3]]
        if there == 0:
            return denoise(x, here)
        x = x + (there - here) * sum(w * d for w, d in zip(weights[len(past)], past, strict=True))
    return x


def ipndm_v(x: Array, s: list[float], draw: Draw) -> Array:
    past: list[Array] = []
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        past = [slope(x, here), *past[:3]]
        d = past
        if there == 0:
            return denoise(x, here)
        h = there - here
        h1, h2, h3 = (s[i - n] - s[i - n - 1] if i > n else np.nan for n in range(3))
        # the published closed forms, order by order
        if len(d) == 1:
            change = d[0]
        elif len(d) == 2:
            change = (1 + h / h1 / 2) * d[0] - h / h1 / 2 * d[1]
        else:
            t1 = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
            t2 = 0.0
            if len(d) == 4:
                t2 = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
                t2 *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            q = h1 * (h1 + h2) / (h2 * (h2 + h3)) if len(d) == 4 else 0.0
            change = ((2 + h / h1) / 2 + t1 + t2) * d[0]
            change = change + (-(h / h1) / 2 - (1 + h1 / h2) * t1 - (1 + h1 / h2 + q) * t2) * d[1]
            change = change + (t1 * h1 / h2 + (h1 / h2 + q * (1 + h2 / h3 if len(d) == 4 else 0)) * t2) * d[2]
            if len(d) == 4:
                change = change - t2 * q * h1 / h2 * d[3]
        x = x + h * change
    return x


def lms_comfyui(x: Array, s: list[float], draw: Draw) -> Array:
    past: list[Array] = []
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        if there == 0:
            return denoise(x, here)
        past = [slope(x, here), *past[:3]]
        x = x + adams([s[i - k] for k in range(len(past))], past, here, there, lambda sigma: sigma)
    return x


def deis_comfyui(x: Array, s: list[float], draw: Draw) -> Array:
    early, late = np.log(0.002**2 + 1), np.log(80.0**2 + 1)
    rise = 2 * (early / 1e-3 - late) / (1e-3 - 1)
    base = late - rise / 2

    def time(sigma: float) -> float:
        return (np.sqrt(base**2 + 2 * rise * np.log(sigma**2 + 1)) - base) / rise

    past: list[Array] = []
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        past = [slope(x, here), *past[:2]]
        if there == 0:
            return denoise(x, here)
        x = x + adams([s[i - k] for k in range(len(past))], past, here, there, time)
    return x


def adams(levels: list[float], slopes: list[Array], here: float, there: float, time: Any) -> Array:
    """The way along a polynomial in time through slopes at levels, integrated over sigma."""
    at = [time(level) for level in levels]

    def basis(sigma: float, j: int) -> float:
        return float(np.prod([(time(sigma) - other) / (at[j] - other) for k, other in enumerate(at) if k != j]))

    weights = [quad(basis, here, there, args=(j,), epsabs=1e-12)[0] for j in range(len(at))]
    return sum((w * d for w, d in zip(weights, slopes, strict=True)), np.zeros_like(slopes[0]))


def unipc_comfyui(variant: str) -> Reference:
    """Zhao et al., algorithms 7 and 8, as the authors' code has them, on latents of unit variance."""

    def run(x: Array, s: list[float], draw: Draw) -> Array:
        s = [*s[:-1], s[-1] or 0.001]
        alpha, sigma = 1 / np.hypot(1, s), s / np.hypot(1, s)
        lam, n = -np.log(s), len(s) - 1
        x = x * alpha[0]
        past = [denoise(x / alpha[0], s[0])]
        for i in range(1, n + 1):
            order, h = min(i, 3, n + 1 - i), lam[i] - lam[i - 1]
            nodes = [*((lam[i - k] - lam[i - 1]) / h for k in range(2, order + 1)), 1.0]
            whole = -h if variant == "bh1" else np.expm1(-h)
            phis = [np.expm1(-h) / -h - 1]
            for k in range(2, order + 1):
                phis.append(phis[-1] / -h - 1 / math.factorial(k))
            wanted = [phi * math.factorial(k) / whole for k, phi in enumerate(phis, 1)]
            changes = [(old - past[0]) / node for old, node in zip(past[1:], nodes, strict=False)][: order - 1]
            plain = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * past[0]

            def moved(
                changes: list[Array],
                nodes: list[float],
                plain: Array = plain,
                wanted: Any = wanted,
                by: Any = (i, whole),
            ) -> Array:
                k = len(changes)
                own = np.vander(nodes, k, increasing=True).T
                weights = [0.5] if k == 1 else np.linalg.solve(own, wanted[:k]) if k else []
                return plain - alpha[by[0]] * by[1] * sum(w * d for w, d in zip(weights, changes, strict=True))

            x = moved(changes, nodes[:-1])
            if i < n:
                now = denoise(x / alpha[i], s[i])
                x = moved([*changes, now - past[0]], nodes)
                past = [now, *past[:2]]
        return x / alpha[-1]

    return run


def gradient_estimation(x: Array, s: list[float], draw: Draw) -> Array:
    old = None
    for here, there in itertools.pairwise(s):
        d = slope(x, here)
        x = denoise(x, here) if there == 0 else x + (there - here) * (d if old is None else d + (d - old))
        old = d
    return x


def heunpp2(x: Array, s: list[float], draw: Draw) -> Array:
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        d = slope(x, here)
        left = len(s) - 2 - i
        if left == 0:
            return x + (there - here) * d
        x2 = x + (there - here) * d
        d2 = slope(x2, there)
        if left == 1:
            w2 = there / (2 * s[0])
            x = x + (there - here) * ((1 - w2) * d + w2 * d2)
            continue
        d3 = slope(x2 + (s[i + 2] - there) * d2, s[i + 2])
        w2, w3 = there / (3 * s[0]), s[i + 2] / (3 * s[0])
        x = x + (there - here) * ((1 - w2 - w3) * d + w2 * d2 + w3 * d3)
    return x


def restart(x: Array, s: list[float], draw: Draw) -> Array:
    steps = len(s) - 1
    pairs = [*itertools.pairwise(s)]
    if steps >= 20:
        length, times = (9, 1) if steps < 36 else (steps // 4, 2)
        s = [*karras_sigmas(s[0], s[-2], steps - length * times), 0.0]
        low, high = (min(range(len(s)), key=lambda i, goal=goal: abs(s[i] - goal)) for goal in (0.1, 2.0))
        again = [*itertools.pairwise(karras_sigmas(s[high], s[low], length + 1))]
        pairs = [*itertools.pairwise(s[: low + 1])]
        for _ in range(times):
            pairs += again
        pairs += [*itertools.pairwise(s[low:])]
    last = None
    for i, (here, there) in enumerate(pairs):
        if last is not None and last < here:
            x = x + np.sqrt(here**2 - last**2) * draw(i - 1, 1)
        d = slope(x, here)
        end = x + (there - here) * d
        x = end if there == 0 else x + (there - here) * (d + slope(end, there)) / 2
        last = there
    return x


def dpm_fast(eta: float) -> Reference:
    def run(x: Array, s: list[float], draw: Draw) -> Array:
        n, start, end = len(s) - 1, -np.log(s[0]), -np.log([level for level in s if level > 0][-1])
        m = n // 3 + 1
        ts = np.linspace(start, end, m + 1)
        orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
        row = 0
        for order, t, goal in zip(orders, ts[:-1], ts[1:], strict=True):
            down, _ = split(np.exp(-t), np.exp(-goal), eta)
            t2 = min(end, -np.log(down))
            up = np.sqrt(max(np.exp(-2 * goal) - np.exp(-2 * t2), 0.0))
            h = t2 - t

            def at(r: float, t: float = t, h: float = h) -> float:
                return float(np.exp(-(t + r * h)))

            eps = slope(x, at(0))
            full = x - at(1) * np.expm1(h) * eps
            if order == 2:
                u = x - at(1 / 2) * np.expm1(h / 2) * eps
                full = full - at(1) * np.expm1(h) * (slope(u, at(1 / 2)) - eps)
            if order == 3:
                a, b = 1 / 3, 2 / 3
                d1 = slope(x - at(a) * np.expm1(a * h) * eps, at(a)) - eps
                u2 = x - at(b) * np.expm1(b * h) * eps - at(b) * b / a * (np.expm1(b * h) / (b * h) - 1) * d1
                full = full - at(1) / b * (np.expm1(h) / h - 1) * (slope(u2, at(b)) - eps)
            row += order
            x = full + up * draw(row - 1, 0)
        return x

    return run


def er_sde(x: Array, s: list[float], draw: Draw) -> Array:
    def scaled(level: Any) -> Any:
        return level * (np.exp(level**0.3) + 10)

    old: list[Array] = []
    old_first = np.zeros_like(x)
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        d = denoise(x, here)
        if there == 0:
            return d
        r = scaled(there) / scaled(here)
        x = r * x + (1 - r) * d
        if old:
            points = there + np.arange(200) * (here - there) / 200
            width = (here - there) / 200
            first = (d - old[0]) / (here - s[i - 1])
            x = x + ((there - here) + np.sum(1 / scaled(points)) * width * scaled(there)) * first
            if len(old) > 1:
                weight = (there - here) ** 2 / 2 + np.sum((points - here) / scaled(points)) * width * scaled(there)
                x = x + weight * (first - old_first) / ((here - s[i - 2]) / 2)
            old_first = first
        x = x + draw(i, 0) * np.sqrt(there**2 - here**2 * r**2)
        old = [d, *old]
    return x


def seeds(nodes: tuple[float, ...], kind: str, eta: float) -> Reference:
    """SEEDS-2 (and exponential Heun, with node 1), or SEEDS-3, with noise that is carried on as its own term."""

    def phi_2(h: float) -> float:
        return float((np.expm1(-h) + h) / h)

    def run(x: Array, s: list[float], draw: Draw) -> Array:
        for i, (here, there) in enumerate(itertools.pairwise(s)):
            d = denoise(x, here)
            if there == 0:
                return d
            h = np.log(here / there)
            long = (1 + eta) * h
            at = [here * np.exp(-r * h) for r in (*nodes, 1.0)]
            r1 = nodes[0]
            noise = np.sqrt(-np.expm1(-2 * r1 * h * eta)) * draw(i, 0)
            u = at[0] / here * np.exp(-r1 * h * eta) * x - np.expm1(-r1 * long) * d + at[0] * noise
            others = denoise(u, at[0])
            if len(nodes) == 2:
                r2 = nodes[1]
                a2 = r2 / r1 * phi_2(r2 * long)
                noise = np.exp((r1 - r2) * h * eta) * noise
                noise = noise + np.sqrt(-np.expm1(2 * (r1 - r2) * h * eta)) * draw(i, 1)
                u = at[1] / here * np.exp(-r2 * h * eta) * x + (-np.expm1(-r2 * long) - a2) * d + a2 * others
                others = denoise(u + at[1] * noise, at[1])
            last = nodes[-1]
            whole = -np.expm1(-long)
            b = whole / (2 * last) if kind == "phi_1" else phi_2(long) / last
            noise = np.exp((last - 1) * h * eta) * noise
            noise = noise + np.sqrt(-np.expm1(2 * (last - 1) * h * eta)) * draw(i, len(nodes))
            x = there / here * np.exp(-h * eta) * x + (whole - b) * d + b * others + there * noise
        return x

    return run


def res_multistep(eta: float) -> Reference:
    def run(x: Array, s: list[float], draw: Draw) -> Array:
        old, old_down = None, 0.0
        for i, (here, there) in enumerate(itertools.pairwise(s)):
            d = denoise(x, here)
            down, up = split(here, there, eta)
            if down == 0 or old is None:
                x = x + (down - here) * (x - d) / here
            else:
                h = np.log(here / down)
                c2 = np.log(old_down / s[i - 1]) / h
                phi_1 = np.expm1(-h) / -h
                phi_2 = (phi_1 - 1) / -h
                x = np.exp(-h) * x + h * ((phi_1 - phi_2 / c2) * d + phi_2 / c2 * old)
            x = x + up * draw(i, 0)
            old, old_down = d, down
        return x

    return run


def cfgpp(eta: float) -> Reference:
    def run(x: Array, s: list[float], draw: Draw) -> Array:
        for i, (here, there) in enumerate(itertools.pairwise(s)):
            down, up = split(here, there, eta)
            guided, unguided = denoise(x, here, GUIDANCE), denoise(x, here, 0.0)
            x = guided + down / here * (x - unguided) + up * draw(i, 0)
        return x

    return run


def dpmpp_2m_cfgpp(x: Array, s: list[float], draw: Draw) -> Array:
    old = None
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        guided, unguided = denoise(x, here, GUIDANCE), denoise(x, here, 0.0)
        if there == 0:
            return guided
        h = np.log(here / there)
        mixed = -np.exp(-h) * unguided
        if old is not None:
            r = np.log(s[i - 1] / here) / h
            mixed = mixed - np.expm1(-h) / (2 * r) * (guided - old)
        x = guided + mixed + np.exp(-h) * x
        old = unguided
    return x


def dpmpp_2s_ancestral_cfgpp(x: Array, s: list[float], draw: Draw) -> Array:
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        guided, unguided = denoise(x, here, GUIDANCE), denoise(x, here, 0.0)
        down, up = split(here, there, 1.0)
        if down == 0:
            return guided
        h = np.log(here / down)
        half = np.exp(-h / 2) * (x + guided - unguided) - np.expm1(-h / 2) * guided
        later = denoise(half, here * np.exp(-h / 2), GUIDANCE)
        x = np.exp(-h) * (x + guided - unguided) - np.expm1(-h) * later + up * draw(i, 1)
    return x


def gradient_estimation_cfgpp(x: Array, s: list[float], draw: Draw) -> Array:
    old = None
    for here, there in itertools.pairwise(s):
        guided = denoise(x, here, GUIDANCE)
        d = (x - denoise(x, here, 0.0)) / here
        x = guided if there == 0 else guided + there * d + (0 if old is None else (there - here) * (d - old))
        old = d
    return x


def res_multistep_cfgpp(eta: float) -> Reference:
    def run(x: Array, s: list[float], draw: Draw) -> Array:
        old, old_down = None, 0.0
        for i, (here, there) in enumerate(itertools.pairwise(s)):
            guided, unguided = denoise(x, here, GUIDANCE), denoise(x, here, 0.0)
            down, up = split(here, there, eta)
            if down == 0 or old is None:
                x = guided + down * (x - unguided) / here
            else:
                h = np.log(here / down)
                c2 = np.log(old_down / s[i - 1]) / h
                phi_1 = np.expm1(-h) / -h
                phi_2 = (phi_1 - 1) / -h
                x = np.exp(-h) * (x + guided - unguided) + h * ((phi_1 - phi_2 / c2) * unguided + phi_2 / c2 * old)
            x = x + up * draw(i, 0)
            old, old_down = unguided, down
        return x

    return run


def sa_solver(twice: bool, eta: float) -> Reference:
    """The equations 15 and 18 with Lagrange's basis integrated by quadrature."""

    def weights(nodes: list[float], start: float, end: float, tau: float) -> list[float]:
        rate = 1 + tau**2

        def basis(j: int, at: float) -> float:
            return float(np.prod([(at - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j]))

        return [
            quad(lambda at, j=j: rate * np.exp(rate * (at - end)) * basis(j, at), start, end, epsabs=1e-13)[0]
            for j in range(len(nodes))
        ]

    def run(x: Array, s: list[float], draw: Draw) -> Array:
        log_trained = np.log(SDXL.sigmas())
        high, low = (np.exp(np.interp((1 - share) * 999, np.arange(1000), log_trained)) for share in (0.2, 0.8))
        lam = [-np.log(level) if level > 0 else np.inf for level in s]
        seen, past, n = x, [], len(s) - 1
        tau, noise, h = 0.0, np.zeros_like(x), 0.0
        for i, (here, there) in enumerate(itertools.pairwise(s)):
            past = [*past, denoise(seen, here)][-4:]
            left = n - i if s[-1] == 0 else 4
            corrector = 0 if i == 0 or (there == 0 and not twice) else min(4, len(past), left)
            predictor = min(3, len(past), left - 1)
            if corrector == 0:
                x = seen
            else:
                own = weights(lam[i - corrector + 1 : i + 1], lam[i - 1], lam[i], tau)
                change = sum(w * d for w, d in zip(own, past[-corrector:], strict=True))
                x = here / s[i - 1] * np.exp(-(tau**2) * h) * x + change + noise
                if twice:
                    past[-1] = denoise(x, here)
            if there == 0:
                return past[-1]
            tau = eta if high >= there >= low else 0.0
            own = weights(lam[i - predictor + 1 : i + 1], lam[i], lam[i + 1], tau)
            h = lam[i + 1] - lam[i]
            noise = draw(i, 1 if twice and i else 0) * there * np.sqrt(-np.expm1(-2 * tau**2 * h))
            change = sum(w * d for w, d in zip(own, past[-predictor:], strict=True))
            seen = there / here * np.exp(-(tau**2) * h) * x + change + noise
        return seen

    return run


FORMULAS: Mapping[str, tuple[Reference, dict[str, Any]]] = {
    "ipndm": (ipndm, {}),
    "ipndm_v": (ipndm_v, {}),
    "gradient_estimation": (gradient_estimation, {}),
    "lms_comfyui": (lms_comfyui, {}),
    "deis_comfyui": (deis_comfyui, {}),
    "unipc_comfyui": (unipc_comfyui("bh1"), {}),
    "unipc_bh2_comfyui": (unipc_comfyui("bh2"), {}),
    "heunpp2": (heunpp2, {}),
    "restart": (restart, {}),
    "dpm_fast": (dpm_fast(0.0), {}),
    "dpm_fast eta": (dpm_fast(0.7), {"eta": 0.7}),
    "er_sde": (er_sde, {}),
    "seeds_2": (seeds((0.5,), "phi_1", 1.0), {}),
    "seeds_2 eta": (seeds((0.5,), "phi_2", 0.4), {"eta": 0.4, "solver_type": "phi_2"}),
    "seeds_3": (seeds((1 / 3, 2 / 3), "phi_2", 1.0), {}),
    "exp_heun_2_x0": (seeds((1.0,), "phi_2", 0.0), {}),
    "exp_heun_2_x0_sde": (seeds((1.0,), "phi_1", 1.0), {"solver_type": "phi_1"}),
    "res_multistep": (res_multistep(0.0), {}),
    "res_multistep_a": (res_multistep(1.0), {}),
    "euler_cfg++": (cfgpp(0.0), {}),
    "euler_a_cfg++": (cfgpp(1.0), {}),
    "dpm++2m_cfg++": (dpmpp_2m_cfgpp, {}),
    "dpm++2s_a_cfg++": (dpmpp_2s_ancestral_cfgpp, {}),
    "gradient_estimation_cfg++": (gradient_estimation_cfgpp, {}),
    "res_multistep_cfg++": (res_multistep_cfgpp(0.0), {}),
    "res_multistep_a_cfg++": (res_multistep_cfgpp(1.0), {}),
    "sa_solver": (sa_solver(False, 1.0), {}),
    "sa_solver eta": (sa_solver(False, 0.5), {"eta": 0.5}),
    "sa_solver_pece": (sa_solver(True, 1.0), {}),
}


def run(table: Table, x: Array, noises: Array) -> Array:
    """The result of the table's rows, for latents that are divided by the image's scale."""
    rows = table.rows.astype(np.float64)
    x = x * table.alphas[0]
    saved, history = np.zeros_like(x), [np.zeros_like(x)] * 3
    for row, alpha, sigma, factor, noise in zip(rows, table.alphas, table.sigmas, table.factors, noises, strict=False):
        c = dict(zip(COLUMNS, row, strict=True))
        d = denoise(x / alpha, sigma / alpha, GUIDANCE * factor if factor else 1.0)
        u = denoise(x / alpha, sigma / alpha, 0.0)
        terms = dict(zip(MIXED, (x, saved, d, *history, noise), strict=True))
        if c["push_x"] or c["push_d"] or c["push_u"]:
            history = [c["push_x"] * x + c["push_d"] * d + c["push_u"] * u, *history[:2]]
        x, saved = (sum(c[f"{to}_{name}"] * term for name, term in terms.items()) for to in ("x", "saved"))
        x = x + c["x_u"] * u
    return x


@pytest.mark.parametrize("levels", [LEVELS, LEVELS[:3], [*karras_sigmas(10, 0.03, 30), 0.0], MANY], ids=len)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_sampler_is_its_formula(name: str, levels: list[float]) -> None:
    reference, options = FORMULAS[name]
    table = build_table(CONFIG, None, name.split()[0], sigmas=levels, **options)
    random = np.random.default_rng(len(levels))
    x, noises = random.standard_normal(8) * levels[0], random.standard_normal((table.used, 8))
    begins = np.searchsorted(table.steps, np.arange(table.steps[-1] + 1))

    def draw(step: int, row: int) -> Array:
        # a formula may ask at an end that adds none
        return noises[min(begins[step] + row, table.used - 1)]

    theirs = reference(x, list(map(float, levels)), draw)
    ours = run(table, x, noises)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def ddim_a1111(x: Array, times: list[int], draw: Draw, eta: float = 0.0, guidance: float | None = None) -> Array:
    shares = SDXL.alphas_cumprod()
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        here, there = shares[t], shares[after]
        sigma = np.sqrt((1 - here) / here)
        image, plain = (
            denoise(x / np.sqrt(here), sigma, scale) for scale in (guidance or 1.0, 0.0 if guidance else 1.0)
        )
        noise = (x - np.sqrt(here) * plain) / np.sqrt(1 - here)
        fresh = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
        x = np.sqrt(there) * image + np.sqrt(1 - there - fresh**2) * noise + fresh * draw(i, 0)
    return x


def plms_a1111(x: Array, times: list[int], draw: Draw) -> Array:
    shares = SDXL.alphas_cumprod()
    past: list[Array] = []

    def noise_of(x: Array, t: int) -> Array:
        return slope(x / np.sqrt(shares[t]), np.sqrt((1 - shares[t]) / shares[t]))

    def moved(x: Array, noise: Array, t: int, after: int) -> Array:
        image = (x - np.sqrt(1 - shares[t]) * noise) / np.sqrt(shares[t])
        return np.sqrt(shares[after]) * image + np.sqrt(1 - shares[after]) * noise

    for t, after in itertools.pairwise(times):
        past = [noise_of(x, t), *past[:3]]
        if len(past) == 1:
            noise = (past[0] + noise_of(moved(x, past[0], t, after), after)) / 2
        else:
            weights = {2: [3 / 2, -1 / 2], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -3 / 8]}[
                len(past)
            ]
            noise = sum((w * each for w, each in zip(weights, past, strict=True)), np.zeros_like(x))
        x = moved(x, noise, t, after)
    return x


COUNTED: Mapping[str, tuple[Callable[..., Array], dict[str, Any]]] = {
    "ddim_a1111": (ddim_a1111, {}),
    "ddim_a1111 eta": (partial(ddim_a1111, eta=0.6), {"eta": 0.6}),
    "ddim_cfg++_a1111": (partial(ddim_a1111, guidance=GUIDANCE / 12.5), {}),
    "plms_a1111": (plms_a1111, {}),
}


@pytest.mark.parametrize("steps", [2, 7, 20, 30])
@pytest.mark.parametrize("name", COUNTED)
def test_a_sampler_that_counts_timesteps_is_its_formula(name: str, steps: int) -> None:
    reference, options = COUNTED[name]
    table = build_table(CONFIG, steps, name.split()[0], **options)
    times = [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
    random = np.random.default_rng(steps)
    x, noises = random.standard_normal(8), random.standard_normal((table.used, 8))
    theirs = reference(x, times, lambda step, row: noises[step + row])
    np.testing.assert_allclose(
        run(table, x / table.alphas[0], noises), theirs, rtol=0, atol=2e-5 * np.abs(theirs).max()
    )
    assert table.timesteps[0] == times[0]
    with pytest.raises(InputError, match="steps=1: A1111's samplers make one step less"):
        build_table(CONFIG, 1, name.split()[0])
