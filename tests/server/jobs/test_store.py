"""Jobs on the disk: whole or not at all, for one process, and for as long as they are to stay."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxl.errors import InputError, OutputError
from jaxl.server.jobs.store import JobStore, JobTakenError, NoRoomError, new_job

BODY = b'{"prompt": "a"}'


def job(id: str, owner: str = "ada", priority: int = 0, body: bytes = BODY) -> Any:
    return new_job(id, owner, "/v1/images/generations", "application/json", body, 7, priority, None)


def files(store: JobStore) -> list[str]:
    return sorted(file.suffix for file in store.folder.glob("files/*"))


def test_from_one_process_to_the_next(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    one, two = (store.add(job(id), BODY) for id in ("one", "two"))
    assert store.begin(one) == BODY
    store.end(one, 200, b"answer")
    store.close()
    store = JobStore(tmp_path, 1)
    found = store.find("one", "ada")
    assert found is not None
    assert (found.status, found.starts, store.answer(found)) == (200, 1, b"answer")
    assert store.next([], []) == two
    store.end(found, 500, b"another")
    assert store.answer(found) == b"answer", "an answer stays"
    assert files(store) == [".answer", ".asked"]
    store.close()


# ends at each line of the store's in turn, in processes of its own, until one comes to the end
KILLED = """
import os, sys
from pathlib import Path
from jaxl.server.jobs.store import JobStore, new_job

def work(left, folder):
    store = JobStore(folder, 1)
    def count(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename.endswith(("store.py", "files.py")):
            left -= event == "line"
            if not left:
                os._exit(9)
        return count
    sys.settrace(count)
    job = store.add(new_job("one", "", "/p", "t", b"body", 7, 0, None), b"body")
    store.begin(job)
    store.end(job, 200, b"answer")
    os._exit(0)

for lines in range(1, 1000, 8):
    child = os.fork() or work(lines, Path(sys.argv[1]) / str(lines))
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_what_a_process_that_ends_leaves(tmp_path: Path) -> None:
    """A job is there whole, or there is nothing of it."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True)
    seen = set()
    for folder in tmp_path.iterdir():
        store = JobStore(folder, 1)
        found = store.find("one", "")
        kept = files(store)
        if found is None:
            assert kept == []
        elif found.ended is None:
            assert (store.begin(found), kept) == (b"body", [".asked"])
        else:
            assert (store.answer(found), kept) == (b"answer", [".answer"])
        seen.add(found and found.ended is not None)
        store.close()
    assert seen == {None, False, True}


def test_order(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    for id, priority in (("a", 0), ("b", 1), ("c", -1), ("d", 1)):
        store.add(job(id, "bob" if id == "d" else "ada", priority), BODY)
    found = []
    while (first := store.next(found, [])) is not None:
        found.append(first.id)
    assert found == ["b", "d", "a", "c"]
    assert [store.ahead(each) for id in "bdac" if (each := store.find(id, "bob" if id == "d" else "ada"))] == [
        0,
        1,
        2,
        3,
    ]
    only = store.next([], ["ada"])
    assert only is not None
    assert only.id == "d"
    assert {each.id for each in store.of("ada", 10)} == {"a", "b", "c"}
    store.close()


def test_ids(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    first = store.add(job("../../one"), BODY)
    assert store.add(job("../../one"), BODY) == first
    for other, body in ((job("../../one", "bob"), BODY), (job("../../one", body=b"b"), b"b")):
        with pytest.raises(JobTakenError, match="another job with the id"):
            store.add(other, body)
    assert store.find("../../one", "bob") is None
    assert files(store) == [".asked"]
    store.close()


def test_room_and_time(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 100 / 2**30)
    first, second = (store.add(job(id), BODY) for id in ("one", "two"))
    for each in (first, second):
        store.end(each, 200, b"x" * 45)
    with pytest.raises(NoRoomError, match="fetch answers"):
        store.add(job("three"), BODY)
    store.answer(first)
    store.add(job("three"), BODY)
    assert store.find("one", "ada") is None
    assert store.counts() == (1, 1, 45 + len(BODY))
    store.forget_old(0)
    assert store.counts() == (1, 0, len(BODY))
    store.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    with pytest.raises(InputError, match="another server has this folder"):
        JobStore(tmp_path, 1)
    store.close()
    JobStore(tmp_path, 1).close()


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "jobs.sqlite").write_bytes(os.urandom(5000))
    for name, message in (("file", "File exists"), ("file/in", "Not a directory"), ("other", "not a database")):
        with pytest.raises(InputError, match=f"{message}; give a folder"):
            JobStore(tmp_path / name, 1)


def test_clients_are_not_told_where_files_are(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    (tmp_path / "files").touch()  # where there should be a folder
    with pytest.raises(OutputError) as raised:
        store.add(job("one"), BODY)
    assert str(raised.value) == "the disk of the jobs did not do it (File exists)"
    assert store.find("one", "ada") is None
    store.close()


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 1)
    one = store.add(job("one"), BODY)
    for file in (tmp_path / "files").iterdir():
        file.unlink()
    assert store.begin(one) is None
    with pytest.raises(OutputError, match="cannot be read"):
        store.answer(replace(one, ended=0.0))
    store.close()
