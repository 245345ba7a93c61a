"""How XLA compiles what tests run."""

# the older way to fuse loops, and all code in one piece: programs compile in half the time
CHEAP = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
AS_USERS_HAVE_THEM = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}


def xla_flags(devices: int | None = None) -> str:
    """Programs that compile fast, and so many CPU devices, or as many as there are without a flag."""
    flags = CHEAP if devices is None else {"xla_force_host_platform_device_count": devices, **CHEAP}
    return " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items())
