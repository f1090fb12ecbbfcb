"""What a fleet asks of its Redis in a second."""

from __future__ import annotations

import math

from api.scaling.costs import Cost, Costs
from api.scaling.demand import Demand


def idle(demand: Demand, costs: Costs) -> Cost:
    """What all workers do whether or not anybody asks."""
    pace = costs.pace(demand.fleet)
    total = Cost()
    for one in costs.periodic:
        a_second = one.times(demand.guards) / (one.every * (pace if one.look else 1.0))
        total += one.cost * (a_second * demand.fleet)
    return total


def exact_hit(costs: Costs) -> Cost:
    """One look-up by digest."""
    return costs.exact


def semantic_hit(demand: Demand, costs: Costs) -> Cost:
    """In vain by digest, then by meaning."""
    return costs.exact + costs.similar.at(demand.entries)


def miss(demand: Demand, costs: Costs) -> Cost:
    """Both look-ups in vain, the flight, the documents, the permit, the store."""
    found = costs.retrieve.at(demand.chunks) if demand.chunks else Cost()
    looked = semantic_hit(demand, costs) + costs.once["corpus"] + found
    written = Cost(bytes_in=2 * demand.answer_bytes)  # the entry, and the flight's last word
    return looked + costs.once["flight"] + costs.once["permit"] + costs.store.at(demand.entries) + written


def gathered(a_second: float, workers: int, seconds: float) -> float:
    """How often the fleet sends what each worker gathers for `seconds`, where `a_second` come at random."""
    return workers / seconds * (1 - math.exp(-a_second / workers * seconds))


def reports(demand: Demand, costs: Costs) -> Cost:
    """Counters, uses of entries, outcomes of calls: each worker's together, four times a second at most."""
    flushes = gathered(demand.rate, demand.fleet, costs.coalescing["counters_flush"])
    touches = gathered(demand.hits, demand.fleet, costs.coalescing["counters_flush"])
    outcomes = gathered(demand.generations, demand.fleet, costs.coalescing["breaker_report"])
    retries = gathered(demand.generations, demand.fleet, costs.coalescing["retries_sync"])
    counted = costs.once["counters_flush"] * flushes + costs.once["touch"] * touches
    return counted + costs.once["breaker_report"] * outcomes + costs.once["retries_sync"] * retries


def parts(demand: Demand, costs: Costs) -> dict[str, Cost]:
    """Everything, by what causes it. A hit sends the answer's text."""
    answer = Cost(bytes_out=demand.answer_bytes)
    return {
        "idle": idle(demand, costs),
        "exact hits": (exact_hit(costs) + answer) * (demand.rate * demand.exact),
        "semantic hits": (semantic_hit(demand, costs) + answer) * (demand.rate * demand.semantic),
        "misses": miss(demand, costs) * demand.generations,
        "reports": reports(demand, costs),
    }


def notice_ms(demand: Demand, costs: Costs, utilisation: float) -> float:
    """Milliseconds until the last worker knows of a breaker's transition: each is woken, and asks once.

    Infinite where Redis can not keep up.
    """
    if utilisation >= 1:
        return math.inf
    poll = next(one.cost.server_us for one in costs.periodic if one.name == "breaker_poll")
    return demand.fleet * (costs.wake + poll) / (1 - utilisation) / 1000
