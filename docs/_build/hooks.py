"""MkDocs calls these: generated pages join the site, and calls in pages are replaced by their results."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import command_page
import exit_codes_page
import methods_page
import notebooks
import python_pages
import reasons_page
import repository_pages
import rules_page
import schema_page
from macros import MacroError, expand

GENERATED = {
    "reference/experiment.md": schema_page.experiment,
    "reference/site.md": schema_page.site,
    "reference/command-line.md": command_page.page,
    "reference/exit-codes.md": exit_codes_page.page,
    "reference/methods.md": methods_page.page,
    "reference/rules.md": rules_page.page,
    "reference/reasons.md": reasons_page.page,
    "development/contributing.md": repository_pages.contributing,
    "development/changelog.md": repository_pages.changelog,
    **notebooks.PAGES,
    **python_pages.PAGES,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, make in GENERATED.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Carries out the calls of a page written by hand."""
    if page.file.src_uri in GENERATED:
        return markdown
    try:
        return expand(markdown, page.file.src_uri)
    except MacroError as error:
        raise PluginError(str(error)) from error
