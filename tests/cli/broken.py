"""Distributions that are not there: a module and its metadata in a directory, as pip leaves them."""

from pathlib import Path

REWARD = """\
from rlframe.api import PluginConfig, RewardProvider


class Config(PluginConfig):
    limit: int = 3


class Reward(RewardProvider[Config]):
    def score(self, batch):
        return [float(self.config.limit)] * len(batch)
"""
"""A module with a reward in it."""


def distribution(
    site: Path,
    name: str,
    *,
    offers: dict[str, str],
    module: str = REWARD,
    kind: str = "reward_providers",
    version: str = "1.0",
    requires: tuple[str, ...] = (),
) -> Path:
    """Lay out a distribution with one module, named after it, and return the module's path.

    Args:
      site: a directory on sys.path.
      name: of the distribution.
      offers: entry point -> the object in the module.
      module: its source.
      kind: of the entry points.
      version: of the distribution.
      requires: what it says it needs.
    """
    package = name.replace("-", "_")
    file = site / f"{package}.py"
    file.write_text(module)
    info = site / f"{package}-{version}.dist-info"
    info.mkdir()
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    head += [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join([*head, ""]))
    points = [f"{point} = {package}:{target}" for point, target in offers.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[rlframe.{kind}]", *points, ""]))
    return file
