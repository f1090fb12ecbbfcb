"""`ragherd analyse`: what a cache would do for you, from a log of your questions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from api.errors import SettingsError
from ragherd.exits import USAGE_ERROR, exit_with

if TYPE_CHECKING:
    from api.quality.measurement import Rate, Row
    from api.quality.replay import Policy
    from api.settings import Settings
    from ragherd.quality_replay import Product
    from ragherd.quality_samples import Samples

EXACT: Final = "exact"
"""Not a policy of the service: only questions that are equal after normalization are hits."""
ANSWER_TOKENS: Final = 250
MOST_ASKED: Final = 10
SHOWN: Final = 90
"""Characters of a question in the terminal."""


def analyse(
    file: Annotated[str, typer.Argument(help="Log of questions: CSV, JSON Lines, or the log of Ragherd or Ollama.")],
    limit: Annotated[int, typer.Option(min=1, max=50_000, help="Use at most this many questions, from the first.")] = (
        5000
    ),
    price: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Cost of a million tokens. Default: PRICE_PER_MILLION_TOKENS.")
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer, where the file has neither tokens nor answer.")
    ] = ANSWER_TOKENS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a cache would do for you, from a log of your questions.

    It asks the questions in the file's order under each policy, with your settings and a cache that starts empty. It
    prints the share of hits, the share of wrong ones if the file has a column `answer` or `intent`, what would be
    saved, and how much of the prompts Ollama's own prompt cache would reuse. It needs neither Redis nor Ollama.

    A file is CSV or JSON Lines with a column `question`. A file named .log or .txt is the log of Ragherd with
    LOG_QUESTIONS=true, or that of Ollama with OLLAMA_DEBUG=2. Its questions must be in chronological order.
    """
    from ragherd.quality_samples import Unreadable

    try:
        found = _analysed(file, limit, price, answer_tokens, seed)
    except (Unreadable, SettingsError) as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found)


# -- Analysis ----------------------------------------------------------------------------------------------------------


def _analysed(file: str, limit: int, price: float | None, answer_tokens: int, seed: int) -> dict[str, Any]:
    from api.settings import load_settings
    from ragherd.backup import shown_progress
    from ragherd.quality_replay import measure, open_product
    from ragherd.quality_samples import Unreadable, read_samples

    settings = load_settings()
    samples = read_samples(file)
    if samples.kind == "pairs":
        raise Unreadable(f"{file}: has pairs; analyse needs a log with the column question")
    asked = samples.sample(limit, seed, shuffled=False)
    prompts = PromptLog.of(asked, settings)
    spent = Spending.of(
        asked, prompts, answer_tokens, settings.server.price_per_million_tokens if price is None else price
    )
    product: Product = open_product(settings)
    with shown_progress() as step:
        measured = measure(asked, _policies(settings, is_judged=_is_judged(asked)), product, seed, 0, step)
    by_policy = {name: _of_policy(row, spent) for name, row in zip(_names(asked), measured.rows, strict=True)}
    chosen = "guarded" if settings.cache.policy not in by_policy else settings.cache.policy
    return {
        "file": asked.name,
        "questions": len(asked),
        "questions_in_file": len(samples),
        "policy": chosen,
        "threshold": settings.cache.similarity_threshold,
        "judged_by": "answer" if asked.answers else "intent" if asked.intents else None,
        "hit_rate": by_policy[chosen]["hit_rate"],
        "by_policy": by_policy,
        "repeated": _repeated(asked.asked),
        "prefix_reuse": prompts.reuse(),
        "spent": spent.document(),
    }


def _is_judged(asked: Samples) -> bool:
    return bool(asked.answers or asked.intents)


def _names(asked: Samples) -> list[str]:
    """Returns the policies. Without answers, what `verified` would learn is unknown."""
    return [EXACT, "fixed", "guarded", *(["verified"] if _is_judged(asked) else [])]


def _policies(settings: Settings, *, is_judged: bool) -> list[Policy]:
    from api.quality.replayed_policies import Fixed, Guarded, Verified

    threshold = settings.cache.similarity_threshold
    found: list[Policy] = [Fixed(math.inf), Fixed(threshold), Guarded(threshold)]
    return [*found, Verified(settings.cache.max_error_rate, threshold, seed=1)] if is_judged else found


def _of_policy(row: Row, spent: Spending) -> dict[str, Any]:
    one = row.figures
    tokens = sum(count for count, is_hit in zip(spent.tokens, row.outcomes.hits, strict=True) if is_hit)
    return {
        "hit_rate": one.hit_rate.value,
        "hit_rate_interval": _interval(one.hit_rate),
        "hits": one.hits,
        "equal": one.exact,
        "wrong": one.wrong,
        "not_judged": one.unknown,
        "wrong_per_hit": one.error_per_hit.value if one.error_per_hit else None,
        "wrong_per_hit_interval": _interval(one.error_per_hit),
        "saved_tokens": tokens,
        "saved_money": spent.money(tokens),
    }


def _interval(rate: Rate | None) -> list[float] | None:
    return [rate.low, rate.high] if rate is not None else None


def _repeated(questions: Sequence[str]) -> dict[str, Any]:
    """Returns how many questions equal an earlier one after normalization, and those that were asked most."""
    from api.query.cache_key import normalise

    keys = [normalise(question) for question in questions]
    first = dict(zip(reversed(keys), reversed(questions), strict=True))
    counts = Counter(keys)
    return {
        "questions": len(keys) - len(counts),
        "share": 1 - len(counts) / len(keys),
        "different": len(counts),
        "most_asked": [
            {"question": first[key], "times": times} for key, times in counts.most_common(MOST_ASKED) if times > 1
        ],
    }


