"""How XLA compiles what tests run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# the older way to fuse loops, and all code in one piece: programs compile in half the time
CHEAP = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
AS_USERS_HAVE_THEM = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}


def xla_flags(devices: int | None = None) -> str:
    """Programs that compile fast, and so many CPU devices, or as many as there are without a flag."""
    flags = CHEAP if devices is None else {"xla_force_host_platform_device_count": devices, **CHEAP}
    return " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items())


@contextmanager
def as_users_compile() -> Iterator[None]:
    """Inside, programs are compiled as users have them: for tests whose numbers depend on it."""
    import jax
    import pytest
    from jax._src import compiler

    options = compiler.get_compile_options

    def as_users_have_them(*args: Any, **kwargs: Any) -> Any:
        made = options(*args, **kwargs)
        made.env_option_overrides = [*made.env_option_overrides, *AS_USERS_HAVE_THEM.items()]
        return made

    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "get_compile_options", as_users_have_them)
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
        jax.clear_caches()
