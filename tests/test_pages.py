"""The README and docs/: links, commands and the order of pages hold."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import typer
import yaml

from jaxl.cli.app import app
from jaxl.diffusion.tables import SOLVERS
from jaxl.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAV = [page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()]


@pytest.fixture(scope="module")
def site() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "site.py"), run_name="site"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(site: SimpleNamespace, page: Path) -> None:
    site.for_site(page.read_text(), page)


def test_a_link_to_nothing_is_found(site: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"README\.md links to docs/nothing\.md"):
        site.for_site("[a page](docs/nothing.md)", ROOT / "README.md")


def test_links_on_the_site(site: SimpleNamespace) -> None:
    text = "![a](docs/pictures/grid.png) [Guide](docs/guide.md#prompts), [changes](CHANGELOG.md), [NOTICE](NOTICE)"
    there = "![a](pictures/grid.png) [Guide](guide.md#prompts), [changes](changelog.md), `NOTICE`"
    assert site.for_site(text, ROOT / "README.md") == there
    text = "[the price](../src/jaxl/bench/prices.toml) of [this](https://example.org/)"
    there = "the price (`src/jaxl/bench/prices.toml`) of [this](https://example.org/)"
    assert site.for_site(text, ROOT / "docs" / "kubernetes.md") == there


def test_what_a_site_fetches_from_elsewhere(site: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "css").mkdir()
    (tmp_path / "css" / "a.css").write_text(
        "a {b: url(c.woff)} @import 'https://x.example/fonts.css'; d {e: url(//y.example/f)}"
    )
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="css/a.css"><a href="https://fine.example/"></a>'
        '<script defer src="https://z.example/highlight.js"></script>'
    )
    assert site.fetched_from_elsewhere(tmp_path) == [
        "a.html: https://z.example/highlight.js",
        "css/a.css: https://x.example/fonts.css",
        "css/a.css: //y.example/f",
    ]


def test_the_readme_lists_the_pages_of_the_site_in_their_order(site: SimpleNamespace) -> None:
    contents = (ROOT / "README.md").read_text().split("## Documentation")[1]
    listed = re.findall(r"^\d+\. \[[^]]+\]\(([^)]+)\)", contents, re.MULTILINE)
    assert ["index.md", *(site.AT_THE_ROOT.get(page, page.removeprefix("docs/")) for page in listed)] == NAV
    assert set(NAV) == {page.name for page in (ROOT / "docs").glob("*.md")} | set(site.AT_THE_ROOT.values())


def commands(group: click.Command, name: str = "jaxl") -> dict[str, set[str]]:
    """Return the flags of a command and of those below it, by their names."""
    found = {name: {flag for each in group.params for flag in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}}
    for each, command in getattr(group, "commands", {}).items():
        found |= commands(command, f"{name} {each}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands(page: Path) -> None:
    """What follows `jaxl COMMAND` up to the end of the code or line are flags that the command has."""
    flags = commands(typer.main.get_command(app))
    text = re.sub(r"\"[^\"\n]*\"", "TEXT", page.read_text().replace("\\\n", " "))
    known = "|".join(sorted(set(flags) - {"jaxl"}, key=len, reverse=True))
    for name, rest in re.findall(rf"\b({known})\b([^`#|&\n]*)", text):
        for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest):
            assert flag in flags[name], f"{page.name}: {name} has no {flag}"


def test_the_guide_names_every_solver() -> None:
    said = set(re.findall(r"`([a-z0-9_+]+)`", (ROOT / "docs" / "guide.md").read_text()))
    assert set(SOLVERS) <= said, "add it to the table of docs/guide.md"


def test_the_guide_names_every_preset() -> None:
    said = set(re.findall(r"`([a-z0-9_+]+)`", (ROOT / "docs" / "guide.md").read_text()))
    assert set(PRESETS) - {"sdxl"} <= said
