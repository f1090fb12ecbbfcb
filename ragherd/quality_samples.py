"""Reads the files of `ragherd quality` and `ragherd analyse`.

Their columns decide whether they hold pairs, intents, or a log. The logs of Ragherd and of Ollama can be read, too.
"""

from __future__ import annotations

import codecs
import csv
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import orjson

T = TypeVar("T")
FOW: Final = "fow"
"""The name of the pairs of the package fow-cache."""
JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
LOG_SUFFIXES: Final = (".log", ".txt")
COLUMNS: Final = {
    "cached": ("a", "cached", "question1"),
    "asked": ("b", "asked", "question2"),
    "same": ("same", "same_answer", "is_duplicate"),
    "kind": ("kind", "category"),
    "question": ("question", "text", "query", "prompt"),
    "intent": ("intent", "category", "label"),
    "answer": ("answer", "response"),
}
"""The names of each column, in order of preference."""
TOKENS: Final = (
    ("total_tokens",),
    ("tokens",),
    ("prompt_tokens", "completion_tokens"),
    ("prompt_eval_count", "eval_count"),
)
"""Columns whose sum is the tokens of a request, in order of preference."""
FLAGS: Final = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "same"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", "different"), False),
}
DELIMITERS: Final = (",", ";", "\t")
"""Delimiters of CSV files. The most frequent one in the first line is used."""
MOST_QUESTIONS: Final = 50_000
"""Questions in a stream, because each is compared with all earlier ones."""

Kind = Literal["pairs", "intents", "log"]
Record = Mapping[str, Any]


class Unreadable(Exception):
    """The file cannot be used. The message is one line that names the file and the line."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The content of a file. `asked`: the questions.

    Pairs: `cached` has the question in the cache of each asked one, `same` whether one answer serves both, and `kinds`
    the kind of pair. Intents: `intents` has that of each question. Log: `answers` has the answers, empty if there are
    none. `prompts`: the whole prompts as the model got them, empty unless all are known. `tokens`: the tokens of each
    request, 0 if unknown, empty if none is known.
    """

    name: str
    kind: Kind
    asked: Sequence[str]
    cached: Sequence[str] = ()
    same: Sequence[bool] = ()
    kinds: Sequence[str] = ()
    intents: Sequence[str] = ()
    answers: Sequence[str] = ()
    prompts: Sequence[str] = ()
    tokens: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.asked)

    def sample(self, limit: int | None, seed: int, *, shuffled: bool) -> Samples:
        """Returns up to `limit` of the samples: the first ones, or a random choice in random order."""
        places = list(range(len(self)))
        if shuffled:
            random.Random(seed).shuffle(places)  # noqa: S311 - not a secret
        places = places[:limit]

        def chosen(column: Sequence[T]) -> Sequence[T]:
            return [column[place] for place in places] if column else ()

        return replace(
            self,
            asked=chosen(self.asked),
            cached=chosen(self.cached),
            same=chosen(self.same),
            kinds=chosen(self.kinds),
            intents=chosen(self.intents),
            answers=chosen(self.answers),
            prompts=chosen(self.prompts),
            tokens=chosen(self.tokens),
        )


def read_samples(file: str) -> Samples:
    """Reads a file, or the pairs of fow-cache. Raises `Unreadable`."""
    if file == FOW:
        return _as_pairs(FOW, ((f"{FOW}:{number}", record) for number, record in enumerate(_fow(), 1)))
    path = Path(file)
    try:
        first = next(records := read_records(path), None)
        if first is None:
            raise Unreadable(f"{file}: has no questions")
        return _as_samples(path.name, first, records)
    except OSError as error:
        raise Unreadable(f"{file}: {error.strerror or error}") from None


def _as_samples(name: str, first: tuple[str, Record], rest: Iterator[tuple[str, Record]]) -> Samples:
    records = chain([first], rest)
    where, record = first
    if all(_column(record, one) for one in ("cached", "asked", "same")):
        return _as_pairs(name, records)
    if not _column(record, "question"):
        found = ", ".join(record) or "nothing"
        raise Unreadable(f"{where}: needs the columns a, b, same, or question; found {found}")
    if _column(record, "intent"):
        return _as_intents(name, records)
    return _as_log(name, records)


