import io

import numpy as np
import pytest

from tgcvg_jax import reporting
from tgcvg_jax.files import atomic_path


def test_rows_of_one_step_join_and_unlogged_cells_stay_empty(tmp_path):
    path = tmp_path / "metrics.csv"
    log = reporting.MetricsLog(path)
    log.write(10, {"loss": np.array([1.0, 2.0])}, [3, 4])
    log.write(10, {"score": np.array([5.0, 6.0])}, [3, 4])
    log.write(20, {"loss": np.array([0.5, 0.25])}, [3, 4])
    log.flush()
    assert path.read_text().splitlines() == [
        "step,seed,loss,score", "10,3,1,5", "10,4,2,6", "20,3,0.5,", "20,4,0.25,",
    ]  # fmt: skip
    curves = reporting.read_curves(path)
    np.testing.assert_allclose(curves["loss"][1], [1.5, 0.375])
    np.testing.assert_allclose(curves["score"][0], [10])
    assert reporting.read_curves(path, by_seed=True)["loss"][1].shape == (2, 2)


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    log = reporting.MetricsLog(path)
    for step in (10, 20, 30):
        log.write(step, {"loss": np.array([1.0])}, [0])
    log.flush()
    assert set(reporting.MetricsLog(path, resume_step=20).curves()["loss"][0]) == {10, 20}


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,seed,loss\n10,0,1.5\n20,0,abc\nxx,0,1\n30,0\n40,0,2.5\n")
    assert list(reporting.read_curves(path)["loss"][0]) == [10, 40]
    path.write_text("step,seed,loss\n10,0,1.5\n10,1,1.5\n20,0,2\n20,1,abc\n")
    assert list(reporting.read_curves(path, by_seed=True)["loss"][0]) == [10]
    path.write_bytes(bytes(range(256)))
    assert reporting.read_curves(path) == {}
    assert reporting.read_curves(tmp_path / "missing.csv") == {}


def test_joined_logs_name_their_model(tmp_path):
    for model, name in (("a", "loss"), ("b", "error")):
        log = reporting.MetricsLog(tmp_path / f"{model}.csv")
        log.write(1, {name: np.array([2.0])}, [0])
        log.flush()
    logs = {model: tmp_path / f"{model}.csv" for model in ("a", "b", "missing")}
    reporting.join_logs(tmp_path / "all.csv", logs)
    assert (tmp_path / "all.csv").read_text() == "model,step,seed,loss,error\na,1,0,2,\nb,1,0,,2\n"


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "sub" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_bar_shows_progress_and_closes_before_an_error():
    stream = io.StringIO()
    console = reporting.Console(stream=stream)
    with pytest.raises(RuntimeError), reporting.progress(console, "work", 10, 4) as advance:
        advance(3)
        console.print("a line")
        raise RuntimeError
    assert "a line\n" in stream.getvalue() and "7.00/10.0" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    silent = io.StringIO()
    with reporting.progress(reporting.Console(False, silent), "work", 10) as advance:
        advance(3)
    assert not silent.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (600, "10 min"), (4 * 3600, "4.0 h"), (86400 * 3, "3.0 days")],
)
def test_duration(seconds, text):
    assert reporting.duration(seconds) == text
