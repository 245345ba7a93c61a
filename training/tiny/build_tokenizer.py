"""Learn the vocabulary from sampled captions and write `tokenizer` and `tokenizer_2`.

    python build_tokenizer.py --data DIR --out DIR

Both share the vocabulary; they differ in the padding token, as SDXL's do. Icon names (`words.txt`, made by
build_data.py) count once each, so that words no caption uses do not all fall apart into letters.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bpe import BOS, EOS, WORD, Merge, build_vocabulary, learn_merges
from captions import random_caption
from scenes import SceneSampler, load_concepts

VOCABULARY_SIZE = 2048
BASE_TOKENS = 2 * 256 + 2  # bytes, bytes that end a word, start, end
PADDING = {"tokenizer": EOS, "tokenizer_2": "!"}
MAX_LENGTH = 77
CAPTIONS, SEED = 40_000, 123


def count_words(extra_words: Sequence[str], captions: int = CAPTIONS, seed: int = SEED) -> Counter[str]:
    """How often each word occurs in the sampled captions and the extra words."""
    sampler = SceneSampler(load_concepts(), seed)
    counts: Counter[str] = Counter()
    for _ in range(captions):
        counts.update(WORD.findall(random_caption(sampler.draw(), sampler.concepts, sampler.rng)))
    counts.update(extra_words)
    return counts


def write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: Sequence[Merge], pad: str) -> None:
    """Write the four files a CLIPTokenizer folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    roles = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    special = {role: pad if role == "pad_token" else _added_token(token) for role, token in roles.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(vocabulary[token]): {**_added_token(token), "special": True}
            for token in sorted({BOS, EOS, pad}, key=vocabulary.__getitem__)
        },
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
        **roles,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def _added_token(token: str) -> dict[str, str | bool]:
    # text is only normalized (lower-cased) for the two marks; "!" is an ordinary byte as well
    return {
        "content": token,
        "lstrip": False,
        "normalized": token in (BOS, EOS),
        "rstrip": False,
        "single_word": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    counts = count_words((args.data / "words.txt").read_text(encoding="utf-8").split())
    merges = learn_merges(counts, VOCABULARY_SIZE - BASE_TOKENS)
    vocabulary = build_vocabulary(merges)
    for name, pad in PADDING.items():
        write_tokenizer(args.out / name, vocabulary, merges, pad)
    print(f"{len(vocabulary)} tokens, {len(merges)} merges, {len(counts)} words")


if __name__ == "__main__":
    main()
