"""Preprocessors: they make the pictures that ControlNets take, such as edges, of other pictures. None needs jax."""
