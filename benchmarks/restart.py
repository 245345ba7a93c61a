"""A server that is killed while it draws, and started again: how long until it is ready, from the cache of programs.

    python benchmarks/restart.py [OPTIONS OF jaxl serve ...]

The cache is one of its own, empty at first: so the first start compiles everything.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress

import httpx

ASKED = {"prompt": "a red apple", "n": 4, "num_inference_steps": 500}


def start(options: list[str]) -> tuple[subprocess.Popen[str], str, float]:
    """A server, its address, and the seconds until it was ready."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "jaxl", "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    while httpx.get(f"{url}/health/ready").status_code != 200:
        if server.poll() is not None:
            sys.exit("jaxl serve ended; run it by itself to see why")
        time.sleep(0.05)
    return server, url, time.perf_counter() - began


def main() -> None:
    options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAXL_CACHE_DIR"] = folder
        server, url, cold = start(options)

        def ask() -> None:
            with suppress(httpx.HTTPError):
                httpx.post(f"{url}/v1/images/generations", json=ASKED, timeout=None)

        for _ in range(3):
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(1)
        server.kill()
        server.wait()
        server, url, warm = start(options)
        body = {**ASKED, "num_inference_steps": 5}
        status = httpx.post(f"{url}/v1/images/generations", json=body, timeout=None).status_code
        server.terminate()
        code = server.wait()
    print(f"ready after {cold:.1f} s with an empty cache, and after {warm:.1f} s when it had been killed")
    print(f"it then answers {status}, and stops with exit status {code}")


if __name__ == "__main__":
    main()
