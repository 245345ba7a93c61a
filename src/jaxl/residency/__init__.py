"""Many models behind one engine: on the devices, in host memory or on disk, as budgets and waiting requests have it."""
