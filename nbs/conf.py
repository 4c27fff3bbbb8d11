"""Settings of Sphinx for `make docs`: tutorials, guides, chapters and a reference.

The reference is made from the package's signatures and their comments. Pages that list things are written to `_site`.
"""
import json, re, shutil
from configparser import ConfigParser
from pathlib import Path
from docutils.nodes import SkipNode
from fastcore.docments import docments
import hybrid_nb
from hybrid_nb.training.fields import all_settings, setting_group, type_name
from latex2mathml.converter import convert

nbs = Path(__file__).parent
root = nbs.parent
config = ConfigParser(delimiters="=")
config.read(root/"settings.ini", encoding="utf-8")
s = config["DEFAULT"]
chapters = {p.name: p.name[3:] for p in sorted(nbs.glob("[0-9][0-9]_*"))} # 04_data: data

project, author, release, copyright, root_doc = s["lib_name"], s["author"], s["version"], s["copyright"], "index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme, html_title, html_static_path, html_css_files = "furo", f"{project} {release}", ["_static"], ["site.css"]
nb_execution_mode, nb_render_markdown_format = "off", "myst"
nb_code_prompt_show = nb_code_prompt_hide = "Imports" # of folded cells
html_search_scorer = str(nbs/"_static"/"search.js")
html_math_renderer = "mathml" # which browsers draw themselves: the site needs no network
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "attrs_inline"], 3
exclude_patterns = ["**/.*"]
suppress_warnings = ["toc.not_included", "myst.header", "myst.xref_missing", "mystnb.unknown_mime_type", "ref.python"]
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource", "no-value": True}


def title(notebook):
    "Heading and summary of a notebook, from its first cell with text."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = "".join(next(c for c in cells if c["cell_type"] == "markdown")["source"]).splitlines()
    return lines[0].lstrip("# "), " ".join(l[2:] for l in lines if l.startswith("> "))


def write_pages(site):
    "A page for each chapter, which lists its notebooks, and one for its part of the reference."
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    for folder, chapter in chapters.items():
        chapter_page, reference = [f"# {chapter.capitalize()}", ""], [f"# {project}.{chapter}", ""]
        found = sorted((nbs/folder).glob("[0-9]*.ipynb"))
        for p in found:
            name, summary = title(p)
            chapter_page.append(f"* [{name}](../{folder}/{p.name}): {summary}")
            if not (module := re.search(r"#\| *default_exp +([\w.]+)", p.read_text(encoding="utf-8"))): continue
            module = f"{project}.{module[1]}"
            reference += [f"## {module}", f"{summary} Explained, shown and tested in [{name}](../{folder}/{p.name}).",
                          "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
        chapter_page += ["", "```{toctree}", ":hidden:", *[f"../{folder}/{p.stem}" for p in found], "```", ""]
        (site/f"{chapter}.md").write_text("\n".join(chapter_page), encoding="utf-8")
        (site/f"api-{chapter}.md").write_text("\n".join(reference), encoding="utf-8")
    (site/"settings.md").write_text(settings_page(), encoding="utf-8")
    (site/"api.md").write_text(top_page(), encoding="utf-8")


def top_page():
    "The names at the top of the package, each as an object of its own: what a search for one of them finds first."
    lines = [f"# {project}", "", "What a script needs, as `import hybrid_nb as hn` finds it.", "", "```{eval-rst}"]
    for name in hybrid_nb.__all__:
        value = getattr(hybrid_nb, name)
        if isinstance(value, type): lines += [f".. autoclass:: {project}.{name}", "   :no-members:", ""]
        elif callable(value): lines += [f".. autofunction:: {project}.{name}", ""]
        else: lines += [f".. py:data:: {project}.{name}", f"   :type: {type(value).__name__}", ""]
    return "\n".join([*lines, "```", ""])


def settings_page():
    "The settings of a run in their groups, from the comments that `hybrid_train --help` shows too."
    groups = {}
    for s in all_settings().values():
        cells = f"`{s.name}`", f"`{type_name(s)}`", f"`{s.default!r}`", s.help
        row = " | ".join(c.replace("|", "\\|") for c in cells)
        groups.setdefault(setting_group(s.name), []).append(f"| {row} |")
    head = ["# Settings",
            "What `hn.train_run`, `hn.sweep`, `hybrid_train` and `hybrid_sweep --set` take, with defaults."]
    tables = [line for title, rows in groups.items()
              for line in (f"## {title[:1].upper()}{title[1:]}", "", "| setting | type | default | meaning |",
                           "| --- | --- | --- | --- |", *rows, "")]
    return "\n".join([*head, "", *tables])


def contents():
    "The parts of the site, for its first page."
    tutorials = [f"tutorials/{p.stem}" for p in sorted((nbs/"tutorials").glob("[0-9]*.ipynb"))]
    guides = [f"guides/{p.stem}" for p in sorted((nbs/"guides").glob("*.md"))]
    parts = dict(Tutorials=tutorials, Guides=guides, Chapters=[f"_site/{c}" for c in chapters.values()],
                 Reference=["_site/api", "_site/settings"] + [f"_site/api-{c}" for c in chapters.values()])
    return "\n\n".join("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```"])
                       for caption, pages in parts.items() if pages)


