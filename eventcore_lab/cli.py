"""The command line. Every command is one call into the library; this file only parses, prints and picks the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore_lab.schema import ExitCode, data_folder
from eventcore_lab.spec import UsageError

if TYPE_CHECKING:
    from eventcore_lab.batch import Beside

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure an event store: how fast it is, how far it goes, what holds it back, and whether it was still correct.

    Exit codes: 0 the targets are met (or the command did its work) · 1 a target is missed · 2 wrong usage · 3 inconclusive ·
    4 the run itself broke · 5 an invariant was violated · 130 interrupted.""",
)

NotebookNames = Annotated[
    list[str],
    typer.Argument(
        metavar="NOTEBOOK...",
        help="Which notebooks: by name, number, or path; one after the other.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("-p", "--set", metavar="NAME=VALUE", help="Set a parameter of the notebook; may be repeated."),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the reports.", show_default="reports")]
Live = Annotated[bool, typer.Option("--live", help="Serve a live dashboard beside the runs, and print its address.")]
LivePort = Annotated[
    int, typer.Option(min=0, max=65535, help="The dashboard's port, or the next that is free (0: any).")
]
Notify = Annotated[
    list[str] | None,
    typer.Option(metavar="env:NAME", help="Tell the Apprise URL in this variable of alerts; may be repeated."),
]
AlertsFile = Annotated[str, typer.Option(metavar="FILE", help="Alert rules, TOML.", show_default="from targets")]
LabFile = Annotated[Path | None, typer.Option("--lab", help="The results file.", show_default="data/lab.duckdb")]


@app.command()
def run(
    notebooks: NotebookNames,
    parameters: Set = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="N|CLUSTER",
            help="So many load processes here; or on a Dask cluster (dask:tcp://host:8786), one to each of its workers.",
            show_default="as the notebook says",
        ),
    ] = "",
    baseline: Annotated[
        str,
        typer.Option(
            metavar="RUN|REPORT",
            help="Compare with an earlier run, by its id, or with a report, by its folder or JSON file.",
            show_default=False,
        ),
    ] = "",
    live: Live = False,
    live_port: LivePort = 8765,
    notify: Notify = None,
    alerts: AlertsFile = "",
    out: Out = None,
    lab: LabFile = None,
) -> None:
    """Run notebooks with parameters and write their reports; the exit code is the verdict's, of several the worst.

    The worst first: interrupted, violated, broken, wrong usage, fail, inconclusive, pass.

    [dim]eventcore-lab run 00-store-benchmark -p store=postgres -p duration_s=5[/dim]

    [dim]LAB_DSN=postgresql://me:secret@db/bench eventcore-lab run 00 -p store=env:LAB_DSN[/dim]
    """
    from eventcore_lab.batch import run_notebooks

    folders = _project("notebooks"), out or _project("reports")
    beside = _beside(live, live_port, notify, alerts)
    code = run_notebooks(notebooks, folders[0], parameters or [], folders[1], lab, workers, baseline, beside)
    raise typer.Exit(int(code))


@app.command()
def suite(
    file: Annotated[
        str, typer.Argument(help="A TOML file, or the name of one in data/suites.", metavar="FILE", show_default=False)
    ],
    again: Annotated[bool, typer.Option("--again", help="Run what is done already, too.")] = False,
    live: Live = False,
    live_port: LivePort = 8765,
    notify: Notify = None,
    alerts: AlertsFile = "",
    out: Out = None,
    lab: LabFile = None,
) -> None:
    """Run the notebooks and parameters that a file lists, and write one page of all; the exit code is the worst one.

    What has a finished report in the folder, of the same notebook, parameters and version, is taken as it is.

    [dim]eventcore-lab suite ci[/dim]
    """
    from eventcore_lab.batch import suite_of

    beside = _beside(live, live_port, notify, alerts)
    raise typer.Exit(int(suite_of(file, _project("notebooks"), out or _project("reports"), lab, again, beside)))


