"""The tools of POST /mcp: their arguments and results, what they do, and how they are described to the caller.

They use the same parts as the HTTP API. `mcp_server` speaks the protocol.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from starlette.requests import Request

from api.cancellation import Deadline
from api.endpoints.health import charge_request, worker_state
from api.endpoints.query import DocumentsIn, Name, QueryIn, Question, build_query
from api.endpoints.routes import role_of
from api.endpoints.semantic_cache import explain, explanation_document
from api.endpoints.streaming import QueryOut, SourceOut, document
from api.endpoints.validation import IsInteger, StrictBody, request_timeout, shortened
from api.errors import EmbeddingUnavailable, NotFound, ServiceUnavailable, StoreUnavailable
from api.knowledge.retrieval import PassageQuery
from api.ports.document_store import DocumentFilter, Holdings
from api.ports.question import AnswerFinished, Query
from api.query.citations import rewritten
from api.values import Source, Token

# -- arguments and results ---------------------------------------------------------------------------------------------

Tags = Annotated[list[Name], Field(max_length=50, fail_fast=True)]
Passages = Annotated[int, Field(ge=1, le=20), IsInteger]
PASSAGE_ID: Final = re.compile(r"([0-9a-f]{24})-([0-9]{1,15})-([0-9]{1,9})")


def _passage_id(text: str) -> str:
    if not PASSAGE_ID.fullmatch(text):
        raise ValueError("is not the `id` of a passage")
    return text


PassageId = Annotated[str, StringConstraints(strip_whitespace=True, max_length=100), AfterValidator(_passage_id)]
_TAGS: Final = "Use only documents with one of these tags."


class AskIn(StrictBody):
    question: Question = Field(description="The question, in full: earlier ones are not known.")
    tags: Tags = Field(default_factory=list, description=_TAGS)
    top_k: Annotated[int, Field(ge=0, le=20), IsInteger] = Field(
        4, description="Passages that the answer may use. 0: the language model answers alone."
    )
    model: Name | None = Field(None, description="A model on Ollama, instead of the service's.")


class SearchIn(StrictBody):
    question: Question = Field(description="What to look for, in words or as a question.")
    tags: Tags = Field(default_factory=list, description=_TAGS)
    top_k: Passages = Field(8, description="Passages to return.")


class GetPassageIn(StrictBody):
    id: PassageId = Field(description="The `id` of a passage, from `search` or `ask`.")


class PassageOut(SourceOut):
    """A passage, and how to cite it."""

    id: str
    citation: str


class AnswerOut(QueryOut):
    """An answer with the passages that it cites: `[1]` is the first."""

    sources: list[PassageOut]  # type: ignore[assignment]


class PassagesOut(BaseModel):
    """The passages, best first. `complete`: the whole knowledge base was searched, by meaning too."""

    passages: list[PassageOut]
    complete: bool


class WholePassageOut(BaseModel):
    """A passage, and the ids of its neighbors."""

    id: str
    citation: str
    document_id: str
    title: str
    page: int | None
    heading: str
    text: str
    chunk: int
    chunks: int
    tags: list[str]
    source: str | None
    version: str | None
    previous: str | None
    next: str | None


class ToolAnswer:
    """The text that the model reads, and the fields that programs read."""

    def __init__(self, text: str, fields: Mapping[str, Any]) -> None:
        self.text = text
        self.fields = fields


Progress = Callable[[float, str], Awaitable[None]]
Run = Callable[[Request, Any, Progress | None], Coroutine[Any, Any, ToolAnswer]]


@dataclass(frozen=True, slots=True)
class ServedTool:
    """A tool: its title and description, its arguments, its result, and what it does.

    `about_documents`: the description also says what the caller's knowledge base has.
    """

    title: str
    description: str
    takes: type[StrictBody]
    gives: type[BaseModel] | None
    run: Run
    about_documents: bool = False


# -- the tools ---------------------------------------------------------------------------------------------------------


async def ask(request: Request, given: AskIn, progress: Progress | None) -> ToolAnswer:
    """Runs the flow of POST /query."""
    state = worker_state(request)
    query = request.state.query = _query(request, given)
    answered = request.state.answered = await (
        state.queries.answer(query) if progress is None else _reported(state.queries.stream(query), progress)
    )
    whole = document(answered, request.state.request_id)
    whole["sources"] = sources = [_passage(source) for source in answered.sources]
    cited = "\n".join(f"[{number}] {one['citation']} (id {one['id']})" for number, one in enumerate(sources, 1))
    return ToolAnswer(f"{answered.answer}\n\nSources:\n{cited}" if cited else answered.answer, whole)


PROGRESS_SECONDS: Final = 1.0


async def _reported(stream: Any, progress: Progress) -> AnswerFinished:
    """Returns the answer, and reports at most once a second how many characters it has."""
    characters, due = 0, time.monotonic()
    async with stream as events:
        async for event in events:
            if isinstance(event, Token):
                characters += len(event.text)
                if time.monotonic() >= due and characters:
                    due = time.monotonic() + PROGRESS_SECONDS
                    await progress(characters, f"{characters} characters of the answer")
            elif isinstance(event, AnswerFinished):
                return event
    raise AssertionError("the flow ends with an answer or an error")


async def search(request: Request, given: SearchIn, _: Progress | None) -> ToolAnswer:
    """Searches the tenant's documents."""
    await charge_request(request)
    wanted = PassageQuery(given.question, request.state.tenant, given.top_k, DocumentFilter(tuple(given.tags)))
    try:
        async with _deadline(request).watched():
            found = await worker_state(request).passages.retrieve(wanted)
    except EmbeddingUnavailable as error:
        raise ServiceUnavailable(f"The embedder cannot be used now: {error}.", retry_after=1) from error
    passages = [_passage(source) for source in found.sources]
    listed = [  # a document's own [2] is no passage
        f"[{number}] {one['citation']} (id {one['id']})\n{rewritten(one['text'])}"
        for number, one in enumerate(passages, 1)
    ]
    return ToolAnswer(
        "\n\n".join(listed) or "No passage is relevant.", {"passages": passages, "complete": found.complete}
    )


