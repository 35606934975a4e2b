"""No kind of token stands in for another: every kind is shown to every checker, with as much in common as there can be.

All keyed kinds share one secret and all signed kinds one key pair and key id, which no key ring would do, so that what
keeps them apart here is the kind and nothing else.
"""

from collections.abc import Callable

import pytest

from engine.enqueue import EnqueueTokens
from engine.errors import Refused
from engine.passes import Passes
from engine.receipts import Join, Receipts, check_receipt
from engine.signatures import public_of
from engine.tokens import QueueTokens, SessionToken, SessionTokens, TransferCodes
from tests.engine.forging import decoded, encoded, signed

SECRET = bytes(range(32))
NOW_S = 1_800_000_000
QUEUE = QueueTokens({"k": SECRET}, "k")
SESSION = SessionTokens({"k": SECRET}, "k")
TRANSFER = TransferCodes({"k": SECRET}, "k")
PASS = Passes(("k", SECRET), {}, SECRET, "stanchion")
RECEIPT = Receipts(("k", SECRET), "stanchion")
ENQUEUE = EnqueueTokens({"k": (public_of(SECRET), None)})

# What fits as many claims as can be, where the text is free.
SHOP_CLAIMS = {"iss": "stanchion", "aud": "e1", "sub": "u1", "jti": "j1", "exp": NOW_S + 60, "ev": "e1"}

MINTED = {
    "queue": QUEUE.mint("e1", "u1", 7, 8, 0, 5, NOW_S),
    "session": SESSION.mint(SessionToken("e1", "u1", 7, 8, "j1", 5, NOW_S, NOW_S + 60)),
    "transfer": TRANSFER.mint("e1", "u1", 7, 0, NOW_S),
    "pass": PASS.mint("e1", "u1", 8, 1, 5, NOW_S, NOW_S + 60),
    "enqueue": signed(SECRET, {"alg": "EdDSA", "typ": "stanchion-enqueue+jwt", "kid": "k"}, SHOP_CLAIMS),
    "receipt": RECEIPT.mint(Join("e1", "u1", 7, 8, NOW_S * 1000, 9), 5, NOW_S),
}
OTHERS = {
    "site key": "stn_site_" + encoded(SECRET),
    "admin key": "stn_admin_" + encoded(SECRET),
    "a JWT of anyone": signed(SECRET, {"alg": "EdDSA", "typ": "JWT", "kid": "k"}, SHOP_CLAIMS),
    "nothing": "",
}
CHECKERS: dict[str, Callable[[str], object]] = {
    "queue": lambda token: QUEUE.check(token, "e1", 5, NOW_S),
    "session": lambda token: SESSION.check(token, "e1", 5),
    "transfer": lambda token: TRANSFER.check(token, "e1", NOW_S),
    "pass": lambda token: PASS.check(token, "e1", 5),
    "enqueue": lambda token: ENQUEUE.check(token, "e1", NOW_S),
    "receipt": lambda token: check_receipt(token, PASS.jwks()),
}


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("kind", MINTED | OTHERS)
def test_a_token_passes_where_its_kind_is_asked_for_and_nowhere_else(kind: str, checker: str) -> None:
    token = (MINTED | OTHERS)[kind]
    if kind == checker:
        assert CHECKERS[checker](token)
    else:
        with pytest.raises(Refused) as caught:
            CHECKERS[checker](token)
        assert caught.value.status == 401
        assert caught.value.code == ("bad_enqueue_token" if checker == "enqueue" else "bad_token")


@pytest.mark.parametrize("checker", ["pass", "enqueue", "receipt"])
@pytest.mark.parametrize("kind", ["pass", "enqueue", "receipt"])
def test_the_typ_alone_does_not_make_one_signed_kind_of_another(kind: str, checker: str) -> None:
    """The claims of each kind under the header of each: only where both fit is the token one of that kind."""
    header, claims = MINTED[checker].split(".")[0], MINTED[kind].split(".")[1]
    token = signed(SECRET, decoded(header), decoded(claims))
    if kind == checker or (kind, checker) == ("pass", "enqueue"):  # a pass has all claims an enqueue token needs
        assert CHECKERS[checker](token)
    else:
        with pytest.raises(Refused, match="claims that is wrong"):
            CHECKERS[checker](token)
