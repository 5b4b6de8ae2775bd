"""All that runs have left, in one page."""
