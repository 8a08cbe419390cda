"""Hooks of mkdocs.yml: README.md is the front page, and links out of docs/ lead to the repository.

On GitHub, README.md links docs/use.md and a page in docs/ links ../tools/train.sbatch. On the site both are rewritten,
so that no text is kept twice.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """README.md becomes index.md."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site needs them; one to a file that is not there is an error."""
    folder, docs = (ROOT if page.file.src_uri == "index.md" else ROOT / "docs"), ROOT / "docs"

    def on_site(match: re.Match) -> str:
        target = (folder / match[1]).resolve()
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links {match[1]}, which is not there")
        if target.is_relative_to(docs):
            return target.relative_to(docs).as_posix()
        return f"{config.repo_url}/blob/main/{target.relative_to(ROOT).as_posix()}"

    return _LINK.sub(on_site, markdown)
