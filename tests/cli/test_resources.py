import pytest

from bids_gsrecon.cli.resources import available_cpus, available_memory_gb, parse_memory_gb


def test_slurm_and_cgroup_limit_the_processors(tmp_path):
    assert available_cpus({'SLURM_CPUS_PER_TASK': '1'}, tmp_path) == 1
    (tmp_path / 'cpu.max').write_text('100000 100000\n')
    assert available_cpus({}, tmp_path) == 1
    (tmp_path / 'cpu.max').write_text('max 100000\n')
    assert available_cpus({}, tmp_path) == available_cpus({}, tmp_path / 'none')


def test_slurm_and_cgroup_limit_the_memory(tmp_path):
    assert available_memory_gb({'SLURM_MEM_PER_NODE': '512'}, tmp_path) == 0.5
    assert available_memory_gb({'SLURM_MEM_PER_CPU': '256', 'SLURM_CPUS_PER_TASK': '2'}, tmp_path) == 0.5
    (tmp_path / 'memory.max').write_text(f'{2**28}\n')
    assert available_memory_gb({}, tmp_path) == pytest.approx(0.24, abs=0.005)
    (tmp_path / 'memory.max').write_text('max\n')
    assert available_memory_gb({}, tmp_path) == available_memory_gb({}, tmp_path / 'none')


@pytest.mark.parametrize(
    ('text', 'gb'), [('1G', 1), ('1GB', 1), ('512M', 0.5), ('512', 0.5), ('1T', 1024), ('1048576k', 1)]
)
def test_memory_sizes(text, gb):
    assert parse_memory_gb(text) == gb


@pytest.mark.parametrize('text', ['', 'G', '-1G', '0', '1X', 'nanG'])
def test_bad_memory_sizes(text):
    with pytest.raises(ValueError, match='write for instance 16G'):
        parse_memory_gb(text)
