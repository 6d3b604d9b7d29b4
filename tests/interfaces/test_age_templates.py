"""Templates by gestational age: what names say, and which file is taken."""

import pytest

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.age_templates import age_in_name, template_of_age


@pytest.mark.parametrize(
    'name',
    [
        'STA32.nii.gz', 'STA32exp.nii.gz', 'GA32_T2w.nii', 'template-32.nii.gz', 't2-t32.00.nii.gz',
        'week-32_T2w.nii.gz', 'fetal_32w.nii.gz', 'x_32wk_T2.nii.gz', 'tpl-a_cohort-32_T2w.nii.gz',
        'mean_32_weeks.nii.gz',
    ],
)  # fmt: skip
def test_ages_in_names(name):
    assert age_in_name(name) == 32


@pytest.mark.parametrize(
    'name', ['sub-01_T2w.nii.gz', 'T1w.nii', 'scan_2048.nii.gz', 'x_05.nii', 'brain-99.nii']
)
def test_names_without_an_age(name):
    assert age_in_name(name) is None


def test_the_nearest_is_taken(tmp_path):
    for name in ('STA28.nii.gz', 'STA32.nii.gz', 'STA32_mask.nii.gz', 'STA32_tissue.nii.gz', 'STA34.nii.gz',
                 'STA32_T1w.nii.gz', 'notes-31.txt'):  # fmt: skip
        (tmp_path / name).write_text('')
    for weeks, name in (
        (31.4, 'STA32.nii.gz'),
        (33, 'STA32.nii.gz'),
        (33.2, 'STA34.nii.gz'),
        (27, 'STA28.nii.gz'),
    ):
        path, age = template_of_age(tmp_path, weeks)
        assert path.name == name and f'STA{age:g}' in name
    (tmp_path / 'STA32_T2w.nii.gz').write_text('')
    assert template_of_age(tmp_path, 32)[0].name == 'STA32_T2w.nii.gz'


def test_no_age_near_is_refused(tmp_path):
    with pytest.raises(InputError, match='no image whose name states'):
        template_of_age(tmp_path, 30)
    (tmp_path / 'STA35.nii.gz').write_text('')
    with pytest.raises(InputError, match=r'STA35.nii.gz, is of 35 weeks'):
        template_of_age(tmp_path, 30)
