"""What is remembered: the log, the snapshots, and how a process finds its way back after any end.

To be read in this order: `wal` (the format of the log), `segments` (writing it), `scan` (reading it back),
`snapshot` (format, writing and reading), `survey` (looking at a folder), `recovery` (deciding and repairing),
`commit` and `journal` (the one door for a running server), `retention`, `reading`, `backup`. Then the copy of a log
on another machine: `shipping` (its pieces, read back and verified), `mirroring` (writing them), `notes`, `cutting`
(history put aside) and `standby` (the one door for a follower). Below all of them lies `storage`, the only module
that touches a disk; `memory_storage` and `disk_model` stand in for it in tests.
"""
