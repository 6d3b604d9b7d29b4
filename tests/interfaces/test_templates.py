import sys
from types import ModuleType

import pytest

from bids_gsrecon.cli.direct import main
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.templates import fetch_template, find_template, resolve_template


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty TemplateFlow."""
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'tf'))
    return tmp_path / 'tf'


def put(home, name='Head', cohort='', content=b'x', entities='res-01_'):
    folder = home / f'tpl-{name}' / cohort
    folder.mkdir(parents=True, exist_ok=True)
    stem = f'tpl-{name}_{cohort + "_" if cohort else ""}{entities}'
    for end in ('T1w.nii.gz', 'desc-brain_mask.nii.gz'):
        (folder / f'{stem}{end}').write_bytes(content)
    return folder / f'{stem}T1w.nii.gz'


class Api(ModuleType):
    """TemplateFlow's, which makes files or says why not."""

    def __init__(self, home, error=None):
        super().__init__('templateflow.api')
        self.home, self.error, self.asked = home, error, []

    def get(self, name, **query):
        if self.error:
            raise self.error
        self.asked.append((name, query))
        put(self.home, name)


@pytest.fixture
def api(home, monkeypatch):
    def install(error=None):
        module = ModuleType('templateflow')
        module.api = Api(home, error)
        monkeypatch.setitem(sys.modules, 'templateflow', module)
        monkeypatch.setitem(sys.modules, 'templateflow.api', module.api)
        return module.api

    return install


def test_auto_and_files_need_no_templateflow(home, tmp_path):
    assert resolve_template('auto') == 'auto'
    (tmp_path / 'a_T1w.nii.gz').write_bytes(b'')
    assert resolve_template(str(tmp_path / 'a_T1w.nii.gz')) == str(tmp_path / 'a_T1w.nii.gz')


def test_a_name_is_found_where_it_was_fetched(home):
    path = put(home)
    put(home, entities='res-02_')
    assert resolve_template('Head') == str(path)
    child = put(home, 'Child', 'cohort-2', entities='res-1_')
    assert find_template('Child:cohort-2') == child
    assert find_template('Child') is None


def test_an_empty_file_was_not_fetched(home):
    put(home, content=b'')
    with pytest.raises(InputError, match='gsrecon fetch-templates Head'):
        resolve_template('Head')


def test_fetching_asks_once(home, api):
    module = api()
    assert fetch_template('Head').name == 'tpl-Head_res-01_T1w.nii.gz'
    assert [query['suffix'] for _, query in module.asked] == ['T1w', 'mask']
    fetch_template('Head')
    assert len(module.asked) == 2


@pytest.mark.parametrize(
    ('error', 'words'),
    [(ConnectionError('no'), 'there is no network here'), (ValueError('empty'), 'has no T1w')],
)
def test_what_cannot_be_fetched_is_one_sentence(home, api, capsys, error, words):
    api(error)
    assert main(['fetch-templates', 'Head']) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count('\n') == 1


def test_the_list_says_what_is_there(home, capsys):
    put(home, 'OASIS30ANTs')
    assert main(['fetch-templates']) == 0
    said = capsys.readouterr().out
    assert 'auto                 here' in said
    assert 'OASIS30ANTs          here' in said
    assert 'not here: gsrecon fetch-templates MNI152NLin2009cAsym' in said
