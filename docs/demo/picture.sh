#!/usr/bin/env bash
# Draws docs/demo/ask.svg: one question of a real document in a real terminal of 112 columns (tmux, rich).
# Usage, from the repository: docs/demo/picture.sh [path of uncomp's folder]
set -euo pipefail
programs=$(cd "${1:-.venv/bin}" && pwd)
pane=uncomp-picture-$$
trap 'tmux kill-session -t "$pane" 2>/dev/null || true' EXIT

shown() { tmux capture-pane -p -e -S - -t "$pane"; }
ask='uncomp ask -f lighthouse-handbook.md "What is the combination of the stores safe?" -b 10% --evidence'
tmux new-session -d -s "$pane" -x 112 -y 24 -c docs/demo "env PS1='$ ' PATH='$programs:$PATH' COLORTERM=truecolor bash --norc --noprofile"
tmux set-option -t "$pane" remain-on-exit on >/dev/null
sleep 1
tmux send-keys -t "$pane" -l "$ask"
tmux send-keys -t "$pane" Enter
for _ in $(seq 240); do # until the prompt is there again
    sleep 0.5
    shown | sed -e 's/\x1b\[[0-9;]*m//g' -e 's/[[:space:]]*$//' | grep -v '^$' | tail -n 1 | grep -q '^\$$' && break
done
shown | "$programs/python" -c '
import sys
from rich.console import Console
from rich.text import Text

lines = sys.stdin.read().rstrip().removesuffix("$").rstrip()
console = Console(record=True, width=112, file=open("/dev/null", "w"), force_terminal=True)
console.print(Text.from_ansi(lines))
console.save_svg("docs/demo/ask.svg", title="uncomp ask")
'
