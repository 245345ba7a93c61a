"""Every form of an operation that `Kernels` names has a test beside XLA's, and a platform that has it by default."""

from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.kernels import XLA, Kernels
from jaxl.nn.layers import layer_norm

TESTS = {
    ("attention", "cudnn"): "test_gpu.py",
    ("attention", "tpu"): "test_tpu_attention.py",
    ("group_norm", "triton"): "test_group_norm.py",
    ("group_norm", "tpu"): "test_tpu_conv.py",
    ("conv", "winograd"): "test_winograd.py",
    ("conv", "tpu"): "test_tpu_conv.py",
    ("layer_norm", "one_pass"): "test_forms.py",
    ("product", "tpu"): "test_tpu_product.py",
    ("sums", "wide"): "test_wide_sums.py",
    ("evaluations", "in_turn"): "../run/test_evaluations.py",
}
OFF = {("group_norm", "triton")}  # it has yet to run on a GPU
PLATFORMS = (("cpu", "bfloat16"), ("gpu", "9.0"), ("tpu", "TPU v5 lite"))


def test_every_form_has_a_test() -> None:
    hints = get_type_hints(Kernels)
    named = {(name, form) for name, hint in hints.items() for form in get_args(hint) if isinstance(form, str)}
    forms = named - set(vars(XLA).items())
    assert forms == set(TESTS), "name the file of tests/kernels that compares the new form with XLA's"
    for file in TESTS.values():
        assert (Path(__file__).parent / file).exists()


def test_every_form_is_on_somewhere() -> None:
    on = {item for platform, kind in PLATFORMS for item in vars(Kernels.of(platform, kind)).items()}
    assert {form for form in TESTS if form not in on} == OFF
    for platform, _ in PLATFORMS:
        plain = vars(Kernels.plain(platform)).items()
        assert not set(TESTS) & set(plain), "--kernels xla turns all of them off"


def test_layer_norm_in_one_pass() -> None:
    x = 3 + jax.random.normal(jax.random.key(0), (2, 7, 320))
    p = {"weight": jnp.linspace(0.5, 2, 320), "bias": jnp.linspace(-1, 1, 320)}
    once = layer_norm(p, x, kernels=Kernels(layer_norm="one_pass"))
    np.testing.assert_allclose(once, layer_norm(p, x), rtol=1e-5, atol=1e-5)
