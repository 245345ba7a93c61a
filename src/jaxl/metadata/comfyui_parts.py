"""The parts of ComfyUI's graphs: what changes a model, a text or noise levels, and what each class of node says.

Each function follows the links of one kind, the last node first, and puts what it finds into a `Reading`. A class that
none knows is refused, with the node's id, because nobody can tell what the picture owes to it; one that is known, and
that jaxl lacks, is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxl.metadata.comfyui_graph import Graph, Node
from jaxl.metadata.comfyui_names import comfyui_text
from jaxl.metadata.settings import LONGEST_PROMPT, Reading, as_number, shown, stem

UNKNOWN = "is of a class that jaxl does not understand, nor what the picture owes to it; give the settings yourself"
LONG = f"has a text of more than {LONGEST_PROMPT} characters; give a shorter one yourself"
LACKED = "jaxl has nothing like it, and draws without"
# which end a chain, and the input with a file's name
CHECKPOINTS = ("CheckpointLoaderSimple", "CheckpointLoader", "unCLIPCheckpointLoader", "CheckpointLoader|pysssss")
CHECKPOINTS += ("ImageOnlyCheckpointLoader", "CheckpointLoaderSimpleWithNoiseSelect")
# several LoRAs in one node
LORAS = "Power Lora Loader (rgthree)"
# which change a model in ways that jaxl lacks, or that are set elsewhere
MODEL_LACKED = ("SelfAttentionGuidance", "HyperTile", "TomePatchModel", "PatchModelAddDownscale")
MODEL_LACKED += ("DifferentialDiffusion", "PerturbedAttention", "DynamicThresholdingFull", "DynamicThresholdingSimple")
MODEL_LACKED += ("ModelSamplingContinuousEDM", "ModelSamplingContinuousV", "FreeU", "SkipLayerGuidance")
MODEL_LACKED += ("IPAdapter", "IPAdapterAdvanced", "IPAdapterUnifiedLoader", "ApplyInstantID", "CFGZeroStar", "CFGNorm")
MODEL_LACKED += ("TCFG", "AutomaticCFG")
TEXT_LACKED = ("ConditioningAverage", "ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetMask")
TEXT_LACKED += ("ConditioningSetAreaStrength", "ConditioningSetTimestepRange", "ConditioningCombine")
TEXT_LACKED += ("unCLIPConditioning", "GLIGENTextBoxApply")
# each of these guides in place of those before it, and this guider in place of all
GUIDING, PERP_NEG_GUIDER = ("PerpNeg", "RescaleCFG"), "PerpNegGuider"
NEGATIVE = ("negative_prompt", "negative_prompt_2")
# a node of prompt control, which may read a text as A1111 does
SMZ = "smZ CLIPTextEncode"
CONTROLS = ("ControlNetApply", "ControlNetApplyAdvanced", "ControlNetApplySD3", "ACN_AdvancedControlNetApply")
# SDXL's usual layer of the text encoders, counted from the end
USUAL_LAYER = -2
# of the trained noise of SDXL, which nodes for levels are given; they are rounded there
SIGMA_MAX, SIGMA_MIN, NEAR = 14.6146, 0.0292, 0.002


@dataclass
class Text:
    """What is encoded for one branch: texts of both encoders, and the sizes that SDXL is told.

    `text` is None for zeros.
    """

    text: str | None = None
    text_2: str | None = None
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_model(graph: Graph, node: Node, reading: Reading) -> None:
    """Read what stands between a sampler and its checkpoint, and a guider that does more than the usual one."""
    guided = node.kind == PERP_NEG_GUIDER
    if guided:
        _perp_neg(graph, node, reading)
    for each in graph.chain(node, "model"):
        if each.kind in GUIDING and guided:
            continue
        guided = guided or each.kind in GUIDING
        if each.kind in ("LoraLoader", "LoraLoaderModelOnly"):
            unet = graph.value(each, "strength_model", 1.0)
            text = graph.value(each, "strength_clip", 1.0) if each.kind == "LoraLoader" else 0.0
            reading.lora(graph.value(each, "lora_name"), unet, text)
        elif each.kind == LORAS:
            for told in each.inputs.values():
                if isinstance(told, dict) and told.get("on"):
                    reading.lora(told.get("lora"), told.get("strength", 1.0), told.get("strengthTwo"))
        elif each.kind in CHECKPOINTS:
            name = graph.value(each, "ckpt_name")
            reading.network("model", name.get("content") if isinstance(name, dict) else name)
        elif each.kind == "UNETLoader":
            reading.network("model", graph.value(each, "unet_name"), detail="the U-Net")
        elif each.kind == "ModelSamplingDiscrete":
            _prediction(graph, each, reading)
        elif each.kind == "PerpNeg":
            _perp_neg(graph, each, reading)
        elif each.kind == "RescaleCFG":
            reading.number("guidance_rescale", graph.value(each, "multiplier"), least=0, most=1)
        elif each.kind == "FreeU_V2":
            factors = [as_number(graph.value(each, name), float) for name in ("s1", "s2", "b1", "b2")]
            if None in factors:
                reading.miss(str(each), remedy=LACKED)
            else:
                reading.give("freeu", tuple(factors))
        elif each.kind == "PerturbedAttentionGuidance":
            reading.number("pag_scale", graph.value(each, "scale"), least=0, most=1000)
        elif each.kind in MODEL_LACKED:
            reading.miss(str(each), remedy=LACKED)
        else:
            each.refuse(UNKNOWN)


def _perp_neg(graph: Graph, node: Node, reading: Reading) -> None:
    """Read a perpendicular negative prompt, after the prompts: its scale, and what its node takes for an empty text."""
    told, empty = reading.arguments, read_text(graph, node, "empty_conditioning", reading)
    if words := f"{empty.text or ''} {empty.text_2 or ''}".strip():
        reading.miss(f"the empty text of {node}", words, "jaxl's has no words")
    kind, scale = "zeros" if empty.text is None else "encoded", graph.value(node, "neg_scale", 1.0)
    sizes = {name: size for name, size in told.items() if name.startswith("negative_") and name not in NEGATIVE}
    if kind == "encoded" and sizes != {f"negative_{name}": size for name, size in empty.sizes.items()}:
        reading.miss(f"the sizes that {node} tells with it", remedy="jaxl tells those of the negative prompt")
    if as_number(scale, float) == 0:  # the negative prompt is not read there
        for name in NEGATIVE:
            told.pop(name, None)
    elif not any(map(told.get, NEGATIVE)) and kind != told.get("empty_negative", "encoded"):
        reading.miss(str(node), remedy="one of its empty texts is encoded, the other zeros; jaxl has one kind")
        return
    else:
        reading.number("perp_neg_scale", scale, least=0, most=1000)
    told["empty_negative"] = kind


def read_text(graph: Graph, node: Node, name: str, reading: Reading) -> Text:
    """Read the texts that an input of a sampler comes from."""
    return _text(graph, graph.before(node, name), (node.link(name) or ("", 0))[1], reading, 0)


def _text(graph: Graph, node: Node, output: int, reading: Reading, depth: int) -> Text:
    if depth > 100:
        node.refuse("is one of too many in a row; they may go in a circle")

    def before(*names: str) -> Text:
        name = next((each for each in names if node.link(each)), names[0])
        found = graph.before(node, name)
        return _text(graph, found, (node.link(name) or ("", 0))[1], reading, depth + 1)

    def told(name: str) -> str:
        value = graph.value(node, name, "")
        if not isinstance(value, str):
            node.refuse(f"has {shown(value)[:30]} for {name}, where a text belongs")
        if len(value) > LONGEST_PROMPT:
            node.refuse(LONG)
        if node.kind == SMZ and graph.value(node, "parser") == "A1111":
            reading.arguments["prompt_syntax"] = "lenient"
            return value
        return comfyui_text(value)

    if node.kind in ("CLIPTextEncode", SMZ):
        _clip(graph, node, reading)
        return Text(told("text"))
    if node.kind == "CLIPTextEncodeSDXL":
        _clip(graph, node, reading)
        first, second = told("text_l"), told("text_g")
        return Text(first, None if second == first else second, _sizes(graph, node))
    if node.kind == "CLIPTextEncodeSDXLRefiner":
        reading.number("aesthetic_score", graph.value(node, "ascore"), least=-100, most=100)
        return Text(told("text"))
    if node.kind == "ConditioningConcat":
        # the texts are encoded one by one, as chunks that BREAK parts are
        first, second = before("conditioning_to"), before("conditioning_from")
        if first.text_2 is not None or second.text_2 is not None:
            reading.miss(str(node), remedy="its texts differ between encoders; only the first are read")
        text = f"{first.text or ''} BREAK {second.text or ''}"
        if len(text) > LONGEST_PROMPT:
            node.refuse(LONG)
        reading.arguments["prompt_syntax"] = "lenient"
        return Text(text, None, first.sizes)
    if node.kind == "ConditioningZeroOut":
        return Text()
    if node.kind in TEXT_LACKED:
        reading.miss(str(node), remedy=LACKED)
        return before("conditioning", "conditioning_to", "conditioning_1")
    if node.kind in CONTROLS:
        if output == 0:  # the negative branch has the same
            _control(graph, node, reading)
        return before(*(("negative",) if output == 1 else ("positive",)), "conditioning")
    if node.kind == "InpaintModelConditioning":
        return before("negative" if output == 1 else "positive")
    node.refuse(UNKNOWN)


def _sizes(graph: Graph, node: Node) -> dict[str, tuple[int, int]]:
    """Return what SDXL is told of sizes, height first, by the names of `generate`."""
    found = {}
    for name, (high, wide) in {
        "original_size": ("height", "width"),
        "crops_coords_top_left": ("crop_h", "crop_w"),
        "target_size": ("target_height", "target_width"),
    }.items():
        sides = [as_number(graph.value(node, side), int) for side in (high, wide)]
        if all(side is not None and 0 <= side <= 65_536 for side in sides):
            found[name] = sides[0], sides[1]
    return found


def _clip(graph: Graph, node: Node, reading: Reading) -> None:
    """Read what stands between a text and its encoders, where it is not read with the model."""
    for each in graph.chain(node, "clip"):
        if each.kind == "CLIPSetLastLayer":
            layer = as_number(graph.value(each, "stop_at_clip_layer"), int)
            if layer is None or not -100 < layer <= USUAL_LAYER:
                reading.miss(str(each), layer, LACKED)
            elif layer < USUAL_LAYER:
                reading.arguments["clip_skip"] = USUAL_LAYER - layer
        elif each.kind in ("DualCLIPLoader", "CLIPLoader"):
            names = [graph.value(each, name) for name in ("clip_name", "clip_name1", "clip_name2")]
            reading.miss("text encoders", ", ".join(stem(name) for name in names if isinstance(name, str)))
        elif each.kind not in (*CHECKPOINTS, "LoraLoader", LORAS):
            each.refuse(UNKNOWN)


def _control(graph: Graph, node: Node, reading: Reading) -> None:
    loader = graph.before(node, "control_net")
    while loader.kind == "SetUnionControlNetType":
        loader = graph.before(loader, "control_net")
    name = graph.value(loader, "control_net_name")
    if not isinstance(name, str):
        loader.refuse(UNKNOWN)
    numbers = {"strength": "strength", "start": "start_percent", "end": "end_percent"}
    found = {
        own: as_number(graph.value(node, theirs), float) for own, theirs in numbers.items() if theirs in node.inputs
    }
    facts = {"name": stem(name), **{own: number for own, number in found.items() if number is not None}}
    if facts not in reading.controls:
        reading.controls.append(facts)


def _prediction(graph: Graph, node: Node, reading: Reading) -> None:
    kind = graph.value(node, "sampling")
    if kind == "v_prediction":
        reading.miss(str(node), kind, "load the checkpoint with `prediction_type`='v_prediction'")
    elif kind not in ("eps", "lcm"):
        reading.miss(str(node), kind, LACKED)
    if graph.value(node, "zsnr"):
        reading.miss(str(node), "zsnr", "jaxl takes what the checkpoint says of its noise")


def read_levels(graph: Graph, node: Node) -> dict[str, Any]:
    """Return what a node for noise levels says: `scheduler`, `steps`, `denoise`, `timesteps`, and what is `odd`."""
    steps, denoise = graph.value(node, "steps"), graph.value(node, "denoise", 1.0)
    if node.kind == "BasicScheduler":
        return {"scheduler": graph.value(node, "scheduler"), "steps": steps, "denoise": denoise}
    if node.kind == "AlignYourStepsScheduler":
        return {"scheduler": "ays", "steps": steps, "denoise": denoise}
    if node.kind == "SDTurboScheduler":
        # its ten timesteps, evenly spaced, from the noisiest on
        count, share = as_number(steps, int), as_number(denoise, float)
        if count is not None and 0 < count <= 10 and share == 1:
            return {"timesteps": tuple(999 - 100 * i for i in range(count)), "steps": count, "denoise": 1.0}
        return {"steps": steps, "denoise": denoise, "odd": str(node)}
    kinds = {
        "KarrasScheduler": "karras",
        "ExponentialScheduler": "exponential",
        "PolyexponentialScheduler": "exponential",
    }
    if node.kind in kinds:
        usual: Mapping[str, float] = {"sigma_max": SIGMA_MAX, "sigma_min": SIGMA_MIN}
        usual = {**usual, "rho": 7.0 if node.kind == "KarrasScheduler" else 1.0}
        told = {name: as_number(graph.value(node, name, one), float) for name, one in usual.items()}
        odd = [f"{name} {told[name]}" for name, one in usual.items() if abs((told[name] or 0) - one) > NEAR]
        return {"scheduler": kinds[node.kind], "steps": steps, "denoise": 1.0, "odd": ", ".join(odd)}
    if node.kind == "BetaSamplingScheduler":
        told = {name: as_number(graph.value(node, name, 0.6), float) for name in ("alpha", "beta")}
        odd = ", ".join(f"{name} {value}" for name, value in told.items() if value != 0.6)
        return {"scheduler": "beta", "steps": steps, "denoise": 1.0, "odd": odd}
    node.refuse(UNKNOWN)
