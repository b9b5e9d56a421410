"""Hooks of MkDocs: pages from documents outside ``docs``, and links that work on the site.

The documents of this repository link to each other by paths in the repository, so that they can be
read where the code is. On the site a link to another document becomes a link to its page, and a
link to a file of code becomes the file's name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Document in the repository: its page on the site.
DOCUMENTS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docker/README.md": "containers.md",
    "pipecat_personaplex/nano/README.md": "nano.md",
    "pipecat_personaplex/protocol/PROTOCOL.md": "protocol.md",
    "training/nano/README.md": "training-nano.md",
}
_SOURCES = {page: document for document, page in DOCUMENTS.items()}
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
)
_CODE_BLOCK = re.compile(r"^```.*?^```", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside ``docs``, and the images that they show."""
    for document, page in DOCUMENTS.items():
        source = ROOT / document
        files.append(File.generated(config, page, content=source.read_text()))
        for link in _LINK.finditer(source.read_text()):
            image = (source.parent / link["target"]).resolve()
            if link["image"] and image.is_file() and not image.is_relative_to(ROOT / "docs"):
                copy = image.relative_to(ROOT).as_posix()
                if files.get_file_from_path(copy) is None:
                    files.append(File.generated(config, copy, content=image.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of one page, except in its code blocks."""
    path = page.file.src_uri
    document = _SOURCES.get(path, f"docs/{path}")
    rewritten, end = [], 0
    for block in _CODE_BLOCK.finditer(markdown):
        rewritten += [_with_site_links(markdown[end : block.start()], document), block[0]]
        end = block.end()
    return "".join([*rewritten, _with_site_links(markdown[end:], document)])


def _with_site_links(text: str, document: str) -> str:
    folder = posixpath.dirname(document)

    def site_link(link: re.Match[str]) -> str:
        target, anchor = link["target"], link["anchor"] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in DOCUMENTS:
            return f"[{link['text']}]({DOCUMENTS[path]}{anchor})"
        if path.startswith("docs/"):
            return f"{link['image']}[{link['text']}]({path.removeprefix('docs/')}{anchor})"
        if link["image"]:
            return f"![{link['text']}]({path})"
        return link["text"]

    return _LINK.sub(site_link, text)
