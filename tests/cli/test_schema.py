"""`rlframe schema`: on stdout, or in a file that an editor is given."""

import json


def test_it_is_json_alone(rlframe):
    ended = rlframe("schema")
    assert ended.code == 0
    assert json.loads(ended.out)["$schema"].endswith("2020-12/schema")


def test_it_goes_to_a_file_with_the_line_that_an_editor_wants(rlframe, tmp_path):
    path = tmp_path / "recipe.schema.json"
    ended = rlframe("schema", "--output", path)
    assert ended.code == 0
    assert ended.out.endswith(f"# yaml-language-server: $schema={path}\n")
    assert "Recipe" in json.loads(path.read_text())["$defs"]


def test_a_file_that_can_not_be_written_ends_with_5(rlframe, tmp_path):
    assert rlframe("schema", "--output", tmp_path / "no" / "where.json").code == 5
