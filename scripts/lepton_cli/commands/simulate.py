"""``lepton simulate``: one run, a resumed run, or a sweep of runs."""

import json
import signal
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from lepton_cli.groups import groups
from lepton_common.errors import Interrupted, SettingsError

_APP = "app="
_RESUME = "resume="


def _help() -> str:
    choices = "\n\n".join(f"  [cyan]{name}[/]: {', '.join(c)}" for name, c in groups().items())
    return f"""Run a federation on this machine: the same apps that real sites run.

    Overrides are [cyan]group=choice[/] or [cyan]section.setting=value[/];
    'lepton config' shows all settings.

    [bold]Groups[/]

    {choices}

    [bold]Examples[/]

      lepton simulate task=breast_cancer privacy.epsilon=2 baselines=true

      lepton simulate task=fashion_mnist data.root=DATA data.partition=dirichlet rounds=20

      lepton simulate -m privacy.epsilon=1,3,8 seed=1,2   (a sweep: six runs, one table)

      lepton simulate -m 'model=glob(cnn_*)' 'rounds=range(10,40,10)' 'seed=choice(1,2)'

      lepton simulate tracker=mlflow tracker.uri='http://localhost:5000'

    After a crash or Ctrl-C: lepton simulate resume=RUN (or resume=last), and for a sweep
    lepton simulate -m resume=SWEEP.

    [bold]A Flower app of your own[/]

      lepton simulate app=path/to/flower-app nodes=10 config.num-server-rounds=5

    runs any Message-API app as its pyproject.toml names it, in the app's folder and
    [bold red]outside the door[/]: no consent, no ledger, no privacy. [cyan]config.NAME[/] changes
    its own run config. Besides these there are [cyan]engine.workers[/] (1: one node at a time),
    [cyan]engine.threads_per_site[/] (the rest of the cores) and [cyan]runs[/].
    """


HELP = _help()


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the run.")] = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Sweep: one run for each combination.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, and nothing else.")
    ] = False,
) -> int:
    """Runs what the overrides say; `HELP` is what the user reads."""
    words = overrides or []
    if any(word.startswith(_APP) for word in words):
        return _run_app(words, multirun=multirun, as_json=as_json)
    from lepton_cli.compose import compose_settings
    from lepton_cli.live import observer_for
    from lepton_cli.run import find_run
    from lepton_cli.simulation import resume, start
    from lepton_cli.summary import as_json_document, print_summary

    if multirun:
        from lepton_cli.sweep.run import run_sweep

        return run_sweep(words, as_json=as_json)
    run = None
    if any(word.startswith(_RESUME) for word in words):
        others = [word for word in words if not word.startswith((_RESUME, "runs="))]
        if others:
            raise SettingsError(f"A resumed run keeps its settings: drop {', '.join(others)}.")
        named = {word.partition("=")[0]: word.partition("=")[2] for word in words}
        run = find_run(named["resume"], named.get("runs", "runs"))
    settings = run.settings if run else compose_settings(words)
    if settings.statistics.asked:
        raise SettingsError("Statistics are asked for by 'lepton stats': drop statistics.asked.")
    observer = observer_for(settings, quiet=as_json)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if observer.stop_requested:
            raise KeyboardInterrupt
        observer.stop_requested = True
        observer.say("Stopping after this round; press Ctrl-C again to stop at once.")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with observer:
            run = resume(run, observer) if run else start(settings, observer)
    except KeyboardInterrupt:
        raise Interrupted("Stopped at once; the last finished round is kept.") from None
    finally:
        signal.signal(signal.SIGINT, before)
    if as_json:
        print(json.dumps(as_json_document(run)))
    else:
        print_summary(run)
    return 0


def _run_app(words: list[str], *, multirun: bool, as_json: bool) -> int:
    from lepton_cli.apps.presentation import app_document, print_app_summary
    from lepton_cli.apps.record import STATEMENT
    from lepton_cli.apps.request import read_request
    from lepton_cli.apps.running import run_app

    if multirun:
        raise SettingsError("A sweep takes no app=: run a Flower app once for each setting.")
    request = read_request(words)
    Console(stderr=True, highlight=False).print(f"[bold red]{STATEMENT}[/]")
    # At once: an app's rounds are its own, and nothing could be resumed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = run_app(request, quiet=as_json)
    if as_json:
        print(json.dumps(app_document(run)))
    else:
        print_app_summary(run)
    return 0
