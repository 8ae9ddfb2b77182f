from rlframe_sentiment import Vader

from rlframe.testing import RewardProviderSuite


class TestVader(RewardProviderSuite):
    component, config = Vader, {"of": "prompt_and_response"}
