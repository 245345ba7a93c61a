"""LoadGen's tests are where it is installed: see the extra `bench`."""

from importlib.util import find_spec

import pytest

collect_ignore = [] if find_spec("mlperf_loadgen") else ["test_loadgen.py"]


def pytest_report_header(config: pytest.Config) -> str | None:
    return "NOT RUN: tests/bench/test_loadgen.py, as mlcommons-loadgen is not installed" if collect_ignore else None
