"""The embedding space of a model on a device: E, its column means, the root of its Gram matrix, coordinates in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paramdex_schemas import isometry

_CHUNK = 8192
"""Rows of E that are held in float64 at a time."""


@dataclass
class Space:
    """E (V x d, float32 on the device), its column means (d, float64) and the root of its centred Gram matrix."""

    embedding: torch.Tensor
    means: torch.Tensor
    root: isometry.Root

    longest: float
    """Norm of the longest row of E."""

    @property
    def size(self) -> int:
        return self.embedding.shape[0]

    def coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        """R w of every row w of ``rows`` (n x d): n x r, float64."""
        root = torch.from_numpy(self.root.root).to(rows.device)
        return rows.double() @ root.T


def make_space(embedding: torch.Tensor, device: torch.device) -> Space:
    """The space of an output embedding E (V x d, any float dtype)."""
    E = embedding.to(device).float()
    means = sum((chunk.double().sum(0) for chunk in E.split(_CHUNK)), torch.zeros(1, device=device)) / len(E)
    gram = centred_gram(E, means, E, means)
    longest = max(float(torch.linalg.vector_norm(chunk.double(), dim=1).max()) for chunk in E.split(_CHUNK))
    return Space(E, means, isometry.gram_root(gram, len(E)), longest)


def centred_gram(A: torch.Tensor, mean_a: torch.Tensor, B: torch.Tensor, mean_b: torch.Tensor) -> np.ndarray:
    """(A - mean_a)^T (B - mean_b), d_A x d_B in float64, for A (V x d_A) and B (V x d_B) with the same rows."""
    total = torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64, device=A.device)
    for a, b in zip(A.split(_CHUNK), B.split(_CHUNK), strict=True):
        total += (a.double() - mean_a).T @ (b.double() - mean_b)
    return total.cpu().numpy()


def pick_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``: with ``auto`` a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
