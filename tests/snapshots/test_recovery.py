"""What recovery makes of every kind of damage: which it survives, which it refuses, and what it says."""

from dataclasses import asdict, fields
from itertools import pairwise, product

import msgpack
import pytest

from engine.errors import Damaged
from snapshots.disk_model import Image
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.recovery import END_OF_LOG, START, Decision, Start, decide, matching
from snapshots.scan import frame_headers_after
from snapshots.survey import Findings, SnapshotFindings
from snapshots.wal import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    SegmentHeader,
    decode_segment_header,
    encode_frame,
    encode_segment_header,
    extend_crc,
    first_chain,
    segment_name,
)
from tests.snapshots.scenario import SMALL, Life, joined, state_of

LOG_ID = bytes(range(16))
EPOCH = 1 << 20


def opened(image: Image, **options: object) -> tuple[Journal, MemoryStorage]:
    storage = MemoryStorage(image)
    return Journal.open(storage, JournalOptions(**{**SMALL, **options})), storage


def with_file(image: Image, name: str, content: bytes | None) -> Image:
    files = {**dict(image.files), name: content}
    return Image(image.folders, tuple(sorted((n, c) for n, c in files.items() if c is not None)))


def flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ (1 << offset % 8)]) + content[offset + 1 :]


def segments(image: Image) -> list[str]:
    return [name for name, _ in image.files if name.endswith(".seg")]


def frames_in(image: Image, name: str) -> list[tuple[int, int]]:
    """Return the (first, behind last) offsets of the frames of a segment."""
    storage = MemoryStorage(image)
    found = frame_headers_after(storage, name, 0)
    return [(offset, offset + FRAME_HEADER_BYTES + header.length) for offset, header in found]


async def a_closed_life(*tail: int) -> Life:
    """Three snapshots, several segments behind the last one, an orderly end: everything is proven durable."""
    life = Life(MemoryStorage())
    await life.open()
    for count in (5, 90, 3):
        await life.commit(count)
        await life.snapshot()
    await life.commit(*(tail or (4, 1, 200, 2, 100, 3)))
    await life.close()
    return life


async def a_killed_life() -> Life:
    """One segment, no snapshot, killed after its last commit."""
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(2, 1, 3, 2, 4)
    life.kill()
    return life


# The tables


def test_every_combination_of_findings_stands_in_exactly_one_row() -> None:
    for columns, table in ((Findings, END_OF_LOG), (SnapshotFindings, START)):
        names = [field.name for field in fields(columns)]
        for values in product((False, True), repeat=len(names)):
            findings = dict(zip(names, values, strict=True))
            rows = [row for row, condition, _ in table if matching(condition, findings)]
            assert len(rows) == 1, (findings, rows)


def test_every_decision_and_every_start_has_a_row() -> None:
    assert {decision for _, _, decision in END_OF_LOG} == set(Decision)
    assert {start for _, _, start in START} == set(Start)


def test_only_the_last_frame_with_nothing_after_it_and_no_proof_is_ever_cut() -> None:
    names = [field.name for field in fields(Findings)]
    for values in product((False, True), repeat=len(names)):
        findings = Findings(**dict(zip(names, values, strict=True)))
        if decide(findings)[1] is Decision.CUT_TAIL:
            assert asdict(findings) == {
                "used": True, "foreign": False, "epoch_fell": False, "reaches_back": True, "invalid": True,
                "in_last_segment": True, "valid_after": False, "proven_synced": False,
            }  # fmt: skip


# Cuts


@pytest.mark.parametrize("zeros", [False, True], ids=["the file ends there", "reserved zeros follow"])
async def test_a_log_cut_at_any_byte_of_its_last_frames_keeps_exactly_the_uncut_ones(zeros: bool) -> None:
    life = await a_killed_life()
    image = life.storage.image()
    (name,) = segments(image)
    content = dict(image.files)[name]
    frames = frames_in(image, name)
    counts = [2, 3, 6, 8, 12]
    for at in range(frames[-3][0], frames[-1][1] + 1):
        cut = content[:at] + bytes(len(content) - at) * zeros
        journal, storage = opened(with_file(image, name, cut))
        whole = [end for _, end in frames if cut[:end].ljust(end, b"\0") == content[:end] and len(cut) >= end]
        assert state_of(journal) == life.history[: counts[len(whole) - 1]]
        torn = content[whole[-1] : at].rstrip(b"\0") if zeros else content[whole[-1] : at]
        assert journal.found.torn_bytes == len(torn.rstrip(b"\0"))
        assert journal.found.torn_frames == bool(torn)
        if torn:
            assert f"{journal.found.torn_bytes} bytes never acknowledged" in " ".join(journal.found.sentences)
            assert storage.read(journal.found.quarantined[0], 0, 1 << 20) == torn.rstrip(b"\0")


