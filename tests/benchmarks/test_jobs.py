"""benchmarks/jobs.py: a real server with jobs, killed and started again, with an engine that needs no model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "jobs.py"


def test_each_job_is_answered_once() -> None:
    command = [sys.executable, str(SCRIPT), "--fake", "--jobs", "10", "--kills", "1"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (told["kills"], told["answers"], told["pictures"], told["different pictures"]) == (1, 10, 10, 10)
    assert told["the same"] == told["drawn again alone"] == 10
