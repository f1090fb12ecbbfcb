"""`ragherd train-verifier`: trains the model that reads two questions and says whether one answer serves both."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from api.cli.main import INTERRUPTED, USAGE_ERROR, exit_with
from api.errors import SettingsError, StoreUnavailable
from api.settings import load_settings

if TYPE_CHECKING:
    from training.fit import Progress
    from training.pairs import Pair, Split
    from training.tune import Outcome

PACKAGES: Final = ("jax", "onnx", "onnxruntime", "optax", "safetensors", "tokenizers")
MISSING: Final = "train-verifier needs packages that are not installed: pip install 'ragherd[train]'"
SIZES: Final = (3, 6)
"""Layers. With 3, training and scoring take half the time and the model errs more."""
VERIFIER_PATH: Final = "SEMANTIC_CACHE_VERIFIER_PATH"


@dataclass(frozen=True, slots=True)
class Training:
    """The options that all ways of training share."""

    layers: int | None
    epochs: float | None
    seconds: float
    seed: int
    out: Path
    as_json: bool


def train_verifier(
    pairs: Annotated[Path | None, typer.Option(help='JSON Lines: {"a", "b", "same": true or false}.')] = None,
    from_redis: Annotated[bool, typer.Option("--from-redis", help="The pairs that the service kept.")] = False,
    data: Annotated[Path | None, typer.Option(help="Train the base model on the data sets in this folder.")] = None,
    start: Annotated[Path | None, typer.Option(help="Model to start from. Default: the base model.")] = None,
    used: Annotated[Path | None, typer.Option(help="Model in use, to compare with. Default: the base model.")] = None,
    layers: Annotated[int | None, typer.Option(help="3 or 6. Default: as many as the model to start from.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="How often each pair is seen.")] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time limit of the training.")] = 3600.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the new model.")] = Path("verifier"),
    activate: Annotated[bool, typer.Option("--activate", help="If the model is better, all workers load it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Train the verifier on your own questions, on one CPU thread.

    The new model is compared with the one in use on held-out pairs. The exit status is 0 only if it is better. Training
    takes minutes. The pairs come from a file, or from Redis if SEMANTIC_CACHE_KEEP_PAIRS is set.
    """
    if sum(map(bool, (pairs, from_redis, data))) != 1:
        raise exit_with("give one of --pairs, --from-redis and --data", USAGE_ERROR)
    if layers not in (None, *SIZES):
        raise exit_with("--layers must be 3 or 6", USAGE_ERROR)
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise exit_with(MISSING, USAGE_ERROR)
    training = Training(layers, epochs, seconds, seed, out, as_json)
    try:
        if data is not None:
            _train_base(data, training)
            return
        versions = _versions() if activate else None
        outcome = _tune(_read(pairs), start, used, training)
        placed = _activated(out, versions) if versions is not None and outcome.comparison.better else None
        _show(outcome, training, placed)
    except KeyboardInterrupt:
        raise exit_with("interrupted; nothing was activated", INTERRUPTED) from None
    if not outcome.comparison.better:
        raise exit_with(f"the new model is not taken. The one in use, {outcome.used}, stays")


def _read(file: Path | None) -> list[Pair]:
    """Reads the pairs of the file, or those that the service kept."""
    from training.pairs import InvalidPairs, read_pairs

    try:
        return asyncio.run(_kept_pairs()) if file is None else read_pairs(file)
    except (InvalidPairs, StoreUnavailable) as error:
        raise exit_with(str(error)) from None
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None


async def _kept_pairs() -> list[Pair]:
    from api.redis_store.stores.labels import PAIRS
    from api.wiring.backup import opened_labels
    from training.pairs import from_kept

    async with opened_labels(load_settings()) as labels:
        return from_kept(await labels.pairs(PAIRS))


def _tune(pairs: list[Pair], start: Path | None, used: Path | None, training: Training) -> Outcome:
    from training.activation import SHIPPED
    from training.fit import single_threaded
    from training.model_folder import InvalidModel
    from training.pairs import split
    from training.tune import EPOCHS, TooFewPairs, Wish, tune

    single_threaded()
    parts = split(pairs)
    _say(f"{len(pairs):,} pairs: {_parts(parts)}", training)
    wish = Wish(
        start or SHIPPED,
        used or SHIPPED,
        training.out,
        training.layers,
        training.epochs or EPOCHS,
        training.seconds,
        training.seed,
    )
    try:
        return tune(parts, wish, _reporter(training))
    except (TooFewPairs, InvalidModel, ValueError) as error:
        raise exit_with(str(error)) from None


def _train_base(data: Path, training: Training) -> None:
    from training.base import BaseWish, train_base
    from training.fit import single_threaded

    single_threaded()
    wish = BaseWish(data, training.out, training.layers or 6, training.epochs or 1.0, training.seconds, training.seed)
    try:
        outcome = train_base(wish, _reporter(training))
    except OSError as error:
        raise exit_with(str(error)) from None
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    if training.as_json:
        typer.echo(json.dumps({"version": outcome.version, **outcome.figures}))
    else:
        typer.echo(f"{training.out}: version {outcome.version}, on held-out intents {outcome.figures}")


def _versions() -> Path:
    """Returns the folder that workers load versions from, before the training: its absence would waste minutes."""
    path = os.environ.get(VERIFIER_PATH)
    if not path:
        raise exit_with(f"--activate needs {VERIFIER_PATH}, the folder that workers load it from", USAGE_ERROR)
    return Path(path)


def _activated(model: Path, folder: Path) -> Path:
    """Makes the model available to all workers and returns where its files are."""
    from training.activation import place
    from training.model_folder import InvalidModel

    try:
        return place(model, folder)
    except (InvalidModel, OSError) as error:
        raise exit_with(f"not activated: {error}") from None


def _show(outcome: Outcome, training: Training, placed: Path | None) -> None:
    if training.as_json:
        described = {
            "version": outcome.version,
            "used": outcome.used,
            "out": str(training.out),
            "activated": placed is not None,
            "trained_on": outcome.trained_on,
            "held_out": outcome.comparison.described(),
        }
        typer.echo(json.dumps(described))
        return
    typer.echo(f"{training.out}: version {outcome.version}, {outcome.comparison.verdict}")
    if placed is not None:
        typer.echo(f"Activated. Workers load {placed} within a second.")


def _say(line: str, training: Training) -> None:
    if not training.as_json:
        typer.echo(line)


def _parts(parts: Split) -> str:
    return f"{len(parts.train):,} to train, {len(parts.calibration):,} to calibrate, {len(parts.held_out):,} held out"


def _reporter(training: Training) -> Callable[[Progress], None]:
    """Returns a function that prints the progress."""

    def report(progress: Progress) -> None:
        _say(f"step {progress.step:,}, loss {progress.loss:.3f}, {progress.seconds:.0f} s", training)

    return report
