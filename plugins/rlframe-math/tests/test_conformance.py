from rlframe_math import MathVerify

from rlframe.testing import RewardProviderSuite


class TestMathVerify(RewardProviderSuite):
    component, config = MathVerify, {"wrong": 0.1}
    data = {"prompt": ["1 + 1 =", "6 / 4 ="], "answer": ["2", "3/2"]}  # noqa: RUF012
    responses = ["it is 2", "it is 3", "1.5", "no idea"]  # noqa: RUF012