@app.command()
def monitor(
    store: Annotated[
        str,
        typer.Option(
            metavar="env:NAME",
            help="Observe this PostgreSQL store, whose DSN is in the variable, without writing.",
            show_default="the runs of the Lab",
        ),
    ] = "",
    targets: Annotated[str, typer.Option(help="Hold the window to these: a preset or a TOML file.")] = "production",
    window: Annotated[float, typer.Option(min=1, max=3600, help="Length of the sliding window, seconds.")] = 30.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens (0: any that is free).")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond this machine it needs --token.")
    ] = "127.0.0.1",
    token: Annotated[str, typer.Option(metavar="env:NAME", help="Ask for the token in this variable.")] = "",
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Answer to this host name, too; may be repeated.")
    ] = None,
    alerts: AlertsFile = "",
    notify: Notify = None,
    test_notify: Annotated[
        bool, typer.Option("--test-notify", help="Send one message to each --notify, say what became of it, and end.")
    ] = False,
    no_alerts: Annotated[bool, typer.Option("--no-alerts", help="Judge, but alert nobody.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="End after so long (0: with Ctrl-C).")] = 0.0,
    lab: LabFile = None,
) -> None:
    """Watch runs, or an existing store, live: a dashboard, /metrics for Prometheus, /health, and alerts, until Ctrl-C.

    [dim]LAB_DSN=postgresql://me:secret@db/shop eventcore-lab monitor --store env:LAB_DSN[/dim]
    """
    from eventcore_lab.lab.database import Lab
    from eventcore_lab.monitor.beside import try_out, watch
    from eventcore_lab.monitor.process import Order

    if test_notify:
        raise typer.Exit(int(try_out(notify or ())))
    watch(
        Order(
            lab=str(Lab(lab).path.resolve()),
            store=store,
            targets=targets,
            window_s=window,
            host=host,
            port=port,
            token=token,
            allowed_hosts=tuple(allowed_host or ()),
            alerts=alerts,
            has_alerts=not no_alerts,
            notify=tuple(notify or ()),
            seconds=seconds,
        )
    )


@app.command()
def soak(
    hours: Annotated[float | None, typer.Option(help="How long; 0.1 is six minutes.", show_default="8")] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Operations per second, by chance (poisson); or -p pacer=…", show_default="200"),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--set", metavar="NAME=VALUE", help="Set a parameter of notebook 15; may be repeated."),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(
            help="Hold it to these: a preset or a TOML file.", show_default="production, or as the soak began"
        ),
    ] = "",
    resume: Annotated[
        str, typer.Option(metavar="ID|last", help="Go on with a soak that was cut.", show_default=False)
    ] = "",
    live: Live = False,
    live_port: LivePort = 8765,
    notify: Notify = None,
    alerts: AlertsFile = "",
    out: Out = None,
    lab: LabFile = None,
) -> None:
    """One load for hours: does it stay as it is? Latency and memory by their slope, everything read back, and a report.

    After Ctrl-C, a crash or a reboot `--resume` measures the hours that are missing.

    [dim]eventcore-lab soak --hours 8 --rate 200 -p store=env:LAB_DSN --live[/dim]
    """
    from eventcore_lab.batch import soak_of, words_of

    places = _project("notebooks") / "15-does-it-stay-steady.ipynb", out or _project("reports"), lab
    beside = _beside(live, live_port, notify, alerts)
    again = words_of(lab=lab, out=out, live=live, live_port=live_port, notify=notify, alerts=alerts)
    code = soak_of(hours, rate, parameters or [], resume, targets, *places, beside, again)
    raise typer.Exit(int(code))


@app.command("list")
def list_() -> None:
    """What there is: notebooks with their parameters, stores, workloads, executors, pacers, projections, targets."""
    from eventcore_lab.listing import catalogue

    print(catalogue(_project("notebooks")))


@app.command()
def runs(
    lab: LabFile = None, limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20
) -> None:
    """The newest runs of the Lab, a line each."""
    from eventcore_lab.lab.database import Lab
    from eventcore_lab.listing import listing

    print(listing(Lab(lab), limit))


@app.command()
def rerun(
    run_id: Annotated[str, typer.Argument(help="A run's id, or the beginning of one.", show_default=False)],
    lab: LabFile = None,
) -> None:
    """Measure a stored run once more, with every parameter it had, and say what differs: the figures, and the machine."""
    from eventcore_lab.lab.database import Lab
    from eventcore_lab.listing import repeat

    text, code = repeat(Lab(lab), run_id)
    print(text)
    raise typer.Exit(int(code))


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(help="A run's id, or the beginning of one.", show_default=False)] = "",
    targets: Annotated[str, typer.Option(help="Hold it to these: a preset or a TOML file.")] = "production",
    out: Out = None,
    lab: LabFile = None,
) -> None:
    """One run in figures, held to targets (the exit code is the verdict's); without a run, rebuild the index of reports."""
    from eventcore_lab.lab.database import Lab
    from eventcore_lab.listing import describe
    from eventcore_lab.reports import rewrite_index

    if not run_id:
        print(rewrite_index(out or _project("reports")))
        return
    text, code = describe(Lab(lab), run_id, targets)
    print(text)
    raise typer.Exit(int(code))


