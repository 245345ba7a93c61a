"""ComfyUI's graphs: nodes by their ids, each with a class and inputs that are values or links to other nodes.

The form for its API is what runs, and what `prompt` in a file has. The editor's form, `workflow`, has the values of a
node by place; it is turned into the other where a file lacks that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxl.errors import InputError
from jaxl.metadata.settings import shown

# nodes that are looked at in all; a graph may lead to one of them by very many ways
MOST_VISITS = 5_000
# nodes in a row
MOST_LINKS = 300

# values by place in the editor's form; None is what it adds, such as what becomes of a seed after a run
WIDGETS: Mapping[str, Sequence[str | None]] = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", None, "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", "return_with_leftover_noise"),
    ),
    "SamplerCustom": ("add_noise", "noise_seed", None, "cfg"),
    "RandomNoise": ("noise_seed", None),
    "CFGGuider": ("cfg",),
    "PerpNegGuider": ("cfg", "neg_scale"),
    "PerpNeg": ("neg_scale",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "ExponentialScheduler": ("steps", "sigma_max", "sigma_min"),
    "PolyexponentialScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "SDTurboScheduler": ("steps", "denoise"),
    "AlignYourStepsScheduler": ("model_type", "steps", "denoise"),
    "BetaSamplingScheduler": ("steps", "alpha", "beta"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": (
        *("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    ),
    "CLIPTextEncodeSDXLRefiner": ("ascore", "width", "height", "text"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "LatentUpscale": ("upscale_method", "width", "height", "crop"),
    "LatentUpscaleBy": ("upscale_method", "scale_by"),
    "LoadImage": ("image",),
    "VAEEncodeForInpaint": ("grow_mask_by",),
    "ControlNetLoader": ("control_net_name",),
    "ControlNetApply": ("strength",),
    "ControlNetApplyAdvanced": ("strength", "start_percent", "end_percent"),
    "ModelSamplingDiscrete": ("sampling", "zsnr"),
    "RescaleCFG": ("multiplier",),
    "FreeU_V2": ("b1", "b2", "s1", "s2"),
    "PerturbedAttentionGuidance": ("scale",),
    "SaveImage": ("filename_prefix",),
    "PrimitiveNode": ("value",),
}
# nodes of the editor that say nothing, and one that only leads on
NOTES, REROUTE = ("Note", "MarkdownNote"), "Reroute"
# how a node runs there: not at all, or as if it were not there
NEVER, BYPASSED = 2, 4

# nodes that hold a value, and the input that it is
VALUES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline"), ("value",)),
    **dict.fromkeys(("PrimitiveNode", "INTConstant", "FloatConstant", "StringConstantMultiline"), ("value", "string")),
    **dict.fromkeys(("StringConstant", "String Literal", "ShowText|pysssss"), ("string", "text")),
    **dict.fromkeys(("Text Multiline", "CR Text", "CR Prompt Text", "Text _O", "ttN text"), ("text", "prompt")),
    **dict.fromkeys(("Seed (rgthree)", "easy seed", "CR Seed", "Seed Generator"), ("seed",)),
}
CONCATENATE = "StringConcatenate"

Link = tuple[str, int]


@dataclass(frozen=True)
class Node:
    """A node: its id, its class, and its inputs by name."""

    id: str
    kind: str
    inputs: Mapping[str, Any]

    def __str__(self) -> str:
        return f"node {shown(self.id)[:30]} ({shown(self.kind)[:60]})"

    def link(self, name: str) -> Link | None:
        """Return where an input comes from: a node's id and which of its outputs; None if it is a value or missing."""
        return as_link(self.inputs.get(name))

    def refuse(self, why: str) -> NoReturn:
        """Raise InputError for the whole graph."""
        raise InputError("file", "a graph of ComfyUI", f"{self} {why}")


