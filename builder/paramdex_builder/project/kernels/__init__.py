"""Compiled kernels: AVX2 for processors without bfloat16, Triton for GPUs."""