async def test_a_frame_zeroed_below_a_stated_durable_lsn_is_refused() -> None:
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(2, 1, 3)
    await life.close()
    image = life.storage.image()
    (name,) = segments(image)
    content = dict(image.files)[name]
    begin, end = frames_in(image, name)[-2]
    for at in range(begin, end - 1):
        zeroed = content[:at] + bytes(end - at) + content[end:]
        with pytest.raises(Damaged, match=f"{name} is damaged at offset {begin}, LSN 4"):
            opened(with_file(image, name, zeroed))


# Flips


def expected_of_flip(image: Image, name: str, offset: int, position: tuple[str, int]) -> tuple[str, int]:
    """Return what must become of a flip: "alarm", "torn", or "refused" with the offset to be named."""
    if (name, offset) < position:
        return "alarm", 0
    if offset < SEGMENT_HEADER_BYTES:
        return "refused", 0
    begin = next(begin for begin, end in frames_in(image, name) if begin <= offset < end)
    is_last = name == segments(image)[-1] and begin == frames_in(image, name)[-1][0]
    return ("torn", begin) if is_last else ("refused", begin)


@pytest.mark.slow
async def test_a_bit_flipped_at_any_byte_of_the_log_is_refused_survived_or_torn_as_its_place_demands(report) -> None:
    life = await a_closed_life(4, 1, 90, 2, 3)
    image = life.storage.image()
    journal, _ = opened(image)
    start = journal._recovered.start
    position = (next(n for n in segments(image) if int(n[4:14]) == start.sequence), start.offset)
    seen = dict.fromkeys(("alarm", "torn", "refused"), 0)
    for name in segments(image):
        content = dict(image.files)[name]
        for offset in range(len(content)):
            outcome, named = expected_of_flip(image, name, offset, position)
            seen[outcome] += 1
            damaged = with_file(image, name, flipped(content, offset))
            if outcome == "refused":
                with pytest.raises(Damaged, match=f"{name} is damaged at offset {named}, LSN"):
                    opened(damaged)
                continue
            journal, _ = opened(damaged)
            assert state_of(journal) == life.history
            assert bool(journal.found.alarms) == (outcome == "alarm")
            assert journal.found.quarantined
    report(f"bits flipped in the log: {seen}")
    assert min(seen.values()) >= FRAME_HEADER_BYTES


async def test_a_refusal_changes_nothing_and_names_the_ways_out() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    name = segments(image)[-1]
    damaged = with_file(image, name, flipped(dict(image.files)[name], 70))
    storage = MemoryStorage(damaged)
    with pytest.raises(Damaged) as caught:
        Journal.open(storage, JournalOptions(**SMALL))
    assert storage.image() == damaged
    for way in ("restore a backup", "follower", "--accept-loss"):
        assert way in str(caught.value)


@pytest.mark.slow
async def test_a_bit_flipped_at_any_byte_of_the_newest_snapshot_makes_an_older_one_be_used() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    name = max(n for n, _ in image.files if n.endswith(".snap"))
    content = dict(image.files)[name]
    for offset in range(len(content)):
        bad = flipped(content, offset)
        journal, storage = opened(with_file(image, name, bad))
        assert state_of(journal) == life.history
        assert journal.found.start is Start.OLDER_ALARM
        assert name in journal.found.alarms[0]
        assert name not in storage.names("snapshots")
        assert storage.read(journal.found.quarantined[0], 0, 1 << 20) == bad


async def test_with_all_snapshots_bad_a_log_that_reaches_back_is_enough() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    for name in [n for n, _ in image.files if n.endswith(".snap")]:
        image = with_file(image, name, b"garbage")
    journal, _ = opened(image)
    assert journal.found.start is Start.LOG_ALARM
    assert len(journal.found.alarms) == 3
    assert state_of(journal) == life.history


async def test_a_log_that_begins_after_the_only_good_snapshot_is_refused() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    snapshots = sorted(n for n, _ in image.files if n.endswith(".snap"))
    for name in [*snapshots[1:], *segments(image)[:2]]:
        image = with_file(image, name, None)
    with pytest.raises(Damaged, match="the newest snapshot that verifies ends at LSN 5, the log goes on at"):
        opened(image)


async def test_a_log_without_its_beginning_and_without_snapshots_is_refused() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    for name, _ in image.files:
        if name.endswith(".snap") or name == segments(life.storage.image())[0]:
            image = with_file(image, name, None)
    with pytest.raises(Damaged, match=r"the log begins at LSN .* and no snapshot verifies"):
        opened(image)


