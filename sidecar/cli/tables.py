"""Lines of cells below a heading, fitted to a terminal."""

from collections.abc import Mapping, Sequence


class Grid:
    """Lays out cells in columns. The first rows decide the width of each column.

    width: of the terminal; longer cells are cut. None: nothing is cut.
    least: the columns that may be cut where a terminal is too narrow, and the least that is left of each.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, least: Mapping[str, int]
    ) -> None:
        self._columns, self._least, self._cut = columns, least, width is not None
        self._widths = [max([len(name), *(len(row[place]) for row in rows)]) for place, name in enumerate(columns)]
        if width is not None:
            self._shrink(width)

    def heading(self) -> str:
        return self.line([name.upper() for name in self._columns])

    def line(self, cells: Sequence[str]) -> str:
        return " ".join(map(self._fitted, self._columns, cells, self._widths)).rstrip()

    def _shrink(self, width: int) -> None:
        """Narrow the widest column first, each down to its minimum."""
        while sum(self._widths) + len(self._columns) - 1 > width:
            places = [at for at, name in enumerate(self._columns) if self._widths[at] > self._least.get(name, 1000)]
            if not places:
                return
            self._widths[max(places, key=lambda at: self._widths[at])] -= 1

    def _fitted(self, column: str, text: str, width: int) -> str:
        return _fit(text, width) if self._cut and column in self._least else text.ljust(width)


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"
