from rlframe_pid import PID

from rlframe.testing import KLControllerSuite


class TestPID(KLControllerSuite):
    component, config = PID, {"target": 6.0, "derivative": 0.1}
