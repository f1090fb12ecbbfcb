"""Loads ONNX models with their tokenizers, and runs all-MiniLM-L6-v2 (int8): text in, unit vectors out. Synchronous.

The weights and the tokenizer come from a folder, or are the shipped ones. Errors name the setting.

`UnreadWords` finds the parts of a text that the tokenizer did not pass to the model. Texts that differ only there look
the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import numpy as np
import orjson

from api.errors import SettingsError
from api.values import Embedding, Vector

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

UNKNOWN: Final = ("[UNK]", "<unk>")
"""The unknown token of WordPiece and SentencePiece vocabularies."""
VARIATION_SELECTORS: Final = "\ufe0e\ufe0f"
"""They select how a character is drawn, not which character it is."""
ACCENTED: Final = ("LATIN", "GREEK", "CYRILLIC")
"""Scripts in which a letter without accents is close to the accented one."""

Span = tuple[int, int]


class UnreadWords:
    """Inspects the encodings of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._unknown = frozenset(map(tokenizer.token_to_id, UNKNOWN)) - {None}
        normalizer = tokenizer.normalizer
        self._drops_marks = normalizer is not None and normalizer.normalize_str("\u2260") == "="

    def of(self, text: str, encoding: Encoding) -> tuple[str, ...]:
        """Returns what became an unknown token, lost its marks or was cut off, in order and case-folded.

        WordPiece does not know words of more than 100 letters. Linear in the length of `text`.
        """
        spans: list[Span] = []
        if not self._unknown.isdisjoint(encoding.ids):
            spans += (
                span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token in self._unknown
            )
        if self._drops_marks and not text.isascii():
            spans += _lost_marks(text)
        words = [text[start:end].casefold() for start, end in _runs(spans)]
        if encoding.overflowing:
            words.append(_cut_off(text, encoding.offsets))
        return tuple(words)


def _cut_off(text: str, offsets: Sequence[Span]) -> str:
    return text[max(end for _, end in offsets) :].strip().casefold()


def _runs(spans: Iterable[Span]) -> list[Span]:
    """Merges spans that touch or overlap, in order."""
    runs: list[Span] = []
    for start, end in sorted(spans):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs


def _lost_marks(text: str) -> Iterator[Span]:
    """Yields characters whose dropped marks change their meaning: Devanagari vowels, voiced kana, not-equals."""
    base = 0
    for place, character in enumerate(text):
        if character.isascii():
            base = place
            continue
        is_mark, is_marked = _marks(character)
        if not is_mark:
            base = place
        if (is_mark and not _is_accented(text[base])) or is_marked:
            yield base, place + 1


@lru_cache(maxsize=4096)
def _marks(character: str) -> tuple[bool, bool]:
    """Returns whether a character is a mark, and whether it decomposes into a base that is not an accented letter and a
    mark.
    """
    if character in VARIATION_SELECTORS:
        return False, False
    parts = unicodedata.normalize("NFD", character)
    is_marked = any(unicodedata.category(one) == "Mn" for one in parts[1:]) and not _is_accented(parts[0])
    return unicodedata.category(character) == "Mn", is_marked


@lru_cache(maxsize=4096)
def _is_accented(base: str) -> bool:
    return base.isalpha() and unicodedata.name(base, "").startswith(ACCENTED)


INSTALL: Final = "needs packages that are not installed: pip install 'ragherd[onnx]'"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of the weights and their tokenizer."""

    weights: Path
    tokenizer: Path


def files_at(path: str, setting: str) -> ModelFiles:
    """Returns the files at `path`: a folder with model.onnx and tokenizer.json, or the weights with tokenizer.json next
    to them.

    Raises `SettingsError` that names what is missing. Loads nothing.
    """
    given = Path(path)
    weights = given / "model.onnx" if given.is_dir() else given
    files = ModelFiles(weights, weights.with_name("tokenizer.json"))
    for file in (files.weights, files.tokenizer):
        if not file.is_file():
            raise SettingsError(f"{setting}: file not found: {file}")
    return files


def load_tokenizer(path: Path, setting: str, max_tokens: int | None = None) -> Tokenizer:
    """Loads a tokenizer without padding. It truncates at `max_tokens`; None keeps the limit of the file."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SettingsError(f"{setting}: {INSTALL}") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every fault of the file
        raise SettingsError(f"{setting}: cannot load the tokenizer {path}: {error}") from error
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


_shared: Final[WeakValueDictionary[bytes, Tokenizer]] = WeakValueDictionary()


def shared_tokenizer(path: Path, setting: str) -> Tokenizer:
    """Loads a tokenizer that truncates nothing. Models with equal vocabularies share it, so do not change it.

    A tokenizer takes 8 MB. Those of the shipped models differ in how they truncate and pad only.
    """
    key = b""
    with suppress(OSError, ValueError, TypeError):  # `load_tokenizer` says what is wrong with the file
        own = orjson.loads(path.read_bytes()) | {"truncation": None, "padding": None}
        key = hashlib.sha256(orjson.dumps(own)).digest()
    tokenizer = _shared.get(key)
    if tokenizer is None:
        tokenizer = load_tokenizer(path, setting)
        tokenizer.no_truncation()
        if key:
            _shared[key] = tokenizer
    return tokenizer