def link(path, depth):
    "What becomes of a link to a file outside this folder: reports lie in the site, the rest at the repository."
    published = re.match(r"reports/.*\.(html|png)$", path)
    target = "../"*depth + path if published else f"{s['git_url']}/blob/{s['branch']}/{path}"
    return f"({target}){{.external}}"


def prepare(app, docname, source):
    "Mend links that leave this folder; of a notebook, drop hidden cells and lines that only nbdev reads, fold imports."
    depth = docname.count("/")
    outside = re.compile(r"(?<!!)(\[[^\]]*\])\(" + r"\.\./" * (depth + 1) + r"([^)\s]+)\)") # a link, no image
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        source[0] = outside.sub(lambda m: m[1] + link(m[2], depth), source[0])
        return
    nb, cells = json.loads(source[0]), []
    for c in nb["cells"]:
        text, meta = "".join(c["source"]), c["metadata"]
        if re.match(r"#\| *(hide|default_exp)\b", text) or "docs" in meta.get("tags", []): continue
        if c["cell_type"] == "code": text = re.sub(r"\A(#\| *\w+.*\n)+", "", text)
        else: text = outside.sub(lambda m: m[1] + link(m[2], depth), text)
        if meta.get("jupyter", {}).get("source_hidden"): meta["tags"] = [*meta.get("tags", []), "hide-input"]
        cells.append(c | dict(source=text))
    if docname == root_doc: cells.append(dict(cell_type="markdown", id="contents", metadata={}, source=contents()))
    source[0] = json.dumps(nb | dict(cells=cells))


def as_rst(text):
    "A docstring, in which single backquotes mark code."
    parts = enumerate(text.split("`"))
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in parts)


def add_comments(app, what, name, obj, options, lines):
    "The comments of parameters and of the result, as fastcore reads them."
    lines[:] = [] if what == "module" else as_rst("\n".join(lines)).splitlines()
    if what not in ("function", "method", "class"): return
    try: found = docments(obj, full=True)
    except (AttributeError, OSError, SyntaxError, TypeError, ValueError): return # its source is not to be had
    comments = {k: as_rst(" ".join(d["docment"].split())) for k, d in found.items() if d.get("docment")}
    lines += ["", *[f":{'returns' if k == 'return' else f'param {k}'}: {text}" for k, text in comments.items()]]


def skip(app, what, name, obj, skipped, options):
    "Fields of a class are told of once, as its parameters."
    return True if what == "class" and not (callable(obj) or hasattr(obj, "__get__")) else None


def copy_reports(app, exception):
    for p in (root/"reports").rglob("*"):
        if exception or p.suffix not in (".html", ".png"): continue
        (to := Path(app.outdir)/p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, to)


def inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise SkipNode


def block_math(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    write_pages(nbs/"_site")
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", add_comments)
    app.connect("autodoc-skip-member", skip)
    app.connect("build-finished", copy_reports)
