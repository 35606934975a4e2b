"""The disk of a simulated host: it outlives the processes, and knows what a crash may leave."""

from random import Random

from snapshots.memory_storage import MemoryStorage
from tests.simulation.virtual_loop import Group

OPERATIONS_OF_A_COMMIT = 12


class Disk:
    """A data folder in memory. `storage` is the one of the process that runs now; each crash begins another."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.storage = MemoryStorage()

    def crash(self, group: Group, *, power: bool) -> None:
        """End the process whose storage this is, in the middle of what its threads do; with `power`, of the machine.

        Killed, everything written stays; after a power cut what was not flushed stays or goes, as the disk likes.
        """
        storage = self.storage
        for work in group.work:
            storage.faults.die_at_call = storage.faults.calls + self._random.randint(1, OPERATIONS_OF_A_COMMIT)
            work.run()
        self.storage = storage.kill()
        if power:
            self.storage = MemoryStorage(self.storage.crash_image(self._random))

    def wipe(self) -> None:
        """Put an empty disk in the place of this one; nobody may be running on it."""
        self.storage = MemoryStorage()
