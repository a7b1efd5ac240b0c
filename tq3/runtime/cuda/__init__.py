"""Kernels for CUDA devices, as source: compiled where they run."""
