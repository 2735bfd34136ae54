"""`uncomp chat`: a conversation in which only what is new is prefilled, over a cache that stays in its budget."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from uncomp_cli.cli.declare.completion import cache_names, completing
from uncomp_cli.cli.declare.options import (
    DOCUMENTS,
    Beside,
    Escalate,
    ModelOptions,
    OutputOptions,
    PresetOptions,
    ReadingOptions,
    SamplingOptions,
    System,
    Thinking,
    Verbose,
    terminal_of,
)
from uncomp_cli.cli.declare.tree import brief, only, option, sources_of
from uncomp_cli.config import AGNOSTIC_PRESET


def _sessions() -> list[str]:
    from uncomp_cli.sessions.folder import session_names

    return session_names()


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What is talked about, and what is kept of it."""

    file: Annotated[
        tuple[str, ...],
        option(
            "--file",
            "-f",
            help="File, directory or glob to talk about from the start; repeatable.",
            metavar="PATH",
            setting=False,
        ),
    ] = ()
    session: Annotated[
        str | None,
        option(
            "--session",
            setting=False,
            help="Go on with the session of this name, or begin it; saved after every turn.",
            metavar="NAME",
            autocompletion=completing(_sessions),
        ),
    ] = None
    cache: Annotated[
        str | None,
        option(
            "--cache",
            help="Begin behind a document that was kept under this name; with -f: keep what is read, by name, or auto: "
            "by what it is read from.",
            metavar="NAME|auto",
            autocompletion=cache_names,
            setting=False,
        ),
    ] = None
    escalate: Escalate = False
    no_history: Annotated[
        bool, option("--no-history", help="Neither read nor write the file of what was typed before.")
    ] = False


BRIEF = brief(
    "file session cache escalate model preset budget context system max-new-tokens temperature quiet verbose",
    ("uncomp chat", "talk about anything"),
    ("uncomp chat -f report.pdf", "about a document, which is read first"),
    ("uncomp chat --session work", "go on with a conversation, or begin it"),
    ("uncomp chat -f book.txt --context 32k -b 20%", "past the trained length, in a fifth of the cache"),
)


def chat(
    ctx: typer.Context,
    files: Beside = None,
    *,
    talk: ChatOptions,
    model: ModelOptions,
    preset: Annotated[PresetOptions, only("name", "budget", "policy", "scorer", "kv_bits", name=AGNOSTIC_PRESET)],
    reading: Annotated[ReadingOptions, only("chunk", "kv_mem", *DOCUMENTS.names)],
    system: System = None,
    sampling: SamplingOptions,
    output: Annotated[OutputOptions, only("quiet")],
    verbose: Verbose = False,
    show_thinking: Thinking = False,
) -> None:
    """Talk with a model about documents or anything. /help lists what can be done on the way."""
    from uncomp_cli.asking.request import CHAT_PRESET, LEAST_TOKENS, check_text
    from uncomp_cli.cli.chat.loop import ChatJob, run_chat

    check_text(system or "", "the system prompt")
    job = ChatJob(
        paths=(*talk.file, *(files or ())),
        session=talk.session,
        cache=talk.cache,
        keeps_history=not talk.no_history,
        model=model.choice(),
        choice=replace(preset.choice(sampling.seed), usual=CHAT_PRESET, floor_tokens=LEAST_TOKENS),
        limits=reading.limits(),
        system=system,
        sampling=sampling.config(),
        escalates=talk.escalate,
        wishes=reading.wishes(),
        include=reading.include,
        named=frozenset(key.replace("-", "_") for key, source in sources_of(ctx).items() if source != "DEFAULT"),
    )
    run_chat(job, terminal_of(ctx, quiet=output.quiet, verbose=verbose, thinking=show_thinking))
