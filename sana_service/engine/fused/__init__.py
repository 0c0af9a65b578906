"""The models' forward passes for an accelerator: cuBLAS, cuDNN and the kernels of this engine, in captured graphs.

Each class runs a stock module's own weights and has the interface of the plain way beside it (`engine.transformer`,
`engine.decode`, `engine.text`), whose numbers it gives up to rounding: no further from float32 than the stock module in
bfloat16. A module that is not built as expected keeps the plain way.
"""
