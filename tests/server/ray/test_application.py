"""What `serve run jaxl.server.ray:app` makes of its arguments."""

import subprocess
import sys
from typing import Any

import pytest
from ray.serve import Application

from jaxl.errors import InputError
from jaxl.server.ray import app
from jaxl.server.ray.application import Arguments


def test_the_ingress_does_without_jax() -> None:
    code = "import sys, jaxl.server.ray.application; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=600)


def test_a_replica_does_without_http() -> None:
    """Nor does it import the application before it, by whatever it is started with."""
    code = "import sys, jaxl.server.ray.replica, jaxl.server.ray.local, jaxl.server.settings as s; "
    code += "s.Loading(s.ModelOptions()).open; sys.exit(bool({'fastapi', 'uvicorn', 'ray'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=600)


def test_words_are_read() -> None:
    """As the command line gives them."""
    given = {
        "alias": "dall-e-3,dall-e-2",
        "name": "mine",
        "replicas": "2",
        "size": "64x32,32x32",
        "gpus": "1",
        "mark": "false",
        "least": "0",
        "most": "3",
    }
    assert isinstance(app(given), Application)
    assert Arguments.model_validate(given).mark is False


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"size": "large"}, "size"),
        ({"size": "0x8"}, "size"),
        ({"name": ""}, "name"),
        ({"alias": "dall-e-3,a\nb"}, "alias"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 3, "most": 2}, "replicas"),
        ({"replicas": 1, "least": 2}, "replicas"),
        ({"origin": "https://example.org,example.org"}, "origin"),
        ({"root_path": "jaxl"}, "root_path"),
        ({"jobs": "folder"}, "jobs"),
        ({"webhook_allow": "https://example.org/"}, "webhook_allow"),
    ],
)
def test_mistakes(given: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as raised:
        app(given)
    assert raised.value.argument == name


@pytest.mark.parametrize("given", [{"modell": "tiny"}, {"slots": 0}, {"deadline": "inf"}, {"dtype": "float16"}])
def test_what_no_argument_allows(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        app(given)
