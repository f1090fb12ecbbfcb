"""Reads an answer into its statements (sentences, list items, lines of code) and the facts that each one states.

Reading is pure and takes time linear in the answer's length. It drops what says nothing: greetings, offers of help,
Markdown, the numbers of list items, and citations, which are kept apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal

from api.guards.names import TITLES, Scope, read_scope
from api.guards.negation import Poles, read_opposites
from api.guards.order import Order, read_order
from api.guards.vocabulary import CLASSES, FUNCTION_WORDS, NUMBER_WORDS, stem
from api.guards.words import Words, read_words, squash
from api.languages.english_words import COMMON
from api.quality.answer_words import AXIS_OF, HARMLESS, LIGHT, NEGATIVE, NEGATORS
from api.quality.quantities import read_quantities
from api.quality.units import Quantity
from api.unicode_text import nfc
from api.values import Source

MAX_CHARACTERS: Final = 16_000
"""Characters of an answer that are read. Of a longer one the beginning and the end are read."""
MAX_QUESTION: Final = 2_000
MAX_STATEMENT: Final = 1_000
"""Characters of a statement that are read."""
MAX_STATEMENTS: Final = 80
"""Statements of an answer that are compared."""

MAX_FACTS: Final = 200
"""Amounts of an answer that are compared, and as many names: each is compared with each one of the other answer."""

StatementKind = Literal["sentence", "item", "step", "code"]


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer as it was given. `sources`: its passages, of which `[1]` cites the first."""

    question: str
    text: str
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence, list item or line of code, and its facts. `weight`: its content words."""

    text: str
    kind: StatementKind
    words: tuple[str, ...]
    """All words in lower case."""
    content: tuple[str, ...]
    """Stems of the words that carry content, in order."""
    core: tuple[str, ...]
    """Its content words, as written, that neither the question has nor every sentence may have."""
    quantities: tuple[Quantity, ...]
    names: frozenset[str]
    """Words typed as names inside the sentence, codes and identifiers."""
    negated: bool
    poles: Poles
    scope: Scope
    order: Order
    axes: dict[str, frozenset[str]] = field(default_factory=dict)
    """How strongly it is stated: what it says about duty, frequency and extent."""
    english: bool = True

    @property
    def stems(self) -> frozenset[str]:
        """The content words without their order."""
        return frozenset(self.content)


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What an answer states. `plain`: its text in normal form; equal texts say the same.

    `refusal`: it says that it does not know. `affirms`: it begins with yes (True) or no (False). `ordered`: the order
    of its statements matters. `cut`: parts of it were not read.
    """

    plain: str
    statements: tuple[Statement, ...]
    refusal: bool
    affirms: bool | None
    ordered: bool
    cited: frozenset[tuple[str, int]]
    cut: bool
    words: frozenset[str]
    """Stems of all its words."""
    given: tuple[Quantity, ...]
    """Amounts of the question."""
    asked: frozenset[str]
    """Stems of its question."""