def _fow() -> list[Record]:
    try:
        questions: list[Record] = import_module("fow_cache.data").load_questions()
    except ImportError:
        raise Unreadable("fow needs the package fow-cache: pip install fow-cache") from None
    return questions


# -- Formats of files --------------------------------------------------------------------------------------------------


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields where each record stands, such as `file.csv:2`, and its columns. Raises `Unreadable` and `OSError`."""
    if path.suffix in LOG_SUFFIXES:
        return _questions_asked(path, _log_lines(path))
    return _questions_asked(path, _json_lines(path)) if path.suffix in JSON_SUFFIXES else _csv(path)


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            head = file.readline()
            file.seek(0)
            yield from _rows(path, csv.DictReader(file, delimiter=max(DELIMITERS, key=head.count), strict=True))
        except UnicodeDecodeError:
            raise Unreadable(f"{path}:{_first_line_not_utf8(path)}: is not UTF-8") from None


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[str, Record]]:
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise Unreadable(f"{where}: has a different number of columns than the first line")
            yield where, row
    except csv.Error as error:
        raise Unreadable(f"{path}:{reader.reader.line_num}: is not CSV: {error}") from None


def _first_line_not_utf8(path: Path) -> int:
    """Decoding runs ahead of the reader, so its position says nothing."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = orjson.loads(line.decode())
            except UnicodeDecodeError:
                raise Unreadable(f"{path}:{number}: is not UTF-8") from None
            except orjson.JSONDecodeError as error:
                raise Unreadable(f"{path}:{number}: is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise Unreadable(f"{path}:{number}: must be a JSON object")
            yield f"{path}:{number}", record


# -- Logs of Ragherd and Ollama ----------------------------------------------------------------------------------------

_REQUEST: Final = re.compile(r'msg="(?:(?:chat|generate) request" (?:images=\d+ )?|completion request" )prompt=')
"""Precedes the prompt in Ollama's log with OLLAMA_DEBUG=2, and in old versions with OLLAMA_DEBUG=1."""
_OF_OLLAMA: Final = ("[GIN]", 'msg="completion request"')
_VALUE: Final = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"|([^"\s]\S*)')
_ESCAPED: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_CONTROL: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_USER: Final = re.compile(
    r"<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>|<start_of_turn>user\n|<\|turn>user\n|"
    r"<\|start\|>user<\|message\|>|<\|user\|>|<｜User｜>|\[INST\]"
)
"""Starts the user's turn in the templates of common models."""
_TURN_ENDS: Final = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<turn\|>|<\|end\|>|<\|assistant\|>|<｜Assistant｜>|\[/INST\]|</s>"
)


def _log_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields the records of a log. Its other lines are skipped, and so is what a log collector puts before them."""
    found, is_of_ollama = 0, False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            record = _logged(line)
            if record is not None and (_is_of_ragherd(record) or _column(record, "question")):
                found += 1
                yield f"{path}:{number}", record
            is_of_ollama = is_of_ollama or any(mark in line for mark in _OF_OLLAMA)
    if is_of_ollama and not found:
        raise Unreadable(f"{path}: the log does not show prompts: run Ollama with OLLAMA_DEBUG=2")


def _logged(line: str) -> Record | None:
    if (request := _REQUEST.search(line)) and (found := _VALUE.match(line, request.end())):
        prompt = _unquoted(found[1]) if found[1] is not None else found[2]
        question = _last_user_turn(prompt)
        return {"question": question, "whole_prompt": prompt} if question else None
    try:
        record = orjson.loads(line[line.index("{") :])
    except ValueError:  # no brace, or no JSON after it
        return None
    return record if isinstance(record, dict) else None


def _questions_asked(path: Path, records: Iterator[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
    """Yields the records, but of Ragherd's log only the answered questions."""
    found = hidden = 0
    for where, record in records:
        if not _is_of_ragherd(record):
            found += 1
            yield where, record
        elif _is_answered(record) and "question" in record:
            found += 1
            yield where, {"question": record["question"]}
        else:
            hidden += _is_answered(record)
    if hidden and not found:
        raise Unreadable(f"{path}: the log does not show questions: set LOG_QUESTIONS=true")


