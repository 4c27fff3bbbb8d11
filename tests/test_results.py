"Reports of whole studies, from run folders to a page that stands alone."
import json, re, subprocess, sys
import pytest
from pathlib import Path
from make_study import make_run, make_study, patterns
from hybrid_nb.results import load_runs, read_wandb_csv, render, summary_table

report = [str(Path(sys.executable).with_name("hybrid_report"))]
here = Path(__file__).parent

def shell(*args): return subprocess.run([*report, *map(str, args)], capture_output=True, text=True)

@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    "A study of which one run failed, one was stopped, one is damaged and one only began."
    study = make_study(tmp_path_factory.mktemp("runs")/"partial")
    make_run(study, "AAAAAAAA", 2, status="interrupted")
    make_run(study, "GGGGGGGG", 2, status="failed")
    (study/"MMMMMMMM-s1"/"summary.json").write_text('{"name": "MMMM')
    with open(study/"AMAMAMAM-s0"/"metrics.jsonl", "a") as f: f.write("not json\n")
    (study/"AMAMAMAM-s9").mkdir(); (study/"AMAMAMAM-s9"/"train.ipynb").write_text(json.dumps(dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)))
    return study

@pytest.fixture(scope="module")
def page(partial, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")/"deep"/"report.html"
    done = shell(partial, "--out", out, "--title", "A <partial> study")
    assert done.returncode == 0, done.stderr
    return out

def test_page_stands_alone(page):
    html = page.read_text()
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(|<[^>]*\s(src|href)=(?![\"']?(data:|#))", html)
    assert html.count("data:image/png;base64,") == 4 and html.count("<img") == html.count("alt=")
    assert "<title>A &lt;partial&gt; study</title>" in html and "Error in" not in html

def test_page_tells_what_is_missing(page):
    html = page.read_text()
    assert "11 finished runs of 15" in html and "4 of 15 runs have no result" in html
    assert "RuntimeError: loss is not finite" in html and "step 100 of 200" in html
    assert "MMMMMMMM-s1/summary.json" in html and "metrics.jsonl line 31: not a metrics record" in html
    assert "between 1 and 2 seeds" in html

def test_numbers_for_programs(page, partial):
    record = json.loads(page.with_suffix(".json").read_text())
    table = summary_table(load_runs(partial))
    assert [r["pattern"] for r in record["table"]] == table.pattern.tolist() and len(table) == len(patterns)
    assert [r["final_val_loss"] for r in record["table"]] == pytest.approx(table.final_val_loss.tolist())
    assert len(record["runs"]) == 15 and record["answer"].startswith("Of the 6 patterns, `AMAMAMAM`")
    assert page.with_suffix(".png").stat().st_size > 10_000 and page.with_suffix(".ipynb").exists()

def test_wandb_export_renders_the_base_table(tmp_path):
    out = tmp_path/"base.html"
    done = shell("--csv", here/"data"/"base_wandb.csv", "--out", out)
    assert done.returncode == 0, done.stderr
    html, rows = out.read_text(), read_wandb_csv(here/"data"/"base_wandb.csv")
    cells = [[re.sub("<.*?>", "", c) for c in re.findall(r"<td>(.*?)</td>", row)] for row in re.findall(r"<tr>(.*?)</tr>", html, re.S)]
    table = [c for c in cells if c]
    assert len(table) == 12
    for row, r in zip(table, rows.itertuples()):
        assert row[1:4] == [r.pattern, r.name, str(len(r.pattern))]
        assert {f"{r.best_val_loss:.4f}", f"{r.final_val_loss:.4f}", f"{r.final_val_perplexity:.2f}", f"{r.parameters/1e6:.1f} M"} <= set(row)
    assert "With one seed a pattern nothing is known about chance" in html

@pytest.mark.parametrize("args, message", [
    (["nowhere", "--out", "x.html"], "study 'nowhere': no such folder"),
    (["--out", "x.html"], "give either a study folder or --csv"),
    (["STUDY", "--out", "x.pdf"], "must end in .html"),
    (["STUDY", "--out", "x.html", "--template", "none.ipynb"], "template 'none.ipynb': no such file"),
    (["--csv", "LICENSE", "--out", "x.html"], "LICENSE: not a readable CSV"),
])
def test_bad_arguments(args, message, partial, tmp_path):
    done = subprocess.run([*report, *(str(partial) if a == "STUDY" else a for a in args)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())

def test_nothing_finished(tmp_path):
    make_run(tmp_path/"s", "AM", 0, status="failed")
    done = shell(tmp_path/"s", "--out", tmp_path/"x.html")
    assert done.returncode == 2 and "no finished run among 1: 1 failed" in done.stderr

def test_template_that_fails(tmp_path):
    cell = dict(cell_type="code", id="a", metadata=dict(tags=["parameters"]), execution_count=None, outputs=[], source="study = csv = title = None\n1/0")
    (tmp_path/"mine.ipynb").write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    make_study(tmp_path/"s", seeds=1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero .the traceback is in"): render(tmp_path/"s", tmp_path/"x.html", template=tmp_path/"mine.ipynb")
    assert not (tmp_path/"x.html").exists()
