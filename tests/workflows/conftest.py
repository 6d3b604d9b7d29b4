"""Runs of the dataset at ``tmp_path / 'bids'``."""

import pytest

from bids_gsrecon.cli.parser import parse_args
from bids_gsrecon.workflows.plan import plan_participants
from tests.bids_datasets import write_description


@pytest.fixture
def root(tmp_path):
    """A dataset without any participant."""
    return write_description(tmp_path / 'bids')


@pytest.fixture
def config(tmp_path):
    """Settings of a run under given arguments."""

    def parse(*arguments):
        folders = [tmp_path / 'bids', tmp_path / 'out', 'participant', '-w', tmp_path / 'work']
        return parse_args([*folders, *arguments])

    return parse


@pytest.fixture
def plan(config):
    """Plans under given arguments, by participant."""

    def run(*arguments, filters=None):
        return {item.participant: item for item in plan_participants(config(*arguments), filters or {})}

    return run
