"""A/B experiments: start, stop and compare variants of settings."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ConfigDict, Field, StringConstraints

from api.endpoints.audit import audited
from api.endpoints.health import AppState, worker_state
from api.endpoints.routes import CheckedRoute, JsonRoute, needs
from api.endpoints.validation import StrictBody, refused
from api.errors import SettingsError
from api.ports.experiment import WHOLE, Experiment, VariantSpec
from api.query.experiments import CHANGES_ANSWERS
from api.query.prompt import parse_template

PATH: Final = "/api/experiments"
MOST_HOURS: Final = 30 * 24
HOUR_MS: Final = 3600 * 1000
NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,39}$"

router = APIRouter(tags=["experiments"], route_class=CheckedRoute)
start_router = APIRouter(tags=["experiments"], route_class=JsonRoute)

ExperimentName = Annotated[str, StringConstraints(pattern=NAME)]
Share = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class VariantIn(StrictBody):
    """A variant, and the settings that it changes."""

    name: ExperimentName
    share: Share = Field(description="Percent of the clients or questions, in steps of 0.01.")
    settings: dict[str, Any] = Field(default_factory=dict, max_length=10, description="By the names of the settings.")


class ExperimentIn(StrictBody):
    """An experiment. The first variant is the control, with which the others are compared."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "lower-threshold",
                "variants": [
                    {"name": "control", "share": 50},
                    {"name": "lower", "share": 50, "settings": {"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.88}},
                ],
            }
        }
    )

    name: ExperimentName
    variants: Annotated[list[VariantIn], Field(min_length=2, max_length=5, fail_fast=True)]
    unit: Literal["client", "question"] = Field(
        "client", description="What keeps its variant: `X-Ragherd-Client` or, without it, the question; or questions."
    )
    hours: Annotated[float, Field(gt=0, le=MOST_HOURS, allow_inf_nan=False)] = Field(
        168, description="The experiment ends by itself after this time."
    )
    share_answers: bool = Field(
        default=False, description="Variants serve each other's cached answers. Only if all produce them alike."
    )

    def experiment(self, state: AppState) -> Experiment:
        """Raises `InvalidRequest` for settings that are invalid or cannot vary."""
        variants = tuple(self._variant(number, one, state) for number, one in enumerate(self.variants))
        if len({one.name for one in variants}) < len(variants):
            raise refused("variants", "two variants have the same name")
        if sum(one.share for one in variants) > WHOLE:
            raise refused("variants", "the shares add up to more than 100")
        if self.share_answers:
            for number, one in enumerate(variants):
                for name in CHANGES_ANSWERS:
                    if name in one.settings:
                        raise refused(
                            "share_answers",
                            f"variants.{number} sets {name}, so its answers are not those of the others",
                        )
        return Experiment(self.name, variants, (), self.unit, self.share_answers)

    def _variant(self, number: int, given: VariantIn, state: AppState) -> VariantSpec:
        share = given.share * WHOLE / 100
        if abs(share - round(share)) > 1e-6:
            raise refused(f"variants.{number}.share", "must be a multiple of 0.01")
        try:
            settings = state.experiment_control.validated(given.settings)
            if (prompt := settings.get("PROMPT_TEMPLATE")) is not None:
                parse_template(prompt)
        except SettingsError as error:
            name, _, reason = str(error).partition(": ")
            name = "PROMPT_TEMPLATE" if name not in given.settings else name
            raise refused(f"variants.{number}.settings.{name}", reason) from None
        return VariantSpec(given.name, round(share), settings)


@start_router.post(
    PATH,
    status_code=201,
    summary="Start an experiment, or change its shares",
    responses={200: {"description": "It was running: its shares and its end are changed", "model": dict[str, Any]}},
)
@needs("admin")
async def start(body: ExperimentIn, request: Request, response: Response) -> dict[str, Any]:
    """200 if it is running already: then only its shares and its end change. 409 if another one is running."""
    state = worker_state(request)
    wanted = body.experiment(state)
    await audited(request, "experiment.start", experiment=wanted.name)
    if not await state.experiment_control.start(wanted, round(body.hours * HOUR_MS)):
        response.status_code = 200
    response.headers["Location"] = f"{PATH}/{wanted.name}"
    return _shown(request, await state.experiment_control.report(wanted.name))


@router.get(PATH, summary="List the experiments")
@needs("operator")
async def experiments(request: Request) -> dict[str, Any]:
    """The running one, and up to 20 of the last, newest first."""
    found = await worker_state(request).experiment_control.all()
    running = next((one["name"] for one in found if one["state"] == "running"), None)
    return {"running": running, "experiments": [_shown(request, one) for one in found]}


@router.get(f"{PATH}/{{name}}", summary="Compare the variants of an experiment")
@needs("operator")
async def experiment(request: Request, name: Annotated[str, Path(pattern=NAME)]) -> dict[str, Any]:
    """The figures of each variant with 95 % intervals, and the comparison with the control.

    The intervals and the verdicts hold however often you look.
    """
    return _shown(request, await worker_state(request).experiment_control.report(name))


@router.delete(PATH, summary="Stop an experiment")
@needs("admin")
async def stop(request: Request, name: Annotated[str | None, Query(pattern=NAME)] = None) -> dict[str, Any]:
    """Stop the running experiment, or the named one. Its figures stay for 30 days."""
    await audited(request, "experiment.stop", experiment=name)
    return _shown(request, await worker_state(request).experiment_control.stop(name))


def _shown(request: Request, found: dict[str, Any]) -> dict[str, Any]:
    """Prompts are for admins only."""
    if worker_state(request).access.is_admin(request):
        return found
    for one in found["variants"]:
        if "PROMPT_TEMPLATE" in one["settings"]:
            one["settings"]["PROMPT_TEMPLATE"] = "(for admins only)"
    return found
