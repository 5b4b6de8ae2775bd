"""All that runs have left, in one page."""

from tgcvg_jax.report.page import write
from tgcvg_jax.report.results import gather

__all__ = ["gather", "write"]
