"""A benchmark's tables and report against numbers worked out from the cells in another way."""

import csv
import io
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from vmfcoop.benchmark import published
from vmfcoop.benchmark.results import Cell
from vmfcoop.benchmark.tables import (
    Column,
    Entry,
    Row,
    Table,
    benchmark_tables,
)
from vmfcoop.errors import UserError
from vmfcoop.reporting.figures import spread_apart
from vmfcoop.reporting.html import render_benchmark, write_report
from vmfcoop.reporting.texts import cells_csv, latex, markdown

METHODS = ("zero-shot", "CoOp", "vMFCoOp", "linear probe")
DATASETS = {"brains": 4, "breasts": 3}
SHOTS, SEEDS = (1, 4), (1, 2, 3)
SETTINGS = {
    "name": "Trial <1>",
    "equal": {"epochs": 50, "batch_size": 4},
    "methods": [{"name": "coop", "settings": {"lr": 0.002}}],
    "seeds": [1, 2, 3],
    "wall_seconds": 3725.0,
}


def metrics(accuracy, classes):
    return {
        "n": 200,
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.02,
        "macro_f1": accuracy - 0.03,
        "macro_auroc": min(1.0, accuracy + 0.1),
        "ece": 0.3 - accuracy / 4,
        "brier": 1 - accuracy,
        "chance": 1 / classes,
        "majority": 1.2 / classes,
        "per_class": {},
        "confusion_matrix": [],
    }


def cell(protocol, data, method, shots, seed, parts, **other):
    where = {"section": "main", "budget": "equal", "backbone": "phantom", "target": None, **other}
    result = {**parts, "seconds": {"fit": 0.5 * shots + seed, "test": 0.25}, "steps": 50 * shots}
    return Cell(protocol=protocol, data=data, method=method, shots=shots, seed=seed, result=result, **where)


