"""The least memory and disk that a build needs.

The parts of memory that grow with the model are the embedding, a piece of a layer, a head's factors over the
vocabulary, and what DuckDB sorts. The steps of a build come one after the other, so the largest of them counts.
"""

from __future__ import annotations

import torch

from paramdex_builder.project.engines import engine_of
from paramdex_builder.project.head_rows import ATTENTION, matrices_held
from paramdex_builder.project.parameter_rows import parameters_held
from paramdex_builder.project.pieces import pieces
from paramdex_builder.project.tokens import projection_held, projection_shared, screened_held
from paramdex_builder.read.weights import Weights
from paramdex_builder.stream.reading import reading_held
from paramdex_builder.work.memory import LEAST_FOR_DUCKDB
from paramdex_schemas import Layout, vector_files
from paramdex_schemas.layout import OF_STATES

_LIBRARIES = 576 << 20
"""Bytes of memory for the libraries, and for what is small."""
_BLOCKS = 4 << 20
"""Bytes that a model takes in the database however small it is: each column of a table begins in a block of its own."""


def memory_needed(weights: Weights, layout: Layout, V: int, stored: torch.dtype, device: torch.device) -> int:
    """The bytes of memory, roughly, that a build of a model needs: its embedding (V x d, held in the dtype ``stored``),
    the root of its Gram matrix, the same of the other spaces that its ``layout`` names, and what the largest step adds:
    reading, running the model, projecting, pairing, sorting, or relating.

    What a GPU holds is not counted.
    """
    d, n_terms = weights.d_model, weights.n_terms
    root = 8 * d * d
    of_states = _of_states(layout)
    beside = len(of_states) * (4 * V * d + root)
    running = reading_held(weights, V) if of_states else 0
    projecting = parameters_held([piece for kind in layout.kinds for piece in pieces(layout, kind)], d, n_terms)
    projecting += 4 * root  # what is usual: the moments of a piece, of all, and their eigenvectors
    places = layout.attention_places
    vectors = [sum(len(range(*layout.places(kind).get(place, (0, 0)))) for kind in ATTENTION) for place in places]
    pairing = 4 * n_terms**2 * d * max(vectors, default=0)  # float64 for each of two terms
    if device.type == "cpu":
        engine = engine_of(device)
        projecting += len(layout.spaces) * projection_shared(V, d, stored, engine) + projection_held(V)
        projecting += screened_held(V, d, engine)  # of the rows by which what is usual is measured
        pairing += max((matrices_held(V, layout.heads(place), n_terms) for place in places), default=0)
    embedding, sorting = stored.itemsize * V * d, LEAST_FOR_DUCKDB
    reading = embedding  # the file, mapped, beside what is copied from it
    relating = 4 * root  # to another model as wide, whatever the spaces: two roots, an inverse and their product
    return _LIBRARIES + embedding + root + max(reading, running, beside + max(projecting, pairing, sorting, relating))


def disk_needed(weights: Weights, layout: Layout, V: int, top_k: int, pair_k: int) -> int:
    """The bytes on the disk, roughly, that a model takes while it is built, staging included.

    A posting is there three times: in staging, in the database, and in the database's log or what it wrote before. Two
    rankings share the most of theirs.
    Vectors are there twice: in staging and in their index. A large kind has codes too: one byte per number and four per
    row.
    """
    d = weights.d_model
    postings = layout.n_parameters * 2 * top_k
    rows = _vector_files(layout)
    vectors = sum(rows) * d * 4
    codes = sum(n * (d + 4) + d * d * 4 for n in rows if n * d * 4 >= vector_files.CODED_BYTES)
    pairs = layout.n_heads * 8 * pair_k
    embedding = weights.n_bytes // 2
    return _BLOCKS + 70 * postings + 2 * vectors + codes + 100 * pairs + embedding + _of_reading(layout, V, d)


def _vector_files(layout: Layout) -> list[int]:
    """The rows of every file of vectors: all of a kind by the embedding, and those that are scored elsewhere."""
    main = layout.spaces[:1]
    elsewhere = [part for kind in layout.kinds for part in layout.parts(kind) if part.space not in main]
    return [layout.blocks[kind].n_rows for kind in layout.kinds] + [part.end - part.start for part in elsewhere]


def _of_reading(layout: Layout, V: int, d: int) -> int:
    """The bytes of what comes of running a model, in staging and in the atlas: a row for each token in each space of
    states, and two maps for each layer, before attention and before the feed-forward.
    """
    n = len(_of_states(layout))
    return 8 * d * (n * V + 2 * layout.n_layers() * d) if n else 0


def _of_states(layout: Layout) -> list[str]:
    return [space for space in layout.spaces if space in OF_STATES]
