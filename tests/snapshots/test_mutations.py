"""No flush and no rename is there for nothing: without any one of them some check fails."""

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest

from engine.errors import StanchionError
from snapshots.disk_model import Image
from snapshots.memory_storage import CrashState, MemoryStorage, crash_states
from tests.snapshots.mutation import Site, mutant, sites
from tests.snapshots.pair import Standby, a_divergence, judge_standby, lead_a_standbys_life
from tests.snapshots.scenario import SMALL, Life, judge, lead_a_life, state_of

Package = tuple[ModuleType, ModuleType, ModuleType]


async def a_life(package: Package) -> Life:
    journal = package[0]
    return await lead_a_life(Life(MemoryStorage(), journal.Journal, journal.JournalOptions(**SMALL)))


def reopened(package: Package, image: Image, **options: object) -> tuple[Any, MemoryStorage]:
    storage = MemoryStorage(image)
    journal = package[0]
    return journal.Journal.open(storage, journal.JournalOptions(**{**SMALL, **options})), storage


def quarantined(storage: MemoryStorage) -> set[bytes]:
    return {storage.read(name, 0, 1 << 20) for name in storage.names("quarantine") if not name.endswith(".writing")}


async def power_cut_in_a_life(package: Package) -> None:
    life = await a_life(package)
    for state in crash_states(life.storage.trace):
        judge(state, life.ever, package[0].Journal, life.options)


async def power_cut_in_a_recovery(package: Package) -> None:
    """A torn tail is cut; killed anywhere and run again, the tail is in the quarantine folder."""
    life = await a_life(package)
    for state in list(crash_states(life.storage.trace))[::9]:
        first, storage = reopened(package, state.image)
        if first.found.torn_bytes == 0:
            continue
        for again in crash_states(storage.trace, state.image):
            second, rerun = reopened(package, again.image)
            assert state_of(second) == state_of(first), "the second run comes to another end"
            assert quarantined(storage) <= quarantined(rerun), "evidence is lost"


def damaged(image: Image, name: str, offset: int) -> Image:
    files = dict(image.files)
    content = bytearray(files[name])
    content[offset] ^= 1
    return Image(image.folders, tuple(sorted({**files, name: bytes(content)}.items())))


async def power_cut_while_a_bad_snapshot_is_put_aside(package: Package) -> None:
    life = await a_life(package)
    image = life.storage.image()
    newest = max(name for name, _ in image.files if name.startswith("snapshots/"))
    bad = damaged(image, newest, 200)
    first, storage = reopened(package, bad)
    assert first.found.alarms
    for state in crash_states(storage.trace, bad):
        second, rerun = reopened(package, state.image)
        assert state_of(second) == life.history
        assert dict(bad.files)[newest] in quarantined(rerun), "evidence is lost"


async def power_cut_while_a_loss_is_accepted(package: Package) -> None:
    """Damage in an earlier segment and, in a second round, in a segment's header."""
    life = await a_life(package)
    image = life.storage.image()
    segments = sorted(name for name, _ in image.files if name.startswith("log/"))
    without_snapshots = Image(image.folders, tuple(f for f in image.files if not f[0].startswith("snapshots/")))
    for name, offset in ((segments[1], 90), (segments[-3], 20)):
        bad = damaged(without_snapshots if segments[0].startswith("log/0000000001") else image, name, offset)
        first, storage = reopened(package, bad, accept_loss=True)
        storage.mark("accepted")
        storage.perform("sync_directory", "nowhere")
        for state in crash_states(storage.trace, bad):
            second, rerun = reopened(package, state.image, accept_loss=state.promised is None)
            assert second.last_lsn == first.last_lsn
            assert quarantined(storage) <= quarantined(rerun), "evidence is lost"


async def power_cut_around_a_backup(package: Package) -> None:
    """A copy that was reported stays whole; one that was not is refused or whole, never short."""
    life = await a_life(package)
    for to_lsn, new_term in ((None, False), (None, True), (life.journal.durable_lsn - 1, True)):
        target = MemoryStorage()
        info = package[1].copy_journal(MemoryStorage(life.storage.image()), target, to_lsn=to_lsn, new_term=new_term)
        target.mark("reported")
        target.perform("sync_directory", "nowhere")
        for state in crash_states(target.trace):
            hold_to_the_report(package, state, life.history[: info.last_lsn])


