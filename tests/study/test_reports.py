"Reports of whole studies, from run folders to a page that stands alone."
import json, re, subprocess, sys
from html import unescape
from pathlib import Path
import pytest
from helpers.make_study import make_run, make_study, patterns
from hybrid_nb.study.reports import render_report
from hybrid_nb.study.summary import summary_table
from hybrid_nb.study.tables import load_runs
from hybrid_nb.study.wandb_csv import read_wandb_csv

report = [str(Path(sys.executable).with_name("hybrid_report"))]
here, root = Path(__file__).parent, Path(__file__).parents[2]

def shell(*args): return subprocess.run([*report, *map(str, args)], capture_output=True, text=True, cwd=root)

@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    "A study of which one run failed, one was stopped, one is damaged and one only began."
    study = make_study(tmp_path_factory.mktemp("runs")/"partial")
    make_run(study, "AAAAAAAA", 2, status="interrupted")
    make_run(study, "GGGGGGGG", 2, status="failed")
    (study/"MMMMMMMM-s1"/"summary.json").write_text('{"name": "MMMM')
    (study/"MMMMMMMM-s0"/"config.json").write_text("[]")
    with open(study/"AMAMAMAM-s0"/"metrics.jsonl", "a") as f: f.write("not json\n")
    (study/"AMAMAMAM-s9").mkdir()
    empty = dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)
    (study/"AMAMAMAM-s9"/"train.ipynb").write_text(json.dumps(empty))
    return study

