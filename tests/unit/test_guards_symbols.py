"""Operators, call arguments, and letter case in code and units, in both cache tiers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.guards.agreement import disagreement
from api.guards.letter_case import case_sensitive_words, chunks, strip_punctuation
from api.guards.symbols import compare_symbols, read_symbols
from api.guards.words import read_words
from api.query.cache_key import normalise, question_digest

APART = [
    ("Is x >= 3 true?", "Is x <= 3 true?"),
    ("How do I call foo(a, b)?", "How do I call foo(b, a)?"),
    ("What does i++ do?", "What does ++i do?"),
    ("What is == in JS?", "What is === in JS?"),
    ("What does > do in bash?", "What does >> do in bash?"),
    ("sort ascending: a < b", "sort ascending: a > b"),
    ("select * from a where b", "select * from b where a"),
    ("def f(x): return x", "def f(x): return -x"),
    ("difference of A\\B and B\\A", "difference of B\\A and A\\B"),
    ("what is f'(x)", "what is f''(x)"),
    ("what does a:b mean", "what does a;b mean"),
    ("regex for [a-z]+", "regex for [A-Z]+"),
    ("what is 1 mW", "what is 1 MW"),
    ("What is MB?", "What is mb?"),
    ("echo $PATH", "echo $path"),
    ("What is 5 + 3?", "What is 5 - 3?"),
    ("What is 6 / 2?", "What is 6 - 2?"),
    ("What is n+1?", "What is n-1?"),
    ("What is 5!", "What is 5"),
    ("What does & do in C?", "What does && do in C?"),
    ("What does *p mean?", "What does &p mean?"),
    ("What does tar -c do?", "What does tar -C do?"),
    ("How do I use grep -v?", "How do I use grep -i?"),
    ("What is a -> b?", "What is a => b?"),
    ("What is x != y?", "What is x == y?"),
    ("Is A ⊂ B?", "Is A ⊃ B?"),
    ("What does sub(x, 3) return?", "What does sub(3, x) return?"),
    ("Where is getName defined?", "Where is getname defined?"),
    ("Open src/Main/app.py", "Open src/main/app.py"),
    ("What is in README.md?", "What is in readme.md?"),
    ("What is at https://example.com/A?", "What is at https://example.com/a?"),
    ("How is MAX_SIZE set?", "How is max_size set?"),
    ("What does \\d match?", "What does \\D match?"),
    ("What does %d print?", "What does %D print?"),
    ("How strong is 5 mV?", "How strong is 5 MV?"),
    ("Is 100 Mb a lot?", "Is 100 MB a lot?"),
    ("Is Mg in it?", "Is mg in it?"),
    ("What is IT?", "What is it?"),
]
"""Pairs that no tier may consider equal."""
HELD_OUT_APART = [
    ("What does a || b return?", "What does a && b return?"),
    ("Explain x << 2", "Explain x >> 2"),
    ("pow(2, n) in Python", "pow(n, 2) in Python"),
    ("What does --x evaluate to?", "What does x-- evaluate to?"),
    ("Why is !done false?", "Why is done false?"),
    ("What is ~x?", "What is -x?"),
    ("Explain ^abc in regex", "Explain abc$ in regex"),
    ("What does ls -l show?", "What does ls -L show?"),
    ("Where is $HOME set?", "Where is $Home set?"),
    ("Parse {a: 1}", "Parse [a: 1]"),
    ("Is p ∧ q true?", "Is p ∨ q true?"),
    ("Use of a ?? b", "Use of a || b"),
    ("How do I read Config.json?", "How do I read config.json?"),
    ("Is 3 Gb/s fast?", "Is 3 GB/s fast?"),
    ("Solve x^2", "Solve x*2"),
    ("What is a % b?", "What is b % a?"),
    ("Explain git checkout -b", "Explain git checkout -B"),
    ("What does cmd < file do?", "What does cmd > file do?"),
]
"""Pairs written after the rules."""
ALIKE = [
    ("What is Python?", "what is python"),
    ("What is YouTube?", "what is youtube?"),
    ("How do I reset my iPhone?", "how do i reset my iphone"),
    ("Is Node.js fast?", "is node.js fast?"),
    ("What is Example.com?", "what is example.com?"),
    ("Mail Bob@Example.com", "mail bob@example.com"),
    ("What is C++?", "what is c++?"),
    ("What is CO2?", "what is co2?"),
    ("How much is 5 KG?", "how much is 5 kg?"),
    ("How far is 5 KM?", "how far is 5 km?"),
    ("How much is 10 kWh?", "how much is 10 kwh?"),
    ("What is pH?", "what is ph?"),
    ("What is the OS?", "what is the os?"),
    ("R&D and Q&A", "r&d and q&a"),
    ("What is And/Or?", "what is and/or?"),
    ("Is Wi-Fi (Free) here?", "is wi-fi (free) here?"),
    ("Is Paris's museum open?", "is paris's museum open?"),
    ("What is a Card(s) limit?", "what is a card(s) limit?"),
    ("Don`t Know How", "don`t know how"),
]
"""Equal in the exact tier, however they are typed."""
PUNCTUATED = [
    ("Hello, how do I pay?", "Hello - how do I pay?"),
    ("How do I pay (by card)?", "How do I pay by card?"),
    ('What does "carpe diem" mean?', "What does 'carpe diem' mean?"),
    ("How do I pay...?", "How do I pay?!"),
    ("I'm lost; how do I get home?", "I'm lost, how do I get home?"),
    ("Note: where is my card :)", "Note where is my card"),
    ("I love it <3", "I love it"),
    ("Which is best: tea or coffee?", "Which is best -- tea or coffee?"),
    ("What does print() do?", "What does print do?"),
    ("How do I use `ls`?", "How do I use ls?"),
    ("Is x >= 3?", "Is x>=3?"),
    ("What is 2+2?", "What is 2 + 2 = ?"),
    ("What does == mean?", "What does the == operator mean?"),
    ("What is the difference between == and ===?", "What is the difference between === and ==?"),
    ("Call foo(a, b)", "Call foo(a,b)"),
    ("Are you open 9-5?", "Are you open 9 to 5?"),
    ("*Where* is it?", "Where is it?"),
    ("Is it 24/7?", "Is it 24-7?"),
    ("The dogs' food", "The dogs food"),
    ("What's new [1]?", "What's new?"),
]
"""Pairs that the guard accepts."""
HELD_OUT_ALIKE = [
    ("Who is Beyoncé?", "who is beyoncé"),
    ("How do I use GitHub?", "how do i use github?"),
    ("Is the U.S. big?", "Is the u.s. big?"),
    ("Tell me about AT&T.", "tell me about at&t"),
    ("HOW DO I PAY BY PAYPAL?", "how do i pay by PayPal?"),
    ("What's a Ph.D.?", "what's a ph.d.?"),
    ("Is McDonald's open?", "is mcdonald's open?"),
    ("Can I use my MacBook?", "can i use my macbook?"),
]


@pytest.mark.parametrize(("one", "other"), APART + HELD_OUT_APART)
def test_neither_tier_confuses_the_pair(one: str, other: str) -> None:
    assert question_digest(one) != question_digest(other)
    assert disagreement(one, other) is not None
    assert disagreement(other, one) is not None


@pytest.mark.parametrize(("one", "other"), ALIKE + HELD_OUT_ALIKE)
def test_the_case_of_ordinary_words_does_not_matter(one: str, other: str) -> None:
    assert question_digest(one) == question_digest(other)
    assert disagreement(one, other) is None


@pytest.mark.parametrize(("one", "other"), PUNCTUATED)
def test_ordinary_punctuation_is_ignored(one: str, other: str) -> None:
    assert compare_symbols(read_symbols(read_words(one)), read_symbols(read_words(other))) == ""


def test_the_digests_of_ordinary_questions_are_stable() -> None:
    assert question_digest("What is Python?") == "1650d7f2c2ca8b346479e6db6d0e99c5"
    assert normalise("How do I reset my Wi-Fi Password at HOME?!") == "how do i reset my wi-fi password at home"
    assert normalise("Is IT open?  (the IT-desk, IT's)") == "is IT open? (the IT-desk, IT's)"


def test_details_are_readable() -> None:
    details = {
        ("Is x >= 3 true?", "Is x <= 3 true?"): "x >= 3 / x <= 3",
        ("What does i++ do?", "What does ++i do?"): "i++ / ++i",
        ("echo $PATH", "echo $path"): "$PATH / $path",
        ("What is 1 mW?", "What is 1 MW?"): "mW / MW",
    }
    for (one, other), detail in details.items():
        found = disagreement(one, other)
        assert found is not None
        assert (found.guard, found.detail) == ("symbols", detail)


@given(st.text(alphabet="aBmMCo1 ()[]{}<>=+-*/\\$%&!'`.,:;|^~_@#\"", max_size=60))
def test_any_run_of_symbols_agrees_with_itself(text: str) -> None:
    assert disagreement(text, text) is None
    assert normalise(normalise(text)) == normalise(text)
    assert "".join(part.text for part in chunks(text)) == "".join(text.split())
    assert case_sensitive_words(text) == tuple(strip_punctuation(part.text) for part in chunks(text) if part.keeps_case)
