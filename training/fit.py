"""Trains the verifier's network on one CPU thread: AdamW, a warm-up and a decay, and averaged weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from training.pairs import Pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from training.network import Tokens, Weights

MAX_TOKENS: Final = 40
"""Of each question in training. The trained model reads longer ones."""
LENGTHS: Final = (16, 24, 32, 40, 48, 64, 88)
FROZEN: Final = ("embed.words", "embed.positions")
"""Half of the network's numbers. Few words of a data set move them, and those would move away from all others."""
BATCH: Final = 32
SORTED_BATCHES: Final = 40
"""The number of batches that are sorted by length at a time, so that few tokens are padding."""
SMOOTHING: Final = 0.02
"""Labels are 0.02 and 0.98: some are wrong."""
REPORT_EVERY: Final = 50
KEEP_EVERY: Final = 100
WARM_UP: Final = 0.05
PACE_AFTER: Final = 20
"""Steps. Earlier ones also compile, and say little about how long all will take."""
SOURCE_WEIGHTS: Final = {"paws": 0.7, "advising": 0.7, "banking77": 0.8, "clinc150": 0.8, "edit-synonym": 0.5}


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train. Training ends at the first limit."""

    steps: int
    seconds: float = float("inf")
    rate: float = 1.3e-4
    head_rate: float = 6e-4
    dropout: float = 0.1
    decay: float = 0.01
    averaged: float = 0.998
    """The share of the averaged weights that stays at a step."""
    seed: int = 0
    lengths: tuple[int, ...] = LENGTHS
    """Batches are padded to these, because each length is compiled once."""
    either_order: bool = True
    """Whether the two texts of a pair are of one kind, so that either may come first."""
    frozen: tuple[str, ...] = FROZEN
    """The starts of the names of weights that are not trained."""


class Progress(NamedTuple):
    """What a caller may print."""

    step: int
    seen: int
    loss: float
    seconds: float


class Example(NamedTuple):
    """A tokenized pair."""

    first: list[int]
    second: list[int]
    same: bool
    weight: float


def single_threaded() -> None:
    """Makes JAX compute in one thread. Call it before JAX is imported: the service needs the other cores."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer that neither pads nor truncates."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the IDs of the tokens at the start and after each question."""
    ids = tokenizer.encode("").ids
    return ids[0], ids[-1]


def tokenize(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Example]:
    """Returns the pairs as token IDs without the tokens at their ends."""
    firsts = tokenizer.encode_batch([pair.first for pair in pairs], add_special_tokens=False)
    seconds = tokenizer.encode_batch([pair.second for pair in pairs], add_special_tokens=False)
    return [
        Example(first.ids[:MAX_TOKENS], second.ids[:MAX_TOKENS], pair.same, SOURCE_WEIGHTS.get(pair.source, 1.0))
        for pair, first, second in zip(pairs, firsts, seconds, strict=True)
    ]


def to_tokens(
    examples: Sequence[Example],
    ends: tuple[int, int],
    random: Random | None = None,
    lengths: Sequence[int] = LENGTHS,
) -> Tokens:
    """Pads a batch to one of `lengths`. With `random` each pair is in either order: sameness has no direction."""
    from training.network import Tokens

    start, separator = ends
    longest = max(len(one.first) + len(one.second) for one in examples) + 3
    length = next((limit for limit in lengths if limit >= longest), longest)
    ids, types, mask = (np.zeros((len(examples), length), np.int32) for _ in range(3))
    for row, one in enumerate(examples):
        first, second = one.first, one.second
        if random is not None and random.random() < 0.5:
            first, second = second, first
        tokens = [start, *first, separator, *second, separator]
        ids[row, : len(tokens)] = tokens
        types[row, len(first) + 2 : len(tokens)] = 1
        mask[row, : len(tokens)] = 1
    return Tokens(ids, types, mask)


def fit(
    weights: Weights,
    examples: Sequence[Example],
    ends: tuple[int, int],
    plan: TrainingPlan,
    report: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    keep: Callable[[Weights], None] = lambda _: None,
) -> Weights:
    """Returns the averaged trained weights. `ends` are the IDs of the tokens [CLS] and [SEP].

    `keep` gets the averaged weights of every `KEEP_EVERY` steps: a long training that is stopped leaves them.
    """
    import jax

    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    random = Random(plan.seed)
    frozen = {name: jax.numpy.asarray(one) for name, one in weights.items() if name.startswith(plan.frozen)}
    trained = {name: jax.numpy.asarray(one) for name, one in weights.items() if name not in frozen}
    averaged = jax.tree.map(jax.numpy.copy, trained)
    optimizer, step = _step(frozen, plan)
    state = optimizer.init(trained)
    key = jax.random.key(plan.seed)
    began, losses, seen = clock(), [], 0
    for number, batch in enumerate(_batches(examples, random)):
        done = _done(number, clock() - began, plan)
        if done >= 1:
            break
        rate = min(1.0, done / WARM_UP + 1e-3) * max(0.02, 1 - done)
        labels = np.array([SMOOTHING if not one.same else 1 - SMOOTHING for one in batch], np.float32)
        shares = np.array([one.weight for one in batch], np.float32)
        share = np.float32(min(plan.averaged, (1 + number) / (10 + number)))
        key, drop = jax.random.split(key)
        tokens = to_tokens(batch, ends, random if plan.either_order else None, plan.lengths)
        trained, averaged, state, loss = step(
            trained, averaged, state, tokens, labels, shares, np.float32(rate), share, drop
        )
        losses.append(float(loss))
        seen += len(batch)
        if (number + 1) % REPORT_EVERY == 0:
            report(Progress(number + 1, seen, float(np.mean(losses[-REPORT_EVERY:])), clock() - began))
        if (number + 1) % KEEP_EVERY == 0:
            keep(_arrays(averaged | frozen))
    return _arrays(averaged | frozen)


def _arrays(weights: Weights) -> Weights:
    return {name: np.asarray(one) for name, one in weights.items()}


def _done(number: int, elapsed: float, plan: TrainingPlan) -> float:
    """Returns the share of the training that is done: of the steps, or of the time if that will end first.

    Where the time suffices it has no influence, so equal seeds train equal models.
    """
    if elapsed >= plan.seconds:
        return 1.0
    if number < PACE_AFTER or elapsed / number * plan.steps <= plan.seconds:
        return number / plan.steps
    return max(number / plan.steps, elapsed / plan.seconds)


def _step(frozen: Weights, plan: TrainingPlan) -> tuple[Any, Any]:
    """Returns the optimizer and the compiled step."""
    import jax
    import optax

    from training.network import logits

    def part(trained: Weights) -> dict[str, str]:
        return {name: "head" if name.startswith("head.") else "encoder" for name in trained}

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {
                "head": optax.adamw(plan.head_rate, weight_decay=plan.decay),
                "encoder": optax.adamw(plan.rate, weight_decay=plan.decay),
            },
            part,
        ),
    )

    def loss_of(trained: Weights, tokens: Tokens, labels: Any, shares: Any, drop: Any) -> Any:
        found = logits(trained | frozen, tokens, plan.dropout, drop)
        return (optax.sigmoid_binary_cross_entropy(found, labels) * shares).mean()

    def step(
        trained: Weights, averaged: Weights, state: Any, tokens: Tokens, labels: Any, shares: Any, rate: Any, keep: Any,
        drop: Any,
    ) -> tuple[Weights, Weights, Any, Any]:  # fmt: skip
        loss, gradients = jax.value_and_grad(loss_of)(trained, tokens, labels, shares, drop)
        updates, state = optimizer.update(gradients, state, trained)
        trained = jax.tree.map(lambda old, update: old + rate * update, trained, updates)
        averaged = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, averaged, trained)
        return trained, averaged, state, loss

    return optimizer, jax.jit(step, donate_argnums=(0, 1, 2))


def _batches(examples: Sequence[Example], random: Random) -> Iterator[list[Example]]:
    """Yields batches of like length without end, each example once an epoch."""
    size = min(BATCH, len(examples))
    while True:
        shuffled = random.sample(examples, len(examples))
        for start in range(0, len(shuffled), size * SORTED_BATCHES):
            chunk = sorted(
                shuffled[start : start + size * SORTED_BATCHES], key=lambda one: len(one.first) + len(one.second)
            )
            batches = [chunk[place : place + size] for place in range(0, len(chunk), size)]
            random.shuffle(batches)
            yield from (batch for batch in batches if len(batch) == size)
