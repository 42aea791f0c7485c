"""``tapfinger tune --trace``, the whole way: constants found on past jobs, kept only if better, and tried out."""

import json
from functools import partial

import pytest
from click.testing import CliRunner

from tapfinger_hpc.cli import tapfinger
from tapfinger_hpc.errors import ConfigError, TraceError
from tapfinger_hpc.policies import constants
from tapfinger_hpc.policies.compiled import tune_price, tuned
from tapfinger_hpc.whatif import report
from tapfinger_hpc.whatif.report import Change

pytestmark = pytest.mark.slow
POOR = tuned.prices("cluster")._replace(patience=4.0, margin=0.3, backlog=10.0, base=20.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    made = ["trace", "synth", "--jobs", "160", "-o", str(folder / "made.jsonl")]
    CliRunner().invoke(tapfinger, made, catch_exceptions=False)
    (folder / "site.toml").write_text(
        '[[node]]\nnames = "n[1-6]"\ncpus = 16\ngpus = 4\nmem = "64000M"\n'
        + "".join(
            f'[[partition]]\nname = "p{p}"\nnodes = "n[{n}-{n + 1}]"\n' for p, n in zip("abc", (1, 3, 5), strict=True)
        )
    )
    constants.write(folder / "poor.json", POOR, {})
    return folder


@pytest.fixture
def tuned_site(folder, tmp_path, monkeypatch):
    """Tunes from poor constants alone, for a few generations."""
    monkeypatch.setattr(tuned, "shipped", tuple)
    monkeypatch.setattr(tune_price, "tune", partial(tune_price.tune, population=8, generations=4, held_out=6))

    def run(*arguments: str):
        given = ["--trace", str(folder / "made.jsonl"), "--cluster", str(folder / "site.toml")]
        given += ["--start", str(folder / "poor.json"), "--out", str(tmp_path / "found.json"), *arguments]
        return CliRunner().invoke(tapfinger, ["tune", *given]), tmp_path / "found.json"

    return run


def test_constants_that_do_better_on_the_later_part_are_kept_and_told(tuned_site):
    done, out = tuned_site("--workers", "2")
    assert done.exit_code == 0, done.output
    assert constants.read(out) != POOR
    assert "which were not tuned on" in done.output
    assert all(name in done.output for name in ("easy", "price+constants", "tapfinger+constants"))
    found = json.loads(out.read_bytes())
    assert found["scenario"].startswith("site-")
    assert found["held_out"]["price"]["value"] < 0


def test_constants_that_do_no_better_there_are_not_kept(tuned_site, monkeypatch):
    monkeypatch.setattr(report, "between", lambda *_: Change(0.01, -0.2, 0.3))
    done, out = tuned_site()
    assert done.exit_code == 3, done.output
    assert "poor.json" in done.output
    assert not out.exists()


def test_a_search_that_finds_nothing_says_so(tuned_site, monkeypatch, folder):
    search = tune_price.tune
    monkeypatch.setattr(tune_price, "tune", partial(search, generations=0))
    done, out = tuned_site()
    assert done.exit_code == 3, done.output
    assert "found nothing that beats" in done.output
    assert not out.exists()


def test_what_is_wrong_is_told_before_the_search(tuned_site, folder, tmp_path):
    done, _ = tuned_site("--start", str(tmp_path / "gone.json"))
    assert isinstance(done.exception, ConfigError)
    done, _ = tuned_site("--out", str(tmp_path / "nowhere" / "found.json"))
    assert isinstance(done.exception, ConfigError)
    done, _ = tuned_site("--trace", str(folder / "gone.jsonl"))
    assert isinstance(done.exception, TraceError)


def test_found_constants_are_tried_beside_the_present_ones(folder, tmp_path):
    told = tmp_path / "told.json"
    given = ["--trace", str(folder / "made.jsonl"), "--cluster", str(folder / "site.toml"), "--json", str(told)]
    given += ["--policies", "fifo,price", "--amounts", "change", "--constants", str(folder / "poor.json")]
    done = CliRunner().invoke(tapfinger, ["evaluate", *given], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(told.read_bytes())
    assert [row["policy"] for row in found["rows"]] == ["easy", "fifo", "price", "price+constants"]
    (pair,) = found["pairs"]
    rows = {row["policy"]: row["mean_completion_s"] for row in found["rows"]}
    assert pair["completion"]["value"] == pytest.approx(rows["price+constants"] / rows["price"] - 1, abs=1e-4)
    assert pair["completion"]["value"] > 0, "those are poor"
    assert "price+constants against price (may change)" in done.output


def test_threads_change_nothing_of_what_is_found():
    short = partial(tune_price.tune, "cluster", 1.0, 3, population=4, episodes=3, generations=2, held_out=3)
    assert short(workers=3) == short()
