"""Runs that are proposed to a site: who may, what for, and that nothing else is asked later."""

import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, time

import pytest
import yaml
from model_wheel import FILES, kidney
from toy_site import PARTNER, PERMISSIVE, ask, context

from lepton_cli.compose import compose_settings
from lepton_cli.statistics_run import statistics_overrides
from lepton_client.app import app
from lepton_client.approved_models import approve
from lepton_client.proposals import Proposals
from lepton_client.rules import LaunchRules
from lepton_client.site import Site, forget_sites
from lepton_common.arrays import Layout, digest_of, pack, read_parameters
from lepton_common.asking import masked_sum, privacy_request, recipe, statistics_query
from lepton_common.errors import (
    ApprovalPending,
    BudgetSpent,
    ConsentRefused,
    ModelNotApproved,
    PolicyViolation,
    ProposalInvalid,
    QuietHours,
    StudyInvalid,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, Partners, Person, Roster, root_of, sign_roster
from lepton_common.identity.signed import Signed, sign
from lepton_common.identity.study import Study
from lepton_common.messages import HELLO, HelloRequest, TrainRequest, hello_content
from lepton_common.models.catalog import initial_model
from lepton_common.models.wheel import read_model_wheel
from lepton_common.policy import StatisticsRules
from lepton_common.proposal import make_proposal, read_proposal
from lepton_common.statistics import StatisticsQuery
from lepton_common.strict import parse, to_json

DORA, EVE = SigningKey.generate(), SigningKey.generate()
RULES = LaunchRules(approval="automatic", people=None, studies=None, quiet_hours=[])
SETTINGS = compose_settings(
    ["task=breast_cancer", "privacy=record", "secagg=sa1", "privacy.epsilon=0.9",
     "privacy.delta=1e-5", "sites=4", "rounds=3", "federation.name=hospitals"]
)  # fmt: skip
MODEL = initial_model(SETTINGS.model, (30,), 2, seed=0)
WEIGHTS = read_parameters(MODEL).numpy()


@pytest.fixture
def site(make_site):
    made = make_site()
    names = ["site-1", "site-2", "site-3", "site-4"]
    keys = [made.key] + [SigningKey.generate() for _ in names[1:]]
    roster = Roster(
        federation="hospitals",
        version=1,
        partners=Partners(keys=[PARTNER.public_hex], threshold=1),
        members=[Member(name=n, public_key=k.public_hex) for n, k in zip(names, keys, strict=True)],
        people=[
            Person(name="dora", public_key=DORA.public_hex, roles=["lead"], authority=""),
            Person(name="eve", public_key=EVE.public_hex, roles=["auditor"], authority=""),
        ],
    )
    text = sign_roster(roster, [PARTNER])
    (made.folder / "roster.json").write_text(text)
    (made.folder / "roster.root").write_text(root_of(text))
    return made


def with_rules(site, **changes):
    return replace(site.file, launch=replace(RULES, **changes))


def proposal(settings=SETTINGS, study=None, key=DORA, by="dora", federation="hospitals"):
    return make_proposal(key, by, study, federation, settings)


def asked(settings=SETTINGS, **changes):
    """The request that an honest server makes of the settings."""
    weights = dict.fromkeys(["site-1", "site-2", "site-3", "site-4"], 1)
    request = TrainRequest(
        run="run-1",
        round=1,
        task=settings.task,
        model=settings.model,
        prepare=settings.data.prepare,
        cohort=4,
        layout=Layout.of(MODEL).digest,
        model_digest=digest_of(pack(WEIGHTS).data),
        recipe=recipe(settings, changes.get("round", 1)),
        privacy=privacy_request(settings, len(WEIGHTS)),
        masked=masked_sum(settings, weights) if settings.secure else None,
        ledger_heads={},
    )
    return replace(request, **changes)


def admit(site, text, run="run-1", **rules):
    site.proposals.admit(run, text, with_rules(site, **rules), site.roster)


def check(site, request, size=WEIGHTS.size, **rules):
    site.proposals.check(request, size, with_rules(site, **rules), site.roster)


def test_what_was_proposed_is_done_in_every_round(site):
    admit(site, proposal())
    for round_ in (1, 2, 3):
        check(site, asked(round=round_))
        check(site, asked(round=round_), size=None)


def test_a_proposal_whose_record_a_crash_prevented_is_on_record_when_it_comes_again(site):
    text = proposal()
    (site.folder / "proposals").mkdir()
    (site.folder / "proposals" / "run-1.json").write_text(text)
    for _ in range(2):
        admit(site, text)
    noted = [r.body["run"] for r in site.audit.records if r.kind == "proposed"]
    assert noted == ["run-1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "not a valid Signed"),
        (proposal(key=EVE), "not signed by dora"),
        (proposal(key=EVE, by="eve"), "no lead named eve"),
        (proposal(by="mallory"), "no lead named mallory"),
        (proposal(federation="banks"), "another federation"),
        (
            proposal(replace(SETTINGS, federation=replace(SETTINGS.federation, name="banks"))),
            "another federation",
        ),
    ],
)
def test_what_no_lead_has_signed_is_no_proposal(site, text, why):
    with pytest.raises(ProposalInvalid, match=why):
        admit(site, text)
    with pytest.raises((ConsentRefused, ProposalInvalid)):
        check(site, asked())


