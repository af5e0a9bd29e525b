"""What products are screened in on the CPU: int16 only where this installation has the kernel for it."""

from paramdex_builder import avx2_kernels
from paramdex_builder.screening import BFLOAT16, FLOAT32, INT16

PRECISIONS = [BFLOAT16, FLOAT32] + ([INT16] if avx2_kernels.kernel() else [])
FASTEST = PRECISIONS[-1]
