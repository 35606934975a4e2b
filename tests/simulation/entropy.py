"""What is random by the seed alone: the entropy of the system and the order of `random`, for the time of one life."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make os.urandom, `secrets` and the functions of `random` repeat themselves for a seed."""
    source = random.Random(seed)
    state = random.getstate()
    urandom: Callable[[int], bytes] = os.urandom
    of_secrets: Any = vars(random)["_urandom"]
    random.seed(seed)
    os.urandom = vars(random)["_urandom"] = source.randbytes
    try:
        yield
    finally:
        os.urandom = urandom
        vars(random)["_urandom"] = of_secrets
        random.setstate(state)
