"""Checkpoints: found, read strictly, rewritten for the devices, and saved."""
