"""Every option of a server is a field of `jaxl.server.settings`, a flag of `jaxl serve` and an argument of Ray's."""

import inspect
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import typer

from jaxl.call.options import LoadOptions
from jaxl.cli.app import app as command
from jaxl.cli.serve import serve
from jaxl.engine import Engine
from jaxl.server.ray import application
from jaxl.server.ray.application import Arguments
from jaxl.server.ray.scale import Scale
from jaxl.server.settings import EngineOptions, HttpOptions, ModelOptions, ResidencyOptions, Settings

PARTS = (ModelOptions, ResidencyOptions, EngineOptions, HttpOptions, Settings)

# what users call otherwise, and the flags that say the opposite
NAMES = {
    ModelOptions: {
        "sizes": "size",
        "preview": "preview_vae",
        "controlnets": "controlnet",
        "ip_adapters": "ip_adapter",
        "upscalers": "upscaler",
    },
    ResidencyOptions: {"models": "model"},
    EngineOptions: {"joins": "static"},
    HttpOptions: {},
    Settings: {
        "model": "name",
        "aliases": "alias",
        "api_keys": "api_key",
        "origins": "origin",
        "urls": "no_urls",
        "mark": "no_mark",
        "c2pa_certificate": "c2pa_cert",
    },
}
OPPOSITES = ("static", "no_urls", "no_mark")

OF_THE_MODEL = "the model says it when it is loaded"
A_LIMIT = "a limit that nobody needed to change yet"
NO_OPTION = {
    **dict.fromkeys(
        ("sizes", "larger_sizes", "chunks", "schedulers", "scheduler", "steps", "guidance_scale"), OF_THE_MODEL
    ),
    **dict.fromkeys(("embeddings", "controlnets", "ip_adapters", "upscalers"), OF_THE_MODEL),
    **dict.fromkeys(("max_pixels", "max_body", "max_prompt"), A_LIMIT),
    "usd_per_hour": "what --prices has for the devices that are found",
}

RAYS_OWN = "HTTP is Ray's own, which has its options for it"
OF_ONE_MACHINE = "it is about the machine with the command"
FLAG_ALONE = {
    **dict.fromkeys(("host", "port", "max_connections", "keep_alive"), RAYS_OWN),
    **dict.fromkeys(("ui", "open_page", "prices", "c2pa_cert", "c2pa_key"), OF_ONE_MACHINE),
    **dict.fromkeys(("jobs", "jobs_hours", "jobs_space", "webhook_allow"), "the ingress may move to another disk"),
    "api_key": "JAXL_API_KEYS has the keys, because Ray keeps its arguments where many can read them",
    "batch_sizes": "an image that another replica draws again would be the same to rounding alone",
    "static": "for the comparison in jaxl bench serve, which starts jaxl serve",
}
# of the command, what is no field of the parts: how many replicas, and what the page and the browser need
OF_THE_COMMAND = {"replicas", "open_page", "prices"}

FLAGS = inspect.signature(serve, eval_str=True).parameters


def options() -> Iterator[tuple[type[Any], Field[Any], str]]:
    """Each option: its part, its field, and the name of its flag."""
    for part in PARTS:
        for field in fields(part):
            if part is not Settings or field.name not in NO_OPTION:
                yield part, field, NAMES[part].get(field.name, field.name)


def of_ray(flag: str) -> str:
    return flag.removeprefix("no_")


def nothing(default: Any) -> Any:
    """A default as it compares: what is empty is None, however that is said."""
    return None if default in ((), "") else default


def test_each_option_has_a_flag_with_its_default() -> None:
    for _, field, flag in options():
        default = not field.default if flag in OPPOSITES else field.default
        if field.name == "model":
            default = None  # there may be several, and their public names are made of them
        assert nothing(FLAGS[flag].default) == nothing(default), flag
    assert {flag for _, _, flag in options()} | OF_THE_COMMAND == set(FLAGS)


def test_each_option_is_an_argument_of_ray_with_its_default() -> None:
    found = set()
    for part, field, flag in options():
        if flag in FLAG_ALONE:
            continue
        default = None if (part, field.name) == (Settings, "model") else field.default
        default = ModelOptions.model if field.name == "models" else default
        assert nothing(Arguments.model_fields[of_ray(flag)].default) == nothing(default), flag
        found.add(of_ray(flag))
    of_scale = {field.name: field.default for field in fields(Scale)}
    for name, default in of_scale.items():
        assert Arguments.model_fields[name].default == (None if name in ("least", "most") else default), name
    assert found | set(of_scale) == set(Arguments.model_fields)
    assert not {of_ray(flag) for flag in FLAG_ALONE} & set(Arguments.model_fields)


