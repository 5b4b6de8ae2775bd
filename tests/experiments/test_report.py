"""The app that gathers all results in one page, and the file by which evaluate takes part."""

import base64
import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from launch import run

from tgcvg_jax import report
from tgcvg_jax.report import page

ENV = "<b>hopper|1"  # a folder's name may be anything
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def workdir(tmp_path):
    """Two learners on data of three kinds, one run unfinished, one file damaged."""
    root = tmp_path / "runs"
    for label, learner, shift in (("none", "td3_bc", 0), ("tgcvg", "td3_bc", 9), ("s4rl", "bc", 3)):
        folder = root / ENV / label / learner
        folder.mkdir(parents=True)
        config = {"env": ENV, "learner": learner, "config": {"num_steps": 20}, "seeds": [0, 1]}
        (folder / "config.json").write_text(json.dumps(config))
        rows = [(step, seed, step + seed + shift) for step in (10, 20) for seed in (0, 1)]
        write_csv(folder / "metrics.csv", ("step", "seed", "normalized_score"), rows)
        header = ("seed", "return_mean", "return_std", "normalized_score", "episodes")
        write_csv(folder / "scores.csv", header, [(i, 1, 1, 20 + i + shift, 5) for i in (0, 1)])
    (root / ENV / "s4rl" / "bc" / "scores.csv").unlink()
    quality = root / ENV / "tgcvg" / "quality"
    quality.mkdir()
    metrics = {"dynamics_mse": {"original": 1e-6, "synthetic": 0.1},
               "oracle_reward": {"original": 3.0, "synthetic": 3.5}}  # fmt: skip
    curves = {"compounding_error": {"step": [1, 2], "original": [0, 0], "synthetic": [0.1, 0.3]}}
    content = {"env": ENV, "seed": 0, "metrics": metrics, "curves": curves, "settings": {}}
    (quality / "quality.json").write_text(json.dumps(content))
    (quality / "trajectory.png").write_bytes(PIXEL)
    (quality / "trajectory.gif").write_bytes(b"GIF89a, or so")
    (quality / "quality.png").write_bytes(b"no picture")
    policy = root / ENV / "tgcvg" / "policy"
    policy.mkdir()
    (policy / "evaluation.json").write_text("{")
    return root


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are drawn elsewhere: most of a report's time."""
    for name in ("score_bars", "learning_curve", "trade_off"):
        monkeypatch.setattr(page.plotting, name, lambda path, *_, **__: path.write_bytes(PIXEL))


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what the tests ask for."""

    VOID = ("meta", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.tables, self.ids, self.links = [], [], [], [], []
        self.tags, self.headers = set(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        if tag == "table":
            self.tables.append(None)
        if tag == "th":
            self.headers.append(attrs.get("scope"))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "caption":
            self.tables[-1] = data


def test_a_page_in_two_forms(workdir):
    result = run("report", f"--workdir={workdir}", cwd=workdir)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"td3_bc +none +tgcvg\n-+\n{re.escape(ENV)} +20.5 ± 0.5 +29.5 ± 0.5\*",
                     result.stdout)  # fmt: skip
    assert f"written to {workdir}/report/: report.md, report.html, pictures" in result.stdout
    warnings = result.stderr.splitlines()
    assert len(warnings) == 2 and all(
        "could not be read: <b>hopper|1/tgcvg/" in w for w in warnings
    )
    assert {p.name for p in workdir.iterdir()} == {ENV, "report"}

    folder = workdir / "report"
    markdown = (folder / "report.md").read_text()
    pictures = re.findall(r"\]\(([^)]*\.(?:png|gif))\)", markdown)
    names = {p.name for p in folder.iterdir()}
    assert names == {"report.md", "report.html", *pictures} and len(pictures) == len(set(pictures))
    kinds = {name.split("_")[0] for name in pictures}
    assert kinds == {"scores", "curve", "errors", "trade", "trajectory"}
    assert "trajectory_b_hopper_1_tgcvg.gif" in names
    sections = ["Scores", "Differences", "Quality of the data", "Learning curves", "Pictures",
                "How each run was made", "Could not be read"]  # fmt: skip
    assert re.findall(r"^## (.*)", markdown, re.MULTILINE) == sections
    assert "| running<br>step 20 of 20 |" in markdown and "**29.5 ± 0.5**" in markdown
    assert "num_steps 1000000 -&gt; 20" in markdown
    assert "- &lt;b&gt;hopper\\|1/tgcvg/policy/evaluation.json: Expecting" in markdown

    page = Page((folder / "report.html").read_text())
    assert len(page.images) == len(pictures)
    for image, name in zip(page.images, pictures):
        kind, _, data = image["src"].partition(";base64,")
        assert kind == f"data:image/{name.rpartition('.')[2]}" and image["alt"]
        assert base64.b64decode(data) == (folder / name).read_bytes()
    assert len(page.tables) == 5 and all(page.tables) and set(page.headers) == {"row", "col"}
    assert {f"#{x}" for x in page.ids} == set(page.links) and len(page.ids) == len(sections)
    assert not page.tags & {"script", "b", "link"}


def test_same_results_same_bytes_and_old_pictures_go(workdir):
    contents = []
    for _ in range(2):
        folder = report.write(report.gather(workdir))
        contents.append({p.name: p.read_bytes() for p in folder.iterdir()})
        (folder / "notes.txt").write_text("the user's own")
    assert contents[0].items() <= contents[1].items()
    (workdir / ENV / "tgcvg" / "quality" / "quality.json").unlink()
    folder = report.write(report.gather(workdir))
    left = {p.name for p in folder.iterdir()}
    assert not [name for name in left if name.startswith(("errors", "trade_off"))]
    assert "notes.txt" in left


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_fails_leaves_the_old_report(workdir, monkeypatch):
    folder = report.write(report.gather(workdir))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    scores = workdir / ENV / "none" / "td3_bc" / "scores.csv"
    scores.write_text(scores.read_text().replace("20", "77"))

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(page.document, "to_html", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write(report.gather(workdir))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert {p.name for p in workdir.iterdir()} == {ENV, "report"}


@pytest.mark.usefixtures("undrawn")
def test_settings_are_words_without_paths(workdir):
    """What is nested is told in words; what lies on one machine alone is left out."""
    folder = workdir / ENV / "tgcvg"
    generator = {"folder": "/home/me/runs/bc", "kind": "bc", "seed": 3, "step": 50, "config": {}}
    config = {
        "synthesizer": "tgcvg", "env": ENV, "generator": generator, "seed": 0, "mix": ["a:0.1"],
        "models_from": {"dynamics": "tgcvg-k40"}, "config": {"policy": {"num_steps": 3}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    run_config = json.loads((folder / "td3_bc" / "config.json").read_text())
    run_config["synthetic"] = "/home/me/other/hopper/gta/synthetic.hdf5"
    (folder / "td3_bc" / "config.json").write_text(json.dumps(run_config))
    for problem in ("bc", "policy"):
        (folder / problem / "config.json").mkdir(parents=True)  # no file: can't be read
    report.write(report.gather(workdir))
    text = (workdir / "report" / "report.md").read_text()
    row = next(line for line in text.splitlines() if "generator" in line and " tgcvg |" in line)
    words = (
        "generator: bc, seed 3, step 50; mix: a:0.1; models_from: dynamics tgcvg-k40; all defaults"
    )
    assert words in row
    assert "synthetic data from .../hopper/gta/synthetic.hdf5" in text
    assert "/bc/config.json: Is a directory" in text
    assert "/home" not in text and str(workdir) not in text and "{" not in text


def test_bad_input_is_one_line(tmp_path):
    result = run("report", f"--workdir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    assert re.fullmatch(r"error: --workdir=.*: no results in it; .*\n", result.stderr)


def test_evaluate_writes_what_the_report_reads(tmp_path):
    """A policy as it comes from a checkpoint; then a folder that can't take the file."""
    script = """if True:
        import sys
        from experiments import evaluate
        from tgcvg_jax import data, tasks, training
        from tgcvg_jax.evaluation import loading
        from tgcvg_jax.learners import bc
        task = tasks.TASKS["hopper-medium-v2"]
        config = bc.Config(num_steps=1, batch_size=2, hidden_dims=(2,))
        learner = bc.make(task, config)
        state = training.init(learner, learner.prepare(data.blank(task)), (4, 7))
        for kind, checkpoint in (("transformer_cql", sys.argv[1]), ("bc", sys.argv[2])):
            trained = loading.Trained(task, kind, config, learner, state, [4, 7])
            checkpoint = f"--checkpoint={checkpoint}"
            evaluate.FLAGS.unparse_flags()
            evaluate.FLAGS(["app", "--env=hopper-medium-v2", "--episodes=1", checkpoint])
            evaluate.score_policy(trained)
    """
    folder = tmp_path / "hopper-medium-v2" / "tgcvg" / "policy"
    (folder / "1").mkdir(parents=True)
    blocked = tmp_path / "blocked" / "evaluation.json"
    blocked.mkdir(parents=True)
    (tmp_path / "check.py").write_text(script)
    result = run("check.py", folder / "1", blocked.parent, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"\nwritten to {folder}/evaluation.json\npolicy" in result.stdout
    content = json.loads((folder / "evaluation.json").read_text())
    modes = content.pop("modes")
    assert content == {
        "kind": "transformer_cql", "env": "hopper-medium-v2", "seeds": [4, 7], "episodes": 1,
    }  # fmt: skip
    assert list(modes) == ["sampled", "mean"] and len(modes["mean"]["return"]) == 2
    span = 3234.3 + 20.272305
    expected = 100 * (np.array(modes["mean"]["return"]) + 20.272305) / span
    np.testing.assert_allclose(modes["mean"]["score"], expected)
    found = report.gather(tmp_path).generators["hopper-medium-v2", "tgcvg"]
    np.testing.assert_array_equal(found["mean"].values, modes["mean"]["score"])

    assert "evaluation.json can't be written (Is a directory)" in result.stderr
    assert result.stdout.count("written to") == 1
    assert [p.name for p in blocked.parent.iterdir()] == ["evaluation.json"]
