"""A second verifier of a published draw, written from docs/draw.md alone: python3 independent_draw.py FILE."""

import json
import sys
from hashlib import sha256


def problem_of(lines: list[str]) -> str:
    """Return what is wrong with a draw and its entries, "" if nothing."""
    draw, *entries = [json.loads(line) for line in lines if line.strip()]
    arrivals = [entry["arrival"] for entry in entries]
    packed = {arrival: arrival.to_bytes(8, "big") for arrival in arrivals}
    secret = bytes.fromhex(draw["seed"])
    seed = sha256(secret + draw["beacon"]["value"].encode()).digest() if draw["beacon"] else secret
    if draw["algorithm"] != "sha256-sort-v1":
        return "unknown algorithm"
    if sha256(secret).hexdigest() != draw["commitment"]:
        return "the seed is not what was committed to"
    if len(entries) != draw["count"]:
        return "the number of entries is not the count"
    if [entry["number"] for entry in entries] != list(range(1, len(entries) + 1)):
        return "the numbers are not 1…count in order"
    if len(packed) != len(entries):
        return "an arrival is listed twice"
    if sha256(b"".join(packed[arrival] for arrival in sorted(packed))).hexdigest() != draw["entries_sha256"]:
        return "the list of arrivals is not the published one"
    if arrivals != sorted(sorted(packed), key=lambda arrival: sha256(seed + packed[arrival]).digest()):
        return "the order is not the one that the seed gives"
    return ""


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        problem = problem_of(file.readlines())
    print(problem or "OK")
    sys.exit(1 if problem else 0)
