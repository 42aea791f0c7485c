"""The bench of reading accounting says what it measured."""

import json

import pytest
from click.testing import CliRunner

from trace_tools.bench import accounting


@pytest.mark.slow
def test_both_kinds_of_file_are_measured(tmp_path):
    done = CliRunner().invoke(accounting, ["--jobs", "300", "--dir", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["jobs"], found["rows"]) == (300, 900)
    assert [figure["output"] for figure in found["figures"]] == ["parquet", "jsonl"]
    assert all(figure["cpu_s"] > 0 and figure["peak_mb"] > 10 for figure in found["figures"])
    assert list(tmp_path.iterdir()) == []
