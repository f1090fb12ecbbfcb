"""The options of a load, for `ragherd load-test` and `ragherd benchmark`, and what they mean together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ragherd.exits import USAGE_ERROR, exit_with
from ragherd.load_plan import MOST_TOPICS, Plan, drawn, generated_topics, topics_of
from ragherd.quality_samples import Unreadable, read_samples

REQUESTS: Final = 200
USERS: Final = 10
OPEN_REQUESTS: Final = 200
PARAPHRASES: Final = 0.3

# -- How much and when -------------------------------------------------------------------------------------------------

Requests = Annotated[int | None, typer.Option(min=1, help=f"Requests to send. Default: {REQUESTS}, without --seconds.")]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="Seconds in which to start requests.")]
Concurrency = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2000,
        help=f"Users who ask one question after another, {USERS} by default. With --rate: requests that may be "
        f"open at once, {OPEN_REQUESTS} by default.",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(min=0.01, max=10_000, help="Requests per second, at random times, however slow the service is."),
]
Think = Annotated[float, typer.Option(min=0.0, help="Average seconds that a user pauses before the next question.")]
Ramp = Annotated[float, typer.Option(min=0.0, help="Seconds in which the load rises from nothing to its full size.")]
Spike = Annotated[float, typer.Option(min=1.0, max=100.0, help="Multiplies the load during spikes.")]
SpikeEvery = Annotated[float, typer.Option(min=0.1, help="Seconds from one spike to the next.")]
SpikeSeconds = Annotated[float, typer.Option(min=0.1, help="Seconds that a spike lasts.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds until a request has failed.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the questions, times and pauses.")]

# -- What is asked -----------------------------------------------------------------------------------------------------

Questions = Annotated[
    Path | None,
    typer.Option(
        help="CSV or JSON Lines file with a column question, and intent for paraphrases. Asked in its order, "
        "again and again, unless --zipf is set. Default: built-in questions."
    ),
]
Topics = Annotated[int, typer.Option(min=1, max=MOST_TOPICS, help="Built-in questions to use, without paraphrases.")]
Zipf = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=5.0,
        help="Exponent of the popularity: the question of rank r is asked in proportion to 1 / r^ZIPF. 0: all "
        "alike. Default: 1 for built-in questions.",
    ),
]
Paraphrases = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help=f"Share of paraphrases. Default: {PARAPHRASES}. A file needs --zipf."),
]
SharedCache = Annotated[
    bool,
    typer.Option(
        "--shared-cache",
        help="Use the answers that are cached for users, and leave new ones. Without it, the run has a cache scope "
        "for itself, which is empty at the start.",
    ),
]
AnswerModel = Annotated[str | None, typer.Option(help="Model of the answers. Default: LLM_MODEL of the service.")]
AskingTenant = Annotated[str | None, typer.Option(help="Tenant that asks. A user's key fixes it.")]
TopK = Annotated[int | None, typer.Option(min=0, max=20, help="Most passages to use; 0: no retrieval.")]
AnswerTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]

# -- What is good ------------------------------------------------------------------------------------------------------

MaxErrorRate = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of failed requests above which the exit status is 1.")
]
MaxP95 = Annotated[float | None, typer.Option(min=0.0, help="Milliseconds of p95 above which the exit status is 1.")]
LoadReport = Annotated[
    Path | None, typer.Option(help="Folder for load-test.json, load-test.png and load-test.html (extra `reports`).")
]


@dataclass(frozen=True, slots=True)
class Wording:
    """Which questions are asked. `zipf` is None for a file that is asked in its order."""

    file: Path | None = None
    topics: int = 100
    zipf: float | None = None
    paraphrases: float | None = None

    @property
    def name(self) -> str:
        return self.file.name if self.file else f"{self.topics} built-in"

    @property
    def exponent(self) -> float | None:
        return 1.0 if self.zipf is None and self.file is None else self.zipf

    def asked(self, seed: int) -> Iterator[str]:
        """Returns the questions, without end. Ends the command if the file cannot be used."""
        share = PARAPHRASES if self.paraphrases is None else self.paraphrases
        zipf = self.exponent
        if self.file is None:
            assert zipf is not None
            return drawn(generated_topics(self.topics, seed), zipf, share, seed)
        try:
            samples = read_samples(str(self.file))
        except Unreadable as error:
            raise exit_with(str(error), USAGE_ERROR) from None
        if samples.kind == "pairs":
            raise exit_with(f"{self.file}: needs a column question, not pairs", USAGE_ERROR)
        if self.paraphrases and (zipf is None or not samples.intents):
            raise exit_with("--paraphrases of a file needs --zipf and a column intent", USAGE_ERROR)
        return cycle(samples.asked) if zipf is None else drawn(topics_of(samples), zipf, share, seed)


def users_of(concurrency: int | None, rate: float | None) -> int:
    """Returns the concurrency, or its default."""
    return concurrency or (USERS if rate is None else OPEN_REQUESTS)


def requests_of(requests: int | None, seconds: float | None) -> int | None:
    """Returns how many requests to send. None: as many as start within the seconds."""
    return REQUESTS if requests is None and seconds is None else requests


def check_plan(plan: Plan) -> None:
    """Ends the command if options do not fit together."""
    if plan.is_open and plan.think:
        raise exit_with("--think needs users: it does not go with --rate", USAGE_ERROR)
    if plan.spike_seconds >= plan.spike_every:
        raise exit_with("--spike-seconds must be less than --spike-every", USAGE_ERROR)


def body_of(
    model: str | None, tenant: str | None, top_k: int | None, answer_tokens: int | None, scope: int | None
) -> dict[str, Any]:
    """Returns the body of POST /query without the question.

    `scope` is a seed of the model. Answers with another seed are cached apart.
    """
    options = {name: value for name, value in (("seed", scope), ("num_predict", answer_tokens)) if value is not None}
    fields = {"model": model, "tenant": tenant, "top_k": top_k, "options": options or None}
    return {name: value for name, value in fields.items() if value is not None}
