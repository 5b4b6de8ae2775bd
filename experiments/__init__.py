"""Command-line apps, one for each stage. Run them as `python -m experiments.NAME --help`."""
