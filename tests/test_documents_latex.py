r"""LaTeX: macros with arguments, quantities, raised and lowered text, citations, cells over rows; no number changes."""

import re
from itertools import pairwise, product
from string import ascii_letters

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents import extract
from support.pace import swift
from uncomp_cli.documents import quantities
from uncomp_cli.documents.macros import defined, expanded


def tex(source: str) -> str:
    return extract(source.encode(), suffix=".tex").text


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            r"\newcommand{\price}[2]{#1~EUR (#2)}\price{40}{net}, \price{1{,}200}{gross}",
            "40 EUR (net), 1,200 EUR (gross)",
        ),
        (r"\newcommand*\x[2][5]{#1-#2}\x{3} \x[4]{3}", "5-3 4-3"),
        (r"\def\pair#1#2{#1 and #2}\pair{1}{2}", "1 and 2"),
        (r"\NewDocumentCommand{\p}{m O{x}}{#1:#2}\p{1} \p{1}[2]", "1:x 1:2"),
        (r"\newcommand{\q}[1]{<\textbf{#1}>}\newcommand{\r}[1]{\q{#1}!}\r{\emph{5}}", "<5>!"),
        (r"\newcommand{\need}[1]{#1}\need", r"\need"),
        (r"10\textsuperscript{6} of H\textsubscript{2}O, the 21\textsuperscript{st}", "10^6 of H_2O, the 21st"),
        (r"x\textsuperscript{2}3", "x^(2)3"),
        (r"\SI{9.81}{\metre\per\second\squared}, \qty{1.5e-3}{\kilo\gram}", "9.81 m/s^2, 1.5e-3 kg"),
        (r"\num{12345.678} \SIrange{10}{20}{\degreeCelsius} \ang{30}", "12345.678 10 to 20 °C 30°"),
        (r"\SI[per-mode=symbol]{45}{\percent}, \si{\kilo\watt\hour}, \SI{3}{m/s}", "45 %, kW h, 3 m/s"),
        (r"\cite[p.~23]{knuth} \citep[see][chap. 2]{a,b}", "[knuth, p. 23] [see a,b, chap. 2]"),
        (r"about 2\frac{1}{2}, \nicefrac{3}{4}, $\frac{1}{2}$", "about 2 1/2, 3/4, 1/2"),
        (r"\textcolor{red}{danger 5} \parbox{3cm}{or 6}", "danger 5 or 6"),
        (r"\href{http://a/b%20c}{text} \url{http://x/a%20b} after % gone", "text http://x/a%20b after"),
        (r"\lstinline|a % b| and \verb*+5 % 6+", "a % b and 5 % 6"),
        (
            r"\begin{tabular}{lrr} Name & 2022 & 2023 \\ \multirow{2}{*}{Lamp} & 5 & 6 \\ & 7 & 8 \\ "
            r"Oar & \multicolumn{2}{c}{9} \\ \end{tabular}",
            "| Name | 2022 | 2023 |\n| --- | --- | --- |\n| Lamp | 5 | 6 |\n| Lamp | 7 | 8 |\n| Oar | 9 | 9 |",
        ),
    ],
)
def test_commands_with_several_arguments_are_what_they_print(source: str, shown: str) -> None:
    assert tex(source) == shown


def test_files_that_are_taken_in_are_named_and_never_opened() -> None:
    found = extract(
        rb"a \import{/etc/}{passwd} \lstinputlisting[language=C]{code.c} \input{/etc/passwd} b", suffix=".tex"
    )
    assert found.text == "a b"
    assert [str(loss) for loss in found.losses] == ["3 files that it takes in (passwd, code.c, /etc/passwd)"]


NUMBER = r"-?[0-9]{1,6}([.,][0-9]{1,4})?(e-?[0-9]{1,2})?"


@settings(max_examples=40, deadline=None)
@given(st.from_regex(NUMBER, fullmatch=True), st.sampled_from(["num", "SI", "x"]))
def test_no_number_changes(number: str, command: str) -> None:
    arguments = f"{{{number}}}" + (r"{\milli\metre}" if command == "SI" else "{b}" if command == "x" else "")
    text = tex(rf"\newcommand{{\x}}[2]{{#1 of #2}} it is \{command}{arguments}.")
    assert re.findall(r"-?[0-9][0-9.,e-]*[0-9]|-?[0-9]", text) == [number]


def test_units_have_their_signs() -> None:
    assert quantities.unit(r"\kilo\watt\per\metre\squared") == "kW/m^2"
    assert quantities.unit(r"kg.m^{2}") == "kg.m^{2}"


@pytest.mark.parametrize(
    "piece", [r"\newcommand{\a}[2]{#1", r"\a{", r"\SI{1}{", r"\multirow{2}{*}{", r"\def\a#1{\a{#1}}", r"\cite[a]["]
)
def test_hostile_macros_take_no_time(piece: str) -> None:
    assert isinstance(tex(r"\newcommand{\a}[1]{#1#1}" + piece * 4000), str)


@pytest.mark.parametrize(
    "source",
    [
        r"\newcommand" + " " * 30_000 + "x",
        r"\newcommand{\a}[1]{#1#1}" + r"\a{" * 4000,
        r"\begin{tabular}{l}\multirow{2}{*}" + " " * 30_000 + r"x\end{tabular}",
        "".join(rf"\def\m{a}{b}{c}{{1}}" for a, b, c in product(ascii_letters[:22], repeat=3)) + r"\zz " * 40_000,
    ],
)
def test_long_sources_take_time_by_their_length(source: str) -> None:
    with swift(2):
        tex(source)


@pytest.mark.parametrize("begin", [r"{tabularx}{\textwidth}{lX}", r"{tabular*}{9cm}[t]{@{\extracolsep{\fill}}ll}"])
def test_tables_of_a_width_have_no_word_of_their_columns(begin: str) -> None:
    assert tex(rf"\begin{begin}item & price\\ 4 & 7\end{begin.partition('}')[0]}}}") == (
        "| item | price |\n| --- | --- |\n| 4 | 7 |"
    )


def test_macros_are_no_bomb() -> None:
    macros, rest = defined(
        "".join(rf"\newcommand{{\m{a}}}[1]{{\m{b}{{#1#1}}\m{b}{{#1}}}}" for a, b in pairwise("abcdefghi"))
    )
    assert rest == ""
    assert len(expanded(r"\ma{boom}" * 50, macros)) < 100_000
