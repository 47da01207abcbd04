"""The report of a run: one HTML file that opens offline, and a model card beside the model."""

import base64
import json

import yaml

from lepton_cli.exposure import exposure
from lepton_cli.fairness import fairness
from lepton_cli.judged import judge
from lepton_cli.pictures import draw_all
from lepton_cli.rendering import render
from lepton_cli.run import Run
from lepton_cli.summary import comparison, is_red, next_command, statement, upper
from lepton_common.datasets.catalog import load_dataset
from lepton_common.durable import write_atomic
from lepton_common.tasks.catalog import find_task

_BEST_NOTE = (
    "The best model is the round with the best figure on the server's test set; chosen on it, "
    "that figure is optimistic. Figures in tables are the last round's."
)


def write_report(run: Run) -> None:
    """Writes ``report.html``, the pictures and ``model_card.md`` into the run folder.

    Raises:
        AuditError: the run's logs do not verify.
    """
    settings = run.settings
    task = find_task(settings.task)
    dataset = load_dataset(task.dataset, settings.data.root, settings.data.prepare)
    figures, judged = judge(run)
    facts = {
        "figures": figures,
        "fairness": fairness(run),
        "run": run,
        "task": task,
        "notes": dataset.notes,
        "status": run.status,
        "rows": comparison(run),
        "statement": statement(run),
        "shared": exposure(run),
        "upper": upper,
        "red": is_red(run),
        "sites": list(run.evidence.sites.values()),
        "evidence": run.evidence,
        "about": json.loads(run.folder.about.read_text()),
        "best": run.rounds[run.headline.best(run.curve)],
        "best_note": _BEST_NOTE,
        "next": next_command(run),
        "config": yaml.safe_dump(yaml.safe_load(run.folder.config.read_text()), sort_keys=False),
    }
    pictures = {
        title: base64.b64encode(path.read_bytes()).decode()
        for title, path in {**draw_all(run), **judged}.items()
    }
    html = render("report.html.j2", pictures=pictures, **facts)
    card = render("model_card.md.j2", **facts)
    write_atomic(run.report, html.encode())
    write_atomic(run.folder.path / "model_card.md", card.encode())
