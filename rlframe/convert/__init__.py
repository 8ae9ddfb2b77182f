"""Files of TRL, OpenRLHF and LLaMA-Factory as recipes. `trl.py`, `openrlhf.py` and `llamafactory.py`
are tables: what becomes of each option. Importing this package imports no torch.
"""

from rlframe.convert.sources import SOURCES, Conversion, convert_file

__all__ = ["SOURCES", "Conversion", "convert_file"]