@pytest.fixture(scope="module")
def page(partial, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")/"deep"/"report.html"
    done = shell(partial, "--out", out, "--title", "A <partial> study")
    last = [f"15 runs read; running {Path('reports/results.ipynb')}", f"now: open {out} in a browser"]
    assert done.returncode == 0 and done.stderr.splitlines()[-2:] == last, done.stderr
    assert done.stderr.count("warning: ") == len(done.stderr.splitlines()) - 2 and done.stdout == f"{out}\n"
    return out

from_elsewhere = (r"<(link|iframe|object)\b|@import|url\(|"
                  r"<[^>]*\s(src|href)=(?![\"']?(data:|#))|https?:")

def test_page_stands_alone(page):
    html = page.read_text()
    read = re.sub(r"<details>.*?</details>", "", html, flags=re.S)
    assert not re.search(from_elsewhere, read) and html.count("<script") == 1
    assert html.count("data:image/png;base64,") == 5 and html.count("<img") == html.count("alt=")
    assert "prefers-color-scheme: dark" in html and "@media print" in html and "http-equiv" not in html

def test_figures_name_their_points_and_tables_sort(page):
    "What the script needs is in the page; what it says agrees with the table."
    html, record = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    boxes = re.findall(r"""class="hover" data-points=(["'])(.*?)\1""", html)
    boxes = [json.loads(unescape(b)) for _, b in boxes]
    assert len(boxes) == 4 and all(0 <= x <= 1 and 0 <= y <= 1 for b in boxes for x, y, _ in b)
    finished = [r for r in record["runs"] if r["status"] == "finished"]
    assert {text for _, _, text in boxes[0]} == {f"{r['pattern']}: {r['final_val_loss']:.4f}" for r in finished}
    assert 'table class="dataframe summary"' in html
    assert 'querySelectorAll("table.summary")' in html and "aria-sort" in html

def test_long_tables_fold_and_wide_ones_scroll(page):
    html = page.read_text()
    for part in ('classList.toggle("folded"', "table.folded tbody tr:nth-child(n+21) { display: none; }",
                 ".output_html { overflow-x: auto; }", ".output_html:has(table.summary)"): assert part in html, part

def test_report_card_and_equal_cost(page):
    html, record = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    text = re.sub("<.*?>", "", html)
    for k in ("claim", "evidence", "verdict"):
        assert f"{k.capitalize()}. " in text and re.sub(r"[`*]", "", record[k])[:60] in unescape(text), k
    assert "Not shown" in record["verdict"] and record["basis"] == "seeds and documents" and len(record["pairs"]) == 15
    for part in ("At equal compute, read off", "At equal compute (", "Front: compute",
                 "Nothing is said about equal time"):
        assert part in text
    assert "At equal time" not in text and "Front: time" not in text
    assert text.index("Report card") < text.index("What was compared")
    assert "<title>A &lt;partial&gt; study</title>" in html and "Error in" not in html

def test_page_tells_what_is_missing(page, partial):
    html = page.read_text()
    assert "11 finished runs of 15" in html and "4 of 15 runs have no result" in html
    assert "RuntimeError: loss is not finite" in html and "step 100 of 200" in html
    assert "MMMMMMMM-s1/summary.json" in html and "metrics.jsonl line 31: not a metrics record" in html
    assert "between 1 and 2 seeds" in html and "MMMMMMMM-s0/config.json: must be a JSON object" in html
    assert str(partial) not in re.sub(r"<details>.*", "", html, flags=re.S), "a message names a place on this machine"

def test_page_claims_no_more_than_it_knows(page):
    html = page.read_text()
    assert "few runs (5 degrees of freedom)" in html and "cannot be distinguished" in html
    assert "no greater distance is measured" in html and "256 tokens" in html

def test_numbers_for_programs(page, partial):
    record = json.loads(page.with_suffix(".json").read_text())
    with pytest.warns(UserWarning, match="MMMMMMMM-s1"): table = summary_table(load_runs(partial))
    assert [r["pattern"] for r in record["table"]] == table.pattern.tolist() and len(table) == len(patterns)
    assert [r["final_val_loss"] for r in record["table"]] == pytest.approx(table.final_val_loss.tolist())
    assert len(record["runs"]) == 15 and record["answer"].startswith("Of the 6 patterns, `AMAMAMAM`")
    assert page.with_suffix(".png").stat().st_size > 10_000 and page.with_suffix(".ipynb").exists()

def text_of(path): return re.sub(r"base64,[A-Za-z0-9+/=]*|" r'"image/png": "[^"]*"', "", path.read_text())

def test_report_names_no_place_on_this_machine(tmp_path):
    "Given by absolute paths, a study in the repository is shown by relative ones."
    (tmp_path/".git").mkdir()
    (tmp_path/"nbs").mkdir()
    study, template = make_study(tmp_path/"runs"/"s", seeds=1), tmp_path/"mine.ipynb"
    parameters = dict(pattern="AM", seed=0, runs=str(tmp_path/"runs"), cache_dir=str(tmp_path/"cache"),
                      plugins=[str(tmp_path/"mine.py")], tokenizer="3")
    executed = dict(metadata=dict(papermill=dict(parameters=parameters)))
    (study/"AAAAAAAA-s0"/"train.ipynb").write_text(json.dumps(executed))
    (study/"AAAAAAAA-s0"/"config.json").write_text("{")
    template.write_bytes((root/"reports"/"results.ipynb").read_bytes())
    words = [*report, study, "--template", template, "--out", tmp_path/"s.html", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path/"nbs")
    assert done.returncode == 0 and done.stderr.count("\n") == done.stderr.count("warning: "), done.stderr
    for suffix in ".html", ".json", ".ipynb":
        assert str(tmp_path) not in text_of((tmp_path/"s").with_suffix(suffix)), suffix
    html = (tmp_path/"s.html").read_text()
    line = "--plugins ../mine.py --set 'tokenizer=\"3\"'\nhybrid_report runs/s\n"
    assert line in html, html[html.index("hybrid_sweep"):][:500]

reports = sorted(p for p in (root/"reports").rglob("*") if p.suffix in (".html", ".json"))
assert reports

@pytest.mark.parametrize("path", reports, ids=lambda p: p.name)
def test_committed_reports_name_no_machine(path):
    assert not re.findall(r"(?<![\w.])/(?:tmp|home|root|work|Users)/.*", text_of(path))

def test_wandb_export_renders_the_base_table(tmp_path):
    out, csv = tmp_path/"base.html", here/"base_wandb.csv"
    done = shell("--csv", csv, "--out", out, "--quiet")
    assert done.returncode == 0 and not done.stderr, done.stderr
    html, rows = out.read_text(), read_wandb_csv(csv)
    cells = [[re.sub("<.*?>", "", c) for c in re.findall(r"<td>(.*?)</td>", row)]
             for row in re.findall(r"<tr>(.*?)</tr>", html, re.S)]
    table = [c for c in cells if c]
    assert len(table) == 12
    for row, r in zip(table, rows.itertuples()):
        assert row[1:4] == [r.pattern, r.name, str(len(r.pattern))]
        assert {f"{r.best_val_loss:.4f}", f"{r.final_val_loss:.4f}", f"{r.final_val_perplexity:.2f}",
                f"{r.parameters/1e6:.1f} M"} <= set(row)
    assert "With one seed a pattern nothing is known about chance" in html

@pytest.mark.parametrize("args, message", [
    (["nowhere", "--out", "x.html"], "study 'nowhere': no such folder"),
    (["--out", "x.html"], "give either a study folder or --csv"),
    (["", "--out", "x.html"], "give either a study folder or --csv"),
    (["STUDY", "--out", "x.html", "--export", "pdf"], "export 'pdf': unknown (accepted: csv, parquet, latex, wandb)"),
    (["STUDY", "--out", "x.html", "--compare", "STUDY", "STUDY"], "--compare: takes two studies"),
    (["--out", "x.html", "--watch"], "--watch: takes a study folder"),
    (["none.ipynb"], "notebook 'none.ipynb': no such file"),
    (["none.ipynb", "--title", "x"], "none.ipynb: a notebook is run as it is"),
    (["STUDY", "--out", "x.pdf"], "must end in .html"),
    (["STUDY", "--out", "x.html", "--template", "none.ipynb"], "template 'none.ipynb': no such file"),
    (["STUDY", "--out", "x.html", "--template", "BROKEN"], "broken.ipynb': not a notebook"),
    (["STUDY", "--out", "x.html", "--template", "UNTAGGED"], "no cell tagged 'parameters'"),
    (["STUDY", "--out", "x.html", "--template", "COMPARE", "--title", "x"], "does not assign study, title"),
    (["--compare", "STUDY", "STUDY", "--out", "x.html", "--template", "COMPARE"], "does not assign study"),
    (["BROKEN"], "broken.ipynb: not a notebook"),
    (["--csv", "EMPTY", "--out", "x.html"], "empty.csv: a header but no runs"),
    (["--csv", "LICENSE", "--out", "x.html"], "LICENSE: not a readable CSV"),
])
def test_bad_arguments(args, message, partial, tmp_path):
    files = dict(STUDY=partial, EMPTY=partial.parent/"empty.csv")
    files["EMPTY"].write_text("pattern,val_loss\n")
    for name, tags, text in ("UNTAGGED", [], "1"), ("COMPARE", ["parameters"], "other = None"):
        cell = dict(cell_type="code", id="a", metadata=dict(tags=tags), execution_count=None, outputs=[], source=text)
        files[name] = partial.parent/f"{name}.ipynb"
        files[name].write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    files["BROKEN"] = partial.parent/"broken.ipynb"
    files["BROKEN"].write_text("{")
    words = [*report, *(str(files.get(a, a)) for a in args)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())

def test_nothing_finished(tmp_path):
    make_run(tmp_path/"s", "AM", 0, status="failed")
    done = shell(tmp_path/"s", "--out", tmp_path/"x.html")
    assert done.returncode == 2 and "no finished run among 1: 1 failed" in done.stderr

def test_template_that_fails(tmp_path):
    cell = dict(cell_type="code", id="a", metadata=dict(tags=["parameters"]), execution_count=None, outputs=[],
                source="study = csv = title = None\n1/0")
    template = dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path/"mine.ipynb").write_text(json.dumps(template))
    make_study(tmp_path/"s", seeds=1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero .the traceback is in"):
        render_report(tmp_path/"s", tmp_path/"x.html", template=tmp_path/"mine.ipynb")
    assert not (tmp_path/"x.html").exists()

def test_two_studies_and_other_formats(tmp_path):
    "The same patterns in two studies, and the tables of the comparison for other tools."
    a, b = make_study(tmp_path/"a"), make_study(tmp_path/"b", loss=2.35)
    done = shell("--compare", a, b, "--out", tmp_path/"x.html", "--quiet", "--export", "csv", "latex")
    assert done.returncode == 0 and not done.stderr, done.stderr
    html, record = (tmp_path/"x.html").read_text(), json.loads((tmp_path/"x.json").read_text())
    assert record["verdict"].startswith("**Shown** by seeds and documents, lower for")
    assert "40 documents" in html and html.count("<tr>") >= 6
    assert "The settings that all runs of a study share are the same" in html
    lines = (tmp_path/"x.csv").read_text().splitlines()
    assert lines[0].startswith("pattern,loss_a,loss_b,difference,low,high") and len(lines) == 7
    assert (tmp_path/"x.tex").read_text().count(r"\\") == 7

def test_stopped_runs_are_not_finished_ones(tmp_path):
    study = make_study(tmp_path/"s")
    for k in range(2):
        for f in ("summary.json", "val_windows.npz"): (study/f"GGGGGGGG-s{k}"/f).unlink()
        make_run(study, "GGGGGGGG", k, status="stopped")
    out = render_report(study, tmp_path/"s.html", export=["wandb"])
    text, record = re.sub("<.*?>", "", out.read_text()), json.loads(out.with_suffix(".json").read_text())
    assert "GGGGGGGG" not in {r["pattern"] for r in record["table"]}
    assert "2 of 12 runs were stopped on the way by successive halving" in " ".join(record["caveats"])
    assert "step 100 (rung 1 of 1)" in text and "6 of 6, 3 went on" in text and "have no result" not in text
    assert re.search(r"GGGGGGGG-s0.*?\(\d\.\d+ to \d\.\d+, 83%\)", text, re.S)
    bundle = out.with_name("s-wandb")
    assert (bundle/"ranking.png").exists() and list(bundle.rglob("*.wandb")), list(bundle.rglob("*"))
