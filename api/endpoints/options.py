"""Options of a generation that a caller may set, and what values they take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from api.endpoints.validation import IsWhole, StopText, StrictBody

Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
"""A part of the probability: `top_p`, `min_p`."""
Seed = Annotated[int, Field(ge=-(2**31), lt=2**31), IsWhole]
Tokens = Annotated[int, Field(ge=1, le=100_000), IsWhole]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stops = Annotated[list[StopText], Field(max_length=16, fail_fast=True)]


class Options(StrictBody):
    """Those of Ollama's options that a caller may set: none that makes Ollama load the model again."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=1000), IsWhole] | None = None
    min_p: Share | None = None
    seed: Seed | None = None
    num_predict: Tokens | None = None
    repeat_penalty: Annotated[float, Field(ge=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Stops | None = None
