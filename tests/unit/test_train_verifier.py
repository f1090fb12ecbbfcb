"""`ragherd train-verifier`: real trainings of a tiny model, its files, and errors of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from api.embedders.minilm import files_at
from api.embedders.reranker import CrossEncoder, TextPair
from ragherd.commands import commands
from tests.support.tiny_verifier import learnable_pairs, tiny_model, tiny_weights
from training.model_folder import digest, read_info, read_model
from training.pairs import Pair

pytestmark = pytest.mark.slow
TRAINS_ALIKE = pytest.mark.once(reason="JAX compiles and trains; Python only calls it")

jax = pytest.importorskip("jax", reason="training needs the extra `train`")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(commands, ["train-verifier", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pads all batches alike: JAX compiles a step for each length of a batch, which takes most of a training here."""
    monkeypatch.setattr("training.fit.LENGTHS", (88,))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "base")


def test_the_onnx_model_computes_what_the_network_does(base: Path) -> None:
    import onnxruntime

    from training import onnx_file
    from training.network import Tokens, logits

    random = np.random.default_rng(1)
    ids = random.integers(4, 44, (3, 12))
    types, mask = np.zeros_like(ids), np.ones_like(ids)
    types[:, 6:] = 1
    mask[2, 9:] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    weights = tiny_weights()
    expected = np.asarray(logits(weights, Tokens(ids, types, mask)))
    exact = onnxruntime.InferenceSession(onnx_file.build(weights).SerializeToString())
    assert exact.run(None, feed)[0][:, 0] == pytest.approx(expected, abs=1e-5)
    int8 = onnxruntime.InferenceSession(str(base / "model.onnx")).run(None, feed)[0][:, 0]
    assert int8 == pytest.approx(expected, abs=0.02)


def test_a_score_does_not_depend_on_the_other_pairs_of_a_batch(base: Path) -> None:
    from training.scoring import Scorer

    pairs = [Pair(f"w{number} w3", f"w{number + 1} w{number}", True) for number in range(9)]
    scorer = Scorer(base)
    alone = [float(scorer.logits([pair])[0]) for pair in pairs]
    assert scorer.logits(pairs).tolist() == pytest.approx(alone, abs=1e-6)


def test_workers_can_load_the_folder_and_agree_on_its_version(base: Path) -> None:
    encoder = CrossEncoder(files_at(str(base), "TEST"))
    assert encoder.digest == digest(base) == read_info(base)["version"]
    assert encoder.max_tokens == 128
    assert 0 < encoder.score([TextPair("w1 w2", "w3")])[0] < 1


def test_weights_survive_the_file(base: Path, tmp_path: Path) -> None:
    """Training starts from the int8 model that ships. A second round loses nothing."""
    once = read_model(base)
    for name, array in tiny_weights().items():
        assert once[name] == pytest.approx(array, abs=float(np.abs(array).max()) / 100), name
    from training import onnx_file

    onnx_file.write(once, tmp_path / "again.onnx")
    again = onnx_file.read(tmp_path / "again.onnx")
    assert all(np.allclose(again[name], once[name], atol=1e-6) for name in once)
    assert (tmp_path / "again.onnx").stat().st_size == (base / "model.onnx").stat().st_size