async def test_a_snapshot_without_any_log_is_refused() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    for name in [n for n, _ in image.files if n.startswith("log/")]:
        image = with_file(image, name, None)
    with pytest.raises(Damaged, match="there is a snapshot but no log"):
        opened(image)


async def test_a_log_that_lost_its_end_below_the_snapshot_goes_on_behind_the_snapshot() -> None:
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(3, 4)
    await life.snapshot()
    life.kill()
    image = life.storage.image()
    (name,) = segments(image)
    damaged = with_file(image, name, dict(image.files)[name][:200])
    storage = MemoryStorage(damaged)
    for count in (7, 9, 11):
        again = Life(storage.kill())
        await again.open()
        assert again.history[:7] == life.history
        assert len(again.history) == count
        assert again.journal.found.alarms
        await again.commit(2)
        await again.close()
        storage = again.storage


# Segments


async def segment_damages() -> list[tuple[str, Image]]:
    """Every segment behind the snapshots missing, swapped, stale or doubled."""
    life = await a_closed_life()
    image = life.storage.image()
    for name in [n for n, _ in image.files if n.endswith(".snap")]:
        image = with_file(image, name, None)
    names, contents = segments(image), dict(image.files)
    assert len(names) >= 3
    damages = [(f"missing {name}", with_file(image, name, None)) for name in names]
    for one, other in pairwise(names):
        swapped = with_file(with_file(image, one, contents[other]), other, contents[one])
        damages.append((f"swapped {one}", swapped))
        end = frames_in(image, one)[-1][0]
        damages.append((f"stale {one}", with_file(image, one, contents[one][:end])))
        damages.append((f"doubled {one}", with_file(image, other, contents[one])))
        damages.append((f"zeroed sector {one}", with_file(image, one, contents[one][:512].ljust(1024, b"\0"))))
    last = decode_segment_header(contents[names[-1]])
    assert isinstance(last, SegmentHeader)
    damages.append(("doubled at the end", with_file(image, segment_name(last.sequence + 1, 999), contents[names[-1]])))
    damages.append(("emptied", with_file(image, names[-1], b"")))
    return damages


async def test_missing_swapped_stale_and_doubled_segments_are_refused_by_name() -> None:
    for what, image in await segment_damages():
        try:
            opened(image)
        except Damaged as error:
            assert "log/" in str(error), what
        else:
            pytest.fail(f"{what}: opened")


async def test_a_loss_that_is_accepted_cuts_there_keeps_the_evidence_and_is_told() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    name = segments(image)[-2]
    damaged = with_file(image, name, flipped(dict(image.files)[name], 100))
    journal, storage = opened(damaged, accept_loss=True)
    assert journal.found.accepted_loss is not None
    assert "is lost" in journal.found.accepted_loss
    assert state_of(journal) == life.history[: journal.last_lsn]
    assert journal.last_lsn < len(life.history)
    evidence = {storage.read(n, 0, 1 << 20) for n in storage.names("quarantine")}
    assert dict(image.files)[segments(image)[-1]] in evidence
    kept = state_of(journal)
    again = Journal.open(storage.kill(), JournalOptions(**SMALL))
    assert again.found.accepted_loss is None
    assert state_of(again) == kept


# Hand-made logs


def log_of(*frames: tuple[int, int, bytes], version: int = 1, log_id: bytes = LOG_ID) -> Image:
    """Return a folder of one segment with frames of (epoch, count, payload)."""
    chain, lsn = first_chain(LOG_ID), 1
    content = encode_segment_header(SegmentHeader(version, 1, 1, EPOCH, chain, log_id))
    for epoch, count, payload in frames:
        frame, chain = encode_frame(FrameHeader(epoch, lsn, count, 0, lsn - 1, 0), payload, chain)
        content += frame
        lsn += count
    return Image(frozenset(("log", "snapshots", "quarantine")), ((segment_name(1, 1), content),))


