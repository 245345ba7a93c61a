"""How XLA compiles what tests run."""


def xla_flags(devices: int) -> str:
    """For so many CPU devices; what fuses loops is the older part of XLA, which compiles in two thirds of the time."""
    return f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
