"""Keys of a file: its lines, its limits, and that it is read anew."""

import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jaxl.cli.app import run
from jaxl.engine import Engine
from jaxl.errors import InputError
from jaxl.server.app import create_app
from jaxl.server.errors import ApiError
from jaxl.server.keys import ANYBODY, Key, KeyRing, digest_of, read_line, write_line
from jaxl.server.quotas import MINUTE, Quotas
from jaxl.server.service import Service
from jaxl.server.settings import Settings

GENERATIONS = "/v1/images/generations"
DIGEST = digest_of("secret")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def write(path: Path, *lines: str) -> None:
    """Write a file that is seen to be another one, however coarse the clock of the disk is."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    os.replace(new, path)


def test_a_line_reads_back() -> None:
    key = Key("ada", DIGEST, 60, 4, ((1024, 1024), (832, 1216)), ("sdxl", "tiny"), -2)
    line = f"ada {DIGEST} images_per_minute=60 at_once=4 sizes=1024x1024,832x1216 models=sdxl,tiny priority=-2"
    assert (write_line(key), read_line(line), read_line(f"  {line}  ")) == (line, key, key)
    assert write_line(Key("b", DIGEST)) == f"b {DIGEST}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ada", "after the name comes the key's SHA-256"),
        (f"ada {DIGEST.upper()}", "after the name comes the key's SHA-256"),
        ("ada secret", "after the name comes the key's SHA-256"),
        (f"a/b {DIGEST}", "a name has 1 to 64 letters"),
        (f"api-key {DIGEST}", "is not 'api-key'"),
        (f"ada {DIGEST} at_one=1", "'at_one': did you mean 'at_once'?"),
        (f"ada {DIGEST} at_once", "at_once='': give a whole number from 1"),
        (f"ada {DIGEST} at_once=0", "at_once='0': give a whole number from 1"),
        (f"ada {DIGEST} images_per_minute=1.5", "give a whole number from 1"),
        (f"ada {DIGEST} at_once=1 at_once=2", "at_once is there twice"),
        (f"ada {DIGEST} sizes=1024", "give sizes such as"),
        (f"ada {DIGEST} sizes=64x64,", "give sizes such as"),
        (f"ada {DIGEST} models=,", "give names with commas"),
        (f"ada {DIGEST} priority=11", "give a whole number from -10 to 10"),
        (f"bob {DIGEST}", "'bob' or its key is there already; remove one"),
        (f"one {digest_of('other')}", "'one' or its key is there already; remove one"),
    ],
)
def test_lines_that_are_not_in_order(path: Path, line: str, said: str) -> None:
    write(path, "# keys", "", f"one {DIGEST}" if " is there already" in said else f"one {digest_of('one')}", line)
    with pytest.raises(InputError) as raised:
        KeyRing(path=path)
    message = str(raised.value)
    assert f"{path}, line 4" in message
    assert said in message
    assert "secret" not in message, "which may be a key"


def test_the_file_is_read_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, f"ada {DIGEST}")
    ring = KeyRing(("given",), path)
    assert [key.name for key in ring.known()] == ["api-key", "ada"]
    first = ring.find("secret")
    write(path, f"ada {digest_of('other')} at_once=1", f"bob {digest_of('bob')}")
    assert (ring.find("secret"), ring.find("other")) == (None, Key("ada", digest_of("other"), at_once=1))
    assert first is not None
    assert ring.of(first.owner) == ring.find("other"), "a key that takes another's place has what it had"
    with caplog.at_level(logging.ERROR):
        write(path, f"ada {DIGEST}", "bob")
        assert [ring.find("bob") is not None for _ in range(3)] == [True] * 3
        path.unlink()
        assert ring.find("bob") is not None
    assert [record.getMessage().split(", and the old ones are kept: ")[1] for record in caplog.records] == [
        f"keys='{path}, line 2': after the name comes the key's SHA-256, 64 digits in hex; `jaxl keys add` writes it",
        f"keys={str(path)!r}: No such file or directory; `jaxl keys add` makes one",
    ]
    write(path, f"cleo {DIGEST}")
    found = ring.find("secret")
    assert found is not None
    assert found.name == "cleo"


def test_a_file_without_keys_opens_nothing(path: Path) -> None:
    write(path)
    ring = KeyRing(path=path)
    assert ring
    assert ring.find("") is None
    assert not KeyRing()
    assert KeyRing().of("") == ANYBODY


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def keys(*arguments: str) -> tuple[int, str, str]:
        code = run(["keys", *arguments, "--file", str(path)])
        return code, *capsys.readouterr()

    limits = ("--at-once", "2", "--size", "64x64", "--size", "32x32", "--model", "tiny", "--priority", "1")
    code, key, said = keys("add", "ada", "--images-per-minute", "60", *limits)
    assert code == 0
    assert said == f"jaxl: added ada to {path}; this is its key, which is not kept\n"
    found = KeyRing(path=path).find(key.strip())
    assert found == Key("ada", digest_of(key.strip()), 60, 2, ((64, 64), (32, 32)), ("tiny",), 1)
    assert key.strip() not in path.read_text()
    assert keys("add", "ada")[0] == 2
    assert keys("add", "bob", "--at-once", "0")[0] == 2
    keys("add", "bob")
    _, listed, _ = keys("list")
    assert listed.splitlines()[1:] == ["bob"]
    assert keys("remove", "bo")[2].endswith("did you mean 'bob'? known: ada, bob\n")
    assert keys("remove", "ada")[0] == 0
    assert keys("list")[1] == "bob\n"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_images_of_a_minute_and_at_once() -> None:
    clock, refused = Clock(), []
    quotas = Quotas(lambda key, limit: refused.append((key.name, limit)), clock)
    key = Key("ada", DIGEST, images_per_minute=6, at_once=4)
    quotas.take(key, 3)
    with pytest.raises(ApiError, match="has at_once=4") as raised:
        quotas.take(key, 2)
    assert raised.value.status_code == 429
    quotas.give_back(key, 3)
    clock.now += 10
    quotas.take(key, 3)
    quotas.give_back(key, 3)
    with pytest.raises(
        ApiError, match="has had 6 images in the last minute, and has images_per_minute=6; try again in 50"
    ):
        quotas.take(key, 1)
    with pytest.raises(ApiError, match="in 60 s") as raised:
        quotas.take(key, 4)
    assert raised.value.headers is not None
    assert 60 <= int(raised.value.headers["Retry-After"]) <= 91
    clock.now += MINUTE - 10
    quotas.take(key, 3)
    quotas.give_back(key, 3, begun=False)
    quotas.take(key, 3)
    assert refused == [("ada", "at_once"), *[("ada", "images_per_minute")] * 2]


class TestRequests:
    @pytest.fixture
    def settings(self, settings: Settings, path: Path) -> Settings:
        limits = {"ada": "at_once=2 images_per_minute=3 sizes=32x32 priority=1", "bob": "models=other", "cleo": ""}
        write(path, *(f"{name} {digest_of(name)} {limit}" for name, limit in limits.items()))
        return replace(settings, keys=path, aliases=("other",))

    @staticmethod
    def draw(client: TestClient, key: str, **asked: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        return client.post(GENERATIONS, json={"prompt": "a", **asked}, headers=headers)

    @pytest.mark.parametrize(
        ("key", "asked", "status", "message"),
        [
            ("ada", {}, 200, ""),
            ("ada", {"size": "64x32"}, 403, "size='64x32': the key 'ada' may have 32x32"),
            ("ada", {"n": 3}, 400, "n=3: the key 'ada' has at_once=2; give at most 2"),
            ("bob", {}, 403, "model='tiny': the key 'bob' may have other"),
            ("bob", {"model": "other"}, 200, ""),
            ("cleo", {"size": "64x32", "n": 8}, 200, ""),
            ("dora", {}, 401, "send one of this server's keys, as Authorization: Bearer KEY"),
        ],
    )
    def test_what_a_key_may_have(
        self, client: TestClient, key: str, asked: dict[str, Any], status: int, message: str
    ) -> None:
        answer = self.draw(client, key, **asked)
        assert answer.status_code == status
        if status != 200:
            assert answer.json()["error"]["message"] == message

    @pytest.mark.parametrize(("key", "status"), [("ada", 403), ("bob", 403), ("cleo", 422)])
    def test_limits_keep_the_model_loaded(self, client: TestClient, key: str, status: int) -> None:
        """For the others; without limits, nothing but the replicas of these tests is in the way."""
        answer = client.post("/sdapi/v1/unload-checkpoint", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status
        assert ("a key with limits may not" in answer.json()["detail"]) == (status == 403)

    def test_too_many(self, client: TestClient) -> None:
        """Each API says which limit it is, and the metrics count by the key's name."""
        assert self.draw(client, "ada", n=2).status_code == 200
        answer = self.draw(client, "ada", n=2)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "images_per_minute=3" in answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= 50
        auth = {"Authorization": "Bearer ada"}
        of_a1111 = client.post("/sdapi/v1/txt2img", json={"prompt": "a", "batch_size": 2}, headers=auth)
        of_hugging_face = client.post("/", json={"inputs": "a"}, headers=auth)
        assert (of_a1111.status_code, of_hugging_face.status_code) == (429, 200)
        text = client.get("/metrics").text
        assert 'jaxl:images_by_key_total{key="ada"} 3.0' in text
        assert 'jaxl:refused_by_key_total{key="ada",limit="images_per_minute"} 2.0' in text
        assert float(text.split('jaxl:device_seconds_by_key_total{key="ada"} ')[1].split()[0]) > 0

    def test_priority(self, client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key's is that of its requests, and the most that they may ask for."""
        seen, submit = [], service.engine.submit
        monkeypatch.setattr(
            service.engine, "submit", lambda request, tell: (seen.append(request), submit(request, tell))[1]
        )
        for key, asked in (("ada", None), ("ada", -3), ("ada", 9), ("cleo", None), ("cleo", 9)):
            self.draw(client, key, priority=asked)
        assert [request.priority for request in seen] == [1, -3, 1, 0, 9]

    @pytest.mark.parametrize("row_seconds", [0.01])
    def test_requests_of_another_key(self, client: TestClient, service: Service, until: Any) -> None:
        """Whoever knows or guesses the id of another's request neither sees nor stops it."""
        ada, cleo = ({"Authorization": f"Bearer {name}", "X-Request-Id": "mine"} for name in ("ada", "cleo"))
        asked = {"prompt": "a", "num_inference_steps": 1000, "keep": True}
        waiting = threading.Thread(target=client.post, args=(GENERATIONS,), kwargs={"json": asked, "headers": cleo})
        waiting.start()
        until(lambda: "mine" in service.live)
        for method, ending in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
            assert client.request(method, f"/v1/requests/mine{ending}", headers=ada).status_code == 404
        assert client.get("/v1/requests/mine", headers=cleo).status_code == 200
        assert client.delete("/v1/requests/mine", headers=cleo).json()["cancelled"]
        waiting.join()


def test_keys_without_names_share_a_name_and_no_requests(engine: Engine, settings: Settings) -> None:
    one, other = KeyRing(("one", "other")).known()
    assert one.name == other.name
    assert one.owner != other.owner
    client = TestClient(create_app(Service(engine, replace(settings, api_keys=("one",)))))
    assert client.post(GENERATIONS, json={"prompt": "a"}, headers={"Authorization": "Bearer one"}).status_code == 200
    assert 'jaxl:images_by_key_total{key="api-key"} 1.0' in client.get("/metrics").text
