"""Naive duplication: copies of the best episodes, a control for augmentation.

Synthetic data of high return must beat more of the data's own best: a learner on the union of the
data and these copies sees its best episodes more often, and nothing new.
"""

from __future__ import annotations

import dataclasses

from tgcvg_jax.config import replace_nested
from tgcvg_jax.data.subsets import best_episodes
from tgcvg_jax.synthesizers import copies
from tgcvg_jax.types import Array, Dataset, PRNGKey, PyTree, Synthesizer, Task, Trajectories


@dataclasses.dataclass(frozen=True)
class Config:
    """Naive duplication. All values are ours."""

    top_fraction: float = 0.1  # of the transitions, by whole episodes of the highest return
    segment_length: int = 1_000  # transitions kept in one piece; locomotion's whole episodes
    batch_size: int = 100  # segments in one chunk


PRESETS = {"paper": {}, "quick": {}}
MODEL_KINDS: dict[str, str] = {}
NUM_TRANSITIONS = {"paper": 5_000_000, "quick": 50_000}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The same for all tasks."""
    del task
    return replace_nested(Config(), PRESETS[preset])


def as_paper(config: Config) -> Config:
    """No paper has settings of its own."""
    return config


def make(task: Task, config: Config) -> Synthesizer:
    """The synthesizer: pass after pass through the best episodes."""
    del task
    length = config.segment_length

    def prepare(dataset: Dataset) -> copies.Segments:
        return copies.prepare(best_episodes(dataset, config.top_fraction), length)

    def generate(
        states: dict[str, PyTree], data: copies.Segments, key: PRNGKey, chunk: Array
    ) -> Trajectories:
        del states
        return copies.draw(data, key, chunk, length=length, batch_size=config.batch_size)

    return Synthesizer({}, prepare, generate)