class Graph:
    """Nodes by their ids. Following links raises InputError, naming a node, where it leads nowhere or in a circle."""

    def __init__(self, nodes: Mapping[str, Any]):
        self.nodes = {}
        for id, told in nodes.items():
            inputs = told.get("inputs") if isinstance(told, dict) else None
            if isinstance(inputs, dict) and isinstance(told.get("class_type"), str):
                self.nodes[id] = Node(id, told["class_type"], inputs)
        self.visits = 0

    def __bool__(self) -> bool:
        return bool(self.nodes)

    def at(self, link: Link, asking: Node) -> Node:
        """Return the node that a link of another one leads to."""
        self.visits += 1
        if self.visits > MOST_VISITS:
            asking.refuse(f"is one of too many: more than {MOST_VISITS} links were followed; they may go in a circle")
        if link[0] not in self.nodes:
            asking.refuse(f"has an input from node {shown(link[0])[:30]}, which is not there")
        return self.nodes[link[0]]

    def before(self, node: Node, *names: str) -> Node:
        """Return the node that the first of these inputs that is a link comes from."""
        link = next((found for name in names if (found := node.link(name))), None)
        if link is None:
            node.refuse(f"has no link for {' or '.join(names)}")
        return self.at(link, node)

    def chain(self, node: Node, name: str) -> Iterator[Node]:
        """Yield the nodes that lead to an input, each by its own input of the same name."""
        for _ in range(MOST_LINKS):
            link = node.link(name)
            if link is None:
                return
            node = self.at(link, node)
            yield node
        node.refuse("is one of too many in a row; they may go in a circle")

    def value(self, node: Node, name: str, default: Any = None) -> Any:
        """Return the value of an input, also where another node holds it."""
        return self._resolved(node, node.inputs.get(name, default), MOST_LINKS)

    def _resolved(self, node: Node, value: Any, most: int) -> Any:
        link = as_link(value)
        if link is None:
            return value
        if not most:
            node.refuse("is one of too many in a row; they may go in a circle")
        source = self.at(link, node)
        if source.kind == CONCATENATE:
            first, second = (
                self._resolved(source, source.inputs.get(part, ""), most // 2) for part in ("string_a", "string_b")
            )
            return f"{source.inputs.get('delimiter', '')}".join((str(first), str(second)))[:100_000]
        for name in VALUES.get(source.kind, ()):
            if name in source.inputs:
                return self._resolved(source, source.inputs[name], most - 1)
        source.refuse("gives a value in a way that is not understood")

    def sinks(self) -> list[Node]:
        """Return the nodes that take pictures and give them to no other, those that save them first."""
        used = {link[0] for node in self.nodes.values() for value in node.inputs.values() if (link := as_link(value))}
        ends = [
            node for node in self.nodes.values() if node.id not in used and (node.link("images") or node.link("image"))
        ]
        return sorted(ends, key=lambda node: "save" not in node.kind.lower())


def as_link(value: Any) -> Link | None:
    """Return the node and the output that a value of a graph leads to, if it is a link."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
        return value[0], value[1]
    return None


def from_workflow(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the editor's form of a graph in the API's form; nodes that are never run or only lead on are left out."""
    nodes = {str(each.get("id")): each for each in _objects(told.get("nodes")) if each.get("type") not in NOTES}
    links = {}
    for each in told["links"] if isinstance(told.get("links"), list) else ():
        if isinstance(each, list) and len(each) >= 4 and isinstance(each[2], int):
            links[_key(each[0])] = str(each[1]), each[2]
    made: dict[str, Any] = {}
    for id, node in nodes.items():
        if node.get("mode") in (NEVER, BYPASSED) or node.get("type") == REROUTE:
            continue
        kind = str(node.get("type"))
        inputs = {
            str(each.get("name")): [*source]
            for each in _objects(node.get("inputs"))
            if (source := _source(nodes, links, each.get("link")))
        }
        values = node.get("widgets_values")
        if isinstance(values, dict):
            inputs = {**values, **inputs}
        elif kind in WIDGETS:
            named = zip(WIDGETS[kind], values if isinstance(values, list) else (), strict=False)
            inputs = {**{name: value for name, value in named if name}, **inputs}
        made[id] = {"class_type": kind, "inputs": inputs}
    return made


def _source(nodes: Mapping[str, Any], links: Mapping[str, Link], link: Any) -> Link | None:
    """Return where a link comes from, through nodes that lead on: by their first input of the same kind."""
    for _ in range(MOST_LINKS):
        source = links.get(_key(link))
        if source is None:
            return None
        node = nodes.get(source[0], {})
        inputs, outputs = _objects(node.get("inputs")), _objects(node.get("outputs"))
        if node.get("type") == REROUTE:
            link = inputs[0].get("link") if inputs else None
        elif node.get("mode") == BYPASSED:
            kind = outputs[source[1]].get("type") if 0 <= source[1] < len(outputs) else None
            link = next((each.get("link") for each in inputs if each.get("type") == kind), None)
        else:
            return source
    return None


def _key(value: Any) -> str:
    return str(value) if isinstance(value, int | str) else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
