"""Tests that no protection can be claimed without its proof."""

import pytest

from lepton_common.privacy.accounting import GaussianEvent
from lepton_common.privacy.provenance import (
    PROTOCOL,
    PUBLIC,
    UNPROTECTED,
    Protection,
    Provenance,
    protected_by_dp,
    protected_by_secagg,
)

_EVENT = GaussianEvent(0.5, 2.0, 3)


@pytest.mark.parametrize(
    ("protection", "event", "spec"),
    [
        (Protection.DP, None, None),
        (Protection.DP, None, "ab"),
        (Protection.DP, _EVENT, "ab"),
        (Protection.SECAGG, None, None),
        (Protection.SECAGG, None, ""),
        (Protection.SECAGG, _EVENT, None),
        *[(kind, _EVENT, None) for kind in (PUBLIC, PROTOCOL, UNPROTECTED)],
        *[(kind, None, "ab") for kind in (PUBLIC, PROTOCOL, UNPROTECTED)],
    ],
)
def test_a_protection_without_exactly_its_proof_is_refused(protection, event, spec):
    kind = protection.protection if isinstance(protection, Provenance) else protection
    with pytest.raises(ValueError, match=f"{kind.value} provenance with the wrong proof"):
        Provenance(kind, event, spec)


def test_each_protection_is_logged_with_its_proof():
    assert PUBLIC.record() == "public"
    assert PROTOCOL.record() == "protocol"
    assert UNPROTECTED.record() == "unprotected"
    assert protected_by_dp(_EVENT).record() == {"dp": _EVENT.record()}
    assert Provenance(Protection.SECAGG, spec="ab").record() == {"secagg": "ab"}
    both = protected_by_secagg("ab", _EVENT).record()
    assert both == {"secagg": "ab", "dp": _EVENT.record()}


def test_two_provenances_are_equal_if_their_proofs_are():
    assert protected_by_dp(_EVENT) == protected_by_dp(GaussianEvent(0.5, 2.0, 3))
    assert protected_by_dp(_EVENT) != protected_by_dp(GaussianEvent(0.5, 2.0, 4))
