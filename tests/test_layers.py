"""The layers of docs/structure.md: an import goes down only."""

import ast
import importlib.util
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxl

PACKAGE = Path(jaxl.__file__).parent

# from the bottom up; a module may import from lower lines and from its own entry, never from a higher line
LAYERS = (
    ("errors",),
    ("engine", "extras"),
    ("config", "presets", "files", "preprocessors"),
    ("kernels",),
    ("nn", "diffusion", "text"),
    ("weights",),
    ("run",),
    ("call",),
    ("pipeline",),
    ("loading", "png"),
    ("metadata",),
    ("compat", "backend"),
    ("residency",),
    ("server",),
    ("bench",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


MODULES = {
    ".".join(("jaxl", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports(file: Path) -> set[str]:
    """The modules of jaxl that a file imports, wherever in it, and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxl":
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole if whole in MODULES else node.module or "" for whole in names.values()}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {"jaxl"}


def part(module: str) -> str:
    return module.split(".")[1]


def test_imports_go_down() -> None:
    checked = 0
    for module, file in MODULES.items():
        if module == "jaxl":
            continue
        assert part(module) in LEVEL, f"{module} has no layer: add it here and to docs/structure.md"
        for name in imports(file):
            if part(name) != part(module):
                assert LEVEL[part(name)] < LEVEL[part(module)], f"{module} imports {name}, which is not below it"
                checked += 1
    assert checked > 300


def test_no_circles() -> None:
    """Nor inside a folder: modules can be read one after the other."""
    graph = {module: imports(file) for module, file in MODULES.items() if module != "jaxl"}
    assert len(list(TopologicalSorter(graph).static_order())) > 150


def test_the_root_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("name", ["structure", "sampler_names"])
def test_what_tools_write_is_as_the_code_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If not: `python tools/structure.py`, or the other."""
    path = PACKAGE.parents[1] / "tools" / f"{name}.py"
    monkeypatch.syspath_prepend(path.parent)  # as for one that is run
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    written = tool.PAGE.read_text()
    assert tool.page(written) == written


def test_exported_names() -> None:
    assert sorted(jaxl.__all__) == [
        "Bucket",
        "CheckpointError",
        "Control",
        "Hires",
        "ImagePrompt",
        "InputError",
        "JaxlError",
        "NonFiniteError",
        "OutputError",
        "Pipeline",
        "Region",
        "Result",
        "Strength",
        "TruncationWarning",
        "Upscaler",
        "__version__",
        "from_pretrained",
        "make_mesh",
        "preprocess",
        "settings_of",
        "upscale",
    ]
    for name in jaxl.__all__:
        assert hasattr(jaxl, name)


def test_help_does_without_jax() -> None:
    """Help and usage errors come at once; importing jax takes a second."""
    code = "import sys, jaxl.cli; jaxl.cli.run(['generate', '--help']); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_server_does_without_jax() -> None:
    """So that a balancer before many engines needs no devices."""
    code = "import sys, jaxl.server.app, jaxl.engine; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_replica_knows_nothing_of_http() -> None:
    assert {part(name) for name in imports(MODULES["jaxl.server.ray.replica"])} == {"engine", "errors"}