_FILLER: Final = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|great question|good question|hello|hi there|hi|thanks for asking"
    r"|thank you for (?:asking|your question|reaching out)|i(?:'m| am) happy to help|happy to help|no problem"
    r"|glad you asked"
    r"|i(?:'d| would) be happy to help(?: you)?(?: with that)?)\b[\s,.!:;–—-]*)+",
    re.IGNORECASE,
)
_LEAD: Final = re.compile(
    r"^(?:(?:according to|based on|as stated in|as per|per|from) (?:the |your |our )?(?:provided |given |available )?"
    r"(?:documents?|context|passages?|documentation|sources?|information|policy|handbook|manual|guide|knowledge base)"
    r"(?: provided| given| above)?(?: \(?\[?\d*\]?\)?)?,? *|in short[,:] *|in summary[,:] *|to summari[sz]e[,:] *"
    r"|to answer your question[,:] *|the answer is(?: that)?:? +|here(?:'s| is) (?:the|your"
    r"|a short) (?:short )?answer[:,]? *"
    r"|basically, *|simply put, *|please note that *|note that *|well, *|so, *|in other words, *)",
    re.IGNORECASE,
)
_NOTHING: Final = re.compile(
    r"(?:i )?hope (?:this|that|it) (?:helps|answers)|hesitate to (?:ask|contact|get|reach|write)"
    r"|let me know if|feel free to|(?:please )?don't hesitate|if you (?:have"
    r"|need) any (?:more|other|"
    r"further|additional) (?:question|help|assist|information)|is there anything else|have a (?:great|nice"
    r"|good) (?:day|one)"
    r"|happy to (?:help|assist)|anything else i can|here (?:is|are) (?:the|how|what)[^.]*:$|you're welcome"
    r"|(?:the )?(?:steps|instructions|options) (?:are|is)(?: as follows)?:$"
    r"|(?:just )?follow these(?: simple)? steps:?$|as follows:$"
    r"|do let (?:me|us) know|we(?:'re| are) here to help|i(?:'m| am) here to help|thanks for asking|good luck",
    re.IGNORECASE,
)
"""A sentence in which this stands says nothing, if it states no fact."""
_REFUSAL: Final = re.compile(
    r"\b(?:i|we) (?:do not|don't|cannot|can't|could not|couldn't|am unable to|'m unable to|was unable to|have no"
    r"|am not able to|'m not able to)"
    r" ?(?:actually |currently )?(?:know|have|find|answer|say|tell|determine|provide|information|access|see|any"
    r"|locate|help|confirm|sure|share|predict|disclose|reveal)"
    r"|\bi(?:'m| am) (?:not sure|unable to|not able to|not aware)|\bno (?:information|mention|details?|answer|data)\b"
    r"|\b(?:documents?|context|passages?|text|sources?|documentation|handbook|knowledge base|information|material)s?"
    r"(?: provided| given| above| available| i have)*,? (?:does|do|did)(?: not|n't)"
    r" (?:\w+ ){0,2}?(?:mention|contain|say|cover|specify|provide|include|state|answer|address|give|tell|discuss"
    r"|explain|reveal|disclose)"
    r"|\b(?:documents?|context|passages?|text|sources?|documentation|information|material)s?(?: provided| given| above"
    r"| available| i have)* (?:contains?|says?|holds?|offers?|reveals?) nothing\b"
    r"|\b(?:is|are|was|were)(?: not|n't) part of (?:the|any|my|these|your|our) (?:\w+ ){0,2}?(?:documents?|sources?"
    r"|context|passages?|materials?|data)\b"
    r"|\bnothing in (?:the|any|my|these|your|our) (?:\w+ ){0,2}?(?:documents?|sources?|context|passages?|materials?)"
    r" (?:allows?|lets?|says?|answers?|tells?)\b"
    r"|^i (?:cannot|can't) (?:tell|say)\b"
    r"|\b(?:is|are|was|were)(?: not|n't) (?:mentioned|specified|stated|described|discussed)(?: anywhere)?"
    r" (?:in|by) (?:the|any|my|these|your|our)\b"
    r"|\b(?:is|are|was|were)(?: not|n't) (?:covered|included|given|provided|available|found|addressed)(?: anywhere)?"
    r" (?:in|by) (?:the|any|my|these|your|our) (?:\w+ ){0,2}?(?:documents?|documentation|context|passages?|texts?"
    r"|sources?|handbook|knowledge base|information|materials?|manual|data|excerpts?)\b"
    r"|\bnot (?:something|anything|a topic)\b.{0,60}?\b(?:covers?|knows?|mentions?|has|have|contains?|in)\b"
    r"|\bsays? nothing (?:about|on)\b"
    r"|\bnothing (?:in|about|on)\b.{0,80}?\b(?:documents?|context|passages?|sources?|this|that|it)\b"
    r"|\b(?:unknown to me|beyond my knowledge|not (?:known|clear) from|outside (?:of )?my knowledge)",
    re.IGNORECASE,
)
_CITATION: Final = re.compile(r" ?\[ *(\d{1,3}(?: *[-–,;] *\d{1,3})*) *\](?!\()")
_NUMBER: Final = re.compile(r"(\d+)(?: *[-–] *(\d+))?")
_FENCE: Final = re.compile(r"^\s*(```|~~~)")
_ITEM: Final = re.compile(r"^\s*(?:[-*+•‣◦·]|(?P<step>\(?\d{1,2}[.)]|step \d{1,2}[:.)]|[a-z][.)]))\s+", re.IGNORECASE)
_MARKS: Final = re.compile(r"(?<!\w)(\*{1,3}|_{1,3})(?=\S)([^*_\n]+?)(?<=\S)\1(?!\w)")
_LINK: Final = re.compile(r"!?\[([^\]\n]{0,300})\]\(([^)\s]{0,500})\)")
_SENTENCE_END: Final = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\b[DM]r\.)(?<!\bNo\.)(?<!\bvs\.)(?<!\ba\.m\.)(?<!\bp\.m\.)[\"'”’)]*\s+(?=[\"'“‘(\[]?[^\Wa-z_])"
    r"|(?<=[。！？])"
)
_CODE_TOKEN: Final = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|--?[\w-]+|[\w./:@~$-]+|[^\s\w]")
_PATH: Final = re.compile(
    r"(?<![\w/.])(?:~|\.{1,2})?/[\w.-]*\w(?:/[\w.-]*\w)*|(?<![\w.+-])\w[\w.+-]{0,63}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
)
"""Paths and addresses."""
_INLINE_CODE: Final = re.compile(r"`([^`\n]+)`")
_AFFIRMS: Final = re.compile(
    r"(yes|yep|yeah|correct|that's right|that is right|indeed|no|nope|unfortunately not)(?:\s*[,.;:!–—-]+\s*|$)",
    re.IGNORECASE,
)
_SEQUENCE: Final = re.compile(
    r"\b(?:first|then|next|after that|afterwards|finally|lastly|second|third)\b", re.IGNORECASE
)
_HOW: Final = re.compile(
    r"\b(?:how (?:do|can|to|should|does|would)|steps?|procedure|instructions?|process|set ?up|order)\b", re.IGNORECASE
)
_NO_WORDS: Final = read_words("")
_LETTERS: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_WIDE: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts without spaces between words, and Hangul."""


def read_answer(answer: AnswerText) -> AnswerFacts:
    """Reads an answer. Of a text over `MAX_CHARACTERS` the middle is left out."""
    text, cut = _bounded(answer.text)
    text = nfc(text).replace("\r\n", "\n").replace("’", "'").replace("‘", "'")
    cited = _cited(text, answer.sources)
    pieces = list(_pieces(_CITATION.sub("", text)))
    pieces = [one for one in pieces if not _exclaims(*one)] or pieces
    affirms, pieces = _without_lead(pieces)
    pieces = [one for one in pieces if not _introduces(*one)] or pieces
    question = read_words(answer.question[:MAX_QUESTION])
    asked = frozenset((*map(stem, question.words), *map(squash, question.names)))
    read = [read_statement(piece[:MAX_STATEMENT], kind, asked) for piece, kind in pieces[:MAX_STATEMENTS]]
    statements = _limited(read)
    cut = cut or len(pieces) > MAX_STATEMENTS or any(len(piece) > MAX_STATEMENT for piece, _ in pieces)
    known = frozenset(stem(word) for word in _LETTERS.findall(text.lower()))
    steps = sum(one.kind == "step" for one in statements)
    lead = "" if affirms is None else "yes " if affirms else "no "
    says = lead + " ".join(piece if kind == "code" else _plain(piece) for piece, kind in pieces)
    return AnswerFacts(
        plain=says,
        statements=tuple(statements),
        refusal=_refuses(statements),
        affirms=affirms,
        ordered=(steps > 1 or len(_SEQUENCE.findall(text)) > 1) and bool(steps == 0 or _HOW.search(answer.question)),
        cited=cited,
        cut=cut or statements != read,
        words=known,
        asked=asked,
        given=read_quantities(answer.question[:MAX_QUESTION])[:MAX_FACTS],
    )


def _limited(statements: list[Statement]) -> list[Statement]:
    """Returns the statements with the first `MAX_FACTS` amounts and names. The tokens of code are not names."""
    kept, amounts, names = list[Statement](), MAX_FACTS, MAX_FACTS
    for one in statements:
        few = one.names if one.kind == "code" else frozenset(sorted(one.names)[:names])
        kept.append(replace(one, quantities=one.quantities[:amounts], names=few))
        amounts -= len(kept[-1].quantities)
        names -= len(few) if one.kind != "code" else 0
    return kept


def same_text(one: AnswerText, other: AnswerText) -> bool:
    """Returns whether both texts are the same but for white space. Nothing is left out."""
    return one.text == other.text or one.text.split() == other.text.split()


_PHRASES: Final = (
    ("direction", "start", re.compile(r"\btake?s? off\b")),
    ("direction", "end", re.compile(r"\bwrap(?:s|ped)? up\b|\btouch(?:es|ed)? down\b")),
    ("duty", "must", re.compile(r"\b(?:have|has|had) to\b")),
    (
        "bound",
        "least",
        re.compile(r"\bat least\b|\bno (?:less|fewer|sooner|earlier) than\b|\bor (?:more|above|higher|later)\b"),
    ),
    (
        "bound",
        "most",
        re.compile(r"\bat most\b|\bno (?:more|later|longer) than\b|\bup to\b|\bor (?:less|fewer|earlier|below)\b"),
    ),
)
_NO_COMPARED: Final = re.compile(r"\bno(?= (?:less|fewer|sooner|earlier|more|later|longer) than\b)", re.IGNORECASE)


_NOT_REQUIRED: Final = re.compile(
    r"\b(?:not|never|n't) (?:have|need|required|necessary|mandatory|obliged|compulsory)\b"
    r"|\bneeds? no\b|\bno [\w ]{1,30}(?:is|are) (?:required|needed|necessary)\b|\bneedn't\b"
)


def read_statement(text: str, kind: StatementKind, asked: frozenset[str] = frozenset()) -> Statement:
    """Reads the facts of one statement. `asked`: the stems of the question."""
    if kind == "code":
        return _code(text)
    read = read_words(_NO_COMPARED.sub("", text))
    words = read.words
    content = tuple(stem(word) for word in words if word not in FUNCTION_WORDS and word not in NEGATORS)
    wide = _WIDE.findall(text)
    if wide:
        content += tuple(map("".join, pairwise(wide)))
    axes: dict[str, set[str]] = {}
    for word in words:
        if word in AXIS_OF:
            axis, pole = AXIS_OF[word]
            axes.setdefault(axis, set()).add(pole)
    for axis, pole, phrase in _PHRASES:
        if phrase.search(text.lower()):
            axes.setdefault(axis, set()).add(pole)
    negated = _negated(words)
    if negated and _NOT_REQUIRED.search(text.lower().replace("don't", "do not").replace("doesn't", "does not")):
        negated, axes["duty"] = False, {"may"}
    return Statement(
        text=text,
        kind=kind,
        words=words,
        content=content,
        core=tuple(word for word in words if _is_core(word, asked)),
        quantities=read_quantities(text),
        names=_names(read, text),
        negated=negated,
        poles=read_opposites(read),
        scope=read_scope(read),
        order=read_order(read),
        axes={axis: frozenset(poles) for axis, poles in axes.items()},
        english=read.english and not wide,
    )


def content_stems(words: Iterable[str]) -> frozenset[str]:
    """Returns the stems of the words that carry content."""
    return frozenset(stem(word.strip(".,;:!?()")) for word in words if word not in FUNCTION_WORDS)


def _is_core(word: str, asked: frozenset[str]) -> bool:
    function = word in FUNCTION_WORDS or word in NEGATORS or word in LIGHT or word in NUMBER_WORDS
    return not (function or stem(word) in asked or word[0].isdigit() or word == "%")


def _negated(words: tuple[str, ...]) -> bool:
    """Returns whether a sentence says no. Two negations say yes."""
    negators = 0
    for index, word in enumerate(words):
        if word in NEGATORS and not (word == "not" and words[index + 1 : index + 2] == ("only",)):
            near = words[index + 1 : index + 4]
            negators += 2 if not HARMLESS.isdisjoint(near) else 1
        elif word in NEGATIVE:
            negators += 1
    return negators == 1 or negators == 3


def _code(text: str) -> Statement:
    tokens = tuple(_CODE_TOKEN.findall(text.strip().removeprefix("$ ").removeprefix("> ")))
    names = frozenset(f"`{token.strip(chr(39) + chr(34))}" for token in tokens)
    return Statement(text, "code", tokens, tokens, (), (), names, False, read_opposites(_NO_WORDS), Scope(), Order())


def _names(read: Words, text: str) -> frozenset[str]:
    """Returns the words typed as names, codes, and inline code as written."""
    code = {f"`{found}" for found in _INLINE_CODE.findall(text)}
    quoted = {squash(name.partition("'")[0]) for name in read.names if name not in TITLES}
    first = _LETTERS.search(text)
    if first is not None and first[0][0].isupper() and len(first[0]) > 1:
        word = first[0].lower().partition("'")[0]
        if (
            word not in LIGHT
            and word not in TITLES
            and not word.endswith("ly")
            and word not in COMMON
            and word not in FUNCTION_WORDS
            and stem(word) not in COMMON
            and read.english
        ):
            quoted.add(f"?{word}")
    code.update(f"`{found}" for found in _PATH.findall(text))
    if "°" in text:
        quoted -= {"c", "f"}
    return frozenset(
        name for name in (*code, *quoted) if name not in NUMBER_WORDS and not (name in CLASSES and name != "us")
    ) | frozenset(CLASSES[word][1] for word in read.words if word in CLASSES and CLASSES[word][0] == "weekday")


# -- the text ---------------------------------------------------------------------------------------------------------


def _bounded(text: str) -> tuple[str, bool]:
    if len(text) <= MAX_CHARACTERS:
        return text, False
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n{text[-half:]}", True


def _pieces(text: str) -> Iterator[tuple[str, StatementKind]]:
    """Yields the statements of a text that say something."""
    in_code = False
    for line in text.split("\n"):
        if _FENCE.match(line):
            in_code = not in_code
        elif in_code:
            if line.strip():
                yield line.strip(), "code"
        else:
            yield from _prose(line)


def _prose(line: str) -> Iterator[tuple[str, StatementKind]]:
    if line.lstrip().startswith("#") and not any(map(str.isdigit, line)):
        return  # a heading
    item = _ITEM.match(line)
    kind: StatementKind = "sentence" if item is None else "step" if item["step"] else "item"
    rest = line[item.end() :] if item else line
    rest = _LINK.sub(r"\1", rest.strip().lstrip("#>| ").rstrip("| "))
    rest = _MARKS.sub(r"\2", rest).replace("**", "").replace("__", "")
    for sentence in _SENTENCE_END.split(rest):
        said = _LEAD.sub("", _FILLER.sub("", sentence.strip())).strip()
        if not _LETTERS.search(said) and not any(map(str.isdigit, said)):
            continue
        if len(said) < 160 and _NOTHING.search(said):
            continue
        yield said, kind


def _plain(text: str) -> str:
    """Returns the words and figures in lower case, without punctuation."""
    return " ".join(re.findall(r"`[^`]+`|[^\W_]+(?:[.,:'/-][^\W_]+)*|[%$€£+<>=&#@*/^-]", text.casefold()))


def _cited(text: str, sources: Sequence[Source]) -> frozenset[tuple[str, int]]:
    numbers: set[int] = set()
    for citation in _CITATION.findall(text):
        for first, last in _NUMBER.findall(citation):
            numbers.update(range(int(first), min(int(last or first), len(sources)) + 1))
    named = (sources[number - 1] for number in numbers if 0 < number <= len(sources))
    return frozenset((source.document_id, source.chunk) for source in named)


def _refuses(statements: Sequence[Statement]) -> bool:
    """Returns whether the first or second statement refuses, and nothing else states a fact."""
    refusing = [bool(_REFUSAL.search(one.text)) for one in statements]
    if not any(refusing[:2]):
        return False
    return not any(
        one.quantities or one.kind == "code" for one, refused in zip(statements, refusing, strict=True) if not refused
    )


def _exclaims(text: str, kind: StatementKind) -> bool:
    """Returns whether a short sentence only greets or thanks: sure thing!"""
    return (
        kind == "sentence"
        and text.endswith("!")
        and len(text.split()) <= 6
        and not _AFFIRMS.match(text)
        and not any(map(str.isdigit, text))
    )


def _introduces(text: str, kind: StatementKind) -> bool:
    """Returns whether a sentence only introduces what follows: run this command:"""
    return kind == "sentence" and text.endswith(":") and not any(map(str.isdigit, text))


def _without_lead(
    pieces: list[tuple[str, StatementKind]],
) -> tuple[bool | None, list[tuple[str, StatementKind]]]:
    """Returns whether the answer begins with yes or no, and its statements without that word."""
    found = _AFFIRMS.match(pieces[0][0]) if pieces else None
    if found is None:
        return None, pieces
    affirms = not found[1].lower().startswith(("no", "unfortunately"))
    rest = pieces[0][0][found.end() :]
    if rest:
        return affirms, [(rest[0].upper() + rest[1:], pieces[0][1]), *pieces[1:]]
    return affirms, pieces[1:] or pieces
