"""A study of a made-up federation."""

from lepton_common.identity.study import Study


def heart(**changes):
    facts = {
        "name": "heart", "federation": "hospitals", "version": 1, "purpose": "Predict.",
        "legal_basis": "Consent.", "ethics_reference": "1", "until": "2099-01-01",
        "sites": ["site-1", "site-2"], "leads": ["dora"], "auditors": [], "tasks": ["toy"],
        "data": ["toy-data"], "max_epsilon": 1.0, "max_delta": 1e-5,
    }  # fmt: skip
    return Study(**facts | changes)