@app.command()
def conformance(
    store: Annotated[str, typer.Argument(help="Which store, as in an experiment.", show_default=False)],
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only claims with this in their name.")] = "",
) -> None:
    """Does a store keep what a store promises? A line per claim; what it declares to lack is shown with the reason.

    [dim]eventcore-lab conformance postgres --only "read only"[/dim]
    """
    from eventcore_lab.batch import conform

    raise typer.Exit(int(conform(store, only)))


@app.command()
def doctor(
    directory: Annotated[
        Path | None, typer.Argument(help="Examine the disk of this folder.", show_default="data")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Shorter, rougher measurements.")] = False,
) -> None:
    """Is this machine fit to measure? Cores, load, frequency scaling, timers, the disk's fsync cost, versions."""
    import uvloop

    from eventcore_lab.machine import as_table, examine

    folder = directory or data_folder()
    if directory is None:
        folder.mkdir(parents=True, exist_ok=True)
    print(as_table(examine(folder, quick, uvloop.new_event_loop)))


@app.command()
def selftest(
    quick: Annotated[bool, typer.Option("--quick", help="An eighth of the samples, in a few seconds.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of every chance in it.")] = 1,
) -> None:
    """Does the load generator measure what theory says it must? A line per claim about modelled servers in virtual time.

    [dim]eventcore-lab selftest --quick --seed 7[/dim]
    """
    from eventcore_lab.selftest import selftest as tested

    raise typer.Exit(int(tested(quick, seed)))


def _beside(is_live: bool, port: int, notify: list[str] | None, alerts: str) -> Beside:
    """What goes on beside the runs of a Lab: a monitor, if one is asked for; nobody else judges or tells."""
    from eventcore_lab.batch import alone

    if not is_live and (notify or alerts):
        raise UsageError(f"{'--notify' if notify else '--alerts'} is for a run that is watched; add --live")
    if not is_live:
        return alone
    from eventcore_lab.monitor.beside import live

    return partial(live, port=port, notify=notify or (), alerts=alerts)


def _project(name: str) -> Path:
    """`notebooks` or `reports` of the project that the data folder belongs to."""
    beside = data_folder().resolve().parent / name
    return beside if beside.is_dir() or name == "reports" else Path(__file__).resolve().parent.parent / name


def main() -> None:
    """Entry point: whatever goes wrong is one line on standard error and a documented exit code."""
    sys.exit(int(_guarded(lambda: app(standalone_mode=False))))


_INTERRUPTED = "interrupted; what was measured so far is kept"


def _guarded(work: Callable[[], Any]) -> ExitCode | int:
    from eventcore_lab.lab.database import UnknownRun

    try:
        code = work() or ExitCode.PASS
        return code if code != ExitCode.INTERRUPTED else _said(_INTERRUPTED, ExitCode.INTERRUPTED)
    except (UsageError, UnknownRun) as error:
        return _said(str(error), ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _said(_INTERRUPTED, ExitCode.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as `head` does
        return ExitCode.PASS
    except Exception as error:
        if hasattr(error, "format_message"):  # of the parser, whose module typer keeps private
            return _said(f"{error.format_message()} (see: {_command_path(error)} --help)", ExitCode.USAGE)
        if not _is_expected(error):
            raise
        return _said(str(error), ExitCode.BROKEN)


def _is_expected(error: Exception) -> bool:
    from eventcore_lab.events import StoreError
    from eventcore_lab.experiment import RunBroken
    from eventcore_lab.lab.database import LabError

    return isinstance(error, StoreError | RunBroken | LabError | OSError)


def _command_path(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "eventcore-lab"


def _said(text: str, code: ExitCode) -> ExitCode:
    print(f"eventcore-lab: {text}", file=sys.stderr)
    return code
