r"""LaTeX: macros with arguments, quantities, raised and lowered text, citations, cells over rows; no number changes."""

import re
from itertools import pairwise, product
from string import ascii_letters

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents import extract, losses
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
        (r"The error rate fell to $3.2\,\%$ in trial~7.", "The error rate fell to 3.2 % in trial 7."),
        (r"\section{Result}\label{r}\subsection*{A \emph{b}}", "# Result\n\n## A b"),
        (r"It cost \$40\footnote{In \textbf{2024}.}.", "It cost $40[^1].\n\n[^1]: In 2024."),
        (r"\newcommand{\rate}{3.2}\rate\ and \rate{}x", "3.2 and 3.2x"),
        ("kept % gone \\% gone\nnext 5\\% on", "kept next 5% on"),
        (r"M\"uller, \'{e}cole, na\"{\i}ve, \c{c}a, stra\ss e, \o re", "Müller, école, naïve, ça, straße, øre"),
        (r"``quoted'' -- and --- 1{,}200", "“quoted” – and — 1,200"),
        (r"\href{http://x}{text} \cite{abc} \url{http://y}", "text [abc] http://y"),
        (r"$E = mc^2$ and $\frac{a}{b}$", r"E = mc^2 and $\frac{a}{b}$"),
        (
            "\\begin{equation}\na_{1} = \\frac{b}{c}\n\\end{equation}",
            "\\begin{equation}\na_{1} = \\frac{b}{c}\n\\end{equation}",
        ),
        (r"\[ \sqrt[3]{x} \]", r"\[ \sqrt[3]{x} \]"),
        (r"\begin{itemize}\item one\item two\end{itemize}", "- one\n- two"),
        (r"\begin{enumerate}\item one\item[b] two\end{enumerate}", "1. one\n2. b: two"),
        ("\\begin{verbatim}\nx = 5 % \\emph{raw}~\n\\end{verbatim}", "```\nx = 5 % \\emph{raw}~\n```"),
        (
            r"\begin{tabular}{l|rr}\hline Year & Price & Stock \\ \hline 2023 & 1{,}200 & 45\,\% \\ "
            r"2024 & \multicolumn{2}{c}{none} \\ \end{tabular}",
            "| Year | Price | Stock |\n| --- | --- | --- |\n| 2023 | 1,200 | 45 % |\n| 2024 | none | none |",
        ),
    ],
)
def test_latex_is_what_it_prints(source: str, shown: str) -> None:
    assert tex(source) == shown


def test_what_latex_leaves_out_is_said() -> None:
    source = (
        "\\documentclass{article}\n\\usepackage{x} % why\n\\title{On \\emph{Lamps}}\n\\author{Ann}\n"
        "\\begin{document}\\maketitle\n"
        "\\begin{abstract}Short.\\end{abstract}\\input{chapter2}\\includegraphics[width=1cm]{a.png}\n"
        "\\begin{tikzpicture}x\\end{tikzpicture}\\bibliography{refs}\\end{document}\nbehind"
    )
    text = extract(source.encode(), suffix=".tex")
    assert text.text == "# On Lamps\n\nAnn\n\n## Abstract\n\nShort."
    assert losses(text) == [
        "1 comment",
        "2 pictures",
        "2 files that it takes in (chapter2, refs)",
    ]


def test_files_that_are_taken_in_are_named_and_never_opened() -> None:
    found = extract(
        rb"a \import{/etc/}{passwd} \lstinputlisting[language=C]{code.c} \input{/etc/passwd} b", suffix=".tex"
    )
    assert found.text == "a b"
    assert losses(found) == ["3 files that it takes in (passwd, code.c, /etc/passwd)"]


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


HOSTILE = (
    "{", "\\", "$", "%", r"\a{", r"\a[", r"\verb|", r"\"", r"\input{", r"\footnote{x}", r"\SI{1}{", r"\cite[a][",
    r"\begin{verbatim}", r"\begin{itemize}", r"\begin{tabular}{", r"\multirow{2}{*}{", r"\newcommand{\a}{",
    r"\newcommand{\a}[2]{#1", r"\def\a#1{\a{#1}}",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_latex_takes_no_time(piece: str) -> None:
    for begin in ("x", r"\newcommand{\a}[1]{#1#1}"):
        assert isinstance(tex(begin + piece * 4000), str)


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
    twice = "".join(rf"\newcommand{{\m{b}}}{{\m{a} \m{a}}}" for a, b in pairwise("abcdefghijklmnopqrstu"))
    assert len(tex(r"\newcommand{\ma}{boom}" + twice + r"\mu" * 50)) < 100_000
