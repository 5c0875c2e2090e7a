"""What is made of the parameters' help is up to date, and each text can stand alone."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
import re

import pytest
import yaml

from lunar_stereo_recon.ros import parameters
from lunar_stereo_recon.ros.parameters import ReconstructionParameters

ROOT = Path(__file__).resolve().parents[2]
STALE = 'run: python docs/make_parameter_docs.py'
KINDS = [
    kind
    for name, kind in vars(parameters).items()
    if name.endswith('Parameters') and dataclasses.is_dataclass(kind)
]
TEXTS = [
    pytest.param(kind, item, id=f'{kind.__name__}.{item.name}')
    for kind in KINDS
    for item in dataclasses.fields(kind)
]


@pytest.fixture(scope='module')
def maker():
    path = ROOT / 'docs' / 'make_parameter_docs.py'
    spec = importlib.util.spec_from_file_location('make_parameter_docs', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(maker):
    tables = set()
    for page in maker.pages():
        text = page.read_text(encoding='utf-8')
        assert maker.with_tables(text) == text, f'{page}: {STALE}'
        tables |= {match[2] for match in maker.TABLE.finditer(text)}
    assert tables == {kind.__name__ for kind in KINDS}


def test_parameters_file_is_up_to_date(maker):
    text = (ROOT / 'config' / 'reconstruction.yaml').read_text(encoding='utf-8')
    assert maker.parameters_file() == text, STALE
    values = yaml.safe_load(text)['/**']['ros__parameters']
    assert values == dataclasses.asdict(ReconstructionParameters())


def test_a_changed_help_makes_tables_stale(maker):
    page = ROOT / 'docs' / 'ros.md'
    text = page.read_text(encoding='utf-8')
    changed = text.replace('Keep every n-th row', 'Keep each second row')
    assert changed != text
    assert maker.with_tables(changed) == text


@pytest.mark.parametrize('kind, item', TEXTS)
def test_help_is_of_sentences_that_stand_alone(kind, item):
    text = item.metadata['description']
    assert re.match(r'[A-Z]|rosbag2', text) and text.endswith('.')
    assert '|' not in text
    first_word, *others = re.findall(r'[\w`]+', text)
    assert len(others) >= 3
    # "Of the images" or "These files" say nothing to one who does not see what stood before.
    assert first_word not in {
        'As',
        'Of',
        'In',
        'To',
        'It',
        'Its',
        'This',
        'That',
        'These',
        'Those',
    }


@pytest.mark.parametrize('kind, item', TEXTS)
def test_parameters_that_a_help_mentions_are_those_of_the_node(kind, item):
    others = {'frame_status', 'cmd_vel', 'base_link', 'best_effort', 'flight_int8', 'sgbm_hh'}
    others |= {'south_pole', 'boulder_field'}
    mentioned = set(re.findall(r'`(\w+_\w+)`', item.metadata['description'])) - others
    assert mentioned <= {field.name for field in dataclasses.fields(kind)}
