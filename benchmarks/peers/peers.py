"""Build the peers' environments, run the samples through them, and join the results with ours.

    python benchmarks/peers/peers.py --build DIRECTORY
    python benchmarks/peers/peers.py --run DIRECTORY --samples samples.jsonl --out RESULTS [--limit N]
    python benchmarks/peers/peers.py --join RESULTS... [--ours eval.jsonl...] [--shown SETTING...] [--report PAGE]

Runs in uncomp's environment; each peer runs in its own, as a child. A peer without an environment is named, with how
to build it, and the others run. See README.md here.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from environments import PEERS, Peer, build, interpreter, missing_message
from join import load_ours, load_peer, merged, page
from records import command_line, packed_or_not, say
from weights import gguf_file, plain_directory, wide_gguf

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.errors import UncompError

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent.parent / "docs" / "results" / "peers.md"


def build_all(directory: Path) -> int:
    """The environments and the GGUF; 1 when one of them failed."""
    directory.mkdir(parents=True, exist_ok=True)
    built = [build(directory, peer) for peer in PEERS]
    gguf_file(directory)
    return 0 if all(built) else 1


def run_all(directory: Path, samples: Path, out: Path, *, limit: int | None) -> int:
    """Every peer that has an environment; 1 when one of those failed, 0 when one is only missing."""
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for peer in PEERS:
        python = interpreter(directory, peer)
        if python is None:
            say(missing_message(directory, peer))
            continue
        arguments = [
            "--model",
            str(model_of(peer, directory)),
            "--samples",
            str(samples),
            "--out",
            str(out / peer.results),
        ]
        arguments += ["--limit", str(limit)] if limit else []
        code = subprocess.run([str(python), str(HERE / peer.script), *arguments]).returncode
        if code:
            say(f"{peer.name}: ended with {code}; what it wrote is kept, run again to continue")
            failed = 1
    return failed


def model_of(peer: Peer, directory: Path) -> Path:
    """The default model as the peer reads it, in `directory`."""
    if peer.folder == "llamacpp":
        return gguf_file(directory)
    return wide_gguf(directory) if peer.folder == "openvino" else plain_directory(directory, DEFAULT_MODEL)


def join_all(results: Sequence[Path], ours: Sequence[Path], report: Path, *, shown: Sequence[str] = ()) -> int:
    """Write the page from the files that are there, packed or not."""
    sources = [merged([load_ours(path) for path in ours])] if ours else []
    for folder, peer in product(results, PEERS):
        found = next((path for path in packed_or_not(folder / peer.results) if path.exists()), None)
        if found:
            sources.append(load_peer(found))
        else:
            say(f"{peer.name}: no {peer.results} in {folder}; it is left out\nhint: peers.py --run")
    if not sources:
        say(f"nothing to join in {', '.join(map(str, results))}")
        return 1
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(page(sources, command=command_line(), shown=shown), encoding="utf-8")
    say(f"wrote {report}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--build", type=Path, metavar="DIRECTORY", help="build the environments there")
    action.add_argument("--run", type=Path, metavar="DIRECTORY", help="run the environments that are there")
    action.add_argument("--join", type=Path, nargs="+", metavar="RESULTS", help="join the results in these folders")
    parser.add_argument("--samples", type=Path, help="with --run: what export.py wrote")
    parser.add_argument("--out", type=Path, help="with --run: folder for the results")
    parser.add_argument("--limit", type=int, help="with --run: the first so many samples")
    parser.add_argument("--ours", type=Path, nargs="+", default=[], help="with --join: results of `uncomp eval`")
    parser.add_argument(
        "--shown", nargs="+", default=[], help="with --join: our settings, digests left out; default: all"
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="with --join: the page to write")
    args = parser.parse_args()
    if args.run and not (args.samples and args.out):
        parser.error("--run needs --samples and --out")
    return args


def main() -> int:
    args = arguments()
    try:
        if args.build:
            return build_all(args.build)
        if args.run:
            return run_all(args.run, args.samples, args.out, limit=args.limit)
        return join_all(args.join, args.ours, args.report, shown=args.shown)
    except UncompError as error:
        say(f"{error.message}\nhint: {error.hint}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
