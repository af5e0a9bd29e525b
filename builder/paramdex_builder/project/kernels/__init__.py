"""Compiled kernels: AVX2 for processors without bfloat16, VNNI for pairs on those with it, Triton for GPUs."""
