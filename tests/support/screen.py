"""What a terminal shows in the end of what was written to it."""

import re

ESCAPE = "\x1b"


def screen(text: str) -> str:
    """What stays visible: a terminal that knows carriage return, newline, cursor up and erase line."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\s\S]", text):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[1A":
            row -= 1
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith(ESCAPE):
            lines[row] = f"{lines[row]:<{column}}"[:column] + piece + lines[row][column + 1 :]
            column += 1
    return "\n".join(lines).strip()
