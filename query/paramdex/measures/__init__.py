"""What ``evaluate`` and ``stitch`` measured, as results that print a summary, and the pictures of them."""

from paramdex.measures.evaluated import Evaluation, evaluation
from paramdex.measures.stitched import Stitching, stitching

__all__ = ["Evaluation", "Stitching", "evaluation", "stitching"]
