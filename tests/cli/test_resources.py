import pytest

from bids_gsrecon.cli.resources import (
    allocation_messages,
    available_cpus,
    available_memory_gb,
    parse_memory_gb,
)


def limits(function, environ, root, own=''):
    """What ``function`` says in a process of the control groups in /proc/self/cgroup ``own``."""
    (root / 'own').write_text(own)
    return function(environ, root, root / 'own')


@pytest.mark.parametrize('name', ['SLURM_CPUS_PER_TASK', 'NSLOTS', 'PBS_NP', 'LSB_DJOB_NUMPROC'])
def test_batch_systems_limit_the_processors(tmp_path, name):
    assert limits(available_cpus, {name: '1'}, tmp_path) == 1


def test_cgroups_limit_the_processors(tmp_path):
    (tmp_path / 'cpu.max').write_text('100000 100000\n')
    assert limits(available_cpus, {}, tmp_path) == 1
    (tmp_path / 'cpu.max').write_text('max 100000\n')
    assert limits(available_cpus, {}, tmp_path) == available_cpus({}, tmp_path / 'none', tmp_path / 'none')


def test_slurm_and_cgroup_limit_the_memory(tmp_path):
    assert limits(available_memory_gb, {'SLURM_MEM_PER_NODE': '512'}, tmp_path) == 0.5
    per_cpu = {'SLURM_MEM_PER_CPU': '256', 'SLURM_CPUS_PER_TASK': '2'}
    assert limits(available_memory_gb, per_cpu, tmp_path) == 0.5
    per_cpu = {'SLURM_MEM_PER_CPU': '256', 'SLURM_CPUS_ON_NODE': '4'}
    assert limits(available_memory_gb, per_cpu, tmp_path) == 1.0
    (tmp_path / 'memory.max').write_text(f'{2**28}\n')
    assert limits(available_memory_gb, {}, tmp_path) == pytest.approx(0.24, abs=0.005)
    (tmp_path / 'memory.max').write_text('max\n')
    bare = available_memory_gb({}, tmp_path / 'none', tmp_path / 'none')
    assert limits(available_memory_gb, {}, tmp_path) == bare


def test_the_limit_of_a_job_lies_between_the_step_and_the_root(tmp_path):
    job = tmp_path / 'system.slice' / 'slurmstepd.scope' / 'job_7'
    step = job / 'step_batch' / 'user' / 'task_0'
    step.mkdir(parents=True)
    (step / 'memory.max').write_text('max\n')
    (job / 'memory.max').write_text(f'{2**30}\n')
    (job / 'cpu.max').write_text('100000 100000\n')
    own = f'0::/{step.relative_to(tmp_path)}\n'
    assert limits(available_memory_gb, {}, tmp_path, own) == pytest.approx(0.95, abs=0.005)
    assert limits(available_cpus, {}, tmp_path, own) == 1


def test_cgroups_of_the_first_version(tmp_path):
    job = tmp_path / 'memory' / 'slurm' / 'uid_0' / 'job_7'
    job.mkdir(parents=True)
    (job / 'memory.limit_in_bytes').write_text(f'{2**30}\n')
    own = '5:cpuset:/slurm\n4:memory:/slurm/uid_0/job_7/step_0\n1:name=systemd:/\n'
    assert limits(available_memory_gb, {}, tmp_path, own) == pytest.approx(0.95, abs=0.005)


def test_more_than_was_granted_is_said(tmp_path):
    where = {'cgroup_root': tmp_path, 'proc_cgroup': tmp_path / 'none'}
    granted = {'SLURM_CPUS_PER_TASK': '1', 'SLURM_MEM_PER_NODE': '1024'}
    assert allocation_messages(1, 1.0, environ=granted, **where) == []
    processors, memory = allocation_messages(8, 16.0, environ=granted, **where)
    assert '--nprocs 8 is more than the 1 processor(s)' in processors
    assert '--mem 16.0 GB is more than the 1.0 GB' in memory


@pytest.mark.parametrize(
    ('text', 'gb'), [('1G', 1), ('1GB', 1), ('512M', 0.5), ('512', 0.5), ('1T', 1024), ('1048576k', 1)]
)
def test_memory_sizes(text, gb):
    assert parse_memory_gb(text) == gb


@pytest.mark.parametrize('text', ['', 'G', '-1G', '0', '1X', 'nanG'])
def test_bad_memory_sizes(text):
    with pytest.raises(ValueError, match='write for instance 16G'):
        parse_memory_gb(text)
