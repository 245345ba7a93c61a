"""The layers of docs/structure.md: an import goes down only."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxl

PACKAGE = Path(jaxl.__file__).parent

# from the bottom up; a module may import from lower lines and from its own entry, never from a higher line
LAYERS = (
    ("errors",),
    ("engine",),
    ("config", "presets", "shapes", "files", "extras"),
    ("kernels",),
    ("nn", "diffusion", "text"),
    ("model", "weights"),
    ("sharding", "hosts", "disk_cache"),
    ("programs", "arguments", "images"),
    ("prompts", "starts", "embeddings"),
    ("plan", "infotext"),
    ("inputs",),
    ("pipeline", "png"),
    ("compat", "running"),
    ("server",),
    ("bench",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """The parts of jaxl that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxl":
            parts = (node.module or "").split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxl.")}
    return found & set(LEVEL)


def test_imports_go_down() -> None:
    checked = 0
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if part == "__init__":
            continue
        assert part in LEVEL, f"{file.name} has no layer: add it here and to docs/structure.md"
        for name in imports(file) - {part}:
            assert LEVEL[name] < LEVEL[part], f"{file.relative_to(PACKAGE)} imports jaxl.{name}, which is not below it"
            checked += 1
    assert checked > 20


def test_structure_lists_every_file() -> None:
    page = (PACKAGE.parents[1] / "docs" / "structure.md").read_text()
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if file.name != "__init__.py" or file.parent == PACKAGE:
            assert f"`{name}`" in page, f"docs/structure.md has no line for {name}"


def test_exported_names() -> None:
    assert sorted(jaxl.__all__) == [
        "Bucket",
        "CheckpointError",
        "InputError",
        "JaxlError",
        "NonFiniteError",
        "OutputError",
        "Pipeline",
        "Result",
        "TruncationWarning",
        "__version__",
        "from_pretrained",
        "make_mesh",
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
    assert imports(PACKAGE / "server" / "ray" / "replica.py") == {"engine", "errors"}