# -- Prompts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PromptLog:
    """The prompts as the model gets them: from the file, or Ragherd's for a question without documents."""

    texts: Sequence[str]
    are_logged: bool

    @classmethod
    def of(cls, asked: Samples, settings: Settings) -> PromptLog:
        """Returns the prompts of the questions. Raises `SettingsError`."""
        from api.query.prompt import load_template

        if asked.prompts:
            return cls(asked.prompts, True)
        path = settings.retrieval.prompt_template_path
        system = load_template(str(path) if path is not None else None).plain_system
        return cls([f"{system}\n\n{question}" for question in asked.asked], False)

    def reuse(self) -> dict[str, Any]:
        """Returns the share of prompts that repeats the start of the previous one: Ollama does not process it again.

        This is Ollama with one slot (OLLAMA_NUM_PARALLEL=1) and without a cache in front of it.
        """
        same = sum(_common(one, other) for one, other in zip(self.texts, self.texts[1:], strict=False))
        total = sum(map(len, self.texts))
        return {
            "share": same / total,
            "characters": total,
            "reused": same,
            "prompts": "logged" if self.are_logged else "built",
        }


def _common(one: str, other: str) -> int:
    """Returns the length of the common prefix. Compares slices, because a loop over characters is slow."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


# -- Tokens and money --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spending:
    """The tokens of each question's prompt and answer. `given`: of how many questions the file has them.

    `assumed`: of how many the length of the answer is not known.
    """

    tokens: Sequence[int]
    given: int
    assumed: int
    price: float | None

    @classmethod
    def of(cls, asked: Samples, prompts: PromptLog, answer_tokens: int, price: float | None) -> Spending:
        """Takes the tokens from the file, or estimates them from the texts."""
        from api.query.prompt import estimated_tokens

        count = len(asked)
        given = asked.tokens or [0] * count
        answers = asked.answers or [""] * count
        tokens = [
            known or estimated_tokens(prompt) + (estimated_tokens(answer) if answer else answer_tokens)
            for known, prompt, answer in zip(given, prompts.texts, answers, strict=True)
        ]
        assumed = sum(not known and not answer for known, answer in zip(given, answers, strict=True))
        return cls(tokens, sum(map(bool, given)), assumed, price)

    def money(self, tokens: int) -> float | None:
        """Returns what tokens cost; None without a price."""
        return None if self.price is None else tokens * self.price / 1e6

    def document(self) -> dict[str, Any]:
        """Returns the JSON object."""
        total = sum(self.tokens)
        return {
            "tokens": total,
            "money": self.money(total),
            "price_per_million_tokens": self.price,
            "tokens_given": self.given,
            "tokens_estimated": len(self.tokens) - self.given,
            "answers_assumed": self.assumed,
        }


# -- Terminal ----------------------------------------------------------------------------------------------------------


def _print(found: dict[str, Any]) -> None:
    typer.echo("\n".join(_heading(found)))
    table = Table("policy", "hits %", "wrong % of hits", "not judged", "saved tokens", "saved money", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in found["by_policy"].items():
        rates = [_percent(one[rate], one[f"{rate}_interval"]) for rate in ("hit_rate", "wrong_per_hit")]
        unknown = f"{one['not_judged']:,}" if found["judged_by"] else "all"
        table.add_row(name, *rates, unknown, f"{one['saved_tokens']:,}", _money(one["saved_money"]))
    Console(width=120).print(table)
    typer.echo("\n".join(_explanation(found)))


def _heading(found: dict[str, Any]) -> list[str]:
    asked, in_file, chosen = found["questions"], found["questions_in_file"], found["by_policy"][found["policy"]]
    part = f"the first {asked:,} of {in_file:,} questions" if asked < in_file else f"{asked:,} questions"
    wrong = (
        f"; {_percent(chosen['wrong_per_hit'], chosen['wrong_per_hit_interval'])} % of these answers would be wrong"
        if chosen["wrong_per_hit"] is not None
        else ""
    )
    return [
        f"{found['file']}: {part}, threshold {found['threshold']:g}",
        f"With the policy {found['policy']}, {_percent(chosen['hit_rate'], chosen['hit_rate_interval'])} % of them "
        f"would be answered from the cache{wrong}.",
    ]


def _explanation(found: dict[str, Any]) -> list[str]:
    spent, repeated, reuse = found["spent"], found["repeated"], found["prefix_reuse"]
    price = f", money {_money(spent['money'])}" if spent["money"] is not None else ""
    lines = [
        f"Without a cache: {spent['tokens']:,} tokens{price}. Tokens of {spent['tokens_given']:,} questions are in the "
        f"file, of {spent['tokens_estimated']:,} estimated ({spent['answers_assumed']:,} with --answer-tokens).",
        f"Repeated questions: {repeated['questions']:,} ({100 * repeated['share']:.1f} %) equal an earlier one.",
        f"Ollama's prompt cache: without Ragherd it would reuse {100 * reuse['share']:.1f} % of the prompts' characters"
        f"{'' if reuse['prompts'] == 'logged' else ', if each prompt is the default system prompt and the question'}.",
    ]
    if not found["judged_by"]:
        lines.append("Wrong answers are not known: the file has no column answer or intent.")
    asked = [f"  {one['times']:>6,}  {_short(one['question'])}" for one in repeated["most_asked"]]
    return [*lines, *(["Most asked:", *asked] if asked else [])]


def _percent(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def _short(question: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in question).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
