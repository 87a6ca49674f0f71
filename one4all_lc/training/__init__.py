"""From rows of data to an expert that is measured against the base."""
