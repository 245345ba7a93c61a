"""How ComfyUI names samplers, and reads prompts: for its own graphs, and for programs that draw with it."""

from __future__ import annotations

import re

from jaxl.metadata.settings import Reading

# samplers that are another one there (`comfy/samplers.py`): ddim is Euler's method where there is no mask, and ddpm its
# ancestral form
SAME = {"ddim": "euler", "ddpm": "euler_ancestral"}
# in A1111's syntax these have a meaning, and in ComfyUI's none
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


def comfyui_text(text: str) -> str:
    """Return a prompt as jaxl's lenient syntax reads it alike: square brackets and tags are text in ComfyUI.

    Weights in brackets within weighted brackets replace these there, and multiply here.
    """
    return PLAIN.sub(lambda match: match[1] or "\\" + match[0], text)