def hold_to_the_report(package: Package, state: CrashState, history: list[str]) -> None:
    if not state.promised and not any(name.endswith((".seg", ".snap")) for name, _ in state.image.files):
        return
    try:
        journal, _ = reopened(package, state.image)
    except StanchionError:
        assert state.promised is None, "a reported copy is refused"
        return
    assert state_of(journal) == history


async def power_cut_in_a_standbys_life(package: Package) -> None:
    journal, _, standby_module = package
    standby = Standby(MemoryStorage(), standby_module.StandbyLog, journal.JournalOptions(**SMALL))
    histories = await lead_a_standbys_life(standby)
    for state in crash_states(standby.storage.trace):
        judge_standby(
            state,
            histories,
            standby_class=standby_module.StandbyLog,
            journal_class=journal.Journal,
            options=standby.options,
        )


async def power_cut_while_history_is_put_aside(package: Package) -> None:
    """Cut, or started over; killed anywhere and done again, all evidence is in the quarantine folder."""
    journal, _, standby_module = package
    options = journal.JournalOptions(**SMALL)
    standby, _, new = await a_divergence(standby_module.StandbyLog, options)
    image = standby.storage.image()
    for way in (cut_again, start_over_again):
        copied = Standby(MemoryStorage(image), standby_module.StandbyLog, options)
        copied.open()
        copied.storage.mark("begun")
        way(copied, new)
        evidence = quarantined(copied.storage)
        for state in crash_states(copied.storage.trace, image):
            if state.promised is None:
                continue
            again = Standby(MemoryStorage(state.image), standby_module.StandbyLog, options)
            again.open()
            way(again, new)
            assert evidence <= quarantined(again.storage), "evidence is lost"


def cut_again(standby: Standby, new: Life) -> None:
    if standby.log.position.lsn > 123:
        standby.cut(new)


def start_over_again(standby: Standby, new: Life) -> None:
    if standby.log.position.sequence:
        standby.log.start_over()


CHECKS: dict[str, Callable[[Package], Awaitable[None]]] = {
    "power cut in a life": power_cut_in_a_life,
    "power cut in a recovery": power_cut_in_a_recovery,
    "power cut while a bad snapshot is put aside": power_cut_while_a_bad_snapshot_is_put_aside,
    "power cut while a loss is accepted": power_cut_while_a_loss_is_accepted,
    "power cut around a backup": power_cut_around_a_backup,
    "power cut in a standby's life": power_cut_in_a_standbys_life,
    "power cut while history is put aside": power_cut_while_history_is_put_aside,
}


LIKELY = {
    "backup": "power cut around a backup",
    "copying": "power cut in a recovery",
    "cutting": "power cut in a standby's life",
    "mirroring": "power cut in a standby's life",
    "notes": "power cut in a standby's life",
    "quarantine": "power cut while a bad snapshot is put aside",
    "recovery": "power cut in a recovery",
    "snapshot.receive_snapshot": "power cut in a standby's life",
}


async def killed_by(site: Site | None) -> str:
    """Return the first check that fails without the call at `site`, and how; empty where all pass.

    The check that is likeliest to fail goes first, only to save time.
    """
    likely = None
    if site is not None:
        likely = LIKELY.get(f"{site.module}.{site.function}", LIKELY.get(site.module))
    with mutant(site) as package:
        for name in sorted(CHECKS, key=lambda name: name != likely):
            try:
                await CHECKS[name](package)
            except Exception as error:
                return f"{name}: {type(error).__name__}: {str(error)[:70]}"
    return ""


async def test_all_checks_pass_on_an_unchanged_copy_of_the_package() -> None:
    assert await killed_by(None) == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_without_any_one_flush_or_rename_some_check_fails(report) -> None:
    table = {site: await killed_by(site) for site in sites()}
    for site, killer in table.items():
        report(f"{site!s:70} killed by {killer.splitlines()[0] if killer else 'nothing'}")
    assert len(table) > 10
    assert [str(site) for site, killer in table.items() if not killer] == []
