"""The plot of one picture on many chips, from the figures in docs/chips.md.

    python benchmarks/one_picture_plot.py

Solid: what goes over the links is hidden behind nothing. Dashed: all of it is.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

PLOT = Path(__file__).parents[1] / "docs" / "pictures" / "one_picture.png"
# chips -> milliseconds of a step: computing, and over the links
STEPS = {
    "jaxl, 1024x1024, v5e": {1: (87.25, 0.0), 4: (26.20, 4.37), 8: (15.61, 4.13)},
    "jaxl, 2048x2048, v5e": {1: (481.87, 0.0), 8: (69.54, 16.08)},
}
# Li et al. 2024, arXiv:2402.19481: 50 steps on A100, of which each takes others' rows as they were one step before
DISTRIFUSION = {1: 1.0, 2: 1.8, 4: 3.4, 8: 6.1}


def main() -> None:
    _, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    axes.plot([1, 8], [1, 8], color="lightgrey", label="as many times as chips")
    for name, steps in STEPS.items():
        alone = steps[1][0]
        (line,) = axes.plot(list(steps), [alone / sum(parts) for parts in steps.values()], "o-", label=f"{name}, exact")
        axes.plot(list(steps), [alone / parts[0] for parts in steps.values()], "--", color=line.get_color())
    axes.plot(
        *zip(*DISTRIFUSION.items(), strict=True), "s:", label="DistriFusion, 3840x3840, A100, not exact (measured)"
    )
    axes.set(xlabel="chips for one picture", ylabel="times as fast as one", xticks=[1, 2, 4, 8])
    axes.set_title("One picture on many chips (TPUs: estimated)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
