"""The vocabulary of a CLIP tokenizer as plain data: its tokens, merges and special tokens.

A vocabulary comes from the tokenizer folder of a checkpoint (`read_vocabulary`) or from the one shipped with jaxl
(`clip_vocabulary`, for checkpoints that are a single file), and goes back to such a folder (`write_vocabulary`).

The folder's files mean what they mean to `CLIPTokenizer` of transformers 5 (tokenization_utils_base.py):
`tokenizer.json` goes before `vocab.json` and `merges.txt`; `special_tokens_map.json` and `added_tokens.json` count only
where `tokenizer_config.json` has no `added_tokens_decoder`. `do_lower_case` is not read: CLIP's text always is lowered.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers.models import BPE

from jaxl.errors import CheckpointError, InputError, OutputError

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
END_OF_WORD = "</w>"
CONTEXT = 77

Merge = tuple[str, str]

_DEFAULTS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_HONOURED = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
# transformers writes 1e30 for "no limit was stated".
_UNSTATED = 10**6


@dataclass(frozen=True)
class Vocabulary:
    """The data of one tokenizer.

    `ids` maps each token of the byte-pair encoding to its id; `merges` are in order of priority. `added` are the tokens
    looked for in the text before the encoding, by id (some are in `ids` too). `special` gives the ids of `bos_token`,
    `eos_token`, `unk_token`, `pad_token` and of others that the checkpoint names; each is in `added`.
    `max_length` counts the beginning and the end token.
    """

    ids: Mapping[str, int] = field(repr=False)
    merges: tuple[Merge, ...] = field(repr=False)
    added: Mapping[int, AddedToken]
    special: Mapping[str, int]
    max_length: int


def clip_vocabulary(pad: Literal["<|endoftext|>", "!"] = EOS) -> Vocabulary:
    """Return OpenAI's CLIP vocabulary: 49,408 tokens (Radford et al. 2021, arXiv:2103.00020; see clip_merges.LICENSE).

    SDXL pads its first encoder with the end token and its second with `!`. Raises InputError for any other `pad`.
    """
    if pad not in (EOS, "!"):
        raise InputError("pad", pad, f"CLIP's vocabulary is padded with {EOS!r} or '!'")
    text = gzip.decompress((Path(__file__).parent / "clip_merges.txt.gz").read_bytes()).decode("utf-8")
    merges = tuple(_merge(line) for line in text.splitlines())
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *map("".join, merges), BOS, EOS]
    ids = {token: i for i, token in enumerate(tokens)}
    added = {ids[BOS]: AddedToken(BOS, normalized=True, special=True)}
    added[ids[EOS]] = AddedToken(EOS, normalized=True, special=True)
    if pad != EOS:
        added[ids[pad]] = AddedToken(pad, normalized=False, special=True)
    special = {key: ids[content] for key, content in (_DEFAULTS | {"pad_token": pad}).items()}
    return Vocabulary(ids, merges, added, special, CONTEXT)


def _byte_symbols() -> list[str]:
    """Return one visible character per byte, in CLIP's order: the visible of Latin-1, then the rest from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in visible] + [chr(256 + n) for n in range(256 - len(visible))]


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary from a checkpoint's tokenizer folder.

    Raises CheckpointError naming the file where one is missing or damaged, where a field asks for what CLIP lacks
    (left padding, left truncation, split special tokens, another tokenizer class) and where token ids disagree.
    """
    config = _read_json(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: tokenizer_class {kind!r} is not CLIPTokenizer")

    if (folder / "tokenizer.json").exists():
        whole = _read_json(folder / "tokenizer.json")
        ids, merges = _read_model(folder / "tokenizer.json", whole.get("model"))
        for key, section in (("padding_side", "padding"), ("truncation_side", "truncation")):
            config.setdefault(key, str((whole.get(section) or {}).get("direction", "right")).lower())
    else:
        whole = {}
        ids, merges = _read_vocab_and_merges(folder)
    for key, value in _HONOURED.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{folder}: {key}={config[key]!r} is not supported, only {value!r} is")

    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        config |= _read_json(folder / "special_tokens_map.json", optional=True)
    own = [key for key in config if key.endswith("_token") and isinstance(config[key], str | dict)]
    named = {key: config.get(key, _DEFAULTS.get(key)) for key in dict.fromkeys([*_NAMED, *own])}
    special = {k: _token(folder, k, value) for k, value in named.items() if k in _DEFAULTS or value is not None}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        raise CheckpointError(f"{folder}: extra_special_tokens must be a list, not a {type(extra).__name__}")
    everywhere = [*special.values(), *(_token(folder, "extra_special_tokens", value) for value in extra)]
    try:
        if decoder is None:
            declared = _legacy_added_tokens(folder, {token.content for token in everywhere}, whole)
        else:
            declared = {int(i): AddedToken(**fields) for i, fields in decoder.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: the added tokens are damaged: {error!r}") from error
    _check_ids(folder, ids, declared)

    known = {**ids, **{token.content: i for i, token in declared.items()}}
    missing = [token.content for token in everywhere if token.content not in known]
    if missing:
        raise CheckpointError(f"{folder}: the vocabulary lacks the special token {missing[0]!r}")
    # Declared tokens keep their flags; among others with the same content the last decides, as in transformers.
    added = {known[token.content]: token for token in everywhere} | declared
    special_ids = {key: known[token.content] for key, token in special.items()}
    return Vocabulary(ids, merges, added, special_ids, _max_length(folder, config))


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, each whole or not at all.

    Raises OutputError where that fails, or where a `tokenizer.json` of another tokenizer would hide them.
    """
    if (folder / "tokenizer.json").exists():
        raise OutputError(f"{folder}: has a tokenizer.json, which goes before the files to save; remove it first")
    fields = {i: token.__getstate__() for i, token in sorted(vocabulary.added.items())}
    special = {key: fields[i] for key, i in vocabulary.special.items()}
    config = {
        "added_tokens_decoder": fields,
        **{key: state["content"] for key, state in special.items()},
        "model_max_length": vocabulary.max_length,
        "tokenizer_class": "CLIPTokenizer",
    }
    texts = {
        "vocab.json": json.dumps(dict(sorted(vocabulary.ids.items(), key=itemgetter(1))), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, vocabulary.merges)]) + "\n",
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, ensure_ascii=False, indent=2) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            part = folder / f"{name}.part"
            try:
                part.write_text(text, encoding="utf-8", newline="\n")
                os.replace(part, folder / name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the tokenizer was not saved: {error}") from error


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {path.name} is missing from the tokenizer folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def _read_vocab_and_merges(folder: Path) -> tuple[dict[str, int], tuple[Merge, ...]]:
    ids, merges = folder / "vocab.json", folder / "merges.txt"
    for path in (ids, merges):
        if not path.exists():
            raise CheckpointError(
                f"{folder}: {path.name} is missing from the tokenizer folder, and so is tokenizer.json"
            )
    try:
        tokens, pairs = BPE.read_file(str(ids), str(merges))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{folder}: vocab.json and merges.txt cannot be read: {error}") from error
    return tokens, tuple(pairs)


def _read_model(path: Path, model: Any) -> tuple[dict[str, int], tuple[Merge, ...]]:
    """Return tokens and merges of a `tokenizer.json`; a merge is `"a b"` or, from newer releases, `["a", "b"]`."""
    model = model if isinstance(model, dict) else {}
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != END_OF_WORD:
        raise CheckpointError(
            f"{path}: is no CLIP tokenizer: the model must be BPE with end_of_word_suffix {END_OF_WORD!r}"
        )
    try:
        return dict(model["vocab"]), tuple(_merge(pair) for pair in model["merges"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the model's vocab or merges are damaged: {error}") from error


def _merge(pair: str | list[str]) -> Merge:
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first, second


def _token(folder: Path, key: str, value: Any) -> AddedToken:
    """Return the special token under `key`, from its content or its fields."""
    fields: dict[str, Any] = {"content": value} if isinstance(value, str) else value
    try:
        return AddedToken(**{**{name: fields[name] for name in fields if name != "__type"}, "special": True})
    except TypeError as error:
        raise CheckpointError(f"{folder}: {key}={value!r} does not describe a token: {error}") from error


def _legacy_added_tokens(folder: Path, special: set[str], whole: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read the added tokens where the config has no `added_tokens_decoder`: added_tokens.json, then tokenizer.json."""
    tokens = {}
    for content, i in _read_json(folder / "added_tokens.json", optional=True).items():
        tokens[int(i)] = AddedToken(content, normalized=content not in special, special=content in special)
    for fields in whole.get("added_tokens") or []:
        tokens[int(fields["id"])] = AddedToken(**{name: fields[name] for name in fields if name != "id"})
    return tokens


def _check_ids(folder: Path, ids: Mapping[str, int], declared: Mapping[int, AddedToken]) -> None:
    """Raise unless added tokens have their id in the vocabulary or follow it without a gap, as the library has them."""
    following = len(ids)
    for i, token in sorted(declared.items()):
        expected = ids.get(token.content, following)
        if i != expected:
            raise CheckpointError(
                f"{folder}: the added token {token.content!r} has id {i}, the vocabulary says {expected}"
            )
        following += token.content not in ids


def _max_length(folder: Path, config: Mapping[str, Any]) -> int:
    value = config.get("model_max_length", CONTEXT)
    if not isinstance(value, int) or value < 3:
        raise CheckpointError(f"{folder}: model_max_length={value!r} must be a whole number, 3 or more")
    return value if value < _UNSTATED else CONTEXT
