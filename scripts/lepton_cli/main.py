"""The `lepton` command: subcommands, and how errors become exit codes."""

import json
import sys
from typing import NoReturn

import click
import typer
from rich.console import Console

from lepton_cli.commands import (
    audit,
    config,
    deployment,
    desk,
    evaluate,
    evidence,
    federation,
    identities,
    installing,
    models,
    privacy,
    reports,
    requests,
    simulate,
    site_data,
    stats,
    tasks,
)
from lepton_common.durable import is_full
from lepton_common.errors import (
    DiskFull,
    FileUnusable,
    LeptonError,
    SettingsError,
    SystemRefused,
)
from lepton_common.printable import printable

_EXIT_CODES = """
Exit codes: 0 done · 1 a fault of ours or the system's · 2 settings, words or paths · 3 data ·
4 refused for privacy · 5 a run failed or was not found · 6 an audit log or evidence does not
verify · 7 secure aggregation stopped a round · 8 a key, certificate, roster or study is not good ·
9 a bundle or a model's wheel is incomplete, not signed or was altered · 130 stopped by Ctrl-C.
"""

_WRONG_PATHS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

app = typer.Typer(
    name="lepton",
    help="Federated, privacy-preserving training: simulate here what real sites will run.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("simulate", help=simulate.HELP, epilog=_EXIT_CODES)(simulate.command)
app.command("stats", help=stats.HELP, epilog=_EXIT_CODES)(stats.command)
app.command("evaluate", help=evaluate.HELP, epilog=_EXIT_CODES)(evaluate.command)
app.command("config")(config.command)
app.command("tasks", help=tasks.HELP)(tasks.command)
app.command("runs")(reports.list_command)
app.command("report")(reports.show_command)
app.add_typer(audit.app, name="audit")
app.add_typer(evidence.app, name="evidence")
app.add_typer(privacy.app, name="privacy")
app.add_typer(federation.app, name="federation")
identities.site_app.command("start")(deployment.site_start)
identities.site_app.command("data", help=site_data.HELP)(site_data.command)
identities.server_app.command("start")(deployment.server_start)
identities.site_app.command("bundle", help=installing.BUNDLE_HELP)(installing.bundle)
identities.site_app.command("unbundle", help=installing.UNBUNDLE_HELP)(installing.unbundle)
identities.site_app.command("unit", help=installing.UNIT_HELP.format(kind="site"))(
    installing.site_unit
)
identities.server_app.command("unit", help=installing.UNIT_HELP.format(kind="server"))(
    installing.server_unit
)
for name, help_, command in (
    ("requests", requests.REQUESTS_HELP, requests.requests),
    ("approve", requests.APPROVE_HELP, requests.approve),
    ("refuse", requests.REFUSE_HELP, requests.refuse),
    ("rehearse", requests.REHEARSE_HELP, requests.rehearse),
    ("status", desk.STATUS_HELP, desk.status),
    ("log", desk.LOG_HELP, desk.log),
    ("ledger", desk.LEDGER_HELP, desk.ledger),
    ("doctor", desk.DOCTOR_HELP, desk.doctor),
):
    identities.site_app.command(name, help=help_)(command)
app.command("submit", help=deployment.SUBMIT_HELP)(deployment.submit)
app.add_typer(deployment.run_app, name="run")
app.add_typer(models.app, name="model")
identities.site_app.add_typer(models.site_app, name="model")
app.add_typer(identities.site_app, name="site")
app.add_typer(identities.server_app, name="server")
app.add_typer(identities.person_app, name="person")


@app.callback(invoke_without_command=True)
def _top(
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"lepton {installed('lepton-fl')}")
        raise typer.Exit


def main() -> NoReturn:
    """Runs the command line; every known error is one sentence and its own exit code."""
    try:
        result = app(standalone_mode=False)
    except LeptonError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except OSError as error:
        fault = _of_file(error)
        _complain(fault)
        sys.exit(fault.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        Console(stderr=True).print("Stopped, as you asked.")
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


def _of_file(error: OSError) -> LeptonError:
    """Returns what the system refused as our own error; a path that the user gave is a setting."""
    path, said = error.filename2 or error.filename, error.strerror or str(error)
    if is_full(error):
        return DiskFull(f"No room is left on the disk{f' of {path}' if path else ''}: make room.")
    if path is not None and isinstance(error, _WRONG_PATHS):
        return FileUnusable(f"Cannot use {path}: {said}; give another path, or mend its access.")
    return SystemRefused(f"{said}{f': {path}' if path is not None else ''}; mend that, try again.")


def _complain(error: LeptonError) -> None:
    faults = error.faults if isinstance(error, SettingsError) else [str(error)]
    if "--json" in sys.argv:
        print(json.dumps({"error": type(error).__name__, "faults": faults}))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for fault in faults:
        console.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        for line in fault.splitlines() or [""]:  # it may quote a stranger
            console.print(printable(line), markup=False)
    for note in getattr(error, "__notes__", []):
        console.print(note, markup=False)
