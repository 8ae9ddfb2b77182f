from rlframe_verifiable import COLUMN, Scorer, Tasks

from rlframe.testing import DataGeneratorSuite, RewardProviderSuite

ROWS = Tasks.rows(Tasks.Config.model_validate({"task": "chain_sum", "rows": 6}))


class TestTasks(DataGeneratorSuite):
    component = Tasks
    config = {"task": "chain_sum", "rows": 20, "heldout_rows": 5}  # noqa: RUF012


class TestScorer(RewardProviderSuite):
    component = Scorer
    data = {name: [row[name] for row in ROWS] for name in ("prompt", COLUMN)}  # noqa: RUF012
    responses = [text for row in ROWS for text in (row["response"], "zzz")]  # noqa: RUF012
