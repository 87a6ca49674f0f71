"""Training of experts that decide: their rows, what is learned of them, how it is measured."""
