"""The official packages of other programs work after only their base URL is changed."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.client_features import CLIENTS, RECIPES
from tests.support.service import Service


@pytest.mark.once(reason="the packages are others', and the answers that they read have tests on every Python")
@pytest.mark.parametrize(
    ("client", "feature"),
    [(client, feature) for client, features in CLIENTS.items() for feature in features],
)
async def test_the_client_works(serve: Service, client: str, feature: str) -> None:
    service = await serve()
    await asyncio.to_thread(CLIENTS[client][feature], str(service.base_url).rstrip("/"))


@pytest.mark.parametrize("recipe", RECIPES)
async def test_the_recipe_sends_its_key(serve: Service, recipe: str) -> None:
    service = await serve(access={"api_keys": "notebook=a-long-random-key"})
    url = str(service.base_url).rstrip("/")
    await asyncio.to_thread(RECIPES[recipe], url, "a-long-random-key")
    with pytest.raises(Exception, match=r"(?i)key|401"):
        await asyncio.to_thread(RECIPES[recipe], url, "a-wrong-key")