def test_a_changed_byte_is_found(site):
    signed = json.loads(proposal())
    signed["document"] = signed["document"].replace('\\"rounds\\":3', '\\"rounds\\":4')
    with pytest.raises(ProposalInvalid, match="not signed"):
        admit(site, json.dumps(signed))


def test_a_model_of_a_package_is_the_approved_version_or_none(site, tmp_path):
    wheel = read_model_wheel(kidney(tmp_path))
    model = f"wheel.kidney.tiny.{wheel.sha256}"
    run = replace(SETTINGS, model=model)
    with pytest.raises(ModelNotApproved, match="No version of kidney"):
        admit(site, proposal(run))
    approve(site.folder, wheel, "dora")
    admit(site, proposal(run), run="run-2")
    check(site, asked(run, run="run-2"))
    with pytest.raises(PolicyViolation, match="model differs"):
        check(site, asked(run, run="run-2", model=model[:-64] + "b" * 64))
    # The operator approves another version in the midst of the run.
    other = kidney(tmp_path, "1.1", {**FILES, "kidney/more.py": "MORE = 1\n"})
    approve(site.folder, read_model_wheel(other), "dora")
    with pytest.raises(ModelNotApproved, match=r"approved version 1\.1"):
        check(site, asked(run, run="run-2"))


def test_a_run_without_a_proposal_is_refused(site):
    with pytest.raises(ConsentRefused, match="proposed to it only"):
        admit(site, None)
    with pytest.raises(ConsentRefused, match="was not proposed"):
        check(site, asked())


def test_a_run_keeps_its_proposal_and_a_proposal_its_run(site):
    first = proposal()
    admit(site, first)
    admit(site, first)
    with pytest.raises(ProposalInvalid, match="Another proposal"):
        admit(site, proposal())
    with pytest.raises(ProposalInvalid, match="another run's name"):
        admit(site, first, run="run-2")
    kinds = [record.kind for record in site.audit.records]
    assert kinds.count("proposed") == 1


FEW = {"site-1": 1}
WEAK = privacy_request(
    replace(SETTINGS, privacy=replace(SETTINGS.privacy, epsilon=2.0)), len(WEIGHTS)
)
HONEST = privacy_request(SETTINGS, len(WEIGHTS))


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "digits"},
        {"model": "logistic"},
        {"prepare": "site_statistics"},
        {"round": 4, "recipe": recipe(SETTINGS, 4)},
        {"cohort": 1},
        {"privacy": None},
        {"privacy": WEAK},
        {"privacy": replace(HONEST, noise_multiplier=HONEST.noise_multiplier * 0.99)},
        {"privacy": replace(HONEST, clipping_norm=HONEST.clipping_norm * 2)},
        {"privacy": replace(HONEST, max_steps=HONEST.max_steps + 1)},
        {"privacy": replace(HONEST, sample_rate=HONEST.sample_rate / 2)},
        {"masked": None},
        {"masked": masked_sum(replace(SETTINGS, secagg=replace(SETTINGS.secagg, groups=2)), FEW)},
        {"recipe": replace(recipe(SETTINGS, 1), learning_rate=9.0)},
        {"recipe": replace(recipe(SETTINGS, 1), seed=1)},
        {"recipe": recipe(SETTINGS, 2)},
    ],
)
def test_a_server_that_asks_for_something_else_is_refused(site, changes):
    admit(site, proposal())
    with pytest.raises(PolicyViolation):
        check(site, asked(**changes))


def test_more_noise_than_proposed_is_welcome(site):
    admit(site, proposal())
    more = replace(HONEST, noise_multiplier=HONEST.noise_multiplier * 1.5)
    check(site, asked(privacy=more))


def test_by_hand_a_run_waits_for_the_operators_word(site):
    text = proposal()
    with pytest.raises(ApprovalPending):
        admit(site, text, approval="manual")
    with pytest.raises(ApprovalPending):
        check(site, asked(), approval="manual")
    Proposals(site.folder, site.audit).decide("run-1", "approved")
    admit(site, text, approval="manual")
    check(site, asked(), approval="manual")
    site.proposals.decide("run-1", "refused")  # also in the midst of the run
    for approval in ("manual", "automatic"):
        with pytest.raises(ConsentRefused, match="refused"):
            check(site, asked(), approval=approval)
    words = [r.body["verdict"] for r in site.audit.records if r.kind == "decided"]
    assert words == ["approved", "refused"]