BOMBS = {
    "an array that claims 2**32 - 1 elements": b"\xdd\xff\xff\xff\xff",
    "a map that claims 2**32 - 1 pairs": b"\xdf\xff\xff\xff\xff",
    "a text that claims 2**32 - 1 bytes": b"\xdb\xff\xff\xff\xff",
    "a hundred thousand nested arrays": b"\x91" * 100_000,
    "the byte that msgpack never uses": b"\xc1",
    "a map for a record": b"\x91\x80",
    "an extension type": b"\xc7\x01\x05x",
    "a map with a map as key": b"\x91\x93\xa1x\x01\x81\x80\x01",
    "more records than stated": b"\x92\x90\x90",
    "nothing": b"",
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_payload_that_is_no_records_is_refused_with_its_place(what: str) -> None:
    journal, _ = opened(log_of((EPOCH, 1, BOMBS[what])))
    with pytest.raises(Damaged, match=r"\.seg at offset 64, LSN 1 to 1"):
        list(journal.replay())


def test_an_unknown_kind_and_an_unknown_version_are_refused_naming_both() -> None:
    for array in (["teleported", 1, "e"], ["left", 9, "e", 1, 1]):
        journal, _ = opened(log_of((EPOCH, 1, msgpack.packb([array]))))
        with pytest.raises(Damaged, match=f"'{array[0]}' version {array[1]}"):
            list(journal.replay())


def test_a_future_format_is_refused_with_both_versions() -> None:
    with pytest.raises(Damaged, match="has format version 2, this Stanchion reads 1"):
        opened(log_of(version=2))


async def test_a_future_snapshot_is_refused_and_not_put_aside() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    name = max(n for n, _ in image.files if n.endswith(".snap"))
    content = dict(image.files)[name]
    from_future = bytearray(content)
    from_future[11] = 2
    head = bytes(from_future[:92])
    from_future[92:96] = extend_crc(0, head).to_bytes(4, "big")
    with pytest.raises(Damaged, match="has format version 2"):
        opened(with_file(image, name, bytes(from_future)))


async def test_a_segment_of_another_log_is_refused() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    other = log_of()
    name = segments(image)[-1]
    with pytest.raises(Damaged, match="belongs to the log"):
        opened(with_file(image, name, other.files[0][1]))


def test_an_epoch_that_falls_is_refused() -> None:
    record = msgpack.packb([["left", 1, "e", 1, 1]])
    with pytest.raises(Damaged, match=f"epoch {EPOCH} follows epoch {EPOCH + 1}"):
        opened(log_of((EPOCH + 1, 1, record), (EPOCH, 1, record)))


@pytest.mark.parametrize("length", [0, (1 << 32) - 1])
def test_an_absurd_length_is_recognised_before_it_is_believed(length: int) -> None:
    record = msgpack.packb([["left", 1, "e", 1, 1]])
    image = log_of((EPOCH, 1, record), (EPOCH, 1, record))
    name, content = image.files[0]
    bad = bytearray(content)
    bad[64 + 24 : 64 + 28] = length.to_bytes(4, "big")
    with pytest.raises(Damaged, match="damaged at offset 64"):
        opened(with_file(image, name, bytes(bad)))


def test_an_absurd_length_under_a_right_checksum_is_refused_too() -> None:
    record = msgpack.packb([["left", 1, "e", 1, 1]])
    image = log_of((EPOCH, 1, record), (EPOCH, 1, record))
    name, content = image.files[0]
    bad = bytearray(content)
    bad[64 + 24 : 64 + 28] = b"\xff\xff\xff\xff"
    bad[64 + 40 : 64 + 44] = extend_crc(0, bytes(bad[64 : 64 + 40])).to_bytes(4, "big")
    with pytest.raises(Damaged, match="claims 4294967295 bytes"):
        opened(with_file(image, name, bytes(bad)))


async def test_a_last_segment_taken_away_is_missed_by_the_space_reserved_behind_it() -> None:
    life = await a_closed_life()
    image = life.storage.image()
    with pytest.raises(Damaged, match="is missing"):
        opened(with_file(image, segments(image)[-1], None))


def test_a_whole_log_taken_away_is_missed_too() -> None:
    folders = frozenset(("log", "snapshots", "quarantine"))
    with pytest.raises(Damaged, match="segment 6 is missing"):
        opened(Image(folders, (("log/0000000007.reserved", bytes(4096)),)))


async def test_a_text_that_looks_like_a_frame_does_not_make_a_torn_tail_corrupt() -> None:
    frame, _ = encode_frame(FrameHeader(EPOCH, 1, 0, 0, 0, 0), b"", 0)
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(1)
    life.ever.clear()
    waiter = life.journal.when_durable(life.journal.append([joined(2, frame.decode("latin-1") * 3)]))
    await waiter
    life.kill()
    image = life.storage.image()
    (name,) = segments(image)
    begin, end = frames_in(image, name)[-1]
    content = dict(image.files)[name]
    journal, _ = opened(with_file(image, name, content[:begin] + bytes(44) + content[begin + 44 :]))
    assert journal.found.torn_bytes
    assert journal.last_lsn == 1
    assert end <= len(content)
