"""Who is held out, and that it stays so."""

import pytest

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.m2asr_split import TRAINING, VALIDATION, divided, read_split, update_split

NAMES = [f'sub-{n:02d}' for n in range(20)]


def held_out(roles):
    return {name for name, role in roles.items() if role == VALIDATION}


def test_a_share_is_held_out_by_name_and_seed_alone():
    roles = divided(NAMES, {}, share=0.15, seed=0)
    assert len(held_out(roles)) == 3
    assert divided(reversed(NAMES), {}, share=0.15, seed=0) == roles
    assert any(held_out(divided(NAMES, {}, share=0.15, seed=s)) != held_out(roles) for s in range(1, 5))


@pytest.mark.parametrize(('n', 'wanted'), [(1, 0), (2, 1), (3, 1), (7, 1), (10, 2)])
def test_one_at_least_where_there_are_two(n, wanted):
    assert len(held_out(divided(NAMES[:n], {}, share=0.15))) == wanted


def test_nobody_changes_sides(tmp_path):
    path = tmp_path / 'split.tsv'
    first, warnings = update_split(path, NAMES[:5])
    assert warnings == [] and len(first) == 1
    before = read_split(path)
    second, _ = update_split(path, NAMES)
    after = read_split(path)
    assert {name: after[name] for name in before} == before
    assert set(first) < set(second) and len(second) == 3
    assert update_split(path, NAMES[5:])[0] == tuple(n for n in second if n in NAMES[5:])
    assert read_split(path) == after, 'those who are not there now are not forgotten'


def test_a_split_written_by_hand_is_kept(tmp_path):
    path = tmp_path / 'split.tsv'
    path.write_text('split\tsite\tparticipant_id\ntraining\tA\tsub-00\nvalidation\tB\tsub-01\n')
    assert update_split(path, NAMES[:2])[0] == ('sub-01',)


def test_one_subject_and_nobody_held_out_are_warned_about(tmp_path):
    assert update_split(tmp_path / 'a.tsv', ['sub-01'])[1] == [
        'there is one subject only: no one can be held out, and the scores say nothing about others'
    ]
    held, warnings = update_split(tmp_path / 'b.tsv', NAMES, share=0)
    assert held == () and 'nobody is held out' in warnings[0]


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', 'needs the columns'),
        ('participant_id,split\nsub-01,training\n', 'needs the columns'),
        ('participant_id\tsplit\nsub-01\n', 'needs the columns'),
        ('participant_id\tsplit\nsub-01\ttest\n', "'test' for sub-01"),
        ('participant_id\tsplit\nsub-01\ttraining\nsub-01\tvalidation\n', 'two roles for sub-01'),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, text, said):
    path = tmp_path / 'split.tsv'
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        update_split(path, NAMES)
    assert str(path) in str(caught.value)
    assert path.read_text() == text


def test_somebody_must_be_left(tmp_path):
    path = tmp_path / 'split.tsv'
    path.write_text(f'participant_id\tsplit\nsub-00\t{VALIDATION}\nsub-01\t{VALIDATION}\n')
    with pytest.raises(InputError, match='holds out every subject'):
        update_split(path, NAMES[:2])
    assert divided(NAMES[:2], {'sub-00': VALIDATION}, share=1.0)['sub-01'] in (TRAINING, VALIDATION)
