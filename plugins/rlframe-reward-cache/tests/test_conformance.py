from rlframe_reward_cache import RewardCache

from rlframe.testing import HookPluginSuite


class TestRewardCache(HookPluginSuite):
    component, config = RewardCache, {"rewards": ["brief"]}
