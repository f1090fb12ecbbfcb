"""The deployment report as Markdown, and as an HTML page for the screen and for print.

The page refers to no other file and no host. A browser prints it as a PDF.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api import __version__
from ragherd.report_charts import HATCH
from ragherd.report_criteria import GO, ROLL_BACK, WAIT
from ragherd.report_sections import RESULTS, VERDICTS, Section, heading, sections

TONES: Final = {GO: "good", WAIT: "warn", ROLL_BACK: "bad"}
RESULT_TONES: Final = {"met": "good", "missed": "bad", "not measurable": "warn"}
STYLE: Final = """
:root { color-scheme: light dark;
  --page: light-dark(#f3f5f8, #0e131a); --card: light-dark(#fff, #161d27); --line: light-dark(#d8dee7, #2b3645);
  --text: light-dark(#17202c, #e7ecf3); --soft: light-dark(#525e6f, #a3b0c2);
  --good: light-dark(#10703f, #7ee0b0); --good-back: light-dark(#dcf3e6, #12382a);
  --warn: light-dark(#7a4d00, #ffcf70); --warn-back: light-dark(#fdeecb, #3d2f0c);
  --bad: light-dark(#a3192b, #ff9aa6); --bad-back: light-dark(#fbe1e4, #47151d);
  --hit: light-dark(#1d7f4f, #37b67a); --coalesced: light-dark(#3d7ee0, #79a8ff); --stale: light-dark(#c98a00, #f0b33c);
  --miss: light-dark(#7a8798, #8c99ab); --bypass: light-dark(#b6bfcc, #55627a); --error: light-dark(#cf2f43, #ff6b7d); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.6rem 1.2rem 2.5rem; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 0 0 .7rem; font-size: 1.05rem; }
h3 { margin: 1rem 0 .3rem; font-size: .9em; color: var(--soft); font-weight: 600; } h3:first-of-type { margin-top: 0; }
header p { margin: .2rem 0; color: var(--soft); } p { margin: .4rem 0; } ul { margin: .3rem 0; padding-left: 1.2rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin-top: 1rem; overflow-x: auto; }
.verdict { border-left: 6px solid var(--tone); background: var(--tone-back); border-color: var(--tone); }
.verdict h2 { color: var(--tone); font-size: 1.35rem; margin-bottom: .3rem; }
.good { --tone: var(--good); --tone-back: var(--good-back); }
.warn { --tone: var(--warn); --tone-back: var(--warn-back); }
.bad { --tone: var(--bad); --tone-back: var(--bad-back); }
.pill { color: var(--tone); background: var(--tone-back); border-radius: 99px; padding: .1rem .6rem; font-weight: 600;
  white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .85em; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child, .left th, .left td { text-align: left; }
.left td:not(:last-child) { white-space: nowrap; }
.left td:last-child { color: var(--soft); overflow-wrap: anywhere; }
.pairs td:last-child { color: inherit; width: 60%; }
svg { display: block; width: 100%; height: auto; } svg[width="0"] { position: absolute; }
svg text { fill: var(--soft); font-size: 11px; } .grid { stroke: var(--line); }
.s-hit, .l-hit, .b-closed { --series: var(--hit); } .s-coalesced, .l-all { --series: var(--coalesced); }
.s-stale, .b-half_open { --series: var(--stale); } .s-miss, .l-miss { --series: var(--miss); }
.s-bypass { --series: var(--bypass); } .s-error, .b-open { --series: var(--error); }
rect[class], circle { fill: var(--series); } polyline { fill: none; stroke: var(--series); stroke-width: 2; }
rect { shape-rendering: crispEdges; }
rect.gap-back { fill: var(--warn-back); } .gap-line { stroke: var(--warn); stroke-width: 1.5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .3rem 0 0; padding: 0 0 0 62px;
  font-size: .85em; color: var(--soft); }
.legend i { background: var(--series); display: inline-block; width: .75rem; height: .75rem; border-radius: 3px;
  margin-right: .35rem; }
footer { margin-top: 1rem; color: var(--soft); font-size: .85em; }
table:not(.left) td { white-space: nowrap; }
@media (max-width: 44rem) { .pairs td { white-space: normal !important; } .legend { padding-left: 0; }
  .criteria thead { display: none; } .criteria tr { display: flex; flex-wrap: wrap; padding: .4rem 0; }
  .criteria td { border: 0; padding: .1rem .6rem; }
  .criteria tr:not(:last-child) { border-bottom: 1px solid var(--line); }
  .criteria td:first-child, .criteria td:last-child { flex-basis: 100%; }
  .criteria td:first-child { font-weight: 600; } }
@media print { :root { color-scheme: light; } body { background: #fff; font-size: 12px; }
  main { max-width: none; padding: 0; }
  section { break-inside: avoid; padding: .6rem .8rem; margin-top: .6rem; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } @page { size: A4; margin: 14mm; } }
"""

Document = Mapping[str, Any]


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(found: Document) -> str:
    """Returns the report as Markdown."""
    verdict = found["recommendation"]
    lines = ["# Deployment report", "", *heading(found), "", f"## Recommendation: {VERDICTS[verdict['verdict']]}", ""]
    lines += [f"- {_inline(one)}" for one in verdict["reasons"]]
    for section in sections(found):
        if section.text or section.rows or section.items:
            lines += ["", *_markdown_section(section)]
    return "\n".join([*lines, "", f"Ragherd {__version__}, {found['made']}", ""])


def _markdown_section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield ""
    if section.text:
        yield " ".join(section.text)
        yield ""
    if section.rows:
        yield _markdown_row(section.head)
        yield "|---" * len(section.head) + "|"
        yield from map(_markdown_row, section.rows)
    yield from (f"- {_inline(item)}" for item in section.items)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_inline(cell).replace('|', '&#124;') for cell in cells)} |"


def _inline(text: str) -> str:
    """Returns a text in one line and without HTML tags: Markdown would pass them on."""
    return " ".join(text.split()).replace("<", "&lt;")


# -- HTML --------------------------------------------------------------------------------------------------------------


def page(found: Document) -> str:
    """Returns the report as an HTML page."""
    verdict = found["recommendation"]
    service, window = heading(found)
    said = Verdict(TONES[verdict["verdict"]], f"Recommendation: {VERDICTS[verdict['verdict']]}", verdict["reasons"])
    lines = [service.rpartition("://")[2], window]
    return whole_page("Deployment report", lines, said, sections(found), found["made"], before=HATCH)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The box on top of a page: `tone` is good, warn or bad."""

    tone: str
    title: str
    reasons: Sequence[str]


def whole_page(
    title: str, lines: Sequence[str], verdict: Verdict, parts: Iterable[Section], made: str, before: str = ""
) -> str:
    """Returns an HTML page. `lines` stand below its title, `before` is HTML that its charts need."""
    head = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    body = "".join(_page_section(section) for section in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{before}<main>"
        f"<header><h1>{html.escape(title)}</h1>{head}</header>"
        f'<section class="verdict {verdict.tone}"><h2>{html.escape(verdict.title)}</h2>'
        f"{_items(verdict.reasons)}</section>{body}"
        f"<footer>Ragherd {__version__}, {html.escape(made)}</footer></main></body></html>\n"
    )


def _page_section(section: Section) -> str:
    text = "".join(f"<p>{html.escape(one)}</p>" for one in section.text)
    drawn = "".join(f"<h3>{html.escape(title)}</h3>{svg}" for title, svg in section.charts.items())
    items = _items(section.items) if section.items else ""
    return f"<section><h2>{html.escape(section.title)}</h2>{text}{drawn}{_table(section)}{items}</section>"


def _items(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(one)}</li>' for one in items)}</ul>"


def _table(section: Section) -> str:
    if not section.rows:
        return ""
    kind = (
        ' class="left pairs"'
        if len(section.head) == 2
        else ' class="left criteria"'
        if "result" in section.head
        else ""
    )
    head = "".join(f"<th>{html.escape(one)}</th>" for one in section.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in section.rows)
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(text: str) -> str:
    said = html.escape(text)
    if text in RESULTS.values():
        said = f'<span class="pill {RESULT_TONES[text]}">{said}</span>'
    return f"<td>{said}</td>"
