"""From a question to the expert that should answer it."""
