"""Guard `form`: it separates questions that want the same answer in other forms: briefly, in detail, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from api.guards.words import Words

FORMS: Final = """
brief: briefly, in brief, in short, shortly put, in a nutshell, concisely, succinctly, in a few words, to the point
one word: in a word, in one word, in a single word, with one word
one sentence: in a sentence, in one sentence, in a single sentence, with one sentence
long: in detail, in depth, at length, thoroughly, extensively, elaborately, comprehensively, verbosely
long: in great detail, in more detail, in greater detail, in full detail
simple: in simple terms, in simple words, in plain english, in plain language, in plain words, in easy words, simply put
simple: in layman terms, in laymans terms, in lay terms, for dummies, for beginners
simple: like i am five, like i am 5, like i five, to a child, to a five year old, eli 5
technical: in technical terms, for experts, for an expert
example: with an example, with examples, using an example, using examples, by example
steps: step by step, in steps
list: as a list, as list, in a list, in bullet points, as bullet points, in bullets, with bullets, as bullets
table: as a table, as table, in a table, in table form, in tabular form
json: as json, in json, in json format
yaml: as yaml, in yaml, in yaml format
xml: as xml, in xml, in xml format
csv: as csv, as a csv, in csv, in csv format
html: as html, in html
markdown: as markdown, in markdown
capitals: in capitals, in capital letters, in all caps, in uppercase, in upper case
verse: as a poem, as a haiku, as a limerick, as a song, as a rap, in rhyme, in rhymes, in verse, like a poet
story: as a story, as a joke, with a joke, as a tweet, as an essay, as an email
in jest: ironically, sarcastically, jokingly, humorously, in a funny way, with humor, with humour, with irony
part: like a pirate, like shakespeare, like yoda, as a pirate
yes or no: yes or no, with yes or no, with a yes or no
untrue: untruthfully, and lie, with a lie
"""
"""A form on each line, and the phrases that ask for it."""


def _by_first_word() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    found: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for line in FORMS.strip().splitlines():
        form, _, phrases = line.partition(": ")
        for phrase in phrases.split(", "):
            words = tuple(phrase.split())
            found.setdefault(words[0], []).append((words, form))
    return found


_PHRASES: Final = _by_first_word()


def read_form(question: Words) -> frozenset[str]:
    """Returns the forms in which a question wants its answer; nothing if another language prevails."""
    return frozenset(_forms(question.words)) if question.english else frozenset()


def _forms(words: tuple[str, ...]) -> Iterator[str]:
    for index, word in enumerate(words):
        for phrase, form in _PHRASES.get(word, ()):
            if words[index : index + len(phrase)] == phrase:
                yield form


def compare_form(one: frozenset[str], other: frozenset[str]) -> str:
    """Returns what is asked of one answer only, else an empty string."""
    if one == other:
        return ""
    return f"{'+'.join(sorted(one - other)) or 'none'} / {'+'.join(sorted(other - one)) or 'none'}"
