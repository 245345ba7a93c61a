"""`jaxl keys`: the file of keys that `jaxl serve --keys FILE` reads."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from jaxl.cli.terminal import note, print_line
from jaxl.errors import InputError, nearest

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make, list and remove the keys of clients, with their limits, that `jaxl serve --keys FILE` reads.",
)

FileOption = Annotated[str, typer.Option("--file", metavar="FILE", help="The file of keys.")]
DEFAULT = "keys.txt"
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of letters, digits, '.', '_' and '-'.")]


@app.command()
def add(
    name: NameArgument,
    file: FileOption = DEFAULT,
    images_per_minute: Annotated[int | None, typer.Option(metavar="N", help="Images that may begin in one.")] = None,
    at_once: Annotated[int | None, typer.Option(metavar="N", help="Images that may wait or be in the making.")] = None,
    size: Annotated[list[str] | None, typer.Option(metavar="WxH", help="A size that it may have; repeatable.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A model that it may ask for; repeatable.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="Of its requests, and the highest that they may ask for.")
    ] = None,
) -> None:
    """Make a key, add it to the file, and print it: the file has only its digest, so nobody can print it again.

    A server that runs with the file knows the key at once.
    """
    from jaxl.server.keys import digest_of, read_line

    limits = {
        "images_per_minute": images_per_minute,
        "at_once": at_once,
        "sizes": ",".join(size or ()),
        "models": ",".join(model or ()),
        "priority": priority,
    }
    given = [f"{limit}={value}" for limit, value in limits.items() if value not in (None, "")]
    key = secrets.token_urlsafe(32)
    line = " ".join([name, digest_of(key), *given])
    try:
        read_line(line)
    except ValueError as error:
        raise InputError("key", name, str(error)) from None
    path = Path(file)
    lines = _lines(path)
    if any(each.split()[:1] == [name] for each in lines):
        raise InputError("name", name, f"{file} has a key of this name; remove it first: jaxl keys remove {name}")
    _write(path, [*lines, line])
    note(f"added {name} to {file}; this is its key, which is not kept")
    print_line(key)


@app.command()
def remove(name: NameArgument, file: FileOption = DEFAULT) -> None:
    """Remove a key from the file. A server that runs with it refuses the key at once."""
    path = Path(file)
    lines = _lines(path)
    names = [each.split()[0] for each in lines if each.strip() and not each.lstrip().startswith("#")]
    if name not in names:
        raise InputError("name", name, f"no key in {file}; {nearest(name, names)}")
    _write(path, [each for each in lines if each.split()[:1] != [name]])


@app.command("list")
def show(file: FileOption = DEFAULT) -> None:
    """Print the name and the limits of each key, one a line."""
    from jaxl.server.keys import read_file, write_line

    for key in read_file(Path(file)):
        name, _, *limits = write_line(key).split()
        print_line(" ".join([name, *limits]))


def _lines(path: Path) -> list[str]:
    """Return the lines of the file, none where there is no file yet. Raises InputError for one that is not in order."""
    from jaxl.server.keys import read_file

    if not path.exists():
        return []
    read_file(path)
    return path.read_text("utf-8").splitlines()


def _write(path: Path, lines: list[str]) -> None:
    from jaxl.files import write_text

    write_text(path, "".join(f"{line}\n" for line in lines))
