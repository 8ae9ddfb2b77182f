"""What an author's test file looks like from outside: run by pytest, in a directory of its own."""

import subprocess
import sys
import textwrap

import pytest

from rlframe.testing import KLControllerSuite, RewardProviderSuite
from rlframe.testing.checks import CHECKS
from tests.testing.defects import Controller, Reward, Whitens

pytest_plugins = ["pytester", "rlframe.testing.pytest_plugin"]

HEAD = """
from rlframe.testing import KLControllerSuite, RewardProviderSuite
from tests.testing.defects import Controller, Reward, Tosses, Whitens
"""


@pytest.fixture
def run(pytester):
    """Run a test file in this process; returns what pytester makes of it."""

    def ran(source, *options):
        pytester.makepyfile(HEAD + textwrap.dedent(source))
        plugins = ("rlframe.testing.pytest_plugin", "no:cacheprovider", "no:hypothesispytest")
        loaded = [part for plugin in plugins for part in ("-p", plugin)]
        return pytester.runpytest_inprocess(*loaded, "-rsf", *options)

    return ran


def test_two_lines_are_a_test_for_every_check(run):
    outcome = run(
        """
        class TestLength(RewardProviderSuite):
            component, config = Reward, {}
        """,
        "-v",
    )
    outcome.assert_outcomes(passed=len(CHECKS["reward_providers"]))
    outcome.stdout.fnmatch_lines(["*TestLength::test_batch_split_invariance PASSED*"])


def test_a_failure_says_what_was_expected_and_what_came_and_shows_none_of_the_kit(run):
    outcome = run("""
        class TestWhitens(RewardProviderSuite):
            component, config = Whitens, {}
    """)
    assert outcome.ret == pytest.ExitCode.TESTS_FAILED
    outcome.stdout.fnmatch_lines(
        [
            "*TestWhitens.test_batch_split_invariance*",
            "*Whitens breaks 'batch_split_invariance'*",
            "*expected: the same score for a response*",
            "*found: *response 0 ('Great battery*scored *, and * in a batch of 2 instead of 10*",
            "*likely: *normalised over the batch*",
            "*do: *",
        ]
    )
    outcome.stdout.no_fnmatch_line("*checks/reward.py*")


def test_a_skip_is_shown_with_its_reason(run):
    outcome = run("""
        class TestWhitens(RewardProviderSuite):
            component, config = Whitens, {}
            skip = {"batch_split_invariance": "the group mean is the point"}
    """)
    outcome.assert_outcomes(passed=len(CHECKS["reward_providers"]) - 1, skipped=1)
    outcome.stdout.fnmatch_lines(["*the group mean is the point*"])


def test_a_check_that_says_nothing_is_shown_with_its_reason(run):
    outcome = run("""
        class TestController(KLControllerSuite):
            component = Controller
    """)
    outcome.assert_outcomes(passed=len(CHECKS["kl_controllers"]) - 2, skipped=2)
    outcome.stdout.fnmatch_lines(["*no target is known*"])


def test_settings_of_a_suite_reach_its_checks(run):
    outcome = run("""
        class TestController(KLControllerSuite):
            component, target = Controller, 5.0

        class TestReward(RewardProviderSuite):
            component, seconds_per_thousand = Reward, 1e-9
    """)
    outcome.stdout.fnmatch_lines_random(
        ["FAILED*TestController::test_fixed_point*", "FAILED*TestReward::test_time_per_thousand*"]
    )
    outcome.assert_outcomes(
        passed=len(CHECKS["kl_controllers"]) + len(CHECKS["reward_providers"]) - 2, failed=2
    )


def test_the_fixture_runs_all_checks_and_tells_all_failures_at_once(run):
    outcome = run("""
        def test_right(rlframe_check):
            rlframe_check(Reward)

        def test_wrong(rlframe_check):
            rlframe_check(Whitens)

        def test_excused(rlframe_check):
            rlframe_check(Whitens, skip={"batch_split_invariance": "the group mean is the point"})

        def test_nearly_excused(rlframe_check):
            rlframe_check(Whitens, skip={"batch_split": "the group mean is the point"})
    """)
    outcome.assert_outcomes(passed=2, failed=2)
    outcome.stdout.fnmatch_lines(
        ["Whitens breaks 'batch_split_invariance'", "*no check 'batch_split'.*Did you mean*"]
    )


def test_the_fixtures_of_parts_go_together(run):
    outcome = run("""
        def test_parts(rlframe_batch, rlframe_context, rlframe_policy):
            batch = rlframe_batch("one", "three", answer=["4", "5"])
            scores = Reward(Reward.Config(), rlframe_context).score(batch)
            assert scores[:2] == [3.0, 5.0]
            assert batch.column("answer")[:4] == ["4", "4", "5", "5"]
            assert rlframe_policy.logprobs(rlframe_context.tokenizer(
                "easy", return_tensors="pt").input_ids).shape[0] == 1
    """)
    outcome.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (
            {"skip": {"finit": "why not"}},
            ValueError,
            "no check 'finit'. Did you mean 'finite'",
        ),
        ({"skip": {"finite": " "}}, ValueError, "'finite' needs a reason"),
        ({"skip": {"finite": None}}, ValueError, "'finite' needs a reason"),
        ({"test_finite": lambda self: None}, TypeError, "replaces test_finite, which is the kit's"),
        ({"component": Controller}, TypeError, "must be a subclass of RewardProvider"),
        ({"component": Reward({}, None)}, TypeError, "must be a subclass of RewardProvider"),
    ],
)
def test_a_mistake_in_the_test_class_is_told_when_the_file_is_read(body, error, message):
    with pytest.raises(error, match=message):
        type("TestReward", (RewardProviderSuite,), {"component": Reward, **body})


def test_an_author_may_share_a_base_and_add_tests():
    class Base(KLControllerSuite):
        target = 6.0

    class Own(Base):
        component = Controller

        def test_of_its_own(self):
            assert self.subject().target == 6.0

    Own().test_of_its_own()
    Base.target = 5.0
    assert Own.subject().target == 6.0, "a subject is made once"


def test_classes_do_not_share_a_component():
    class One(RewardProviderSuite):
        component = Reward

    class Two(One):
        component = Whitens

    assert (One.subject().component, Two.subject().component) == (Reward, Whitens)
    assert One.subject() is One.subject()


def test_the_context_may_be_the_authors():
    from rlframe.testing import tiny_context

    own = tiny_context()

    class One(RewardProviderSuite):
        component = Reward

        @classmethod
        def context(cls):
            return own

    assert One.subject().instance.context is own


def test_pytest_starts_without_torch_and_the_kit(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\ndef test_it():\n"
        "    heavy = {'torch', 'transformers', 'pydantic', 'rlframe.api'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    assert 'rlframe.testing.pytest_plugin' in sys.modules\n"
        "    assert 'rlframe.testing.check' not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "rlframe.testing.pytest_plugin"]
    command += ["-p", "no:hypothesispytest"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_name_of_the_kit_is_an_attribute_error():
    import rlframe.testing

    with pytest.raises(AttributeError, match="no attribute 'RewardSuite'"):
        _ = rlframe.testing.RewardSuite
    for name in rlframe.testing.__all__:
        assert getattr(rlframe.testing, name).__name__ == name
