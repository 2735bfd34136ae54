"""What paths stand for: what git ignores, what --include takes in, names that no shell has seen, and what is said."""

import os
import subprocess
from pathlib import Path

import pytest

from support.pace import swift
from uncomp_cli.cli.app import run
from uncomp_cli.documents.collection import DocumentSet, read_documents
from uncomp_cli.documents.gitignore import Ignored, glob_pattern
from uncomp_cli.errors import DocumentError, UncompError, UsageError

REPOSITORY = {
    ".gitignore": "*.log\n!keep.log\n/only-top.txt\nbuild/\n**/deep/*.txt\ndocs/**/draft?.md\n\\#odd\nx[0-9].md \n",
    "sub/.gitignore": "keep.log\n!sub.log\nbuild\n",
    ".git/info/exclude": "private.txt\n",
    "a.log": "", "keep.log": "", "only-top.txt": "", "private.txt": "", "#odd": "", "x1.md": "", "xx.md": "",
    "build/a.txt": "", "sub/keep.log": "", "sub/sub.log": "", "sub/only-top.txt": "", "sub/build": "",
    "sub/deep/a.txt": "", "deep/a.md": "", "docs/draft1.md": "", "docs/a/b/draft2.md": "", "docs/draft10.md": "",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that paths are shown short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*paths: str, text: str = "some text\n") -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)


def make_repository(root: str) -> None:
    subprocess.run(["git", "init", "-q", root], check=True)
    for path, text in REPOSITORY.items():
        write(f"{root}/{path}", text=text or "text\n")


def shown(result: DocumentSet) -> list[str]:
    return [document.path for document in result.documents]


def refused(*paths: str, include: tuple[str, ...] = (), kind: type[UncompError] = UsageError) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        read_documents(paths, include=include)
    assert caught.value.hint is not None
    return caught.value.message, caught.value.hint


def test_what_git_ignores_is_what_git_says() -> None:
    make_repository("r")
    listed = ["git", "-C", "r", "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard"]
    told = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    theirs = {f"r/{path}" for path in told.split("\0") if path and ".gitignore" not in path}
    assert len(theirs) == 6
    assert set(shown(read_documents(["r"]))) == theirs


def test_what_git_ignores_is_counted() -> None:
    make_repository("r")
    result = read_documents(["r"])
    reasons = dict(result.skipped)
    assert reasons["r/build"] == reasons["r/a.log"] == "left out by .gitignore"
    (remark,) = result.remarks
    assert remark.text.endswith("; -v lists them")
    assert "11 × left out by .gitignore" in remark.text
    assert len(remark.more) == len(result.skipped)


def test_rules_of_the_repository_reach_its_folders_and_no_further() -> None:
    make_repository("r")
    write("r/docs/a/c.log", "outside/a.log", "outside/.gitignore")
    assert shown(read_documents(["r/docs"])) == ["r/docs/draft10.md"]
    assert shown(read_documents(["outside"])) == ["outside/a.log"]
    write("outside/.gitignore", text="*.log\n")  # also where there is no repository
    assert refused("outside")[0].startswith("nothing to read in 'outside' (")


def test_what_is_named_is_read_although_git_ignores_it() -> None:
    make_repository("r")
    assert shown(read_documents(["r/a.log", "r/build", "r/*.log"])) == ["r/a.log", "r/build/a.txt", "r/keep.log"]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (("*.log",), ["r/a.log", "r/keep.log", "r/sub/keep.log", "r/sub/sub.log"]),
        (("*.txt",), ["r/only-top.txt", "r/private.txt", "r/sub/deep/a.txt", "r/sub/only-top.txt"]),
        (("build/**",), ["r/build/a.txt"]),
        ((".gitignore",), ["r/.gitignore", "r/sub/.gitignore"]),
    ],
)
def test_include_takes_in_what_it_names(include: tuple[str, ...], expected: list[str]) -> None:
    make_repository("r")
    assert shown(read_documents(["r"], include=include)) == expected


def test_include_says_why_nothing_was_read() -> None:
    write("d/.notes.md", "d/a.txt", "d/.git/b.md")
    Path("d/gone.md").symlink_to("nowhere")
    message, hint = refused("d", include=("*.md",))
    assert message == (
        "no file in 'd' matches --include '*.md' (d/.notes.md: hidden; d/gone.md: a broken link, or not a regular file)"
    )
    assert hint == "find d"


def test_a_glob_in_an_ignore_file_takes_no_time() -> None:
    with swift(1):
        assert not glob_pattern("*a" * 40 + "b").fullmatch("a" * 250)
        assert not glob_pattern("**/a/" * 30 + "b").fullmatch("a/" * 1500 + "c")
    os.mkfifo(".gitignore")
    assert Ignored.above(Path()).within(str(Path.cwd())).layers == ()


