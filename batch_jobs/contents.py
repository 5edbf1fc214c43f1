"""Contents: the distinct images among live ones. Images with the same bytes are one content, and are embedded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_DOCS_PER_CONTENT = 4
"""While no more docs were given than that, a table by doc is quicker to look at than a search."""


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The distinct images among live ones, by `docs` ascending, and the row of the first live image of each.

    `row_of` has the row of each doc from `first_doc` on, -1 for one that is gone, and -1 at last; it is empty where
    docs lie far apart.
    """

    docs: NDArray[np.int64]
    rows: NDArray[np.int64]
    first_doc: int
    row_of: NDArray[np.int64]

    @classmethod
    def of(cls, content_docs: NDArray[np.int64], rows: NDArray[np.int64]) -> Contents:
        """Those of live images, whose `rows` `(n,)` ascend."""
        first_doc = int(content_docs.min(initial=np.iinfo(np.int64).max))
        num_docs = int(content_docs.max(initial=first_doc - 1)) - first_doc + 1
        if num_docs > MAX_DOCS_PER_CONTENT * content_docs.size:
            docs, places = np.unique(content_docs, return_index=True)
            return cls(docs, rows[places], first_doc, np.empty(0, np.int64))
        row_of = np.full(num_docs + 1, -1)
        # The last assignment to a place stays, which is that of the first image.
        row_of[(content_docs - first_doc)[::-1]] = rows[::-1]
        places = np.flatnonzero(row_of >= 0)
        return cls(places + first_doc, row_of[places], first_doc, row_of)

    def rows_of(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each content doc, -1 for one that is gone."""
        if not self.row_of.size:
            places = np.minimum(np.searchsorted(self.docs, docs), self.docs.size - 1)
            return np.where(self.docs[places] == docs, self.rows[places], -1)
        # Without a sign, docs before the first are behind the last.
        places = np.minimum((docs - self.first_doc).view(np.uint64), np.uint64(self.row_of.size - 1))
        rows: NDArray[np.int64] = self.row_of[places]
        return rows


def contents_of(content_docs: NDArray[np.int64], is_embedded: NDArray[np.bool_]) -> tuple[Contents, NDArray[np.int64]]:
    """The contents that have an embedding, and for each image the row of its content, its own without an embedding."""
    rows = np.arange(content_docs.size)
    embedded_docs = content_docs[is_embedded]
    contents = Contents.of(embedded_docs, rows[is_embedded])
    rows[is_embedded] = contents.rows_of(embedded_docs)
    return contents, rows
