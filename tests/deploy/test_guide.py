"""docs/kubernetes.md: its figures are those of the sources named, and what it names is there."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxl.bench.prices import read_prices

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()


@pytest.fixture(scope="module")
def costs() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "deploy" / "costs.py"), run_name="costs"))


def test_the_table_of_costs(costs: SimpleNamespace) -> None:
    page = costs.PERFORMANCE.read_text()
    assert costs.table(page) in GUIDE
    price = next(each for each in read_prices() if each.name == costs.CHIP)
    said = (
        f"{costs.estimated_images_per_s(page):g} images/s for a host",
        f"{price.usd_per_chip_hour:.2f} USD for an hour of a chip",
        price.date,
        f"{costs.SHARE:.0%}".replace("%", " %"),
    )
    for text in said:
        assert text in " ".join(GUIDE.split())


def test_costs(costs: SimpleNamespace) -> None:
    page = (
        "| command | other |\n| --- | --- |\n| `jaxl estimate --topology v5e-4` | 9 |\n\n"
        "| command | a step | images/s | images/$ |\n| --- | --- | --- | --- |\n"
        f"| `{costs.COMMAND}` | 1 ms | 2.50 | 3 |\n"
    )
    assert costs.estimated_images_per_s(page) == 2.5
    with pytest.raises(ValueError, match="no row"):
        costs.estimated_images_per_s("| command | images/s |\n")
    each = costs.cost(rate=10, images_per_s=2.5, usd_per_host_hour=4.0)
    assert each.hosts == 5  # four would have nothing to spare
    assert each.hosts_if_slower == 6
    assert each.usd_per_hour == 20
    assert each.usd_per_thousand == pytest.approx(20 / 36)


def test_paths() -> None:
    named = set(re.findall(r"\b(?:deploy|src|docs)/[\w./-]*\w", GUIDE))
    assert len(named) > 10
    for path in named:
        assert (ROOT / path).exists(), path


def test_what_is_applied() -> None:
    applied = set(re.findall(r"kubectl (?:apply|delete|kustomize) -k ([\w$/.-]+)", GUIDE))
    assert applied
    for path in applied:
        for platform in ("tpu", "gpu") if "$PLATFORM" in path else ("",):
            assert (ROOT / path.replace("$PLATFORM", platform) / "kustomization.yaml").exists(), path


def test_what_is_named(trees: dict[str, Any]) -> None:
    """Whatever the commands name in the namespace is in the manifests, or made by a command before."""
    there = {(each["kind"].lower(), each["metadata"]["name"]) for tree in trees.values() for each in tree}
    there |= {("secret", name) for name in re.findall(r"create secret generic ([\w-]+)", GUIDE)}
    there.add(("service", "jaxl-serve-svc"))  # which KubeRay makes for a RayService called jaxl
    kinds = "deployment|job|service|rayservice|secret|horizontalpodautoscaler"
    named = set(re.findall(rf"\b({kinds})/(jaxl[\w-]*)", GUIDE))
    assert len(named) > 5
    assert named <= there


def test_links() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
