"""Signs of picture fonts (Wingdings) and of Greek (Symbol), whose codes Word keeps in U+F0xx, as characters."""

_WINGDINGS = {0x6C: "•", 0x6E: "■", 0x6F: "☐", 0x71: "☐", 0x72: "☐", 0xA7: "•", 0xA8: "☐", 0xD8: "▸", 0xE0: "→"}
_WINGDINGS |= {0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑", 0x76: "•", 0x9F: "•", 0xE8: "→"}
_SYMBOL = dict(zip(b"abcdefghijklmnopqrstuvwxyz", "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True))
_SYMBOL |= dict(zip(b"DFGJLPQSUWXYC", "ΔΦΓϑΛΠΘΣΥΩΞΨΧ", strict=True))
_SYMBOL |= {0x2D: "−", 0xA3: "≤", 0xA5: "∞", 0xB0: "°", 0xB1: "±", 0xB3: "≥", 0xB4: "×", 0xB7: "•", 0xB8: "÷"}
_SYMBOL |= {0xB9: "≠", 0xBA: "≡", 0xBB: "≈", 0xAB: "↔", 0xAC: "←", 0xAE: "→", 0xD6: "√", 0xE5: "∑", 0xF2: "∫"}


def sign_of(font: str, char: str) -> str | None:
    """The character that a code of a font shows, "" for no code; None where it is not known."""
    try:
        code = int(char, 16)
    except ValueError:
        return ""
    font = font.lower()
    signs = _SYMBOL if font == "symbol" else _WINGDINGS if font.startswith("wingdings") else {}
    sign = signs.get(code & 0xFF) if code >> 8 in (0, 0xF0) else None
    return chr(code) if sign is None and 0x20 < code < 0xD800 and not signs else sign
