"""Writes other programs' samplers into docs/guide.md, each with its solver here: `python tools/sampler_names.py`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

from jaxl.call.styles import styled
from jaxl.diffusion.names import find_name
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.errors import InputError
from marked import rewritten

PAGE = Path(__file__).parents[1] / "docs" / "guide.md"

# by the styles in which they are drawn: A1111's `modules/sd_samplers*.py`, and ComfyUI's `comfy/samplers.py`
SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "a1111": (
        *("Euler", "Euler a", "LMS", "Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE"),
        *("DPM++ 2M SDE Heun", "DPM++ 3M SDE", "DPM fast", "DPM adaptive", "LCM", "Restart", "DDIM", "DDIM CFG++"),
        *("PLMS", "UniPC"),
    ),
    "comfyui": (
        *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0"),
        *("exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral"),
        *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_heun"),
        *("dpmpp_3m_sde", "ddpm", "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp"),
        *("res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "gradient_estimation"),
        *("gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim"),
        *("uni_pc", "uni_pc_bh2"),
    ),
}


def solver_of(style: str, sampler: str) -> str | None:
    """Return the solver that draws a program's sampler; None for one that is refused."""
    try:
        options = styled({"style": style, "scheduler": sampler}, "euler", 1)
    except InputError:
        return None
    return SCHEDULERS[find_name(options["scheduler"])].solver.name


def table() -> str:
    """Return the table, with the samplers of both programs side by side."""

    def cells(style: str) -> list[str]:
        solvers = {sampler: solver_of(style, sampler) for sampler in SAMPLERS[style]}
        return [f"{name} | {'refused' if solver is None else f'`{solver}`'}" for name, solver in solvers.items()]

    rows = zip_longest(cells("a1111"), cells("comfyui"), fillvalue=" | ")
    return "| A1111 | here | ComfyUI | here |\n| --- | --- | --- | --- |\n" + "".join(
        f"| {one} | {other} |\n".replace("|  |  |", "| | |") for one, other in rows
    )


def page(old: str) -> str:
    """Return the page with the table as it is to be."""
    return rewritten(old, "sampler_names", table())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(PAGE)
