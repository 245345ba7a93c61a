"""What ComfyUI writes: the graph that was run, followed from the node that saves pictures back to all that made them.

https://github.com/comfyanonymous/ComfyUI, `nodes.py` and `comfy_extras/`. The settings are those of the first
sampler; others after it, as for a second pass or a refiner, are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxl.errors import InputError
from jaxl.metadata.a1111 import from_pairs
from jaxl.metadata.comfyui_graph import Graph, Node, from_workflow
from jaxl.metadata.comfyui_names import comfyui_sampler, comfyui_syntax
from jaxl.metadata.comfyui_parts import LACKED, PERP_NEG_GUIDER, UNKNOWN, read_levels, read_model, read_text
from jaxl.metadata.container import COMMENT, Texts
from jaxl.metadata.settings import Reading, Settings, as_number, shown

PROGRAM = "ComfyUI"
# pictures that are saved at once, of which each may come from another sampler
MOST_SINKS, MOST_SAMPLERS = 16, 16
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
DECODERS = ("VAEDecode", "VAEDecodeTiled")
# on the way from decoded pictures to saved ones
AFTERWARDS = ("ImageUpscaleWithModel", "ImageScale", "ImageScaleBy", "ImageScaleToTotalPixels", "ImageSharpen")
AFTERWARDS += ("ImageBlur", "ImageCrop", "ImageInvert", "ImageBlend", "ImageCompositeMasked", "ImageQuantize")
AFTERWARDS += ("UltimateSDUpscale",)
EMPTY = ("EmptyLatentImage", "EmptySD3LatentImage")
ENCODERS = ("VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "InpaintModelConditioning")
ENLARGERS = ("LatentUpscale", "LatentUpscaleBy")
# samplers with values of their own, by the names of samplers without
SAMPLER_NODES = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
    "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerLMS": "lms",
}
SECOND_PASS = "jaxl draws the first; draw on from its picture, enlarged, as `image` with `strength`"


@dataclass
class Pass:
    """A sampler of a graph with its values.

    asking: the node with the links to `model` and to the texts, `positive` and `negative`: the sampler or its guider.
    levels: as `read_levels` gives them. first, last: steps between which it runs, None for those of all.
    """

    node: Node
    asking: Node
    levels: dict[str, Any]
    seed: Any
    cfg: Any
    sampler: Any
    eta: Any = None
    positive: str = "positive"
    negative: str | None = "negative"
    first: int | None = None
    last: int | None = None
    adds_noise: bool = True


def read(texts: Texts) -> Settings | None:
    """Read the graph of a file, or A1111's text beside one that is not understood.

    Raises InputError for such a graph alone, naming the node.
    """
    graph = next((graph for make in GRAPHS if (graph := Graph(make(texts)))), None)
    if graph is None:
        return None
    try:
        return _of_graph(graph, texts.size)
    except InputError as error:
        pairs = texts.pairs()
        if pairs is None:
            raise
        reading = Reading(PROGRAM)
        reading.miss("its graph was not read", error.remedy)
        return from_pairs(reading, pairs)


def _of_graph(graph: Graph, size: tuple[int, int]) -> Settings:
    """Return the settings of the picture of this size, or of the first that the graph saves."""
    found: list[tuple[Node, Settings]] = []
    refused: InputError | None = None
    for sink in graph.sinks()[:MOST_SINKS]:
        graph.visits = 0
        try:
            found.append((sink, _settings(graph, sink)))
        except InputError as error:
            refused = refused or error
    if not found:
        raise refused or InputError(
            "file", "a graph of ComfyUI", "no node in its graph saves a picture; give another file"
        )
    sink, settings = next((each for each in found if _size(each[1]) == size), found[0])
    others = [str(other) for other, own in found if own.arguments != settings.arguments]
    if not others:
        return settings
    note = f"the graph saves other pictures too ({', '.join(others)[:200]}); these are the settings of {sink}"
    return replace(settings, missing=(*settings.missing, note))


def _size(settings: Settings) -> tuple[Any, Any]:
    return settings.arguments.get("width"), settings.arguments.get("height")


def _settings(graph: Graph, sink: Node) -> Settings:
    """Return the settings of the picture that a node saves."""
    reading = Reading(PROGRAM)
    decoder = _decoder(graph, sink, reading)
    loader = graph.before(decoder, "vae") if decoder.link("vae") else decoder
    if loader.kind == "VAELoader":
        reading.network("vae", graph.value(loader, "vae_name"))
    passes, start = _passes(graph, decoder, reading)
    first = passes[-1]
    reading.noise = "torch"
    reading.seed(first.seed)
    reading.number("guidance_scale", first.cfg, least=0, most=1000)
    comfyui_sampler(reading, first.sampler, first.levels.get("scheduler"))
    reading.number("eta", first.eta, least=0, most=1)
    if not first.adds_noise:
        reading.miss("no noise was added", remedy="jaxl begins with noise")
    if "timesteps" in first.levels:
        reading.arguments["timesteps"] = first.levels["timesteps"]
    else:
        reading.steps(first.levels.get("steps"))
    if first.levels.get("odd"):
        reading.miss("noise levels", first.levels["odd"], LACKED)
    share = first.levels.get("denoise", 1)
    steps = as_number(first.levels.get("steps"), int)
    if first.first and steps:
        share = max(steps - first.first, 0) / steps
        reading.arguments["strength_steps"] = "part"
    if as_number(share, float) != 1 or start == "picture":
        reading.strength(share)
    _texts(graph, first, reading)
    read_model(graph, first.asking, reading)
    comfyui_syntax(reading)
    for later, earlier in zip(passes[-2::-1], passes[:0:-1], strict=True):
        _later(graph, later, earlier, reading)
    if first.last is not None and len(passes) == 1:
        reading.miss("steps", f"only {first.first or 0} to {first.last}", "`denoising_end` ends a run early")
    return reading.done()


def _decoder(graph: Graph, sink: Node, reading: Reading) -> Node:
    """Return the node that decoded a picture; what was done to it afterwards is missing."""
    node = graph.before(sink, "images", "image")
    for _ in range(100):
        if node.kind in DECODERS:
            return node
        if node.kind not in AFTERWARDS:
            node.refuse(UNKNOWN)
        reading.miss(str(node), remedy="it changed the picture after it was drawn")
        node = graph.before(node, "image", "images", "destination", "image1")
    node.refuse("is one of too many in a row; they may go in a circle")


def _passes(graph: Graph, decoder: Node, reading: Reading) -> tuple[list[Pass], str]:
    """Return the samplers that a picture went through, the last one first, and what the first starts from."""
    passes: list[Pass] = []
    node, name = decoder, "samples"
    while len(passes) < MOST_SAMPLERS:
        node = graph.before(node, name)
        if node.kind in SAMPLERS:
            passes.append(_pass(graph, node))
            name = "latent_image"
        elif not passes:
            node.refuse(UNKNOWN)
        elif node.kind in EMPTY:
            reading.size(graph.value(node, "width"), graph.value(node, "height"))
            count = graph.value(node, "batch_size", 1)
            if count != 1:
                reading.miss("one of a batch", count, "the file does not say which; only the first has this noise")
            return passes, "noise"
        elif node.kind in ENLARGERS:
            name = "samples"
        elif node.kind in ("LatentFromBatch", "RepeatLatentBatch"):
            reading.miss(str(node), remedy="the file does not say which picture of a batch it is")
            name = "samples"
        elif node.kind == "SetLatentNoiseMask":
            _masked(reading, passes[-1])
            name = "samples"
        elif node.kind in ENCODERS:
            if node.kind in ("VAEEncodeForInpaint", "InpaintModelConditioning"):
                _masked(reading, passes[-1])
            node = _pictured(graph, node)
            if node is None:
                return passes, "picture"
            name = "samples"
        else:
            node.refuse(UNKNOWN)
    node.refuse("follows too many samplers; they may go in a circle")


def _masked(reading: Reading, first: Pass) -> None:
    """Say that the mask of the first sampler is lacking, and what it keeps otherwise than with jaxl."""
    reading.miss("the mask", remedy="give it as `mask`")
    if first.sampler == "ddim":
        reading.miss(
            "ddim with a mask", remedy="what that keeps has another seed's noise, so the picture is not the same"
        )


def _pictured(graph: Graph, encoder: Node) -> Node | None:
    """Return the node that decoded the picture which is encoded again; None if it comes from a file."""
    node = graph.before(encoder, "pixels")
    for _ in range(100):
        if node.kind in DECODERS:
            return node
        if node.kind in ("LoadImage", "LoadImageMask", "LoadImageOutput"):
            return None
        if node.kind not in (*AFTERWARDS, "ImagePadForOutpaint"):
            node.refuse(UNKNOWN)
        node = graph.before(node, "image", "images", "pixels", "destination", "image1")
    node.refuse("is one of too many in a row; they may go in a circle")


def _pass(graph: Graph, node: Node) -> Pass:
    """Return the values of a sampler, whichever nodes have them."""

    def value(name: str, default: Any = None) -> Any:
        return graph.value(node, name, default)

    if node.kind == "KSampler":
        return Pass(node, node, _levels(graph, node), value("seed"), value("cfg"), value("sampler_name"))
    if node.kind == "KSamplerAdvanced":
        made = Pass(node, node, _levels(graph, node), value("noise_seed"), value("cfg"), value("sampler_name"))
        made.adds_noise = value("add_noise") != "disable"
        made.first = as_number(value("start_at_step"), int) or None
        made.last = as_number(value("end_at_step"), int)
        if made.last is not None and made.last >= (as_number(made.levels["steps"], int) or 0):
            made.last = None
        return made
    chosen = graph.before(node, "sampler")
    sampler, eta = SAMPLER_NODES.get(chosen.kind), graph.value(chosen, "eta")
    if chosen.kind == "KSamplerSelect":
        sampler = graph.value(chosen, "sampler_name")
    elif sampler is None:
        chosen.refuse(UNKNOWN)
    levels = read_levels(graph, graph.before(node, "sigmas"))
    if node.kind == "SamplerCustom":
        made = Pass(node, node, levels, value("noise_seed"), value("cfg"), sampler, eta)
        made.adds_noise = bool(value("add_noise", True))
        return made
    noise, guider = graph.before(node, "noise"), graph.before(node, "guider")
    if noise.kind not in ("RandomNoise", "DisableNoise"):
        noise.refuse(UNKNOWN)
    made = Pass(node, guider, levels, graph.value(noise, "noise_seed"), graph.value(guider, "cfg"), sampler, eta)
    made.adds_noise = noise.kind == "RandomNoise"
    if guider.kind == "BasicGuider":
        made.cfg, made.positive, made.negative = 1.0, "conditioning", None
    elif guider.kind not in ("CFGGuider", PERP_NEG_GUIDER):
        guider.refuse(UNKNOWN)
    return made


def _levels(graph: Graph, node: Node) -> dict[str, Any]:
    usual = {"steps": None, "scheduler": None, "denoise": 1.0}
    return {name: graph.value(node, name, default) for name, default in usual.items()}


def _texts(graph: Graph, first: Pass, reading: Reading) -> None:
    for prefix, name in (("", first.positive), ("negative_", first.negative)):
        if name is None:
            continue
        found = read_text(graph, first.asking, name, reading)
        for own, value in (("prompt", found.text), ("prompt_2", found.text_2)):
            if value is not None:
                reading.text(f"{prefix}{own}", value)
        if found.text is None and found.text_2 is None and prefix:
            reading.arguments["empty_negative"] = "zeros"
        reading.arguments.update({f"{prefix}{own}": size for own, size in found.sizes.items()})


def _later(graph: Graph, later: Pass, earlier: Pass, reading: Reading) -> None:
    """Say that the arguments lack a sampler that went on from another one's latents."""
    steps = as_number(later.levels.get("steps"), int)
    if later.first and earlier.last == later.first and steps:
        other = Reading(PROGRAM)
        read_model(graph, later.asking, other)
        for each in other.done().networks:
            if each.kind == "model":
                reading.refiner(each.name, each.hash, later.first / steps)
        return
    told = {"steps": later.levels.get("steps"), "denoise": later.levels.get("denoise"), "cfg": later.cfg}
    told |= {"sampler": later.sampler, "scheduler": later.levels.get("scheduler"), "seed": later.seed}
    line = ", ".join(f"{name} {shown(value)[:40]}" for name, value in told.items() if value is not None)
    reading.miss(f"a second pass, {later.node}", line, SECOND_PASS)


# where a graph may be: in the API's form, in a comment, as Civitai writes it, or in the editor's form
GRAPHS: tuple[Callable[[Texts], Any], ...] = (
    lambda texts: texts.object("prompt"),
    lambda texts: texts.object(COMMENT),
    lambda texts: from_workflow(texts.object("workflow")),
)
