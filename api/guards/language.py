"""Which words are English glue, and whether a question is in English at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from api.languages.function_words import BY_WORD, SHARED, words_in
from api.languages.function_words import ENGLISH as GRAMMAR
from api.languages.scripts import COMMON, LATIN, script_of

FUNCTION_WORDS: Final = words_in(
    """
    a an the this that these those my your his her its our their i me we us you he she it they them him is are was
    were be been being am do does did done have has had can could will would shall should may might must of to in
    on at by for from with as into onto about over under and or but nor so if then than not no what which who whom
    whose when where why how there here please just also too very really some any all get got tell explain show
    give let know want need like would
    """
)
"""Words that carry grammar rather than matter."""

ENGLISH: Final = words_in(
    """
    the is are was were do does did have has can could will would should what which who when where why how my your
    his her our their you they it this that these those and of to for from with not about i
    """
)
GERMAN: Final = words_in(
    """
    der das und ist ich wie ein eine einen einem einer mein meine meinen meiner meinem nicht für mit auf sind kann
    wo warum wann wer von vom zum zur den dem des im ihr ihre es sich wird werden haben hat gibt man bei aus
    """
)
OTHERS: Final = words_in(
    """
    el la los las una uno del por para con qué cómo cuál dónde cuándo quién es está mi su que como cual donde le
    les des du et est une comment quel quelle quels où pourquoi combien je mon ma mes pour dans avec puis il lo
    gli della nel come cosa dove quando perché quanto posso sono mio mia os as um uma não você meu minha faço
    fazer em na nas ao até een het van hoe wat waar ik mijn de en och jag hur vad är inte det som jak co gdzie
    kiedy jest się mam moje nie
    """
)
FOREIGN: Final = (GERMAN | OTHERS | BY_WORD.keys()) - ENGLISH - GRAMMAR - SHARED


def is_foreign(words: Iterable[str]) -> bool:
    """More words of other languages' glue than of English glue, or another script."""
    english = foreign = 0
    for word in words:
        if word in ENGLISH or word in GRAMMAR:
            english += 1
        elif word in FOREIGN or not (word.isascii() or script_of(word[0]) in (LATIN, COMMON)):
            foreign += 1
    return foreign > english


def is_german(words: Iterable[str]) -> bool:
    """Nouns have capitals there: a capital names nothing."""
    english = german = 0
    for word in words:
        english += word in ENGLISH
        german += word in GERMAN
    return german > english
