import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.data.dataset import make_dataset
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Transition


@pytest.fixture(scope="module")
def recorded():
    """Five short episodes of Hopper under random actions, which all end in a fall."""
    task = TASKS["hopper-medium-v2"]
    env = envs.make(task)
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        terminated = False
        while not terminated:
            action = rng.uniform(-1, 1, 3).astype(np.float32)
            following, reward, terminated, *_ = env.step(action)
            rows.append((observation, action, reward, 1.0 - terminated, following))
            observation = following
    env.close()
    fields = [np.array(column, np.float32) for column in zip(*rows, strict=True)]
    transition = Transition(*fields)
    return make_dataset(task, transition, transition.discount == 0)


@pytest.fixture(scope="module")
def original(recorded):
    return Transition(*(np.asarray(x) for x in recorded.transition))
