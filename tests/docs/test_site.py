"""The site of the documents (`make docs`): every page is in its navigation. Links are looked at when it is built."""

import re

import yaml

from tests.docs.documents import ROOT, blocks_of


def pages_in(navigation: list | str) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    return [page for entry in navigation for part in entry.values() for page in pages_in(part)]


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    docs = ROOT / site["docs_dir"]
    assert sorted(pages_in(site["nav"])) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))


def test_each_of_the_twenty_questions_is_answered_with_a_command():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    answers = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)
    assert answers[1::2] == [str(number) for number in range(1, 21)]
    assert all(blocks_of("", answer) for answer in answers[2::2])


def test_every_extra_is_explained():
    (extras,) = re.findall(r"extras_require=\{(.*)", (ROOT / "setup.py").read_text(), re.DOTALL)
    names = set(re.findall(r'^        "([\w-]+)": ', extras, re.MULTILINE)) - {"quickstart"}
    explained = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert names == {name for cell in explained for name in re.findall(r"`([\w-]+)`", cell)}
