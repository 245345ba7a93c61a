"""Python processes that have imported jaxl as they begin: each is forked from one that did, which takes no second."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

# it ends when its standard input does
SERVER = """
import io, json, os, sys, traceback, warnings
import jaxl.loading, jaxl.weights.contents, jaxl.weights.ip_adapter, jaxl.weights.source

for line in sys.stdin:
    script, given, env, files = json.loads(line)
    with warnings.catch_warnings():  # jax's, which has not started yet
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(env)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdin, status = io.StringIO(given), 0
        try:
            exec(script, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    command, paths = [sys.executable, "-c", SERVER], os.pathsep.join(filter(None, sys.path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(command, **pipes, text=True, env={**os.environ, "PYTHONPATH": paths})
    atexit.register(server.communicate)
    return server


def run(script: str, given: str = "", env: Mapping[str, str] = os.environ) -> CompletedProcess[str]:
    """Run a script with this standard input and environment, of which jax has read its own variables already."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        print(json.dumps([script, given, dict(env), [str(file) for file in files]]), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return CompletedProcess([], status, *(file.read_text() for file in files))
