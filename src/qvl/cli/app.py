"""The commands of ``qvl`` put together, and one run of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import qvl
import qvl.cli.ask as ask_command
import qvl.cli.chat as chat_command
import qvl.cli.eval as eval_command
import qvl.cli.info as info_command
import qvl.cli.merge as merge_command
import qvl.cli.quantize as quantize_command
import qvl.cli.serve as serve_command
import qvl.cli.train as train_command
from qvl.cli.failures import INTERRUPTED, OK, Session
from qvl.cli.options import DebugOption

EXIT_CODES = (
    "Exit codes: 0 done, 1 the model could not be loaded or run, 2 wrong usage or unusable input, "
    "130 interrupted by Ctrl-C, 141 the reader of stdout went away."
)


def _called_with(arguments: str) -> type[TyperCommand]:
    """A command whose usage line says ``arguments``; typer's own puts braces around words like these."""

    class Command(TyperCommand):
        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            return ["[OPTIONS]", arguments]

    return Command


app = typer.Typer(name="qvl", add_completion=True, pretty_exceptions_enable=False, epilog=EXIT_CODES)
app.command("ask", cls=_called_with("[MEDIA]... QUESTION"))(ask_command.ask)
app.command("chat", cls=_called_with("[MEDIA]..."))(chat_command.chat)
app.command("info", cls=_called_with("MODEL [MEDIA]..."))(info_command.info)
app.command("serve")(serve_command.serve)
app.command("train", cls=_called_with("MODEL DATA..."))(train_command.train)
app.command("eval", cls=_called_with("MODEL DATA..."))(eval_command.evaluate)
app.command("quantize", cls=_called_with("MODEL OUT"))(quantize_command.quantize)
app.command("merge", cls=_called_with("ADAPTER OUT"))(merge_command.merge)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qvl {qvl.__version__}")
        raise typer.Exit()


@app.callback()
def qvl_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Qwen2.5-VL on your machine: pictures, documents, screens and videos in, text and boxes out."""


def run(argv: list[str], session: Session) -> int:
    """The exit code of a command line that ends well; without words it prints the help. Else raises."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv or ["--help"], prog_name="qvl", standalone_mode=False, obj=session)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if code == INTERRUPTED:  # what newer typers make of Ctrl-C, older ones abort
        raise KeyboardInterrupt
    return code if isinstance(code, int) else OK
