#!/usr/bin/env bash
# Records docs/chat/session.txt: uncomp chat in a real terminal of 100 columns, driven key by key through tmux.
# Usage, from the repository: docs/chat/record.sh [path of uncomp]
set -euo pipefail
uncomp=${1:-.venv/bin/uncomp}
pane=uncomp-recording-$$
home=$(mktemp -d)
trap 'tmux kill-session -t "$pane" 2>/dev/null || true; rm -rf "$home"' EXIT

shown() { tmux capture-pane -p -S - -t "$pane" | sed -e 's/[[:space:]]*$//'; }
ready() { # waits until a prompt has nothing behind it; the line of the status is below
    for _ in $(seq 600); do
        sleep 0.5
        shown | grep -v '^$' | tail -n 3 | grep -q '^>$' && sleep 1 && return
    done
    echo "the chat does not answer" >&2
    shown >&2
    exit 1
}
streams() { # waits until some tokens of an answer are there
    for _ in $(seq 600); do
        shown | grep -Eq 'tok/s · [2-9][0-9] tok' && return
        sleep 0.2
    done
}
type_line() { tmux send-keys -t "$pane" -l "$1"; sleep 0.3; tmux send-keys -t "$pane" Enter; }

tmux new-session -d -s "$pane" -x 100 -y 40 -e XDG_STATE_HOME="$home/state" -e XDG_DATA_HOME="$home/data" \
    "$uncomp chat --max-new-tokens 60"
tmux set-option -t "$pane" remain-on-exit on >/dev/null
ready
type_line '/file docs/demo/lighthouse-handbook.md'
ready
type_line 'What is the combination of the stores safe?'
ready
type_line '/evidence'
ready
tmux send-keys -t "$pane" -l '/sta'
sleep 0.5
tmux send-keys -t "$pane" Tab
sleep 1
tmux send-keys -t "$pane" Enter
ready
type_line 'Who keeps the log?'
ready
type_line '/pin docs/demo/lighthouse-handbook.md:1-4'
ready
type_line '/files'
ready
type_line '/budgt 2x'
ready
type_line '/budget 2x'
ready
type_line 'Tell me a long story about the sea.'
streams
tmux send-keys -t "$pane" C-c
ready
type_line '/undo'
ready
type_line '/why'
ready
type_line '/exit'
ready
type_line '/exit'
sleep 5
shown | sed -e '/^Pane is dead/,$d' >docs/chat/session.txt
