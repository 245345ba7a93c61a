"""What Civitai's own generator writes: A1111's text with what it was made of in JSON, or a graph of ComfyUI.

https://github.com/civitai/civitai, `src/utils/metadata/automatic.metadata.ts` reads the same.
"""

from __future__ import annotations

from jaxl.metadata.a1111 import from_pairs
from jaxl.metadata.container import Texts, read_json
from jaxl.metadata.settings import Reading, Settings, as_number

RESOURCES, METADATA = "Civitai resources", "Civitai metadata"
# kinds of resources by their `type`, in lower case
KINDS = {"checkpoint": "model", "lora": "lora", "locon": "lora", "dora": "lora", "lycoris": "lora"}
KINDS |= {"textualinversion": "embedding", "embed": "embedding", "vae": "vae"}
MOST_RESOURCES = 100


def read(texts: Texts) -> Settings | None:
    """Read the text of Civitai's generator. Which noise it drew is not known, and set aside."""
    pairs = texts.pairs()
    if pairs is None or not {RESOURCES, METADATA} & pairs.keys():
        return None
    reading = Reading("Civitai")
    if pairs.get("Sampler") == "Undefined":
        del pairs["Sampler"]
    resources = read_json(pairs.pop(RESOURCES, ""))
    # what is not in the text, such as how many were drawn, makes no picture
    pairs.pop(METADATA, None)
    for each in (resources if isinstance(resources, list) else [])[:MOST_RESOURCES]:
        if isinstance(each, dict):
            _resource(reading, each)
    return from_pairs(reading, pairs)


def _resource(reading: Reading, told: dict[str, object]) -> None:
    kind = KINDS.get(str(told.get("type")).lower())
    version = told.get("modelVersionId", told.get("air"))
    name = told.get("modelName") or (None if version is None else f"{version}")
    if kind is None or not isinstance(name, str):
        reading.miss("a resource of Civitai", told.get("modelName") or version)
        return
    weight = as_number(told.get("weight", 1), float)
    number = "" if version is None else f"Civitai's version {version}"
    if kind == "lora":
        reading.lora(name, 1.0 if weight is None else weight)
        number = ", ".join(part for part in (f"{weight:g}" if weight is not None else "", number) if part)
    reading.network(kind, name, detail=number)
