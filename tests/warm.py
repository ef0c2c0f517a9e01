"""Imported by the fork server before :mod:`tests.frozen`: what nearly every run imports or reads first, done once."""

import rich._emoji_codes  # noqa: F401 - of every table that is printed

import clplat.arrange
import clplat.metrics.looks
import clplat.scenarios.digits  # noqa: F401
from clplat import config, registry
from tests import cases

config.compose([*cases.small("ewc"), "trainer.progress=none"])
for section, name in (("strategy", "ewc"), ("backbone", "mlp"), ("optimizer", "adam"), ("logger", "none")):
    registry.find(section, name).load()