async def get_passage(request: Request, given: GetPassageIn, _: Progress | None) -> ToolAnswer:
    """Returns one passage of the tenant's documents."""
    await charge_request(request)
    matched = PASSAGE_ID.fullmatch(given.id)
    assert matched is not None, "validated"
    name, revision, number = matched[1], int(matched[2]), int(matched[3])
    documents = worker_state(request).documents
    async with _deadline(request).watched():
        chunks = await documents.chunks(name, number, 1)
        found = await documents.find(name, request.state.tenant)  # after the text: an update in between is noticed
    if found.revision != revision or not chunks:
        raise NotFound(f"The document of the passage '{given.id}' has changed.")
    (chunk,), facts = chunks, found.facts
    citation = _citation(facts.title, facts.version, facts.source, chunk.page)
    fields = {
        "id": given.id,
        "citation": citation,
        "document_id": name,
        "title": facts.title,
        "page": chunk.page,
        "heading": chunk.heading,
        "text": chunk.text,
        "chunk": number,
        "chunks": found.chunks,
        "tags": list(facts.tags),
        "source": facts.source,
        "version": facts.version,
        "previous": f"{name}-{revision}-{number - 1}" if number else None,
        "next": f"{name}-{revision}-{number + 1}" if number + 1 < found.chunks else None,
    }
    neighbors = " ".join(f"{side}: {fields[side]}" for side in ("previous", "next") if fields[side])
    head = "\n".join(filter(None, (citation, chunk.heading, neighbors)))
    return ToolAnswer(f"{head}\n\n{chunk.text}", fields)


async def explain_cache(request: Request, given: AskIn, _: Progress | None) -> ToolAnswer:
    """Explains as POST /api/semantic-cache/explain does, to those who may call that."""
    state = worker_state(request)
    state.access.check(request, role_of(explain))
    query = _query(request, given)
    await charge_request(request)
    async with _deadline(request).watched():
        found = explanation_document(await state.explainer.explain(query))
    nearest = [f"{one['similarity']:.4f} {one['verdict']}: {one['question']}" for one in found["candidates"]]
    text = "\n".join([f"{found['decision']}: {found['reason']}", f"Threshold: {found['threshold']}", *nearest])
    return ToolAnswer(text, found)


