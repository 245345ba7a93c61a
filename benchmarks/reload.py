"""A server that is told again and again to load its models anew (SIGHUP): whether its memory grows, and its peaks.

    python benchmarks/reload.py [--times 15] [--models 1] [OPTIONS OF jaxl serve ...]

With several models they are copies of `tiny` with other weights, which all stay on the devices. A picture is drawn of
each after each reload. Peaks are Linux's own count, set back before each reload.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from models import write_copy

ASKED = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--models", type=int, default=1)
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [write_copy(Path(folder), number) for number in range(given.models)] if given.models > 1 else ["tiny"]
        for name in names if given.models > 1 else ():
            options += ["--model", str(Path(folder) / name), "--pin", name]
        command = [sys.executable, "-m", "jaxl", "serve", "--port", "0", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stderr is not None
            try:
                url = server.stdout.readline().strip()
                said = iter(server.stderr)
                wait_for("ready", said)
                drawn = pictures(url, names)
                found = [memory(server.pid)]
                for _ in range(given.times):
                    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
                    server.send_signal(signal.SIGHUP)
                    wait_for("anew", said)
                    assert pictures(url, names) == drawn
                    found.append(memory(server.pid))
                    print(found[-1], file=sys.stderr, flush=True)
            finally:
                server.terminate()
    print(json.dumps({"models": given.models, "mib": [now for now, _ in found], "peaks": [peak for _, peak in found]}))


def wait_for(word: str, said: Iterator[str]) -> None:
    """Read the server's log up to a line with a word. Ends the program if the server ends before, or says no."""
    for line in said:
        if word in line and "not loaded" not in line:
            return
        if word in line or not line.startswith("{"):
            print(line, end="", file=sys.stderr)
    sys.exit("jaxl serve ended")


def pictures(url: str, names: list[str]) -> list[str]:
    bodies = [{**ASKED, "model": name} for name in names]
    answers = [httpx.post(f"{url}/v1/images/generations", json=body, timeout=None) for body in bodies]
    return [answer.raise_for_status().json()["data"][0]["b64_json"] for answer in answers]


def memory(pid: int) -> tuple[int, int]:
    """Return the MiB that a process has in memory, and had at most since that was set back."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, peak = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


if __name__ == "__main__":
    main()