def test_a_word_is_about_one_text_only(site):
    with pytest.raises(ApprovalPending):
        admit(site, proposal(), approval="manual")
    site.proposals.decide("run-1", "approved")
    (site.folder / "proposals" / "run-1.json").write_text(proposal())
    with pytest.raises(ApprovalPending):
        check(site, asked(), approval="manual")
    (site.folder / "proposals" / "run-1.decision").write_text("yes")
    with pytest.raises(ConsentRefused):
        check(site, asked(), approval="manual")
    with pytest.raises(ConsentRefused, match="site requests"):
        site.proposals.decide("run-9", "approved")


def test_only_the_people_of_the_rules_may_propose(site):
    admit(site, proposal(), people=["dora"])
    with pytest.raises(ConsentRefused, match="no run of dora"):
        check(site, asked(), people=["carol"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"allow_without_dp": False}, "without differential privacy"),
        ({"tasks": ["digits"]}, "of this task"),
        ({"min_cohort": 5}, "of so few sites"),
    ],
)
def test_a_run_beyond_the_policy_is_refused_before_anybody_works_on_it(site, change, why):
    plain = compose_settings(
        ["task=breast_cancer", "sites=4", "privacy=none", "federation.name=hospitals"]
    )
    file = replace(with_rules(site), policy=replace(PERMISSIVE, **change))
    with pytest.raises(ConsentRefused, match=why):
        site.proposals.admit("run-1", proposal(plain), file, site.roster)


def test_a_run_beyond_the_budget_of_a_run_is_refused(site):
    file = replace(with_rules(site), policy=replace(PERMISSIVE, max_epsilon_per_run=0.5))
    with pytest.raises(ConsentRefused, match="epsilon"):
        site.proposals.admit("run-1", proposal(), file, site.roster)


@pytest.mark.parametrize(
    ("hours", "now", "quiet"),
    [
        ("22:00-06:00", time(23), True),
        ("22:00-06:00", time(5, 59), True),
        ("22:00-06:00", time(6), False),
        ("08:00-18:00", time(12), True),
        ("08:00-18:00", time(18), False),
        ("08:00-18:00", time(7, 59), False),
    ],
)
def test_quiet_hours(hours, now, quiet):
    assert (replace(RULES, quiet_hours=[hours]).quiet(now) is not None) == quiet


def test_nothing_is_trained_in_quiet_hours(site):
    now = datetime.now().time()
    hours = f"{now:%H:%M}-{(now.hour + 2) % 24:02d}:00"
    admit(site, proposal(), quiet_hours=[hours])
    with pytest.raises(QuietHours, match="trains nothing"):
        check(site, asked(), quiet_hours=[hours])


@pytest.mark.parametrize("hours", ["25:00-06:00", "night", "6-7"])
def test_hours_are_written_in_one_way(hours):
    found, faults = parse(LaunchRules, {**vars(RULES), "quiet_hours": [hours]})
    assert found is None
    assert "22:00-06:00" in faults[0]


def keep_study(site, **changes):
    study = Study(
        **{
            "name": "tumours", "federation": "hospitals", "version": 1, "purpose": "p",
            "legal_basis": "l", "ethics_reference": "e", "until": "2099-01-01",
            "sites": ["site-1", "site-2"], "leads": ["dora"], "auditors": [],
            "tasks": ["breast_cancer"], "data": ["toy-data"], "max_epsilon": 1.0,
            "max_delta": 1e-5, **changes,
        }
    )  # fmt: skip
    text = to_json(study)
    signed = Signed(document=text, signatures={PARTNER.public_hex: sign(PARTNER, "study", text)})
    (site.folder / "studies").mkdir(exist_ok=True)
    (site.folder / "studies" / "tumours.json").write_text(to_json(signed))


def test_a_run_may_be_part_of_a_study(site):
    keep_study(site)
    admit(site, proposal(study="tumours"), studies=["tumours"])
    check(site, asked(), studies=["tumours"])
    with pytest.raises(ConsentRefused, match="certain studies"):
        admit(site, proposal(), run="run-2", studies=["tumours"])


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"sites": ["site-2", "site-3"]}, ConsentRefused, "the run's site"),
        ({"data": ["other"]}, ConsentRefused, "the run's data"),
        ({"tasks": ["digits"]}, ConsentRefused, "the run's task"),
        ({"max_epsilon": 0.5}, ConsentRefused, "the run's epsilon"),
        ({"max_delta": 1e-9}, ConsentRefused, "the run's delta"),
        ({"until": "2020-01-01"}, StudyInvalid, "ended"),
    ],
)
def test_a_study_covers_what_it_names(site, change, error, why):
    keep_study(site, **change)
    with pytest.raises(error, match=why):
        admit(site, proposal(study="tumours"))