def test_each_option_is_explained() -> None:
    for part in PARTS:
        for field in fields(part):
            assert re.search(rf"\b{field.name}\b[^.]*:", part.__doc__), f"{part.__name__}.{field.name}"
    for flag, parameter in FLAGS.items():
        (option,) = [each for each in get_args(parameter.annotation) if hasattr(each, "help")]
        assert option.help, flag


def test_defaults_are_those_of_what_takes_them() -> None:
    from jaxl.backend import open_backend
    from jaxl.residency.models import open_models

    taken = {field.name: field.default for field in fields(LoadOptions)}
    taken |= {name: each.default for name, each in inspect.signature(open_backend).parameters.items()}
    for field in fields(ModelOptions):
        assert taken[field.name] == field.default, field.name
    for field in fields(ResidencyOptions)[1:]:  # all but the models
        assert inspect.signature(open_models).parameters[field.name].default == field.default, field.name
    for field in fields(EngineOptions):
        assert inspect.signature(Engine).parameters[field.name].default == field.default, field.name


SPECIAL = {
    "size": "64x32",
    "device_memory": "24GB",
    "host_memory": "64GiB",
    "size_policy": "strict",
    "dtype": "float32",
    "split": "rows",
    "origin": "https://example.org",
    "webhook_allow": "https://example.org/hooks",
    "root_path": "/jaxl",
    "batch_sizes": "2,3",
    "lanes": "pag,cached",
    "controlnet": "edges=canny",
    "ip_adapter": "like=plus",
    "upscaler": "sharp=4x.pth",
    "hires": "1.5,2",
}


def other(flag: str, default: Any, kind: Any) -> str:
    """What is given for an option that is not its default."""
    if flag in SPECIAL:
        return SPECIAL[flag]
    if any(number in str(kind).split(", ")[0] for number in ("int", "float")):
        return str((default or 2) + 1)
    return f"a-{flag}"


def check_none_is_default(parts: Sequence[Any], left_out: Sequence[str] = ()) -> None:
    """What was given has arrived."""
    found = {type(part): part for part in parts}
    for part, field, flag in options():
        if part in found and flag not in left_out:
            assert getattr(found[part], field.name) != field.default, f"--{flag} gets lost"


def test_each_flag_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}

    class Supervisor:
        def __init__(self, **given: Any):
            found.update(given)

        def run(self) -> None:
            pass

    http: list[HttpOptions] = []
    monkeypatch.setattr("jaxl.server.supervisor.Supervisor", Supervisor)
    monkeypatch.setattr("jaxl.server.supervisor.http_server", lambda front, options: http.append(options))
    monkeypatch.setattr("jaxl.server.supervisor.listen", lambda options: socket.socket())
    monkeypatch.setattr("jaxl.server.logs.take_over", lambda: None)
    monkeypatch.setattr("jaxl.server.logs.configure", lambda: None)
    monkeypatch.setattr("jaxl.server.pictures.Signer", lambda *files: None)
    monkeypatch.setattr("jaxl.server.filters.load", lambda name: None)
    monkeypatch.setattr("jaxl.server.keys.KeyRing", lambda *files: None)
    monkeypatch.setattr("jaxl.text.prompt_styles.read_styles", lambda file: {})
    monkeypatch.setattr("jaxl.server.jobs.store.JobStore", lambda *given: SimpleNamespace(close=lambda: None))
    group: Any = typer.main.get_command(command)
    line = ["serve"]
    for option in group.commands["serve"].params:
        if option.name in ("replicas", "prices", "open_page", "help"):
            continue
        line.append(option.opts[0])
        if not option.is_flag:
            line.append(other(option.name, FLAGS[option.name].default, FLAGS[option.name].annotation))
    group(line, standalone_mode=False)
    (loads,) = found["load"].args
    check_none_is_default([loads.model, loads.residency, found["engine_options"], found["settings"], *http])


def test_each_argument_of_ray_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(application, "replicas", lambda *given: found.extend(given))
    monkeypatch.setattr(application, "with_ingress", lambda *given: None)
    given = {
        name: not field.default if field.annotation is bool else other(name, field.default, field.annotation)
        for name, field in Arguments.model_fields.items()
    }
    application.app({**given, "least": 1, "most": 5})
    load, scale, *parts = found
    loads = load.__self__
    check_none_is_default([loads.model, loads.residency, *parts], list(FLAG_ALONE))
    for field in fields(Scale):
        assert getattr(scale, field.name) != field.default or field.name == "least", field.name


def test_the_page_has_every_argument() -> None:
    page = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
    assert [name for name in Arguments.model_fields if not re.search(rf"`{name}[`=]", page)] == []
