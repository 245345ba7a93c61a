"""Tries a wheel: it has every file that it needs, and draws without extras: `python tools/try_wheel.py WHEEL`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
FOLDERS = (
    "jaxl/models/tiny/",
    "jaxl/models/tiny/loras/",
    "jaxl/models/tiny/controlnets/edges/",
    "jaxl/server/web/static/",
    "jaxl/text/clip_merges",
    "jaxl/bench/prices.toml",
    "jaxl/py.typed",
)
PROMPT = "a red apple on a blue background, flat style"


def missing(names: set[str]) -> list[str]:
    """Return the files of the package that a wheel with these names lacks."""
    files = [path.relative_to(SOURCE) for path in (SOURCE / "jaxl").rglob("*") if path.is_file()]
    wanted = {file.as_posix() for file in files if "__pycache__" not in file.parts}
    for folder in FOLDERS:
        assert any(name.startswith(folder) for name in wanted), f"there is no {folder} in src"
    return sorted(wanted - names)


def foreign(names: set[str]) -> list[str]:
    """Return what is in a wheel with these names and should not be, such as tests and benchmarks."""
    return sorted(name for name in names if not name.startswith(("jaxl/", "jaxl-")) or "__pycache__" in name)


def draw(wheel: Path, folder: Path) -> Path:
    """Install a wheel in a new environment in `folder`, without extras, and draw one picture of two steps with it."""
    venv.create(folder / "env", with_pip=True)
    bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([bin / "python", "-m", "pip", "install", "--quiet", "--no-compile", wheel.resolve()], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX"))}
    # compiled in a third of the time; they run slower
    environment |= {"JAXL_CACHE_DIR": str(folder / "programs"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [bin / "jaxl", "generate", PROMPT, "--seed", "7", "--steps", "2", "--output", "apple.png"]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return folder / "apple.png"


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    for what, found in (("lacks", missing(names)), ("should not hold", foreign(names))):
        if found:
            sys.exit(f"{wheel.name} {what} {', '.join(found)}")
    with tempfile.TemporaryDirectory() as folder:
        size = draw(wheel, Path(folder)).stat().st_size
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"{wheel.name}: {len(names)} files, and a picture of {size} bytes, drawn without extras on Python {python}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