SERVED: Final[Mapping[str, ServedTool]] = {
    "ask": ServedTool(
        "Ask the knowledge base",
        "Answers a question from the knowledge base, with numbered citations of the passages that it used.",
        AskIn,
        AnswerOut,
        ask,
        about_documents=True,
    ),
    "search": ServedTool(
        "Search the knowledge base",
        "Finds passages in the knowledge base, best first, with their ids and citations. No language model reads them.",
        SearchIn,
        PassagesOut,
        search,
        about_documents=True,
    ),
    "get_passage": ServedTool(
        "Read a passage",
        "Returns one passage by its id, and the ids of the passages before and after it in the same document.",
        GetPassageIn,
        WholePassageOut,
        get_passage,
    ),
    "explain_cache": ServedTool(
        "Explain the cache",
        "Explains whether `ask` would answer a question from the cache, and why or why not. Changes nothing.",
        AskIn,
        None,
        explain_cache,
    ),
}


def _query(request: Request, given: AskIn) -> Query:
    body = QueryIn(
        question=given.question,
        model=given.model,
        top_k=given.top_k,
        tenant=request.state.tenant,
        documents=DocumentsIn(tags=given.tags) if given.tags else DocumentsIn(),
    )
    return build_query(body, request, worker_state(request))


def _deadline(request: Request) -> Deadline:
    return Deadline(request_timeout(request.headers))


def _passage(source: Source) -> dict[str, Any]:
    return {
        **asdict(source),
        "id": f"{source.document_id}-{source.revision}-{source.chunk}",
        "citation": _citation(source.title, source.version, source.source, source.page),
    }


def _citation(title: str, version: str | None, source: str | None, page: int | None) -> str:
    return ", ".join(dict.fromkeys(filter(None, (title, version, source, f"page {page}" if page else None))))


# -- descriptions ------------------------------------------------------------------------------------------------------

MAX_TAGS: Final = 20
_QUOTED: Final = re.compile(r"[\s`]+")


async def holdings_of(request: Request) -> str:
    """Says what the tenant's knowledge base has; nothing while Redis is down."""
    try:
        found = await worker_state(request).documents.holdings(request.state.tenant)
    except StoreUnavailable:
        return ""
    return described(found)


def described(found: Holdings) -> str:
    """Returns the sentences for the descriptions. Tags are the uploaders' words, so they stay short and on one line."""
    if not found.documents:
        return "The knowledge base is empty."
    count = f"The knowledge base has {found.documents} document{'s' if found.documents > 1 else ''}."
    listed = [f"`{_QUOTED.sub(' ', shortened(tag, 50)).strip()}` ({number})" for tag, number in found.tags[:MAX_TAGS]]
    if not listed:
        return count
    more = f", and {len(found.tags) - MAX_TAGS} more" if len(found.tags) > MAX_TAGS else ""
    among = f" of the newest {found.read}" if found.read < found.documents else ""
    return f"{count} Tags{among}, with their documents: {', '.join(listed)}{more}."


def plain(schema: Any) -> Any:
    """Returns a JSON schema without titles and patterns, which cost tokens and which some clients do not understand."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {one: plain(its) for one, its in value.items()} if name in ("properties", "$defs") else plain(value)
        for name, value in schema.items()
        if not (name == "pattern" or (name == "title" and isinstance(value, str)))
    }


def _arguments(takes: type[StrictBody]) -> dict[str, Any]:
    """Returns the schema of a tool's arguments. An optional one may be left out, so `null` need not be named."""
    schema: dict[str, Any] = plain(takes.model_json_schema())
    for field in schema["properties"].values():
        options = field.pop("anyOf", [])
        field |= next((one for one in options if one != {"type": "null"}), {})
        if field.get("default", "") is None:
            del field["default"]
    schema.pop("description", None)
    return schema


INPUTS: Final = {name: _arguments(tool.takes) for name, tool in SERVED.items()}
OUTPUTS: Final[dict[str, dict[str, Any] | None]] = {
    name: None if tool.gives is None else plain(tool.gives.model_json_schema(mode="serialization"))
    for name, tool in SERVED.items()
}
