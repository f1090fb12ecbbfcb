"""What the language model is asked, for a question and the passages that were found for it."""

from __future__ import annotations

from typing import Literal

from api.model import GenerationRequest, Source
from api.query import prompt
from api.query.grounding import Grounding
from api.query.prompt_budget import budget, fit
from api.query.prompt_template import PromptTemplate
from api.query.question import Query


class Prompting:
    """For one worker. `num_ctx`: the model's context in tokens, None where Ollama's own default holds."""

    def __init__(
        self, template: PromptTemplate, num_ctx: int | None, when_nothing_is_relevant: Literal["say_so", "answer"]
    ) -> None:
        self._prompts = prompt.Prompts(template)
        self._num_ctx = num_ctx
        self._when_nothing_is_relevant = when_nothing_is_relevant

    @property
    def nothing_relevant(self) -> str:
        """The answer where there are documents and none is relevant."""
        return self._prompts.nothing_relevant

    def says_so(self, grounding: Grounding) -> bool:
        """Whether that is the answer."""
        return grounding.outcome == "nothing_relevant" and self._when_nothing_is_relevant == "say_so"

    def request(
        self, query: Query, sources: tuple[Source, ...], *, whole: bool, background: bool
    ) -> tuple[GenerationRequest, tuple[Source, ...]]:
        """The request, and those of the passages that fit into it."""
        history = query.history
        if sources:
            tokens = budget(self._num_ctx, query.options.get("num_predict"))
            sources, history = fit(self._prompts, query.question, history, sources, tokens)
            messages = self._prompts.grounded(query.question, history, sources)
        elif query.template == prompt.RAW:
            messages = prompt.raw(query.question, history, query.system)
        else:
            messages = self._prompts.plain(query.question, history)
        request = GenerationRequest(
            query.model, messages, query.options, tenant=query.tenant, background=background, whole=whole
        )
        return request, sources
