"""Host time of building each scheduler's table, as a Markdown table of milliseconds.

    python benchmarks/tables.py

Each number is the median of 20 builds with SDXL's noise schedule.
"""

from __future__ import annotations

import statistics
import time

from jaxl.diffusion.schedule import EDM, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.diffusion.tables import build_table

STEPS = (25, 50, 1000)
BUILDS = 20
SDXL = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def milliseconds(scheduler: str, steps: int) -> float:
    noise = NoiseSchedule(edm=EDM()) if scheduler.startswith("edm") else SDXL
    config = SchedulerConfig(noise, timestep_spacing="leading", steps_offset=1)
    times = []
    for _ in range(BUILDS):
        began = time.perf_counter()
        build_table(config, steps, scheduler)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    print("| scheduler |", " | ".join(f"{steps} steps" for steps in STEPS), "|")
    print("| --- |", " | ".join("---:" for _ in STEPS), "|")
    worst = 0.0
    for scheduler in SCHEDULERS:
        times = [milliseconds(scheduler, steps) for steps in STEPS]
        worst = max(worst, *times)
        print(f"| `{scheduler}` |", " | ".join(f"{time:.2f}" for time in times), "|")
    print(f"\nThe slowest takes {worst:.2f} ms.")


if __name__ == "__main__":
    main()