@TRAINS_ALIKE
def test_a_model_that_learns_is_taken(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tune.RATE", 2e-3)  # so that random weights learn in seconds
    monkeypatch.setattr("training.fit.LENGTHS", (16, 88))  # two of seven: see `one_length`
    pairs = learnable_pairs(tmp_path / "pairs.jsonl", 1200)
    out = tmp_path / "new"
    result = run("--pairs", pairs, "--start", base, "--used", base, "--out", out, "--epochs", 4, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["held_out"]["better"]
    assert found["held_out"]["new"]["auc"] > found["held_out"]["used"]["auc"] + 0.05
    assert found["used"] == digest(base)
    assert not found["activated"]
    info = read_info(out)
    assert info["base"] == digest(base)
    assert info["trained_on"]["own pairs"] > 600
    assert set(info["calibration"]) == {"a", "b"}
    assert found["version"] == info["version"] == digest(out)


@pytest.mark.usefixtures("one_length")
@TRAINS_ALIKE
def test_a_model_that_learns_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    """Labels at random: the new model is as good as the old one at most."""
    pairs = learnable_pairs(tmp_path / "pairs.jsonl", 600, shuffled=True)
    result = run("--pairs", pairs, "--start", base, "--used", base, "--out", tmp_path / "new", "--epochs", 1)
    assert result.exit_code == 1, result.output
    assert "not better: log-loss" in result.stdout
    assert f"the new model is not better: {digest(base)} stays in use" in result.stderr


@pytest.mark.usefixtures("one_length")
@TRAINS_ALIKE
def test_the_same_seed_trains_the_same_model(base: Path, tmp_path: Path) -> None:
    pairs = learnable_pairs(tmp_path / "pairs.jsonl", 400)
    options = ("--pairs", pairs, "--start", base, "--used", base, "--epochs", 0.2, "--json")
    versions = {json.loads(run(*options, "--out", tmp_path / name).stdout)["version"] for name in ("a", "b")}
    assert len(versions) == 1
    other = json.loads(run(*options, "--out", tmp_path / "c", "--seed", 5).stdout)["version"]
    assert other not in versions


def test_layers_can_be_dropped(tmp_path: Path) -> None:
    from training.network import layer_count, shallower

    deep = tiny_weights(layers=6)
    shallow = shallower(deep, 3)
    assert layer_count(shallow) == 3
    assert shallow["layers.1.wide.weight"] is deep["layers.2.wide.weight"]
    with pytest.raises(ValueError, match="cannot make 6 layers from a model of 3"):
        shallower(shallow, 6)
    pairs = learnable_pairs(tmp_path / "pairs.jsonl", 400)
    base = tiny_model(tmp_path / "base")
    result = run("--pairs", pairs, "--start", base, "--used", base, "--out", tmp_path / "new", "--layers", 6)
    assert result.exit_code == 1
    assert result.stderr == "ragherd: cannot make 6 layers from a model of 2\n"


@pytest.mark.parametrize("options", [(), ("--pairs", "x", "--from-redis"), ("--data", "x", "--roll-back")])
def test_exactly_one_source_of_pairs_is_needed(options: tuple[str, ...]) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert result.stderr == "ragherd: give one of --pairs, --from-redis, --data and --roll-back\n"


def test_bad_input_is_one_line_on_standard_error(base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": "A?"}\n')
    few = learnable_pairs(tmp_path / "few.jsonl", 3)
    pairs = learnable_pairs(tmp_path / "pairs.jsonl", 300)
    (tmp_path / "other").mkdir()
    for options, line in (
        (("--pairs", tmp_path / "none.jsonl"), "cannot read"),
        (("--pairs", tmp_path / "bad.jsonl"), "line 1"),
        (("--pairs", few, "--start", base, "--used", base), "too few pairs: no"),
        (("--pairs", pairs, "--start", tmp_path / "other", "--used", base), "has no model.onnx"),
        (("--pairs", pairs, "--start", base, "--used", tmp_path / "other"), "tokenizer"),
        (("--data", tmp_path / "other"), "banking77_train.csv"),
    ):
        result = run(*options, "--out", tmp_path / "new")
        assert result.exit_code == 1, options
        assert line in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    result = run("--pairs", tmp_path / "pairs.jsonl", "--layers", 4)
    assert result.exit_code == 2
    assert result.stderr == "ragherd: --layers must be 3 or 6\n"


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def find(name: str) -> Any:
        return None if name == "jax" else object()

    monkeypatch.setattr("importlib.util.find_spec", find)
    result = run("--pairs", tmp_path / "pairs.jsonl")
    assert result.exit_code == 2
    assert "pip install 'ragherd[train]'" in result.stderr
