"""Whether a head writes what VO says that it writes for the tokens that it reads.

At a position i of a text a head adds o_i (d) to the stream. VO says of a token t what the head would write if it read
it: v_t W_O, where v_t are the values (d_head) that the token's row of a space has by the head's value vectors. So, with
the attention a_ij to the positions j before,

    o_i  is set against  p_i = sum_j a_ij v_(t_j) W_O

Both are scored by the embedding, E o_i and E p_i, less their means over positions, and the measure is the correlation
of the two over the vocabulary, as a mean over positions and heads. Special tokens and the first of a text are left out
as positions and as what is read: causal models attend to the first, and make something else of it than of any token.
(With it, the expected reading of SmolLM2-135M has .154 in layer 15 in place of .376. As if a head read only the token
that it attends to most, it has .202.)

Both o and p are W_O^T times d_head numbers, so the correlation needs only M = W_O G W_O^T (d_head x d_head) of the
centred Gram matrix G of E: the inner product of the two V-long vectors is z M v.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paramdex_builder.measure.measures import Measured, against
from paramdex_schemas import isometry


@dataclass(frozen=True)
class Attended:
    """What the heads of a layer did at P positions of each of W windows of a text."""

    tokens: torch.Tensor
    """the ids at the positions (W x P)"""
    real: torch.Tensor
    """which positions there are (W x P booleans); windows may be shorter"""
    attention: torch.Tensor
    """of position i to position j (W x H x P x P), 0 where there is none"""
    outputs: torch.Tensor
    """what the output projection is given (W x P x H x d_head)"""


def metric_roots(W_O: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """L (H x d_head x r, float64, zero columns at the end) with L L^T = W_O G W_O^T of each head, for the rows of
    attn_output (H x d_head x d) and the centred Gram matrix (d x d, float64) of the embedding.
    """
    found = []
    for rows in W_O.double():
        root = isometry.gram_root((rows @ gram @ rows.T).numpy().copy(), rows.shape[1])
        padded = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        padded[:, : root.rank] = torch.from_numpy(root.root.T)
        found.append(padded)
    return torch.stack(found)


def writes(
    seen: Attended, values: torch.Tensor, roots: torch.Tensor, draws: int, generator: torch.Generator
) -> Measured:
    """The measure of one layer, for the ``values`` of each position's token (W x P x H x d_head), against those of
    other positions: the tokens shuffled among all of them. ``roots`` are those of ``metric_roots``.
    """
    real, (W, P, H, _) = seen.real, seen.outputs.shape
    written = _unit(_coordinates(seen.outputs[real], roots))
    own = _coordinates(values[real], roots)
    attention = seen.attention.reshape(W * H, P, P)

    def mean(order: torch.Tensor | None = None) -> float:
        read = own.new_zeros(W, P, H, own.shape[2])
        read[real] = own if order is None else own[order]
        said = attention @ read.transpose(1, 2).reshape(W * H, P, -1)
        return float((_unit(said.view(W, H, P, -1).transpose(1, 2)[real]) * written).sum(dim=2).mean())

    return against(mean(), lambda: mean(torch.randperm(len(own), generator=generator)), draws)


def _coordinates(rows: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    """Vectors (n x H x r, float32) whose inner products are those of the V-long scores of rows (n x H x d_head), less
    their means over the vocabulary.
    """
    return torch.einsum("nhd,hdr->nhr", rows.double(), roots).float()


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows (n x H x r) less their means over n, of length 1; 0 where a row is the mean."""
    off = rows - rows.mean(dim=0)
    size = off.norm(dim=2, keepdim=True)
    return off / torch.where(size > 0, size, 1)
