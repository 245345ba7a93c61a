"""What NovelAI writes, and that it cannot be drawn (https://github.com/NovelAI/novelai-image-metadata)."""

from __future__ import annotations

from jaxl.errors import InputError
from jaxl.metadata.container import COMMENT, HIDDEN, Texts, read_json
from jaxl.metadata.settings import Settings, shown

PROGRAM = "NovelAI"
# fields that no other program has
MARKS = {"signed_hash", "request_type", "uncond_scale", "v4_prompt"}


def read(texts: Texts) -> Settings | None:
    """Raise InputError for a picture of NovelAI: its models are closed."""
    for told in (texts, texts.object(HIDDEN), texts.object(COMMENT)):
        comment = told.get("Comment")
        known = comment if isinstance(comment, dict) else read_json(comment)
        if told.get("Software") == PROGRAM or MARKS & {*told, *(known if isinstance(known, dict) else ())}:
            break
    else:
        return None
    model = f" ({shown(told['Source'])[:60]})" if told.get("Source") else ""
    remedy = f"{PROGRAM} drew it, whose models{model} are closed, so it cannot be drawn; give another program's picture"
    raise InputError("file", "a picture", remedy)
