#!/usr/bin/env bash
# Records docs/long/session.txt: uncomp ask on a document of 16,000 tokens, of which the model was trained for 8,192.
# Usage, from the repository: docs/long/record.sh [path of python]
set -uo pipefail
python=${1:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" - "$folder/archive.md" <<'PY'
import sys
from pathlib import Path
from uncomp_cli.documents.prose import write_prose

handbook = Path("docs/demo/lighthouse-handbook.md").read_text()
Path(sys.argv[1]).write_text("\n\n".join([write_prose(2300, seed=1), handbook, write_prose(4000, seed=2)]))
PY

ask() {
    printf '$ uncomp ask -f archive.md "What is the combination of the stores safe?"%s\n' "${*:+ $*}"
    (cd "$folder" && "$python" -m uncomp_cli ask -f archive.md "What is the combination of the stores safe?" \
        --max-new-tokens 40 "$@" 2>&1 </dev/null)
    printf '[exit %s]\n\n' "$?"
}
{
    ask
    ask --rope plain
    ask --rope yarn:2
    ask --rope auto --evidence
} > docs/long/session.txt