def test_a_study_that_the_site_does_not_hold_covers_nothing(site):
    with pytest.raises(ConsentRefused, match="holds no study"):
        admit(site, proposal(study="tumours"))


def test_all_runs_of_a_study_share_its_budget(site):
    keep_study(site)
    admit(site, proposal(study="tumours"))
    admit(site, proposal(study="tumours"), run="run-2")
    admit(site, proposal(), run="run-3")
    budget = site.proposals.budget("run-1", site.roster)
    assert (budget.max_epsilon, budget.runs) == (1.0, {"run-1", "run-2"})
    assert site.proposals.budget("run-3", site.roster) is None
    site.ledger.use_data("row", frozenset({bytes(16)}))
    plan = HONEST.plan("row", 64)
    for run in ("run-1", "run-2"):
        request = asked(run=run)
        spent = pytest.raises(BudgetSpent, match="in the study tumours")
        with spent if run == "run-2" else nullcontext():
            for _ in range(3):
                site.ledger.reserve(plan, request, PERMISSIVE, budget)


def test_the_apps_site_asks_for_a_proposal_where_its_rules_do(site):
    path = site.folder / "site.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "launch": vars(RULES)}))
    forget_sites()

    def hello(text):
        content = hello_content(HelloRequest(run="run-1", proposal=text))
        return app(ask(content, HELLO), context(site.folder))

    assert hello(None).error.reason == "ConsentRefused"
    assert hello(proposal()).has_content()
    assert hello(proposal()).error.reason == "ProposalInvalid"
    assert Site(site.folder).proposals.names() == ["run-1"]


def test_each_policy_that_a_site_answers_by_is_on_its_record(site):
    def policies():
        return [r.body for r in Site(site.folder).audit.records if r.kind == "policy"]

    path = site.folder / "site.yaml"
    values = yaml.safe_load(path.read_text())
    Site(site.folder).note_policy()
    assert policies() == []  # without rules of launch: a simulation's
    path.write_text(yaml.safe_dump({**values, "launch": vars(RULES)}))
    running = Site(site.folder)
    running.note_policy()
    Site(site.folder).note_policy()
    (first,) = policies()
    values["policy"]["period_days"] = 7
    path.write_text(yaml.safe_dump({**values, "launch": vars(RULES)}))
    running.refresh()
    second = policies()[1]
    assert first["policy"] != second["policy"]
    assert first["launch"] == second["launch"]


def test_no_two_proposals_are_the_same(site):
    one, two = (read_proposal(proposal(), site.roster) for _ in range(2))
    assert one.nonce != two.nonce
    assert replace(one, nonce=two.nonce) == two


STATISTICS = compose_settings(
    [*statistics_overrides(["task=breast_cancer", "sites=4", "federation.name=hospitals"])]
)


def test_a_run_that_trains_asks_for_no_statistics(site):
    admit(site, proposal())
    with pytest.raises(PolicyViolation, match="statistics differs"):
        check(site, asked(statistics=StatisticsQuery(bins=10, features=None)))


def answering(site, most):
    """The site's file with a policy that answers statistics of at most an epsilon."""
    rules = StatisticsRules(max_epsilon=most, min_cohort=3, max_bins=10)
    return replace(with_rules(site), policy=replace(PERMISSIVE, statistics=rules))


def test_statistics_are_for_sites_whose_policy_says_so(site):
    with pytest.raises(ConsentRefused, match="no run of statistics"):
        admit(site, proposal(STATISTICS))
    with pytest.raises(ConsentRefused, match="no run of statistics"):
        site.proposals.admit("run-2", proposal(STATISTICS), answering(site, 0.9), site.roster)
    site.proposals.admit("run-3", proposal(STATISTICS), answering(site, 1.0), site.roster)


@pytest.mark.parametrize("bins", [None, 9, 10])
def test_statistics_are_those_that_were_proposed(site, bins):
    file = answering(site, 1.0)
    site.proposals.admit("run-1", proposal(STATISTICS), file, site.roster)
    query = None if bins is None else StatisticsQuery(bins=bins, features=None)
    request = asked(STATISTICS, statistics=query)
    if query == statistics_query(STATISTICS):
        site.proposals.check(request, WEIGHTS.size, file, site.roster)
        return
    with pytest.raises(PolicyViolation, match="statistics differs"):
        site.proposals.check(request, WEIGHTS.size, file, site.roster)
