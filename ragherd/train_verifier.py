"""`ragherd train-verifier`: trains the model that reads two questions and says whether one answer serves both."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from api.errors import SettingsError, StoreUnavailable
from api.settings import Settings, load_settings
from ragherd.exits import INTERRUPTED, USAGE_ERROR, exit_with

if TYPE_CHECKING:
    from api.ports.answer_quality import LabelledPair, VerifierFiles
    from training.fit import Progress
    from training.pairs import Pair, Split
    from training.tune import Outcome

Result = TypeVar("Result")

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
    from_redis: Annotated[bool, typer.Option("--from-redis", help="Use the pairs that the service kept.")] = False,
    data: Annotated[Path | None, typer.Option(help="Train the base model on the data sets in this folder.")] = None,
    start: Annotated[Path | None, typer.Option(help="Model to start from. Default: the base model.")] = None,
    used: Annotated[Path | None, typer.Option(help="Model to compare with. Default: the one in use.")] = None,
    layers: Annotated[int | None, typer.Option(help="3 or 6. Default: as many as the model to start from.")] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="How often each pair is seen. Default: 2; with --data 1.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time limit of the training.")] = 3600.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the new model.")] = Path("verifier"),
    activate: Annotated[bool, typer.Option("--activate", help="If the model is better, all workers load it.")] = False,
    roll_back: Annotated[bool, typer.Option("--roll-back", help="All workers load the previous model again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Train the verifier on your own questions, on one CPU thread.

    The new model is compared with the one in use on held-out pairs. The exit status is 1 if it is not better. Training
    takes minutes. The pairs come from a file, or from Redis if SEMANTIC_CACHE_KEEP_PAIRS is set.
    """
    if sum(map(bool, (pairs, from_redis, data, roll_back))) != 1:
        raise exit_with("give one of --pairs, --from-redis, --data and --roll-back", USAGE_ERROR)
    if roll_back:
        _roll_back()
        return
    if layers not in (None, *SIZES):
        raise exit_with("--layers must be 3 or 6", USAGE_ERROR)
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise exit_with(MISSING, USAGE_ERROR)
    training = Training(layers, epochs, seconds, seed, out, as_json)
    try:
        if data is not None:
            _train_base(data, start, training)
            return
        with TemporaryDirectory() as folder:
            read = _read(pairs)
            rival = used or _in_use(Path(folder), fleet=from_redis or activate)
            outcome = _tune(read, start, rival, training)
        activated = activate and outcome.comparison.better and _activate(out)
        _show(outcome, training, activated=activated)
    except KeyboardInterrupt:
        raise exit_with("interrupted; nothing was activated", INTERRUPTED) from None
    if not outcome.comparison.better:
        raise exit_with(f"the new model is not better: {outcome.used} stays in use")


def _read(file: Path | None) -> list[Pair]:
    """Reads the pairs of the file, or those that the service kept."""
    from training.pairs import InvalidPairs, from_kept, read_pairs

    try:
        return from_kept(_with_redis(_kept_pairs(_settings()))) if file is None else read_pairs(file)
    except InvalidPairs as error:
        raise exit_with(str(error)) from None


async def _kept_pairs(settings: Settings) -> Sequence[LabelledPair]:
    from api.redis_store.stores.label_store import PAIRS
    from api.wiring.backup import opened_labels

    async with opened_labels(settings) as labels:
        return await labels.pairs(PAIRS)


def _tune(pairs: list[Pair], start: Path | None, used: Path, training: Training) -> Outcome:
    from training.fit import single_threaded
    from training.model_folder import InvalidModel, installed
    from training.pairs import split
    from training.tune import EPOCHS, TooFewPairs, Wish, tune

    single_threaded()
    parts = split(pairs)
    _say(f"{len(pairs):,} pairs: {_parts(parts)}", training)
    wish = Wish(
        start or installed(None),
        used,
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


def _train_base(data: Path, start: Path | None, training: Training) -> None:
    from training.base import BaseWish, train_base
    from training.fit import single_threaded

    single_threaded()
    wish = BaseWish(
        data,
        training.out,
        training.layers or 6,
        training.epochs or 1.0,
        training.seconds,
        training.seed,
        start,
    )
    try:
        outcome = train_base(wish, _reporter(training))
    except (OSError, ValueError) as error:
        raise exit_with(str(error)) from None
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    if training.as_json:
        typer.echo(json.dumps({"version": outcome.version, **outcome.figures}))
    else:
        typer.echo(f"{training.out}: version {outcome.version}, on held-out intents {outcome.figures}")


def _in_use(folder: Path, *, fleet: bool) -> Path:
    """Returns the model in use: that of the fleet, written to `folder`, or that of SEMANTIC_CACHE_VERIFIER_PATH."""
    from training.model_folder import installed, write_files

    settings = _settings()
    files = _with_redis(_fleets_files(settings)) if fleet else None
    if files is not None:
        write_files(folder, files)
        return folder
    return installed(settings.cache.verifier_path)


async def _fleets_files(settings: Settings) -> VerifierFiles | None:
    from api.wiring.backup import opened_verifier_models

    async with opened_verifier_models(settings) as models:
        digest = await models.active()
        return await models.read(digest) if digest else None


def _activate(model: Path) -> bool:
    """Puts the model in use on all workers."""
    from api.wiring.backup import activate_verifier

    _with_redis(activate_verifier(_settings(), model))
    return True


def _roll_back() -> None:
    from api.wiring.backup import roll_back_verifier

    version = _with_redis(roll_back_verifier(_settings()))
    if version is None:
        raise exit_with("no model has been activated")
    typer.echo(f"Workers load {version or f'the model of {VERIFIER_PATH}'} within two seconds.")


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None


def _with_redis(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return asyncio.run(work)
    except (SettingsError, StoreUnavailable) as error:
        raise exit_with(str(error)) from None


def _show(outcome: Outcome, training: Training, *, activated: bool) -> None:
    if training.as_json:
        described = {
            "version": outcome.version,
            "used": outcome.used,
            "out": str(training.out),
            "activated": activated,
            "trained_on": outcome.trained_on,
            "held_out": outcome.comparison.described(),
        }
        typer.echo(json.dumps(described))
        return
    typer.echo(f"{training.out}: version {outcome.version}, {outcome.comparison.verdict}")
    if activated:
        typer.echo("Activated: all workers load it within two seconds.")


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
