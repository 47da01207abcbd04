"""A study of a made-up federation."""

from datetime import UTC, datetime

from toy_site import PARTNER

from lepton_common.identity.signed import Signed, sign
from lepton_common.identity.study import Study, take_study
from lepton_common.strict import to_json


def heart(**changes):
    facts = {
        "name": "heart", "federation": "hospitals", "version": 1, "purpose": "Predict.",
        "legal_basis": "Consent.", "ethics_reference": "1", "until": "2099-01-01",
        "sites": ["site-1", "site-2"], "leads": ["dora"], "auditors": [], "tasks": ["toy"],
        "data": ["toy-data"], "max_epsilon": 1.0, "max_delta": 1e-5,
    }  # fmt: skip
    return Study(**facts | changes)


def signed(partners=(PARTNER,), **changes):
    text = to_json(heart(**changes))
    signatures = {key.public_hex: sign(key, "study", text) for key in partners}
    return to_json(Signed(document=text, signatures=signatures))


def publish(federation, **changes):
    """As `lepton server join`, then what the running server does; also of a study that is over."""
    published, folder = federation.published, federation.folder / "studies"
    ends = heart(**changes).until
    day = min(datetime.now(UTC).date(), datetime.fromisoformat(ends).date())
    take_study(folder, signed(**changes), published.roster, day)
    if published.look():
        federation.service.published()
