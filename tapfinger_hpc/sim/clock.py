"""Simulated time: a wait takes no time, and ends early when something happens that is worth a look."""

import math
from typing import Protocol


class World(Protocol):
    """What moves when time does."""

    def next_event_s(self) -> float:
        """When something next happens by itself."""
        ...

    def advance(self, now_s: float) -> bool:
        """Lets happen what is due; whether it is worth a look."""
        ...


class SimClock:
    """A clock that jumps from event to event of the world attached to it."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._world: World | None = None

    def attach(self, world: World) -> None:
        """Gives the clock the world that it moves."""
        self._world = world

    def now_s(self) -> float:
        return self._now_s

    def wait(self, seconds: float) -> None:
        """Moves time on by this much, or to the first moment at which something worth a look happens.

        Waiting without end for a world in which nothing will ever happen is refused: it would never return.
        """
        until_s = self._now_s + seconds
        while self._world is not None:
            event_s = self._world.next_event_s()
            if event_s > until_s or math.isinf(event_s):
                break
            self._now_s = max(self._now_s, event_s)
            if self._world.advance(self._now_s):
                return
        if math.isinf(until_s):
            raise RuntimeError("waiting without end on a simulated clock, and nothing will happen by itself")
        self._now_s = until_s
