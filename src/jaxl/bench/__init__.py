"""Measuring: what `jaxl bench` runs, and how it tells of it."""
