"""What theory says of queues with one server, first come first served."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def lindley(arrivals: Values, services: Values) -> Values:
    """Time in the system of each customer (Lindley, 1952), by the recursion on waiting times."""
    sojourn = np.empty(len(arrivals))
    free_at = -math.inf
    for index, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        free_at = max(arrival, free_at) + service
        sojourn[index] = free_at - arrival
    return sojourn


def mm1_sojourn_quantile(rate: float, mean_service: float, share: float) -> float:
    """The time in an M/M/1 system is exponential with rate mu - lambda."""
    return -math.log(1 - share) / (1 / mean_service - rate)


def md1_wait_at_most(rate: float, service: float, wait: float) -> float:
    """Distribution of the waiting time in M/D/1 (Erlang, 1909)."""
    load = rate * service
    total = 0.0
    for number in range(math.floor(wait / service + 1e-12) + 1):
        value = rate * (number * service - wait)
        total += (value**number) / math.factorial(number) * math.exp(-value)
    return (1 - load) * total


def md1_sojourn_quantile(rate: float, service: float, share: float) -> float:
    """Smallest time in the system that the share does not exceed, by bisection."""
    low, high = 0.0, service
    while md1_wait_at_most(rate, service, high) < share:
        if high > 60 * service:
            return math.inf
        high *= 1.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if md1_wait_at_most(rate, service, middle) < share else (low, middle)
    return high + service
