"""Products and sums that torch computes slowly for a few rows on a CPU, compiled by Numba.

Each module holds one kernel and the function that calls it with tensors. Numba compiles a kernel
when it is first needed and keeps the machine code beside the module, or else in the user's cache
folder (`NUMBA_CACHE_DIR` names another): no compiler has to be installed.

A kernel computes each row, or each head of a row, by itself and always in the same order: what a
row gets does not depend on its company. It computes in float32, and rounds what it writes.
"""
