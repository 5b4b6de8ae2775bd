"""What is gathered below a workdir, and the tables that are made of it."""

import json
import math

import numpy as np
import pytest

from tgcvg_jax.report import document, quality, tables
from tgcvg_jax.report.document import MISSING
from tgcvg_jax.report.results import gather
from tgcvg_jax.types import UserError

HOPPER, WALKER = "hopper-medium-v2", "walker2d-medium-v2"


def write_run(workdir, env, label, learner, values, **changes):
    """A run of 100 steps as train_offline leaves it; without `values` one that is at step 40."""
    folder = workdir / env.replace("/", "_") / label / learner
    folder.mkdir(parents=True)
    settings = {
        "env": env, "learner": learner.partition("-")[0], "hyperparameters": "tgcvg",
        "preset": "paper", "synthesizer": label, "synthetic": None, "state_noise": None,
        "seeds": [0, 1, 2], "data": "10 transitions, crc32 1", "versions": {"jax": "1"},
        "config": {"num_steps": 100, "batch_size": 256} | changes.pop("config", {}),
    }  # fmt: skip
    episodes, unit = changes.pop("episodes", 10), changes.pop("unit", "score")
    (folder / "config.json").write_text(json.dumps(settings | changes))
    last = 40 if values is None else settings["config"]["num_steps"]
    rows = [f"{step},{seed},{step + seed}" for step in (20, last) for seed in range(3)]
    (folder / "metrics.csv").write_text("\n".join(["step,seed,normalized_score", *rows]) + "\n")
    if values is not None:
        rows = [f"{i},{9 * v},1.0,{v if unit == 'score' else ''},{episodes}"
                for i, v in enumerate(values)]  # fmt: skip
        header = "seed,return_mean,return_std,normalized_score,episodes"
        (folder / "scores.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def write_quality(workdir, env, label, metrics, **changes):
    folder = workdir / env / label / "quality"
    folder.mkdir(parents=True)
    values = {k: {"original": a, "synthetic": b} for k, (a, b) in metrics.items()}
    content = {"env": env, "seed": 0, "metrics": values, "curves": {}, "settings": {}}
    (folder / "quality.json").write_text(json.dumps(content | changes))
    return folder


def texts(table):
    """First column -> the row's other cells, bold ones with stars, notes in brackets."""
    show = lambda c: "*" * c.strong + c.text + "".join(f"[{document.mark(n)}]" for n in c.notes)  # noqa: E731
    return {row[0].text: [show(cell) for cell in row[1:]] for row in table.rows}


def test_score_table_as_in_the_papers(tmp_path):
    write_run(tmp_path, WALKER, "none", "td3_bc", [60.0])
    write_run(tmp_path, WALKER, "tgcvg", "td3_bc", [70, 72, 80])
    write_run(tmp_path, HOPPER, "none", "td3_bc", [50, 52, 54.01])
    write_run(tmp_path, HOPPER, "tgcvg", "td3_bc", [51, 52, 53])
    write_run(tmp_path, HOPPER, "s4rl", "bc", [1, 2, 3])
    results = gather(tmp_path)
    assert results.learners == ["td3_bc", "bc"]
    assert results.labels() == ["none", "s4rl", "tgcvg"]

    table = tables.score_table(results, "td3_bc")
    assert [cell.text for cell in table.header] == ["task", "none", "tgcvg"]  # no bc, no s4rl
    std = np.std([70, 72, 80])
    assert texts(table) == {
        HOPPER: ["*52.0 ± 1.6", "*52.0 ± 0.8"],  # the means differ by less than is printed
        WALKER: ["60.0", f"*74.0 ± {std:.1f}"],
        "average of 2 tasks": ["56.0", "*63.0"],
    }
    assert [row[0].text for row in table.rows][:2] == [HOPPER, WALKER]
    assert table.rows[0][0].detail == "100 steps, 10 episodes"
    assert table.rows[0][1].detail.endswith(", 3 seeds") and table.rows[1][1].detail == "1 seed"
    assert table.notes == ()


def test_missing_and_unfinished_cells_are_in_no_average(tmp_path):
    for env, value in ((HOPPER, 10.0), (WALKER, 30.0), ("halfcheetah-medium-v2", 80.0)):
        write_run(tmp_path, env, "none", "iql", [value, value])
    write_run(tmp_path, HOPPER, "gta", "iql", [20, 20])
    write_run(tmp_path, WALKER, "gta", "iql", [40, 40])
    table = texts(tables.score_table(gather(tmp_path), "iql"))
    assert table["halfcheetah-medium-v2"] == ["80.0 ± 0.0", MISSING]  # nothing to be best of
    assert table["average of 2 tasks"] == ["20.0", "*30.0"]

    folder = write_run(tmp_path, "halfcheetah-medium-v2", "gta", "iql", None)
    table = tables.score_table(gather(tmp_path), "iql")
    assert texts(table)["halfcheetah-medium-v2"][1] == "running"
    row = next(row for row in table.rows if row[0].text == "halfcheetah-medium-v2")
    assert row[2].detail == "step 40 of 100"
    assert texts(table)["average of 2 tasks"] == ["20.0", "*30.0"]
    assert table.notes == (f"only of tasks with a score in every column: {HOPPER}, {WALKER}",)

    (folder / "scores.csv").write_text("seed,return_mean\n0,1\n")
    results = gather(tmp_path)
    assert texts(tables.score_table(results, "iql"))["halfcheetah-medium-v2"][1] == ("unreadable")
    (problem,) = results.problems
    assert problem.startswith("halfcheetah-medium-v2/gta/iql/scores.csv: no column return_std")


def test_training_that_goes_on_hides_the_scores_of_before(tmp_path):
    folder = write_run(tmp_path, HOPPER, "none", "bc", [1, 2])
    config = json.loads((folder / "config.json").read_text())
    config["config"]["num_steps"] = 500
    (folder / "config.json").write_text(json.dumps(config))
    table = tables.score_table(gather(tmp_path), "bc")
    assert texts(table)[HOPPER] == ["running"] and table.rows[0][1].detail == "step 100 of 500"


def test_unequal_runs_are_marked(tmp_path):
    write_run(tmp_path, HOPPER, "none", "td3_bc", [1, 2])
    write_run(tmp_path, HOPPER, "gta", "td3_bc", [2, 3], config={"num_steps": 50}, episodes=3)
    write_run(tmp_path, HOPPER, "synther", "td3_bc", [2, 3], synthetic="/far/away.hdf5")
    write_run(tmp_path, HOPPER, "tgcvg", "td3_bc", [4, 5], state_noise=0.1,
              synthetic=f"runs/{HOPPER}/tgcvg/synthetic.hdf5")  # fmt: skip
    folder = tmp_path / HOPPER / "tgcvg"
    maker = {"synthesizer": "tgcvg", "env": HOPPER, "data": "9 transitions", "config": {}}
    (folder / "config.json").write_text(json.dumps(maker))
    write_run(tmp_path, HOPPER, "s4rl", "td3_bc", [2, 3])
    (tmp_path / HOPPER / "s4rl" / "td3_bc" / "config.json").write_text("{")
    results = gather(tmp_path)
    table = tables.score_table(results, "td3_bc")
    cells = dict(zip([c.text for c in table.header], table.rows[0]))
    notes = {label: [table.notes[i] for i in cell.notes] for label, cell in cells.items()}
    assert notes == {
        "task": [],
        "none": [],
        "s4rl": ["settings unknown: no config.json that can be read"],
        "synther": ["synthetic data from .../far/away.hdf5"],
        "gta": ["settings differ from those with none: episodes 10 -> 3; num_steps 100 -> 50"],
        "tgcvg": [
            "settings differ from those with none: state_noise None -> 0.1",
            "made from other original data (9 transitions) than none's (10 transitions, crc32 1)",
        ],
    }
    assert len(results.problems) == 1 and "s4rl/td3_bc/config.json" in results.problems[0]

    compared = tables.comparison_table(results, "td3_bc")
    marks = {row[1].text: row[1].notes for row in compared.rows}
    assert marks["gta minus none"] and marks["tgcvg minus gta"] and marks["gta minus s4rl"]


def test_field_of_a_newer_version_has_its_default(tmp_path):
    write_run(tmp_path, HOPPER, "none", "bc", [1, 2])
    config = {"hidden_dims": [256, 256], "replay": {"reward_scale": 1.0}}
    write_run(tmp_path, HOPPER, "gta", "bc", [1, 2], config=config, subset="all")
    assert not tables.score_table(gather(tmp_path), "bc").notes
    write_run(tmp_path, HOPPER, "tgcvg", "bc", [1, 2], config={"replay": {"reward_scale": 2.0}})
    (note,) = tables.score_table(gather(tmp_path), "bc").notes
    assert note == "settings differ from those with none: replay.reward_scale 1.0 -> 2.0"


def test_returns_are_told_from_scores(tmp_path):
    write_run(tmp_path, HOPPER, "none", "bc", [1.0, 1.0])
    write_run(tmp_path, "mine", "none", "bc", [1.0, 1.0], unit="return")
    write_run(tmp_path, "other", "none", "bc", [2.0, 2.0])
    table = texts(tables.score_table(gather(tmp_path), "bc"))
    assert table["mine (returns)"] == ["9.0 ± 0.0"]
    assert table["average of 2 tasks"] == ["1.5"]


def test_comparisons_by_welch_and_holm(tmp_path):
    write_run(tmp_path, HOPPER, "none", "cql", [1, 2, 3])
    write_run(tmp_path, HOPPER, "gta", "cql", [3, 5, 7])
    write_run(tmp_path, HOPPER, "tgcvg", "cql", [101, 102, 103])
    write_run(tmp_path, WALKER, "none", "cql", [5])
    write_run(tmp_path, WALKER, "gta", "cql", [4])
    table = tables.comparison_table(gather(tmp_path), "cql")
    rows = {(row[0].text, row[1].text): [c.text for c in row[2:]] for row in table.rows}
    # t = 2.324 with 2.94 degrees of freedom
    assert rows[HOPPER, "gta minus none"] == ["+3.0", "[-1.2, +7.2]", "0.104", "0.104", "3, 3"]
    assert rows[HOPPER, "tgcvg minus none"][0] == "+100.0"
    assert rows[HOPPER, "tgcvg minus none"][2:4] == ["< 0.001"] * 2
    assert rows[HOPPER, "tgcvg minus gta"][0] == "+97.0"
    assert rows[WALKER, "gta minus none"] == ["-1.0", MISSING, MISSING, MISSING, "1, 1"]
    assert "Holm for the 3 tests" in table.caption
    assert [row[5].strong for row in table.rows] == [False, True, True, False]
    assert tables.comparison_table(gather(tmp_path, WALKER), "bc") is None


def test_generators_of_both_modes(tmp_path):
    folder = tmp_path / HOPPER / "tgcvg-k40" / "policy"
    folder.mkdir(parents=True)
    modes = {"mean": {"return": [90.0], "score": [9.0]}, "sampled": {"return": [1], "score": [8]}}
    content = {"kind": "transformer_cql", "env": HOPPER, "seeds": [0], "episodes": 5}
    (folder / "evaluation.json").write_text(json.dumps(content | {"modes": modes}))
    table = tables.generator_table(gather(tmp_path))
    assert [c.text for c in table.header[1:]] == ["tgcvg-k40 sampled", "tgcvg-k40 mean"]
    assert texts(table) == {HOPPER: ["8.0", "9.0"]} and table.rows[0][1].detail == "5 episodes"
    modes["mean"]["score"] = [math.nan]
    (folder / "evaluation.json").write_text(json.dumps(content | {"modes": modes}))
    with pytest.raises(UserError, match="--env=other: nothing of it in"):
        gather(tmp_path, "other")
    assert "no finite numbers" in gather(tmp_path).problems[0]


def test_quality_table(tmp_path):
    gta = {"reward": (3.25, 3.5), "masked": (0.02, None), "novelty_raw_sq_subset": (None, 1234.5)}
    write_quality(tmp_path, HOPPER, "gta", gta)
    write_quality(tmp_path, HOPPER, "tgcvg", {"reward": (3.26, math.inf), "odd": (1, 2)}, seed=4)
    results = gather(tmp_path)
    table = quality.quality_table(results, HOPPER)
    rows = {name: cells[:-1] for name, cells in texts(table).items()}
    assert rows == {
        "reward": ["3.25[a]", "3.5", MISSING],
        "masked": ["2 %", MISSING, MISSING],
        "novelty raw sq subset": [MISSING, "1,234", MISSING],
        "odd": ["1", MISSING, "2"],
    }
    assert table.notes == (
        "as measured with gta; with tgcvg: 3.26",
        "measured otherwise than gta: seed 0 -> 4",
    )
    assert [c.notes for c in table.header] == [(), (), (), (1,), ()]
    assert "raw, squared, to a subset" in table.rows[2][-1].text
    assert quality.quality_table(results, WALKER) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", "no JSON object"),
        ("{", "Expecting property name"),
        ('{"metrics": {"reward": 3}}', "'int' object has no attribute"),
        ("{}", "no 'metrics'"),
        ('{"metrics": {}, "curves": {"e": {"step": [1], "original": []}}}', "different lengths"),
        ("\udcff", "can't decode"),
    ],
)
def test_damaged_quality_is_named(tmp_path, content, reason):
    folder = write_quality(tmp_path, HOPPER, "gta", {})
    (folder / "quality.json").write_bytes(content.encode(errors="surrogateescape"))
    results = gather(tmp_path)
    (problem,) = results.problems
    assert problem.startswith(f"{HOPPER}/gta/quality/quality.json: ") and reason in problem
    assert not results.quality and "\n" not in problem


