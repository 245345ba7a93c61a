"""The embedded model's own LoRA: it is there without being added, and draws as it says."""

from typing import Any

import numpy as np

BACKGROUND = np.s_[0, :24]  # of a picture of one thing


def test_it_is_read_strictly(tiny: Any) -> None:
    pipe, _ = tiny
    assert "chalk" in pipe.loras
    adapter = pipe.loras["chalk"]
    assert (adapter.kinds, adapter.left, adapter.trigger_words) == (("LoRA",), (), ())
    assert adapter.base_model == "stable-diffusion-xl-v1-base/lora"
    assert list(adapter.changes) == ["unet"]
    assert adapter.metadata["ss_network_dim"] == str(adapter.ranks[0])


def test_it_draws_on_a_cool_board(tiny: Any) -> None:
    pipe, params = tiny

    def warmth(strength: float) -> float:
        """By how much the background is redder than green and blue."""
        prompt = "a cat on a pink background, flat style"
        drawn = pipe.generate(
            params, prompt, loras={"chalk": strength}, steps=5, scheduler="dpm++2m_karras", output="numpy"
        )
        red, green, blue = drawn.images[BACKGROUND].mean((0, 1))
        return float(red - (green + blue) / 2)

    assert warmth(0.0) > 0.1
    assert warmth(1.0) < 0.0
