"""The engines of a processor: int16 only where this installation has the kernel for it."""

from paramdex_builder.project.engines import BFLOAT16, FLOAT32, INT16
from paramdex_builder.project.kernels import avx2

ENGINES = [BFLOAT16, FLOAT32] + ([INT16] if avx2.library() else [])
FASTEST = ENGINES[-1]
