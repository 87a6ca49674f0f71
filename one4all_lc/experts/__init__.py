"""Experts as LangChain Runnables."""
