"""The networks of SDXL as pure functions over explicit parameters.

Every file exports `x_shapes(cfg, dtype)`, a tree of `jax.ShapeDtypeStruct`, and `x(params, cfg, ...)`. A parameter's
path in the tree, joined by dots, is its key in a diffusers checkpoint; weights are laid out for NHWC
(`jaxl.weights.layout`).
"""
