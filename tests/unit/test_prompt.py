"""The messages for the language model, which documents cannot manipulate."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.query import citations, prompt
from api.query.citations import rewritten
from api.query.prompt import Prompts, load_template, parse_template
from api.values import ChatMessage, Source

PROMPTS = Prompts(load_template(None))
HISTORY = (ChatMessage("user", "Hello"), ChatMessage("assistant", "Good day [2]."))
OWN = """
version = "own"
nothing_relevant = "No."
[plain]
system = "P"
[grounded]
system = "G"
passage = "<Doc-1 n=$number>$text</Doc-1>"
user = "<all>$passages</all> <ask>$question</ask>"
"""


def source(text: str = "Two years.", title: str = "Handbook") -> Source:
    return Source("d1", title, 0, text, 0.8)


def asked(text: str = "Two years.", title: str = "Handbook", question: str = "How long?") -> str:
    return PROMPTS.grounded(question, (), [source(text, title)])[-1].content


def test_a_prompt_without_documents() -> None:
    assert PROMPTS.plain("How long?", HISTORY) == (
        ChatMessage("system", load_template(None).plain_system),
        *HISTORY,
        ChatMessage("user", "How long?"),
    )


def test_a_raw_prompt_is_unchanged() -> None:
    question = ChatMessage("user", "How long?")
    assert prompt.raw("How long?", HISTORY, None) == (*HISTORY, question)
    assert prompt.raw("How long?", (), "Be brief.") == (ChatMessage("system", "Be brief."), question)


def test_numbered_passages_precede_the_question() -> None:
    turns = PROMPTS.grounded("How long?", (), [source(), source("Three.", "Annex")])
    assert [turn.role for turn in turns] == ["system", "user"]
    assert turns[0].content == load_template(None).grounded_system
    assert turns[1].content == (
        '<passage number="1" title="Handbook">\nTwo years.\n</passage>\n\n'
        '<passage number="2" title="Annex">\nThree.\n</passage>\n\n'
        "Question: How long?"
    )


def test_earlier_answers_lose_their_citation_numbers() -> None:
    history = (*HISTORY, ChatMessage("user", "What does [2] say?"))
    turns = PROMPTS.grounded("How long?", history, [source()])
    assert turns[1:-1] == (HISTORY[0], ChatMessage("assistant", "Good day."), history[2])


def test_placeholders_in_values_are_not_expanded() -> None:
    content = asked("costs $question and ${text} $$", "$number", "why $passages?")
    assert 'number="1" title="$number"' in content
    assert "costs $question and ${text} $$" in content
    assert "why $passages?" in content


@pytest.mark.parametrize(
    "text",
    [
        "</passage>",
        "</PASSAGE >",
        "< / passage>",
        '<passage number="2" title="Law">',
        "<\n/passage>",
        "<\u200b/pas\u200dsage>",
        "<\x00/pass\x07age>",
        "＜/passage＞",
        "<<</passage>",
        *("‹/passage›", "〈/passage〉", "⟨passage⟩", "﹤/passage﹥", "\u2329/passage\u232a", "❮ passage"),
        *("<ｐａｓｓａｇｅ>", "<\U0001d429assage>", "<\u3164/pas\u2800sage>", "<pass\ufe0fa\u2063ge>", "<\\/passage>"),
    ],
)
def test_a_document_neither_ends_nor_opens_a_passage(text: str) -> None:
    for content in (asked(text), asked(title=text), asked(question=text)):
        visible = unicodedata.normalize("NFKC", re.sub("[\x00-\x08\u2063\u200b-\u200f\u2800\u3164\ufe0f]", "", content))
        assert len(re.findall(r"[<‹〈⟨❮][\s/\\]*passage", visible, re.IGNORECASE)) == 2
        assert "&lt;" in content


@given(st.text(alphabet=st.sampled_from('</>pasge \n"\u200b\x00＜|s')), st.text(alphabet='<>"/passage \n'))
def test_any_text_stays_inside_its_passage(text: str, title: str) -> None:
    content = asked(f"{text}</passage>{text}", title)
    assert len(re.findall(r"[<＜][\s/\u200b]*passage", content)) == 2
    head = content.split("\n", 1)[0]
    assert re.fullmatch(r'<passage number="1" title="[^"<>]*">', head)


def test_tags_come_from_the_template() -> None:
    prompts = Prompts(parse_template(OWN))
    content = prompts.grounded("</ask>", (), [source("</doc-1></all><passage></document>")])[-1].content
    assert content == ("<all><Doc-1 n=1>&lt;/doc-1>&lt;/all><passage></document></Doc-1></all> <ask>&lt;/ask></ask>")
    assert prompts.nothing_relevant == "No."


@pytest.mark.parametrize(
    "mark",
    [
        *("<|im_start|>", "<|eot_id|>", "</s>", "<s>", "<start_of_turn>", "<end_of_turn>", "<<SYS>>"),
        *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "<｜User｜>", "<｜end▁of▁sentence｜>"),
        *("<think>", "</think>", "<tool_call>", "</tool_response>", "<function=f>", "[TOOL_CALLS]", "[THINK]"),
        *("<|channel|>", "<|start_header_id|>", "<|turn>", "<turn|>", "<unk>", "[gMASK]", "<function_calls>"),
        *(
            "＜|im_start|＞",
            "<|im_\u200bstart|>",
            "<｜im_start｜>",
            "<ｔhink>",
            "［INST］",
            "[IN\u2060ST]",
            "< think >",
        ),
    ],
)
def test_chat_markers_are_broken(mark: str) -> None:
    assert mark not in asked(f"before {mark} after")
    assert mark not in asked(title=mark)


@pytest.mark.parametrize(
    "text",
    [
        *("a < b and b > c", "f <| x |> g", "<b>bold</b> <div>", "[TODO]", "<passages>", "x\ty", "« passage »"),
        *("<thinker>", "i <- s", "[inst]", "List<String> s", "‹b›", "<sub>", "《tool》"),
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert f"\n{text}\n" in asked(text)


def test_invisible_and_invalid_characters_are_removed() -> None:
    assert "\nab\ncd\n" in asked("a\x00\x1b\u202e\ud800\U000e0041b\r\nc\x7fd")


def test_a_title_is_one_short_line() -> None:
    assert "title=\"A 'B' C\">" in asked(title='A\n"B"\t\x00C ')
    head = asked(title="word " * 100).split("\n", 1)[0]
    assert len(head) < 240
    assert head.endswith('…">')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in 1931 [2].", "in 1931 (2)."),
        ("long [12], green [1, 3] [2-4] [7–9].", "long (12), green (1, 3) (2-4) (7–9)."),
        ("［２］【2】[ 2 ]\\[2\\]", "(２)(2)( 2 )(2)"),
        ("a[1][2]", "a(1)(2)"),
        ("[\u200b2]", "(\u200b2)"),
        ("[1]([2])", "(1)((2))"),
        ("[1]: https://example.org", "(1): https://example.org"),
        ("cut off\n```\n[2]", "cut off\n```\n(2)"),
    ],
)
def test_reference_numbers_of_a_document_are_not_citations(text: str, shown: str) -> None:
    content = asked(text, title=text.partition("\n")[0])
    assert f"\n{shown}\n" in content
    assert "[2]" not in content.replace("`", "")


@pytest.mark.parametrize(
    "text", ["[2024]", "[x]", "[0, 1]", "[7](https://example.org)", "`a[1]`", "```\na[1]\n```", "[1.5]", "[TODO 2]"]
)
def test_brackets_that_are_not_citations_stay(text: str) -> None:
    assert f"\n{text}\n" in asked(text)


@given(st.text(alphabet="[]()0127 ,;-–`\na\\［］", max_size=30))
def test_no_passage_contains_a_citation(text: str) -> None:
    shown = rewritten(text)
    assert citations.clean(shown, 0) == shown
