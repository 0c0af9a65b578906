"""Triton kernels for what PyTorch does in many passes over device memory; for an accelerator only.

Matrix products stay with cuBLAS and large convolutions with cuDNN; a kernel here is what stands between them, so each
value is read once and written once. Sums are in float32 and in a fixed order: the same input gives the same bits
whatever is beside it in the batch. Sizes that requests change are run-time arguments, so nothing is compiled for them.
"""
