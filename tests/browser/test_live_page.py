"""The live page in a real Chromium, on a fleet of two workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as sync_redis
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.needed_tools import need_tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUESTION = "How do I reset my password?"
PARAPHRASE = "My password, how do I reset?"
Fleet = Callable[..., Gunicorn]
Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = need_tool("chromium")
    expect.set_options(timeout=30_000)  # a busy machine needs more than the default of five seconds
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def fleet(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Two workers on an empty Redis."""
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    ollama.behaviour()
    with gunicorns("api.asgi:app", tmp_path) as begin:

        def replica(**settings: str) -> Gunicorn:
            shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2"}
            patient = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}  # a busy test machine is no lost Redis
            return begin(**{**shared, **patient, "METRICS_PORT": free_port(), **settings})

        yield replica


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens the page and waits for its first figures. Fails if the page logs an error or calls another host."""
    pages: list[Page] = []
    wrong: list[str] = []

    def page_of(gunicorn: Gunicorn, expects_errors: bool = False, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})  # type: ignore[arg-type]
        page = context.new_page()
        page.set_default_timeout(20_000)
        pages.append(page)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if not expects_errors:
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda sent: None if sent.url.startswith(gunicorn.url()) else wrong.append(sent.url))
        page.goto(f"{gunicorn.url()}/dashboard")
        expect(page.locator("#live")).to_have_text("Live", timeout=20_000)
        return page

    yield page_of
    for page in pages:
        page.context.close()
    assert wrong == []


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("heading", name="Why", exact=True)).to_be_visible(timeout=20_000)


def accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_an_answer_streams_and_its_paraphrase_is_a_hit_that_is_explained(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet())
    ask(page, QUESTION)
    expect(page.locator("#answer")).to_contain_text("miss")
    expect(page.locator("#explain")).to_contain_text("The cache has no similar question.")
    answer = page.locator("#answer-text").inner_text()
    assert answer
    ask(page, PARAPHRASE)
    expect(page.locator("#answer")).to_contain_text("hit, semantic")
    assert page.locator("#answer-text").inner_text() == answer
    row = page.locator("#explain table").get_by_role("row", name=QUESTION)
    expect(row).to_contain_text(re.compile(r"(0\.9\d\d|1\.000)"))
    expect(row).to_contain_text("agree")
    expect(page.locator("#tiles")).to_contain_text("1 semantic")
    expect(page.locator("#recent table tbody tr")).to_have_count(2)


def test_a_wrong_answer_is_no_longer_served(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet())
    ask(page, QUESTION)
    page.get_by_role("button", name="Wrong answer").click()
    expect(page.locator("#answer")).to_contain_text("This answer is no longer served.")
    ask(page, QUESTION)
    expect(page.locator("#answer")).to_contain_text("miss")


def test_the_breaker_opens_in_the_page_and_an_admin_resets_it(
    fleet: Fleet, opened: Opened, ollama: StubProcess
) -> None:
    gunicorn = fleet(CIRCUIT_BREAKER_FAILURE_THRESHOLD="3", CIRCUIT_BREAKER_TIMEOUT="300")
    page = opened(gunicorn, expects_errors=True)
    breaker = page.locator("#breakers")
    expect(breaker).to_contain_text("CLOSED")
    ollama.behaviour("status", status=500)
    numbers = iter(range(1000))
    url = f"{gunicorn.url()}/query"

    def is_open() -> bool:
        gunicorn.client.post(url, json={"question": f"Is {next(numbers)} prime?"})
        return "OPEN" in gunicorn.get("/api/circuit-breaker/metrics").json()["state"]

    wait_until(is_open, timeout=60)
    expect(breaker.locator(".pill").first).to_have_text("OPEN")
    expect(page.locator("#tiles")).to_contain_text("next probe in")
    expect(page.locator("#status")).to_contain_text("degraded")
    page.get_by_label("Question", exact=True).fill("What now?")
    page.keyboard.press("Enter")
    expect(page.locator("#answer [role=alert]")).to_contain_text("open")
    expect(page.locator("#breakers .state-OPEN").first).to_be_attached()

    ollama.behaviour()
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_role("dialog")).to_contain_text("Reset the breaker?")
    page.keyboard.press("Escape")
    expect(breaker.locator(".pill").first).to_have_text("OPEN")
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Confirm").click()
    expect(breaker.locator(".pill").first).to_have_text("CLOSED")


def test_a_deletion_counts_first_and_asks(fleet: Fleet, opened: Opened) -> None:
    gunicorn = fleet()
    page = opened(gunicorn)
    ask(page, QUESTION)
    page.get_by_text("Delete cached answers").click()
    page.locator("#invalidate-by").select_option("all")
    page.get_by_role("button", name="Count first").click()
    expect(page.get_by_role("dialog")).to_contain_text("Delete 1 cached answers?")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#invalidate-result")).to_have_text("Nothing was deleted.")
    assert gunicorn.get("/api/semantic-cache/metrics").json()["cache_size"] == 1
    page.get_by_role("button", name="Count first").click()
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator("#invalidate-result")).to_have_text("Deleted 1.")
    assert gunicorn.get("/api/semantic-cache/metrics").json()["cache_size"] == 0


def test_an_admin_drains_and_resumes_a_backend_and_the_page_asks_again_for_the_last(
    fleet: Fleet, opened: Opened, ollama: StubProcess
) -> None:
    second = ollama.base_url.replace("127.0.0.1", "localhost")
    gunicorn = fleet(OLLAMA_BASE_URL=f"{ollama.base_url},{second}#tier=2")
    page = opened(gunicorn, expects_errors=True)
    row = page.locator("#backends").get_by_role("row", name="ollama-2")
    expect(row).to_contain_text(second)
    expect(row).to_contain_text("up")
    button = page.get_by_role("button", name="Drain ollama-2", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Drain ollama-2?")
    page.keyboard.press("Escape")
    expect(row).not_to_contain_text("drained")
    button.click()
    page.get_by_role("button", name="Confirm").click()
    expect(row).to_contain_text("drained")
    expect(page.locator("#backends-result")).to_have_text("ollama-2 is drained.")
    accessible(page)
    page.get_by_role("button", name="Drain ollama", exact=True).click()
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("dialog")).to_contain_text("Drain ollama, the last backend?")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#backends-result")).to_have_text("Nothing was changed.")
    assert [one["drained"] for one in gunicorn.get("/api/backends").json()["backends"]] == [False, True]
    page.get_by_role("button", name="Resume ollama-2", exact=True).click()
    page.get_by_role("button", name="Confirm").click()
    expect(row).not_to_contain_text("drained")


def test_new_figures_leave_the_focus_where_it_is(fleet: Fleet, opened: Opened) -> None:
    gunicorn = fleet()
    page = opened(gunicorn)
    button = page.get_by_role("button", name="Drain ollama", exact=True)
    button.focus()
    handle = button.element_handle()
    assert handle is not None
    gunicorn.client.post(f"{gunicorn.url()}/api/circuit-breaker/force-open")
    page.wait_for_function("one => !one.isConnected", arg=handle, timeout=30_000)
    expect(button).to_be_focused()


def test_an_override_and_the_outages_of_one_breaker(fleet: Fleet, opened: Opened, ollama: StubProcess) -> None:
    second = ollama.base_url.replace("127.0.0.1", "localhost")
    gunicorn = fleet(OLLAMA_BASE_URL=f"{ollama.base_url},{second}")
    page = opened(gunicorn)
    page.locator("#breaker-name").select_option("ollama-2")
    page.get_by_role("button", name="Force open").click()
    expect(page.get_by_role("dialog")).to_contain_text("Force the breaker ollama-2 open?")
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator("#breakers .breaker").filter(has_text="forced OPEN")).to_have_count(1)
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator("#breakers")).not_to_contain_text("forced OPEN")
    page.get_by_text("Outages of the last 24 hours").click()
    expect(page.locator("#outages table").last.get_by_role("row", name="ollama-2")).to_contain_text("forced open")


def test_without_the_admin_key_the_page_says_what_to_do(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet(ADMIN_KEYS="root-key"), expects_errors=True)
    page.get_by_role("button", name="Force open").click()
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator("#breaker-result")).to_contain_text("Admin key required")
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_label("Key", exact=True).fill("root-key")
    page.get_by_role("button", name="Use the key").click()
    expect(page.locator("#live")).to_have_text("Live")
    page.get_by_role("button", name="Force open").click()
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator("#breakers")).to_contain_text("forced OPEN")


def test_enter_uses_the_key_and_escape_changes_nothing(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet())
    page.evaluate("window.loaded = 'before'")
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_label("Key", exact=True).fill("a-key")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("[window.loaded, sessionStorage.getItem('ragherd-key')]") == ["before", None]
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_label("Key", exact=True).fill("a-key")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.evaluate("sessionStorage.getItem('ragherd-key')") == "a-key"


def test_a_larger_step_shows_queries_a_minute(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet())
    point = {"at": "2026-11-28T12:00:00Z", "queries": {"hit": 150}, "errors": {}, "latency_ms": {}, "tokens": {}}
    points = [point, {**point, "at": "2026-11-28T12:05:00Z", "queries": {"hit": 90}, "missing_minutes": 2}]
    page.route("**/api/history?*", lambda route: route.fulfill(json={"step_seconds": 300, "points": points}))
    page.get_by_label("Range").select_option("6 hours")
    expect(page.locator("#sum-queries")).to_contain_text("240 queries")
    expect(page.locator(".tile").first.locator(".value")).to_have_text("30")


def test_states_that_cannot_be_read_now_stay(fleet: Fleet, opened: Opened) -> None:
    gunicorn = fleet()
    page = opened(gunicorn, expects_errors=True)
    force = f"{gunicorn.url()}/api/circuit-breaker"
    gunicorn.client.post(f"{force}/force-open")
    gunicorn.client.post(f"{force}/reset")
    expect(page.locator("#breakers .state-OPEN").first).to_be_attached()
    page.route("**/api/circuit-breaker/history?*", lambda route: route.fulfill(status=503, json={}))
    with page.expect_response("**/api/circuit-breaker/recovery?*"):
        gunicorn.client.post(f"{force}/force-open")
    expect(page.locator("#breakers .pill").first).to_have_text("OPEN")
    expect(page.locator("#breakers .state-CLOSED").first).to_be_attached()


def test_a_reader_that_stops_early_closes_its_stream(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet())
    stop = "async () => { const { events } = await import('/dashboard/client.js'); " + (
        "for (let turn = 0; turn < 9; turn += 1) for await (const _ of events('/dashboard/events')) break; }"
    )
    too_late = "new Promise((_, refused) => setTimeout(refused, 40_000, new Error('a stream is still open')))"
    # A browser has six connections per host, so streams that stay open block the rest.
    page.evaluate(f"Promise.race([({stop})(), {too_late}])")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(fleet: Fleet, opened: Opened, scheme: str) -> None:
    page = opened(fleet(LOG_QUESTIONS="true"), color_scheme=scheme)
    accessible(page)
    ask(page, QUESTION)
    ask(page, PARAPHRASE)
    for summary in page.locator("summary").all():
        summary.click()
    accessible(page)
    page.get_by_role("button", name="Force open").click()
    accessible(page)


def test_both_themes_and_the_choice_is_remembered(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet(), color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) == dark


def test_a_phone_shows_it_without_scrolling_sideways(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet(), viewport={"width": 360, "height": 740})
    ask(page, QUESTION)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    accessible(page)


def test_the_keyboard_reaches_the_question_first(fleet: Fleet, opened: Opened) -> None:
    page = opened(fleet())
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question box")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Question", exact=True)).to_be_focused()


def test_a_page_finds_the_service_again_after_a_restart(fleet: Fleet, opened: Opened, redis_url: str) -> None:
    port = free_port()
    gunicorn = fleet(PORT=port)
    page = opened(gunicorn, expects_errors=True)
    gunicorn.process.terminate()
    gunicorn.process.wait(30)
    expect(page.locator("#live")).to_contain_text("Trying again", timeout=20_000)
    fleet(PORT=port)
    expect(page.locator("#live")).to_have_text("Live", timeout=20_000)