def test_what_is_no_run_is_left_out(tmp_path):
    write_run(tmp_path, "tgcvg/hopper/medium-v0", "none", "bc", [1, 2])
    write_run(tmp_path, "report", "none", "bc", [1, 2])
    write_run(tmp_path, ".hidden", "none", "bc", [1, 2])
    (tmp_path / "tgcvg_hopper_medium-v0" / "tgcvg" / "dynamics").mkdir(parents=True)
    (tmp_path / "tgcvg_hopper_medium-v0" / "info").mkdir()
    (tmp_path / "a file").write_text("x")
    results = gather(tmp_path)
    assert results.names == {"tgcvg_hopper_medium-v0": "tgcvg/hopper/medium-v0"}
    assert len(results.runs) == 1 and not results.problems
    for name in ("tgcvg/hopper/medium-v0", "tgcvg_hopper_medium-v0", "all"):
        assert gather(tmp_path, name).runs.keys() == results.runs.keys()


def test_nothing_there_is_one_line(tmp_path):
    for path, words in ((tmp_path / "no", "no such folder"), (tmp_path, "no results in it")):
        with pytest.raises(UserError, match=words) as caught:
            gather(path)
        assert "\n" not in str(caught.value)


def test_text_is_escaped():
    nasty = "a|b<script>*x* [y](z) _u_ td3_bc $m$"
    cell = document.Cell(nasty, detail="2 < 3", strong=True, notes=(0, 27))
    table = document.Table(nasty, (cell, cell), ((cell, cell),), (nasty,))
    blocks = [document.Heading(1, "1. #"), document.Paragraph("- no list"), table]
    page = document.to_html(blocks, None)
    assert "<script" not in page and "a|b&lt;script&gt;" in page and "<sup>a,ab</sup>" in page
    text = document.to_markdown(blocks)
    assert "<script" not in text and r"a\|b&lt;script&gt;\*x\* \[y\](z) \_u\_ td3_bc \$m\$" in text
    assert text.startswith("# 1\\. #\n\n\\- no list\n\n")
    assert document.to_markdown([document.Paragraph("mean [1.0, 2.0]")]) == "mean [1.0, 2.0]\n"
