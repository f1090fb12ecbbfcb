"""Checks the protocols of the breaker, of flights and of documents in every interleaving of up to three workers.

    .venv/bin/python -m scripts.check_models              everything: docs/chaos.md has its figures
    .venv/bin/python -m scripts.check_models --depth 12   all states up to 12 steps

Ends with 1 if an invariant does not hold, and prints the shortest way there.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from redis import Redis

from api.embedded.redis_server import embedded_redis
from scripts.models.answers import AnswersModel
from scripts.models.breaker import BreakerModel
from scripts.models.explore import Explored, Explorer, Model
from scripts.models.model_redis import ModelRedis


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_models", description=__doc__)
    parser.add_argument("--depth", type=int, default=100, help="explore up to this many steps")
    parser.add_argument("--seconds", type=float, default=3600, help="explore each model for about this long")
    parser.add_argument("--faults", type=int, default=1, help="deaths and lost replies in one run")
    parser.add_argument("--moves", type=int, default=2, help="movements of the clock in one run")
    options = parser.parse_args()
    found: list[Explored] = []
    with embedded_redis(persistent=False) as server, Redis.from_url(server.url) as client:
        models: list[Model[Any]] = [BreakerModel(2), BreakerModel(3, calls=1), AnswersModel(2, 1), AnswersModel(1, 2)]
        for model in models:
            explorer = Explorer(model, ModelRedis(client), options.faults, options.moves)
            found.append(explorer.explore(options.depth, options.seconds))
            print(found[-1], flush=True)
    print(f"{sum(one.states for one in found)} states in all")
    sys.exit(any(one.violation for one in found))


if __name__ == "__main__":
    main()
