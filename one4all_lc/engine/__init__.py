"""Requests in, tokens out: one thread owns the base and runs everybody's requests together."""