def load_session(path: Path, setting: str) -> InferenceSession:
    """Loads a model with one computing thread, because a machine runs several workers.

    From 1.29 on, onnxruntime sends usage data to Microsoft and stores an identifier below HOME, unless the environment
    variable is set before the import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise SettingsError(f"{setting}: {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors share no public base below Exception
        raise SettingsError(f"{setting}: cannot load the ONNX model {path}: {error}") from error
    _return_free_memory()
    return session


def _return_free_memory() -> None:
    """Returns to the system what loading has freed, about 14 MB of a model. Only glibc's allocator has to be told."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


SETTING: Final = "EMBED_MODEL_PATH"
DIMENSION: Final = 384
MAX_TOKENS: Final = 256
"""The longest input of the model, including the tokens at both ends."""
MARKS: Final = 2
RUN_TOKENS: Final = 512
"""Tokens of one run of the model, unless a text is longer. 8,192 tokens took 20 % more time for each text, and the
runtime kept 290 MB for them.
"""
SHIPPED: Final = Path(__file__).with_name("weights") / "minilm-l6-v2"
"""Written by scripts/export_embedder.py."""
NOT_INSTALLED: Final = f"EMBEDDER: 'onnx' {INSTALL}"


def model_files(path: str | None) -> ModelFiles:
    """Returns the files of EMBED_MODEL_PATH, or the shipped ones.

    The path is a folder, or the weights with tokenizer.json next to them. Raises `SettingsError` that names a missing
    file or package. Loads nothing.
    """
    if path is None:
        return _shipped_files()
    return files_at(path, SETTING)


def _shipped_files() -> ModelFiles:
    missing = [name for name in ("onnxruntime", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(f"{NOT_INSTALLED} ({', '.join(missing)})")
    return files_at(str(SHIPPED), SETTING)


class MiniLM:
    """The loaded encoder: about 25 MB of weights, one computing thread per call. Thread-safe."""

    name: Final = "all-MiniLM-L6-v2-int8"
    dimension: Final = DIMENSION

    def __init__(self, files: ModelFiles) -> None:
        """Loads the model (about half a second). Raises `SettingsError` for missing packages or invalid files."""
        self._weights = files.weights
        self.tokenizer: Final = shared_tokenizer(files.tokenizer, SETTING)
        self._unread = UnreadWords(self.tokenizer)
        self._session = _load_session(files.weights)
        self._inputs = {node.name for node in self._session.get_inputs()}

    @cached_property
    def digest(self) -> str:
        """The first 12 hex digits of the weights' SHA-256 (20 ms, once)."""
        with self._weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

    def encode(self, texts: Sequence[str]) -> list[Vector]:
        """Returns only the vectors of `embed`."""
        return [embedding.vector for embedding in self.embed(texts)]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Returns one embedding per text, in order. Text after 256 tokens is cut off and reported as unread.

        Texts of equal length run together, so no text is padded. The shipped model quantizes each token alone, so a
        vector does not depend on the other texts of a batch.
        """
        # A lone surrogate (JSON may contain one) is not valid text, but must not fail the whole batch.
        valid = [text.encode("utf-8", "replace").decode() for text in texts]
        encodings = [self._encoded(text) for text in valid]
        tokens = [encoding.ids for encoding in encodings]
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for place, ids in enumerate(tokens):
            by_length[len(ids)].append(place)
        vectors: list[Vector] = [b""] * len(tokens)
        for length, places in by_length.items():
            most = max(1, RUN_TOKENS // length)
            for start in range(0, len(places), most):
                group = places[start : start + most]
                rows = self._run(np.array([tokens[place] for place in group], dtype=np.int64))
                for place, row in zip(group, rows, strict=True):
                    vectors[place] = row.tobytes()
        unread = map(self._unread.of, valid, encodings)
        return [Embedding(vector, words) for vector, words in zip(vectors, unread, strict=True)]

    def count_tokens(self, text: str) -> int:
        """Returns the number of tokens of the whole text, without the tokens at its ends. Thread-safe."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _encoded(self, text: str) -> Encoding:
        """Cuts off here, because `count_tokens` needs the same tokenizer without a limit (a second one takes 8 MB)."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(MAX_TOKENS - self.tokenizer.num_special_tokens_to_add(False))
        return self.tokenizer.post_process(encoding)

    def _run(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Maps (texts, tokens) IDs to (texts, 384) little-endian float32 rows of unit length."""
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(
            ["last_hidden_state"], {name: feed[name] for name in feed if name in self._inputs}
        )
        mean = hidden.mean(axis=1)  # without padding the masked mean is the mean
        unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        rows: np.ndarray[Any, np.dtype[np.float32]] = unit.astype("<f4")
        return rows


def _load_session(path: Path) -> InferenceSession:
    session = load_session(path, SETTING)
    shapes = {node.name: node.shape for node in session.get_outputs()}
    if shapes.get("last_hidden_state", [None])[-1] != DIMENSION:
        raise SettingsError(f"{SETTING}: {path} has no output last_hidden_state of {DIMENSION} dimensions")
    return session