@pytest.fixture(scope="module")
def cells():
    """Few-shot, base-to-novel, ablation and cross-dataset of four methods on two datasets."""
    draw = np.random.default_rng(7)
    found = []

    def accuracy():
        return float(draw.integers(80, 190)) / 200

    for method, (data, classes), seed in itertools.product(METHODS, DATASETS.items(), SEEDS):
        for shots in SHOTS:
            parts = {"test": metrics(accuracy(), classes)}
            found.append(cell("few-shot", data, method, shots, seed, parts))
        novel = None if method == "linear probe" else metrics(accuracy(), classes // 2)
        parts = {"base": metrics(accuracy(), -(-classes // 2)), "novel": novel}
        found.append(cell("base-to-novel", data, method, 16, seed, parts))
    for title, (data, classes), seed in itertools.product(("none", "all"), DATASETS.items(), SEEDS):
        parts = {"test": metrics(accuracy(), classes)}
        found.append(cell("few-shot", data, title, 1, seed, parts, section="ablation"))
        parts = {"base": metrics(accuracy(), 2), "novel": metrics(accuracy(), 2)}
        found.append(cell("base-to-novel", data, title, 16, seed, parts, section="ablation"))
    for method, seed in itertools.product(METHODS, SEEDS):
        target = None if method == "linear probe" else metrics(accuracy(), 3)
        parts = {"source": metrics(accuracy(), 4), "target": target}
        found.append(cell("cross-dataset", "brains", method, 4, seed, parts, target="breasts"))
    return found


def values(cells, protocol, method, part, metric="accuracy", section="main", shots=None):
    """Percent by (seed, dataset), read straight from the cells."""
    table = np.full((len(SEEDS), len(DATASETS)), np.nan)
    for c in cells:
        if (c.protocol, c.method, c.section) == (protocol, method, section) and shots in (None, c.shots):
            table[SEEDS.index(c.seed), list(DATASETS).index(c.data)] = 100 * c.result[part][metric]
    return table


def printed(table, digits=2):
    """Mean over datasets, then mean and deviation over seeds."""
    seeds = table.mean(axis=1)
    return f"{seeds.mean():.{digits}f} ± {np.sqrt(((seeds - seeds.mean()) ** 2).sum() / 2):.{digits}f}"


def the_table(tables, beginning):
    (found,) = [table for table in tables if table.title.startswith(beginning)]
    return found


def row_of(table, label):
    i = [row.label for row in table.rows].index(label)
    return [table.text(i, j) for j in range(len(table.columns))]


def test_interval_is_student_s_over_three_seeds(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "Accuracy (%), 95 % interval")
    for method in METHODS:
        i = [row.label for row in table.rows].index(method)
        for j, shots in enumerate(SHOTS):
            seeds = values(cells, "few-shot", method, "test", shots=shots).mean(axis=1)
            half = 4.302652729749462 * seeds.std(ddof=1) / np.sqrt(3)  # t of 97.5 %, two degrees of freedom
            assert table.text(i, j) == f"{seeds.mean() - half:.2f} to {seeds.mean() + half:.2f}"
    alone = [cell for cell in cells if cell.seed == 1]
    titles = [table.title for table in benchmark_tables(alone, SETTINGS)]
    assert not any("95 % interval over seeds" in title for title in titles)


def test_average_is_the_mean_over_seeds_of_means_over_datasets(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "Accuracy (%) averaged over 2 datasets")
    for method in METHODS:
        expected = [printed(values(cells, "few-shot", method, "test", shots=k)) for k in SHOTS]
        assert row_of(table, method) == expected
    level = 100 * np.mean([1 / c for c in DATASETS.values()])
    assert row_of(table, "chance (1 / C)") == [f"{level:.2f}"] * 2
    assert row_of(table, "largest class of the test split") == [f"{1.2 * level:.2f}"] * 2
    assert "50 epochs of batches of 4" in table.notes[0] and "phantom, equal budget" in table.title


def test_every_table_says_what_its_budget_is(cells):
    for table in benchmark_tables(cells, SETTINGS):
        assert table.topic == "published" or table.notes[0].startswith("Budget 'equal': ")


def test_table_of_one_dataset(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "breasts, accuracy")
    found = values(cells, "few-shot", "CoOp", "test", shots=4)[:, 1]
    assert row_of(table, "CoOp")[1] == f"{found.mean():.2f} ± {found.std(ddof=1):.2f}"
    assert row_of(table, "chance (1 / C)")[0] == "33.33"


def test_base_to_novel_has_both_harmonic_means(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "Base-to-novel accuracy (%), K = 16, averaged")
    base, novel = (values(cells, "base-to-novel", "CoOp", part) for part in ("base", "novel"))
    of_averages = 2 / (1 / base.mean() + 1 / novel.mean())
    each = 2 / (1 / base + 1 / novel)
    assert f"{of_averages:.2f}" != f"{each.mean():.2f}"
    assert row_of(table, "CoOp") == [printed(base), printed(novel), f"{of_averages:.2f}", printed(each)]
    assert [column.title for column in table.columns[2:]] == ["HM of averages", "average of HMs"]
    assert row_of(table, "chance (1 / C)") == ["50.00", "75.00", "-", "-"]


def test_method_that_cannot_take_new_classes_has_dashes(cells):
    tables = benchmark_tables(cells, SETTINGS)
    novel = the_table(tables, "Base-to-novel accuracy (%), K = 16, averaged")
    assert row_of(novel, "linear probe")[1:] == ["-", "-", "-"]
    assert row_of(novel, "linear probe")[0] != "-"
    assert not any("linear probe" in note for note in novel.notes)
    cross = the_table(tables, "Fitted on brains at K = 4")
    assert row_of(cross, "linear probe")[1] == "-"


def test_cross_dataset(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "Fitted on brains at K = 4")
    for j, part in enumerate(("source", "target")):
        found = values(cells, "cross-dataset", "vMFCoOp", part)[:, 0]
        assert row_of(table, "vMFCoOp")[j] == f"{found.mean():.2f} ± {found.std(ddof=1):.2f}"


def test_mean_over_several_targets(cells):
    more = [c for c in cells if c.protocol == "cross-dataset"]
    parts = {"source": metrics(0.5, 4), "target": metrics(0.9, 3)}
    others = [cell("cross-dataset", "brains", "CoOp", 4, seed, parts, target="skin") for seed in SEEDS]
    table = the_table(benchmark_tables([*more, *others], SETTINGS), "Fitted on brains")
    first = values(more, "cross-dataset", "CoOp", "target")[:, 0]
    assert row_of(table, "CoOp")[3] == f"{(first.mean() + 90) / 2:.2f} ± {(first / 2).std(ddof=1):.2f}"
    assert row_of(table, "vMFCoOp")[2:] == ["-", "-"]


def test_ablation_joins_both_protocols_and_the_published_rows(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "Ablation")
    few_shot = values(cells, "few-shot", "all", "test", section="ablation")
    base = values(cells, "base-to-novel", "all", "base", section="ablation")
    assert row_of(table, "all")[:2] == [printed(few_shot), printed(base)]
    label = published.label("anc + sc", 14)
    assert row_of(table, label) == ["49.87", "-", "-", "-", "-"]


def test_other_metrics_and_time(cells):
    tables = benchmark_tables(cells, SETTINGS)
    table = the_table(tables, "Other metrics (%), K = 4")
    keys = ("balanced_accuracy", "macro_f1", "macro_auroc", "ece", "brier")
    expected = [printed(values(cells, "few-shot", "vMFCoOp", "test", key, shots=4)) for key in keys]
    assert row_of(table, "vMFCoOp") == expected
    assert [column.better for column in table.columns] == ["high", "high", "high", "low", "low"]
    timing = the_table(tables, "Seconds and steps")
    assert row_of(timing, "CoOp") == ["2.50", "50", "4.00", "200"]


def test_metric_that_is_undefined_somewhere_is_not_averaged(cells):
    undefined = [c for c in cells if c.protocol == "few-shot" and c.section == "main"]
    for i, c in enumerate(undefined):
        if c.data == "breasts":
            test = {**c.result["test"], "macro_auroc": None}
            result = {**c.result, "test": test}
            undefined[i] = Cell(**{**vars(c), "result": result})
    table = the_table(benchmark_tables(undefined, SETTINGS), "Other metrics (%), K = 4")
    assert row_of(table, "CoOp")[2] == "-" and row_of(table, "CoOp")[1] != "-"
    assert "AUROC is not defined on breasts, so not averaged." in table.notes


def without(cells, **wanted):
    return [c for c in cells if any(getattr(c, key) != value for key, value in wanted.items())]


def test_missing_cell_makes_a_dash_and_a_note_and_leaves_the_others_alone(cells):
    lost = {
        "protocol": "few-shot",
        "method": "CoOp",
        "data": "breasts",
        "seed": 2,
        "shots": 4,
        "section": "main",
    }
    whole = the_table(benchmark_tables(cells, SETTINGS), "Accuracy (%) averaged")
    tables = benchmark_tables(without(cells, **lost), SETTINGS)
    table = the_table(tables, "Accuracy (%) averaged")
    assert row_of(table, "CoOp") == [row_of(whole, "CoOp")[0], "-"]
    assert "K = 4: CoOp lacks breasts seed 2, so it has no average here." in table.notes
    for method in METHODS:
        if method != "CoOp":
            assert row_of(table, method) == row_of(whole, method)
    assert row_of(the_table(tables, "breasts, accuracy"), "CoOp")[1] == "-"
    assert row_of(the_table(tables, "brains, accuracy"), "CoOp")[1] != "-"
    ranks = the_table(tables, "Average rank")
    assert row_of(ranks, "CoOp")[1:] == ["-", "-"]
    assert "CoOp lacks cells that others have and is not ranked." in ranks.notes
    assert "CoOp" not in [row.label for row in the_table(tables, "vMFCoOp against").rows]


def test_method_that_was_not_run_at_a_k(cells):
    table = the_table(
        benchmark_tables(without(cells, protocol="few-shot", method="CoOp", shots=4), SETTINGS),
        "Accuracy (%) averaged",
    )
    assert row_of(table, "CoOp")[1] == "-" and "K = 4: CoOp was not run." in table.notes


def test_seed_that_no_method_has_on_a_dataset_is_left_out_for_all(cells):
    fewer = without(cells, protocol="few-shot", section="main", data="brains", seed=3, shots=1)
    table = the_table(benchmark_tables(fewer, SETTINGS), "Accuracy (%) averaged")
    seeds = values(cells, "few-shot", "CoOp", "test", shots=1)[:2].mean(axis=1)
    assert row_of(table, "CoOp")[0] == f"{seeds.mean():.2f} ± {seeds.std(ddof=1):.2f}"
    assert "K = 1: no method has brains seed 3; these seeds are left out." in table.notes


def test_dataset_that_lacks_a_k_is_said(cells):
    fewer = without(cells, protocol="few-shot", section="main", data="brains", shots=4)
    table = the_table(benchmark_tables(fewer, SETTINGS), "Accuracy (%) averaged")
    assert any(note.startswith("K = 4 averages 1 dataset only (breasts)") for note in table.notes)


def accuracies(cells):
    """Blocks by methods, few-shot."""
    found = {
        (c.method, c.data, c.shots, c.seed): c.result["test"]["accuracy"]
        for c in cells
        if c.protocol == "few-shot" and c.section == "main"
    }
    blocks = list(itertools.product(DATASETS, SHOTS, SEEDS))
    return blocks, np.array([[found[(m, *block)] for m in METHODS] for block in blocks])


def test_ranks(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "Average rank")
    blocks, scores = accuracies(cells)
    ranks = (
        1
        + (scores[:, None, :] > scores[:, :, None]).sum(axis=2)
        + ((scores[:, None, :] == scores[:, :, None]).sum(axis=2) - 1) / 2
    )
    for j, method in enumerate(METHODS):
        by_shots = [ranks[[b[1] == k for b in blocks], j].mean() for k in SHOTS]
        assert row_of(table, method) == [f"{rank:.2f}" for rank in (*by_shots, ranks[:, j].mean())]
    chi_square = stats.friedmanchisquare(*scores.T).statistic
    assert any(f"chi-square {chi_square:.1f}" in note and "12 cells" in note for note in table.notes)
    assert any("not independent" in note for note in table.notes)


def test_tests_against_the_reference_with_holm(cells):
    table = the_table(benchmark_tables(cells, SETTINGS), "vMFCoOp against the others")
    _, scores = accuracies(cells)
    others = [0, 1, 3]
    gains = (scores[:, [2]] - scores[:, others]).round(9)
    p_values = np.array([stats.wilcoxon(g, zero_method="zsplit").pvalue for g in gains.T])
    order = p_values.argsort()
    holm, worst = {}, 0.0
    for step, i in enumerate(order):
        worst = max(worst, min(1.0, (3 - step) * p_values[i]))
        holm[i] = worst
    for i, j in enumerate(others):
        row = row_of(table, METHODS[j])
        assert row[0] == f"{100 * gains[:, i].mean():+.2f}"
        by_data = 100 * gains[:, i].reshape(2, 6).mean(axis=1)
        low, high = stats.t.interval(0.95, 1, by_data.mean(), stats.sem(by_data))
        assert row[1] == f"{low:+.2f} to {high:+.2f}"
        signs = [(gains[:, i] > 0).sum(), (gains[:, i] == 0).sum(), (gains[:, i] < 0).sum()]
        assert row[2] == " / ".join(map(str, signs))
        assert row[3:5] == [f"{p_values[i]:.3f}", f"{holm[i]:.3f}"]
    assert any("not independent" in note for note in table.notes)


def test_no_ranks_of_a_single_method_and_no_tests_without_the_reference(cells):
    alone = [c for c in cells if c.method == "CoOp"]
    assert not [t for t in benchmark_tables(alone, SETTINGS) if t.topic == "ranks"]
    others = [c for c in cells if c.method in ("CoOp", "zero-shot")]
    titles = [t.title for t in benchmark_tables(others, SETTINGS) if t.topic == "ranks"]
    assert len(titles) == 1 and titles[0].startswith("Average rank")


def test_single_seed_has_no_spread(cells):
    first = [c for c in cells if c.seed == 1]
    table = the_table(benchmark_tables(first, SETTINGS), "Accuracy (%) averaged")
    assert row_of(table, "CoOp")[0] == f"{values(first, 'few-shot', 'CoOp', 'test', shots=1)[0].mean():.2f}"


def small_table():
    means = {
        "a": (0.7004, 3.0),
        "b": (0.7001, 1.0),
        "c_1": (0.6, 2.0),
        "d|e": (0.5, 1.0),
        "none": (None, None),
    }
    rows = [Row(name, tuple(map(Entry, pair))) for name, pair in means.items()]
    rows.append(Row("p (published)", (Entry(0.9), Entry(0.1)), "published"))
    rows.append(Row("chance", (Entry(0.95), Entry(0.0)), "level"))
    columns = (Column("high"), Column("low & 50 %", better="low"), Column("x", better=None))
    padded = tuple(Row(r.label, (*r.entries, Entry(1.0)), r.kind) for r in rows)
    return Table("average", "Marks_of 100 %", columns, padded, ("A note & more",))


def test_marks_share_ties_and_pass_over_rows_that_do_not_compete():
    assert small_table().marks() == {
        (0, 0): "best",
        (1, 0): "best",
        (2, 0): "second",
        (1, 1): "best",
        (3, 1): "best",
        (2, 1): "second",
    }


def test_one_competitor_is_not_best():
    table = Table("average", "", (Column("x"),), (Row("a", (Entry(1.0),)), Row("b", (Entry(),))), ())
    assert table.marks() == {}


def test_markdown():
    lines = markdown(small_table()).splitlines()
    assert lines[0] == r"### Marks\_of 100 %"
    assert lines[2:4] == ["| method | high | low & 50 % | x |", "|---|---:|---:|---:|"]
    assert lines[4:9] == [
        "| a | **0.70** | 3.00 | 1.00 |",
        "| b | **0.70** | **1.00** | 1.00 |",
        r"| c\_1 | <u>0.60</u> | <u>2.00</u> | 1.00 |",
        r"| d\|e | 0.50 | **1.00** | 1.00 |",
        "| none | - | - | 1.00 |",
    ]
    assert lines[9] == "| p (published) | 0.90 | 0.10 | 1.00 |"
    assert lines[-1] == "- A note & more"


def test_latex():
    text = latex(small_table())
    assert r"\caption{Marks\_of 100 \%}" in text and r"method & high & low \& 50 \% & x \\" in text
    assert r"b & \textbf{0.70} & \textbf{1.00} & 1.00 \\" in text
    assert r"c\_1 & \underline{0.60} & \underline{2.00} & 1.00 \\" in text
    assert "\\midrule\np (published) & 0.90 & 0.10 & 1.00 \\\\\n\\midrule\nchance" in text
    assert r"\label{tab:average-marks-of-100}" in text
    for sign in ("toprule", "bottomrule", "begin{tabular}{lrrr}", "end{table}"):
        assert text.count(f"\\{sign}") == 1


def test_latex_escapes_what_it_must():
    row = Row(r"50 % of a_b #1 & $x^2$ {~} \n ±", (Entry(text="< 0.001"),))
    text = latex(Table("average", "t", (Column("x"),), (row,), ()))
    escaped = r"50 \% of a\_b \#1 \& \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textbackslash{}n $\pm$"
    assert rf"{escaped} & $<$ 0.001 \\" in text


def test_csv_has_every_number_of_every_cell(cells):
    rows = list(csv.DictReader(io.StringIO(cells_csv(cells))))
    by_key = {
        tuple(r[k] for k in ("section", "protocol", "data", "method", "shots", "seed", "part")): r
        for r in rows
    }
    expected = 0
    for c in cells:
        for part in ("test", "base", "novel", "source", "target"):
            if c.result.get(part) is not None:
                expected += 1
                row = by_key[(c.section, c.protocol, c.data, c.method, str(c.shots), str(c.seed), part)]
                for key, value in c.result[part].items():
                    assert key in ("per_class", "confusion_matrix") or float(row[key]) == value
                assert float(row["fit_seconds"]) == c.result["seconds"]["fit"]
                assert int(row["steps"]) == c.result["steps"]
    assert len(rows) == len(by_key) == expected


def test_published_rows_are_labelled_and_neither_marked_nor_ranked(cells):
    tables = benchmark_tables(cells, SETTINGS)
    shown = 0
    for table in tables:
        for i, row in enumerate(table.rows):
            assert (row.kind == "published") == ("published, BiomedCLIP, 1" in row.label)
            if row.kind == "published":
                shown += 1
                assert "not comparable" in row.label and table.title.split(":")[0] != "Average rank"
                assert not [place for place in table.marks() if place[0] == i]
    assert shown == 2 + 2 + 5 + 9
    average = the_table(tables, "Accuracy (%) averaged")
    assert row_of(average, published.label("vMFCoOp", 14)) == ["57.25 ± 4.75", "68.29 ± 2.07"]


def test_published_harmonic_means_are_those_of_the_averages():
    for base, novel, harmonic in published.BASE_TO_NOVEL.values():
        assert harmonic == pytest.approx(2 * base * novel / (base + novel), abs=0.0051)


class Page(HTMLParser):
    """What the tests need of a page: tags opened and closed, attributes, cells of tables and text."""

    VOID = ("meta", "br", "use", "path")

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows, self.text, self.ids = [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(cells):
    return render_benchmark(cells, SETTINGS, ["Missing: <one> cell"])


def test_page_is_well_formed_and_needs_no_network(page):
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert ("html", "lang", "en") in parsed.attributes
    for tag, key, value in parsed.attributes:
        if key in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#"), (tag, key, value)
            assert value[1:] in parsed.ids
    assert not re.search(r"@import|url\((?!#)", page)
    assert "<link" not in page and "<script src" not in page


def test_page_has_every_table_as_it_is_printed(page, cells):
    rows = [[text.strip() for text in row] for row in Page(page).rows]
    for table in benchmark_tables(cells, SETTINGS):
        for i, row in enumerate(table.rows):
            assert [row.label, *(table.text(i, j) for j in range(len(table.columns)))] in rows
        assert [table.heading, *(column.title for column in table.columns)] in rows


def test_page_sorts_by_means(page, cells):
    shown = [value for _, key, value in Page(page).attributes if key == "data-value"]
    tables = benchmark_tables(cells, SETTINGS)
    means = {entry.mean for table in tables for row in table.rows for entry in row.entries}
    assert {float(value) if value else None for value in shown} == means


def test_page_says_settings_notes_and_facts(page):
    parsed = Page(page)
    assert ["methods[0].settings.lr", "0.002"] in parsed.rows and ["seeds", "1, 2, 3"] in parsed.rows
    for text in ("Trial <1>", "Missing: <one> cell", "1 h 2 min", "2: brains, breasts", "Budget 'equal'"):
        assert text in parsed.text


def test_figures_say_what_they_show(page, cells):
    figures = [value for tag, key, value in Page(page).attributes if (tag, key) == ("svg", "aria-label")]
    # The average, two datasets, the ranks, base-to-novel averaged and of two datasets.
    assert len(figures) == 1 + 2 + 1 + 1 + 2
    means = [values(cells, "few-shot", "vMFCoOp", "test", shots=k).mean() for k in SHOTS]
    assert f"vMFCoOp: {means[0]:.1f}, {means[1]:.1f} %." in figures[0]
    _, scores = accuracies(cells)
    ranks = stats.rankdata(-scores, axis=1).mean(axis=0)
    assert any(f"vMFCoOp {ranks[2]:.2f}" in text for text in figures if "Critical-difference" in text)


def test_page_is_the_same_every_time(page, cells):
    assert render_benchmark(cells, SETTINGS, ["Missing: <one> cell"]) == page


def test_report_is_four_files_with_the_same_numbers(tmp_path, cells, page):
    paths = write_report(
        cells, SETTINGS, tmp_path / "new", missing=["<one> cell"], failures=["CoOp: disk full"]
    )
    assert {p.name for p in (tmp_path / "new").iterdir()} == {p.name for p in paths.values()}
    number = printed(values(cells, "few-shot", "CoOp", "test", shots=4))
    texts = {kind: path.read_text("utf-8") for kind, path in paths.items()}
    assert number in texts["html"] and number in texts["markdown"]
    assert number.replace("±", r"$\pm$") in texts["latex"]
    assert texts["csv"] == cells_csv(cells)
    for kind in ("html", "markdown"):
        assert "Failed: CoOp: disk full" in texts[kind]


def test_many_methods_and_awkward_names(cells):
    """Twenty methods, a $ and a quote in names, one K only."""
    few = [c for c in cells if c.protocol == "few-shot" and c.section == "main" and c.shots == 1]
    many = [Cell(**{**vars(c), "method": f'{c.method} $a_{i}$ "&"'}) for i in range(5) for c in few]
    page = render_benchmark(many, {}, reference='CoOp $a_0$ "&"')
    assert Page(page).open == []
    assert page.count("CoOp $a_0$ &#34;&amp;&#34;") > 0


def test_no_cells_no_report():
    with pytest.raises(UserError, match="no results yet"):
        render_benchmark([], SETTINGS)


def test_labels_of_curves_keep_order_and_distance():
    places = np.array([0.99, 0.98, 0.985, 0.2, 0.21])
    moved = spread_apart(places, 0.05)
    assert (moved.argsort() == places.argsort()).all()
    assert (np.diff(np.sort(moved)) >= 0.05 - 1e-12).all() and moved.min() >= 0 and moved.max() <= 1
    assert spread_apart(np.array([0.1, 0.5]), 0.05).tolist() == [0.1, 0.5]
