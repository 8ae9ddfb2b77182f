from rlframe_observers import EarlyStopping, RolloutLog

from rlframe.testing import HookPluginSuite


class TestEarlyStopping(HookPluginSuite):
    component, config = EarlyStopping, {"patience": 1}


class TestEarlyStoppingByOneReward(HookPluginSuite):
    component, config = EarlyStopping, {"patience": 1, "reward": "brief"}


class TestRolloutLog(HookPluginSuite):
    component, config = RolloutLog, {"every": 2}
