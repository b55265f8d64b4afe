"""Steps for tools that take whole numbers only."""

from results.export.tracker import Point

_LARGEST = 2**53


class Steps:
    """Of one entry. From the first record whose step is no whole number on, records are numbered instead."""

    def __init__(self) -> None:
        self._numbered = False
        self.last = 0

    def whole(self, point: Point) -> int:
        """The record's step where it has one, else its number."""
        step = point.step
        if step is None or step != int(step) or abs(step) > _LARGEST:
            self._numbered = True
        self.last = point.index if self._numbered or step is None else int(step)
        return self.last
