"""The length of a prompt in tokens, for people who write one."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field

from jaxl.server.errors import RESPONSES
from jaxl.server.prompts import length
from jaxl.server.service import CurrentService
from jaxl.text.prompt import Syntax

CHUNK = 75  # tokens

router = APIRouter(prefix="/v1", tags=["jaxl"], responses=RESPONSES)


class TokensRequest(BaseModel):
    text: str
    prompt_syntax: Syntax = Field("lenient", description="How it is read.")


class Length(BaseModel):
    """`tokens` are in `chunks`, which have room for `limit` of them; `error` is why it cannot be drawn."""

    tokens: int
    chunks: int
    limit: int
    error: str | None


@router.post("/tokens")
async def tokens(asked: TokensRequest, service: CurrentService) -> Length:
    """Count the tokens of a prompt, at the step where they are most."""
    settings = service.settings
    service.check_text("text", asked.text)
    count, chunks, error = await asyncio.to_thread(
        length, asked.text, asked.prompt_syntax, settings.steps, settings.embeddings
    )
    if error is None and chunks > settings.chunks and asked.prompt_syntax != "plain":
        error = f"a prompt may have {CHUNK * settings.chunks} tokens here; shorten it"
    return Length(tokens=count, chunks=chunks, limit=CHUNK * chunks, error=error)
