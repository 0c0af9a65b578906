"""Which rows run next. Pure Python: no torch, no clock, no threads.

A row is one image on its way through the steps. Rows of one key (model, latent size, guidance mode) can share a forward
pass, whatever else differs. A batch is never waited for: what is here runs.

Between the endpoints the device's time is shared by start-time fair queueing (Goyal et al. 1996): the endpoint that was
served less is next, idle time earns no credit, and an endpoint may run ahead by one step of the other, so that the few
steps of a sprint image follow each other. Within an endpoint the oldest row runs, and the next oldest that can share
its pass run with it: nothing starves, and a row may join or leave at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from sana_service.models.names import ModelName


@dataclass(frozen=True)
class BatchKey:
    """What rows of one forward pass have in common.

    Args:
        model: whose transformer.
        height, width: of the latents.
        guided: whether each row runs with and without its prompt.
    """

    model: ModelName
    height: int
    width: int
    guided: bool

    @property
    def forwards(self) -> int:
        """Transformer rows that one image takes."""
        return 2 if self.guided else 1


STEPS_BEFORE_GROWTH = 200
"""Steps after which a model's batches may be twice as large again, once memory was short."""


class Row(Protocol):
    """Anything with a key."""

    @property
    def key(self) -> BatchKey: ...


R = TypeVar("R", bound=Row)


@dataclass
class _Lane(Generic[R]):
    """One endpoint: its rows, oldest first, its share of the device so far, and how much one batch may hold."""

    full_cells: int
    cells: int
    rows: list[R] = field(default_factory=list)
    served_seconds: float = 0.0
    step_seconds: float = 0.0
    steps_since_shrunk: int = 0


class Batcher(Generic[R]):
    """Holds the rows that are being denoised and chooses among them.

    Args:
        cells: most latent cells of one batch by model, images times height times width; one image always fits.
        ahead: the endpoint that may run ahead of the other.
    """

    def __init__(self, cells: Mapping[ModelName, int], ahead: ModelName = "sprint") -> None:
        self._lanes: dict[ModelName, _Lane[R]] = {model: _Lane(most, most) for model, most in cells.items()}
        self._ahead = ahead

    def __len__(self) -> int:
        return sum(len(lane.rows) for lane in self._lanes.values())

    @property
    def rows(self) -> list[R]:
        """All rows, those of an endpoint oldest first."""
        return [row for lane in self._lanes.values() for row in lane.rows]

    def add(self, rows: Iterable[R]) -> None:
        """Let rows take part, behind those of their endpoint that are here."""
        for row in rows:
            lane = self._lanes[row.key.model]
            if not lane.rows:
                busy = [other.served_seconds for other in self._lanes.values() if other.rows]
                lane.served_seconds = max(lane.served_seconds, min(busy, default=0.0))
            lane.rows.append(row)

    def keep(self, wanted: Callable[[R], bool]) -> None:
        """Forget the other rows: they are done or dead."""
        for lane in self._lanes.values():
            lane.rows = [row for row in lane.rows if wanted(row)]

    def next_batch(self) -> list[R]:
        """The rows to advance by one step, oldest first; empty where there are none."""
        lane = self._next_lane()
        if lane is None:
            return []
        key = lane.rows[0].key
        most = max(1, lane.cells // (key.height * key.width))
        return [row for row in lane.rows if row.key == key][:most]

    def charge(self, model: ModelName, seconds: float) -> None:
        """Account for a step that an endpoint was given."""
        lane = self._lanes[model]
        lane.served_seconds += seconds
        lane.step_seconds = seconds
        lane.steps_since_shrunk += 1
        if lane.steps_since_shrunk >= STEPS_BEFORE_GROWTH and lane.cells < lane.full_cells:
            lane.cells = min(2 * lane.cells, lane.full_cells)
            lane.steps_since_shrunk = 0

    def shrink(self, key: BatchKey, images: int) -> None:
        """Memory was short: batches of a model hold no more than so many images of a key for some time."""
        lane = self._lanes[key.model]
        lane.cells = max(1, images) * key.height * key.width
        lane.steps_since_shrunk = 0

    def _next_lane(self) -> _Lane[R] | None:
        busy = {model: lane for model, lane in self._lanes.items() if lane.rows}
        if self._ahead not in busy or len(busy) == 1:
            return min(busy.values(), key=lambda lane: lane.served_seconds, default=None)
        ahead = busy.pop(self._ahead)
        other = min(busy.values(), key=lambda lane: lane.served_seconds)
        return ahead if ahead.served_seconds <= other.served_seconds + other.step_seconds else other
