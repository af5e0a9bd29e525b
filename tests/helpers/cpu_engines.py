"""The engines of a processor: int16 and int8 only where this installation has the kernels for them."""

from paramdex_builder.project.engines import BFLOAT16, FLOAT32, INT8, INT16
from paramdex_builder.project.kernels import avx2, vnni

ENGINES = [BFLOAT16, FLOAT32] + ([INT16] if avx2.library() else [])
FASTEST = ENGINES[-1]
ENGINES_OF_PAIRS = ENGINES + ([INT8] if vnni.library() else [])
