"""Choose and sort the rows of the worklist, and divide them into pages."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from totalspineseg_server.worklist.rows import STATUSES, Row

Sort = Literal["id", "status", "doubt", "levels", "user", "date", "version"]
PAGE_SIZE: Final = 25
MAX_PAGE_SIZE: Final = 200
"""Most rows on a page."""
_KEYS: Final[Mapping[Sort, Callable[[Row], Any]]] = MappingProxyType(
    {
        "id": lambda row: row.id,
        "status": lambda row: STATUSES.index(row.status),
        # Scans whose doubt is not known come last.
        "doubt": lambda row: -1.0 if row.doubt is None else row.doubt,
        "levels": lambda row: row.levels,
        "user": lambda row: row.user.casefold(),
        "date": lambda row: row.date,
        "version": lambda row: row.version,
    }
)


@dataclass(frozen=True)
class Query:
    """The request of a client for rows of the worklist.

    Attributes:
        search: Part of an id, a level, a user or a reason, in upper or lower case; several words must all be found.
        status: Only these; empty for all.
        certainty: Only this one; empty for all.
        user: Only this user's; empty for all.
        sort: Key by which the rows are sorted; equal rows are sorted by id.
        descending: Whether the largest value comes first.
        page: Number of the page, from 0.
        size: Rows on a page.
    """

    search: str = ""
    status: tuple[str, ...] = ()
    certainty: str = ""
    user: str = ""
    sort: Sort = "id"
    descending: bool = False
    page: int = 0
    size: int = PAGE_SIZE


@dataclass(frozen=True)
class Page:
    """A page of the worklist.

    Attributes:
        rows: Its rows.
        total: Number of rows on all pages.
        counts: Status -> number of rows in the whole worklist.
    """

    rows: tuple[Row, ...]
    total: int
    counts: Mapping[str, int]


def select(rows: Sequence[Row], query: Query) -> Page:
    """Return one page of the rows.

    Args:
        rows: All rows, sorted by id. Not modified.
        query: The request of the client.
    """
    counts = Counter[str](row.status for row in rows)
    found = list(_found(rows, query))
    # Sorting is stable, even in reverse.
    found.sort(key=_KEYS[query.sort], reverse=query.descending)
    first = query.page * query.size
    return Page(tuple(found[first : first + query.size]), len(found), dict(counts))


def _found(rows: Iterable[Row], query: Query) -> Iterable[Row]:
    words = query.search.casefold().split()
    for row in rows:
        if query.status and row.status not in query.status:
            continue
        if (query.certainty and row.certainty != query.certainty) or (query.user and row.user != query.user):
            continue
        text = f"{row.id} {row.about} {row.levels} {row.user} {row.reason}".casefold()
        if all(word in text for word in words):
            yield row
