"""The folder of compiled programs: whose it may be, what is found damaged there, and how large it grows."""

import json
import os
import warnings
from pathlib import Path

import filelock
import forks
import pytest

from jaxl.errors import InputError
from jaxl.run import disk_cache

CODE = """
import json, warnings, jax, jax.numpy as jnp, numpy as np
from jaxl.run.disk_cache import enable_disk_cache
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
enable_disk_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
{limit}
for n in (2, 3, 4):
    jax.jit(lambda x: jnp.sin(x) * n).lower(np.float32(1)).compile()
print(json.dumps([events.count(event) for event in ("cache_hits", "cache_misses")]))
"""
# as a disk that is full after so many bytes; what is printed is less
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); warnings.simplefilter('ignore')"


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What would be told to jax, which has a folder already."""
    told: dict[str, object] = {}

    class Config:
        jax_compilation_cache_dir = None
        jax_compilation_cache_max_size = -1

        @staticmethod
        def update(name: str, value: object) -> None:
            told[name] = value

    monkeypatch.setattr(disk_cache.jax, "config", Config)
    return told


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `$JAXL_CACHE_DIR` names, which is not there."""
    monkeypatch.setenv("JAXL_CACHE_DIR", str(tmp_path / "named" / "programs"))
    return tmp_path / "named" / "programs"