def _is_of_ragherd(record: Record) -> bool:
    return {"event", "logger", "pid"} <= record.keys()


def _is_answered(record: Record) -> bool:
    """Returns whether a line of Ragherd's log is about an answered question. Release 0.1 wrote `query` lines."""
    return record["event"] == "query" or (record["event"] == "request" and "cache" in record)


def _unquoted(text: str) -> str:
    """Decodes the text between Go's quotation marks."""

    def decoded(found: re.Match[str]) -> str:
        if found[4] is not None:
            return _CONTROL.get(found[4], found[4])
        return chr(min(int(found[1] or found[2] or found[3], 16), 0x10FFFF))

    return _ESCAPED.sub(decoded, text).encode("utf-8", "replace").decode()


def _last_user_turn(prompt: str) -> str:
    """Returns the user's last message in a prompt; all of a prompt whose template is not known."""
    *_, last = _USER.split(prompt)
    return _TURN_ENDS.split(last, maxsplit=1)[0].strip()


# -- Kinds of files ----------------------------------------------------------------------------------------------------


def _as_pairs(name: str, records: Iterable[tuple[str, Record]]) -> Samples:
    cached, asked, same, kinds = [], [], [], []
    for where, record in records:
        cached.append(_text(where, record, "cached"))
        asked.append(_text(where, record, "asked"))
        same.append(_flag(where, record))
        kinds.append(str(record[column]) if (column := _column(record, "kind")) else "")
    return Samples(name, "pairs", asked, cached, same, kinds)


def _as_intents(name: str, records: Iterable[tuple[str, Record]]) -> Samples:
    read = [(_text(where, one, "question"), _text(where, one, "intent"), _tokens(one)) for where, one in records]
    tokens = [count for _, _, count in read]
    return Samples(
        name,
        "intents",
        [question for question, _, _ in read],
        intents=[intent for _, intent, _ in read],
        tokens=tokens if any(tokens) else (),
    )


def _as_log(name: str, records: Iterable[tuple[str, Record]]) -> Samples:
    questions, answers, prompts, tokens = [], [], [], []
    for where, record in records:
        questions.append(_text(where, record, "question"))
        answers.append(str(record[column] or "").strip() if (column := _column(record, "answer")) else "")
        prompts.append(str(record.get("whole_prompt") or record.get("prompt") or ""))
        tokens.append(_tokens(record))
    return Samples(
        name,
        "log",
        questions,
        answers=answers if any(answers) else (),
        prompts=prompts if all(prompts) else (),
        tokens=tokens if any(tokens) else (),
    )


def _tokens(record: Record) -> int:
    """Returns the tokens of a request, 0 if the record does not say."""
    for names in TOKENS:
        counts = [str(record.get(name, "")).strip() for name in names]
        if all(one.isdecimal() and len(one) < 10 for one in counts):
            return sum(map(int, counts))
    return 0


def _column(record: Record, meaning: str) -> str | None:
    return next((name for name in COLUMNS[meaning] if name in record), None)


def _text(where: str, record: Record, meaning: str) -> str:
    column = _column(record, meaning)
    value = record[column] if column else None
    if meaning == "intent" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise Unreadable(f"{where}: {column or COLUMNS[meaning][0]} must be non-empty text")
    return value


def _flag(where: str, record: Record) -> bool:
    column = _column(record, "same")
    value = record[column] if column else None
    found = FLAGS.get(str(value).strip().lower())
    if found is None:
        raise Unreadable(f"{where}: {column or 'same'} must be 1 or 0, true or false; found {value!r}")
    return found
