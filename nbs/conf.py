"Settings of Sphinx for `make docs`."
import json

project, extensions, html_theme, root_doc = "hybrid_nb", ["myst_nb"], "furo", "index"
nb_execution_mode, nb_render_markdown_format, myst_enable_extensions = "off", "myst", ["dollarmath"]
suppress_warnings = ["toc.not_included", "myst.header", "myst.xref_missing"]


def leave_out_plumbing(app, docname, source):
    "Drop hidden cells, and the lines that only nbdev reads."
    nb = json.loads(source[0])
    text = ["".join(c["source"]) for c in nb["cells"]]
    nb["cells"] = [c | dict(source=t.removeprefix("#| export\n").removeprefix("#| slow\n")) for c, t in zip(nb["cells"], text)
                   if not t.startswith(("#| hide", "#| default_exp"))]
    source[0] = json.dumps(nb)


def setup(app): app.connect("source-read", leave_out_plumbing)