def test_folders_are_read_however_deep_they_are(here: Path) -> None:
    Path("d").mkdir()
    try:
        os.chdir("d")
        for _ in range(1010):
            Path("a").mkdir()
            os.chdir("a")
        write("end.txt")
        os.chdir(here)
        assert shown(read_documents(["d"])) == [f"d/{'a/' * 1010}end.txt"]
    finally:
        subprocess.run(["rm", "-r", str(here / "d")], check=True)  # deeper than pytest can


def test_many_files_that_are_skipped_are_one_line() -> None:
    write("d/a.txt", *(f"d/{number}.png" for number in range(200)), *(f"d/{number}.zip" for number in range(7)))
    write("d/.hidden", "d/b.mp3")
    result = read_documents(["d"])
    assert [remark.text for remark in result.remarks] == [
        "skipped 209 files and folders: 200 × suffix '.png' is that of a PNG image; "
        "7 × suffix '.zip' is that of a ZIP archive; d/b.mp3: suffix '.mp3' is that of a sound recording; "
        "1 for other reasons; -v lists them"
    ]
    assert result.warnings == [remark.text for remark in result.remarks]
    Path("d/b.mp3").unlink()
    Path("d/bad.txt").write_bytes(b"\0")
    (remark,) = read_documents(["d"]).remarks
    assert remark.text.startswith("skipped 209 files and folders: d/bad.txt: it is a binary file")
    Path("d/bad.txt").unlink()
    few = read_documents(["d"], include=["*.txt", "*.mp3"])
    assert few.remarks == []


def test_the_home_folder_is_meant_by_a_tilde(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    write("home/x.txt", "home/y.txt", "~z.txt")
    assert shown(read_documents(["~/x.txt"])) == [f"{here}/home/x.txt"]
    assert shown(read_documents(["~/*.txt"])) == [f"{here}/home/x.txt", f"{here}/home/y.txt"]
    assert shown(read_documents(["~z.txt"])) == ["~z.txt"]
    assert refused("~nobody-of-this-name/x.txt")[0] == "no file or directory '~nobody-of-this-name'"


def test_links_that_loop() -> None:
    Path("loop.md").symlink_to("loop.md")
    assert refused("loop.md")[0] == "'loop.md' is a link to 'loop.md', which leads back to it"
    write("d/a.md")
    Path("d/again").symlink_to("..")
    assert shown(read_documents(["d"])) == ["d/a.md"]


def test_names_with_control_characters_are_shown_without(here: Path) -> None:
    write("d/a\x1b]0;title\x07\nb.txt", "d/\u202etxt.exe.txt")
    assert shown(read_documents(["d"])) == ["d/a\ufffd]0;title\ufffd\ufffdb.txt", "d/\ufffdtxt.exe.txt"]
    message, _ = refused("d/a\x1b[2Jx.txt")
    assert "\x1b" not in message


def test_a_slip_in_the_last_path_does_not_wait_for_the_first_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.txt")
    read: list[Path] = []
    monkeypatch.setattr("uncomp_cli.documents.collection.take_file", lambda path, _: read.append(path) or b"text")
    refused("a.txt", "b.txt")
    assert read == []


def test_patience_goes_on_and_names_what_failed() -> None:
    write("a.txt", "z.txt")
    Path("bad.pdf").write_bytes(b"%PDF-1.4 broken")
    Path("nul.txt").write_bytes(b"\0")
    result = read_documents(["a.txt", "bad.pdf", "gone.txt", "nul.txt", "z.txt"], patient=True)
    assert shown(result) == ["a.txt", "z.txt"]
    assert [(path, error.exit_code) for path, error in result.failures] == [
        ("gone.txt", 2),
        ("bad.pdf", 1),
        ("nul.txt", 1),
    ]
    assert refused("a.txt", "bad.pdf", kind=DocumentError)[0].startswith("cannot read 'bad.pdf': ")


@pytest.mark.parametrize("command", ["ask", "chat", "compare", "eval", "bench", "rope", "calibrate"])
def test_every_command_with_files_takes_what_a_shell_makes_of_a_glob(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.md")
    question = ["Who signed?"] if command in ("ask", "compare") else []
    code = run([command, "-m", "no-such-model", "-f", "a.md", "gone.md", *question])
    err = capsys.readouterr().err
    assert code == 2
    assert "no-such-model" in err or "gone.md" in err
    assert "unexpected" not in err