def process(folder: Path, limit: str = "") -> tuple[list[int], list[str]]:
    """Compile in a fresh process: the hits and misses, and the lines on standard error that warn."""
    done = forks.run(CODE.format(limit=limit), env={**os.environ, "XLA_FLAGS": "", "JAXL_CACHE_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [line for line in done.stderr.splitlines() if "Warning" in line]


def test_it_is_for_this_user_alone_even_without_umask(named: Path, configured: dict[str, object]) -> None:
    before = os.umask(0)
    try:
        disk_cache.enable_disk_cache()
    finally:
        os.umask(before)
    assert [part.stat().st_mode & 0o777 for part in (named, named.parent)] == [0o700, 0o700]
    assert configured["jax_compilation_cache_dir"] == str(named.resolve())
    assert configured["jax_compilation_cache_max_size"] == 2**33


@pytest.mark.parametrize(
    ("part", "mode", "problem"),
    [
        ("named/programs", 0o777, "other users can write to it"),
        ("named/programs", 0o1777, "other users can write to it"),
        ("named/programs", 0o720, "other users can write to it"),
        ("named", 0o777, "other users can write to it"),
        ("named", 0o1777, None),
        ("named", 0o755, None),
    ],
)
def test_modes(
    tmp_path: Path,
    named: Path,
    configured: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    mode: int,
    problem: str | None,
) -> None:
    monkeypatch.setattr(disk_cache, "_is_of_one_user", lambda _: False)
    named.mkdir(parents=True)
    (tmp_path / part).chmod(mode)
    if problem is None:
        disk_cache.enable_disk_cache()
        assert configured["jax_compilation_cache_dir"] == str(named.resolve())
    else:
        with pytest.raises(InputError, match=f"JAXL_CACHE_DIR=.*: {tmp_path / part}: {problem}; name a folder"):
            disk_cache.enable_disk_cache()
        assert configured == {}


def test_a_group_of_one_is_nobody_else(
    named: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many systems give each user a group, and let it write what he makes."""
    named.mkdir(parents=True)
    named.chmod(0o770)
    monkeypatch.setattr(disk_cache, "_is_of_one_user", lambda _: True)
    disk_cache.enable_disk_cache()
    assert "jax_compilation_cache_dir" in configured
    named.chmod(0o772)
    with pytest.raises(InputError, match="other users can write"):
        disk_cache.enable_disk_cache()


def test_groups() -> None:
    import grp
    import pwd

    user = pwd.getpwuid(os.getuid()).pw_name
    for group in grp.getgrall():
        expected = group.gr_name == user and set(group.gr_mem) <= {user}
        assert disk_cache._is_of_one_user(group.gr_gid) is expected
    assert disk_cache._is_of_one_user(2**31 - 2) is False


@pytest.mark.parametrize("part", ["named/programs", "named"])
def test_another_users(
    tmp_path: Path, named: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    named.mkdir(parents=True)
    uid = os.getuid()
    if uid == 0:
        os.chown(tmp_path / part, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(InputError, match="it is another user's"):
        disk_cache.enable_disk_cache()
    assert configured == {}


def test_links_are_followed(
    tmp_path: Path, named: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """jax is told the real folder, which is the one that is checked."""
    (tmp_path / "safe").mkdir()
    open_to_all = tmp_path / "open" / "programs"
    open_to_all.mkdir(parents=True)
    open_to_all.parent.chmod(0o777)
    named.parent.mkdir()
    named.symlink_to(tmp_path / "safe")
    disk_cache.enable_disk_cache()
    assert configured["jax_compilation_cache_dir"] == str((tmp_path / "safe").resolve())
    named.unlink()
    named.symlink_to(open_to_all)
    with pytest.raises(InputError, match=f"{open_to_all.parent}: other users can write to it"):
        disk_cache.enable_disk_cache()
    named.unlink()
    named.symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="File exists"):
        disk_cache.enable_disk_cache()


def test_an_unsafe_default_is_one_warning(
    tmp_path: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAXL_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disk_cache.enable_disk_cache()
    assert configured.pop("jax_compilation_cache_dir") == str(tmp_path.resolve() / "jaxl" / "programs")
    configured.clear()
    tmp_path.chmod(0o777)
    with pytest.warns(
        RuntimeWarning, match=r"^compiled programs are not kept \(.*: other users can write to it\); set"
    ):
        disk_cache.enable_disk_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.warns(RuntimeWarning, match=r"^compiled programs are not kept \(/dev/null: File exists\); set"):
        disk_cache.enable_disk_cache()
    assert configured == {}


def test_a_users_own_folder_is_kept(
    named: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache.jax.config, "jax_compilation_cache_dir", "theirs")
    disk_cache.enable_disk_cache()
    assert configured == {}
    assert not named.exists()


def test_a_users_own_bound_is_kept(named: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache.jax.config, "jax_compilation_cache_max_size", 1000)
    disk_cache.enable_disk_cache()
    assert "jax_compilation_cache_max_size" not in configured


def test_without_locks_there_is_no_bound(
    named: Path, configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that is only read."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk_cache, "_lock", refuse)
    disk_cache.enable_disk_cache()
    assert configured["jax_compilation_cache_dir"] == str(named.resolve())
    assert "jax_compilation_cache_max_size" not in configured


def test_what_is_incomplete_is_removed_but_not_while_somebody_writes(tmp_path: Path) -> None:
    for name in ("a-cache", "a-atime", "b-cache", "other"):
        (tmp_path / name).write_bytes(b"1")
    with filelock.FileLock(tmp_path / ".lockfile"):
        disk_cache.remove_incomplete(tmp_path)
        assert (tmp_path / "b-cache").exists()
    disk_cache.remove_incomplete(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} - {".lockfile"} == {"a-cache", "a-atime", "other"}
    disk_cache.clear(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} - {".lockfile"} == {"other"}


def test_processes(tmp_path: Path) -> None:
    """A full disk, then a kill in the middle, then rot: each time the programs are compiled, and nothing is broken."""
    assert process(tmp_path, FULL)[0] == [0, 3]
    assert {file.stat().st_size for file in disk_cache.entries(tmp_path)} == {200}
    assert process(tmp_path) == ([0, 3], [])
    assert process(tmp_path) == ([3, 0], [])

    whole = sorted(disk_cache.entries(tmp_path))
    content = whole[0].read_bytes()
    whole[0].with_name(whole[0].name.replace("-cache", "-atime")).unlink()
    whole[0].write_bytes(content[: len(content) // 2])
    assert process(tmp_path) == ([2, 1], [])
    assert process(tmp_path) == ([3, 0], [])

    for file in whole:
        file.write_bytes(content[: len(content) // 2])
    counts, said = process(tmp_path)
    assert counts[0] == 0
    assert len(said) == 1
    assert "Error reading persistent compilation cache entry" in said[0]


def test_the_bound_holds(tmp_path: Path) -> None:
    process(tmp_path)
    most = max(file.stat().st_size for file in disk_cache.entries(tmp_path))
    disk_cache.clear(tmp_path)
    bound = 2 * most + most // 2
    process(tmp_path, f'jax.config.update("jax_compilation_cache_max_size", {bound})')
    assert len(list(disk_cache.entries(tmp_path))) == 2
