"""How ComfyUI names samplers, and reads prompts: for its own graphs, and for programs that draw with it."""

from __future__ import annotations

import re

from jaxl.metadata.settings import Reading
from jaxl.weights.adapters.strength import Strength

# samplers that are another one there (`comfy/samplers.py`): ddim is Euler's method where there is no mask, and ddpm its
# ancestral form
SAME = {"ddim": "euler", "ddpm": "euler_ancestral"}
# in A1111's syntax these have a meaning, and in ComfyUI's none
TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
ESCAPED = re.compile(r"\\([\[\]<])")
PLAIN = re.compile(r"(\\.)|([\[\]])|(<)(?=(?:lora|lyco):)", re.DOTALL)


def comfyui_sampler(reading: Reading, sampler: object, schedule: object) -> None:
    """Set the scheduler of ComfyUI's names."""
    reading.sampler(SAME.get(sampler, sampler) if isinstance(sampler, str) else sampler, schedule)


def comfyui_prompt(reading: Reading, name: str, *texts: object) -> None:
    """Set a prompt of texts that are encoded one by one; what is no text is missing."""
    if all(isinstance(each, str) for each in texts):
        reading.text(name, " BREAK ".join(comfyui_text(str(each)) for each in texts))
        reading.arguments["prompt_syntax"] = "lenient"
    else:
        reading.miss(name, [*texts])


def comfyui_syntax(reading: Reading) -> None:
    """Set the syntax of prompts that are in jaxl's lenient one: ComfyUI's own, if it can say all that is in them."""
    texts = {name: reading.arguments[name] for name in TEXTS if name in reading.arguments}
    # strengths of their own for texts are written as tags
    tagged = any(isinstance(each, Strength) for each in reading.arguments.get("loras", {}).values())
    if tagged:
        reading.arguments["prompt_syntax"] = "lenient"
    if reading.arguments.setdefault("prompt_syntax", "comfyui") == "comfyui":
        reading.arguments |= {name: ESCAPED.sub(r"\1", text) for name, text in texts.items()}


def comfyui_text(text: str) -> str:
    """Return a prompt as jaxl's lenient syntax reads it alike: square brackets and tags are text in ComfyUI.

    Weights in brackets within weighted brackets replace these there, and multiply here.
    """
    return PLAIN.sub(lambda match: match[1] or "\\" + match[0], text)
