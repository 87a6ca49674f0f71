"""How the kernels that add adapters are told what to do.

A unit of work is (first row, rows, address of its mixture's table, factor pairs that the table has
for each group of layers, 1 if it reads a prompt), int64. Of a pair the table has `FIELDS`.
"""

FIELDS = 6
"""Addresses of A and B, rank, first output, outputs, bits of the weight as float32."""

DECODED, READ, READ_IN_TILES = 4, 8, 64
"""Tokens of one unit of work: so few that one mixture is work for several threads, and in tiles so
many that writing its factors as tiles read them pays."""
