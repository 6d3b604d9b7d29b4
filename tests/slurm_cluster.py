"""A SLURM cluster of one node on this machine, for as long as a test needs it; nothing outside its folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'squeue', 'scontrol', 'scancel')
PATH = f'{os.environ.get("PATH", "")}:/usr/local/sbin:/usr/sbin:/sbin'  # where the daemons lie

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=1
ReturnToService=2
KillWait=5
MaxArraySize=11
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs={cpus} RealMemory={memory_mb} Gres=gpu:1 State=UNKNOWN
PartitionName=short Nodes=localhost Default=YES MaxTime=60 State=UP
"""


def missing_programs() -> list[str]:
    """What must be installed first (Debian: slurm-wlm, munge)."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextmanager
def one_node(folder: Path, *, cpus: int = 2, memory_mb: int = 4000):
    """Start munge, the controller and one node; yields the environment in which sbatch finds them.

    The node has a pretend GPU. Memory is counted, but not enforced; time limits and cancelling are real.
    """
    folder = Path(folder)
    folder.chmod(0o755)
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    ports = _free_ports(2)
    user = subprocess.run(['id', '-un'], capture_output=True, text=True, check=True).stdout.strip()
    values = {
        'folder': folder, 'user': user, 'host': socket.gethostname().split('.')[0], 'cpus': cpus,
        'memory_mb': memory_mb, 'controller_port': ports[0], 'node_port': ports[1],
    }  # fmt: skip
    (folder / 'slurm.conf').write_text(CONFIGURATION.format(**values))
    (folder / 'gres.conf').write_text('NodeName=localhost Name=gpu File=/dev/null\n')
    key = folder / 'munge.key'
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    environment = {**os.environ, 'PATH': PATH, 'SLURM_CONF': str(folder / 'slurm.conf'), 'LOGNAME': user}
    processes = []

    def start(*command) -> None:
        with open(folder / f'{command[0]}.out', 'w') as log:
            process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )
        processes.append(process)

    try:
        start('munged', '--foreground', '--force', '--key-file', key, '--socket', folder / 'munge.socket',
              '--pid-file', folder / 'munged.pid', '--log-file', folder / 'munged.log',
              '--seed-file', folder / 'munged.seed')  # fmt: skip
        _wait_for(lambda: (folder / 'munge.socket').exists(), folder, processes, 'munged')
        start('slurmctld', '-D', '-f', folder / 'slurm.conf')
        start('slurmd', '-D', '-f', folder / 'slurm.conf', '-N', 'localhost')
        _wait_for(lambda: _node_state(environment).startswith('IDLE'), folder, processes, 'the node')
        yield environment
    finally:
        subprocess.run(['scancel', '--user', user], env=environment, capture_output=True, timeout=30)
        _wait_until_quiet(environment)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for item in sockets:
        item.bind(('127.0.0.1', 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def _node_state(environment: dict) -> str:
    done = subprocess.run(['sinfo', '-h', '-o', '%T'], env=environment, capture_output=True, text=True)
    return done.stdout.strip().upper()


def _wait_for(condition, folder: Path, processes, what: str, seconds: float = 60.0) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds or any(p.poll() is not None for p in processes):
            logs = [*sorted(folder.glob('*.out')), *sorted(folder.glob('*.log'))]
            said = '\n'.join(f'{log.name}: {log.read_text()[-1500:]}' for log in logs)
            raise RuntimeError(f'{what} did not come up:\n{said}')
        time.sleep(0.2)


def _wait_until_quiet(environment: dict, seconds: float = 20.0) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        done = subprocess.run(['squeue', '-h'], env=environment, capture_output=True, text=True)
        if not done.stdout.strip():
            return
        time.sleep(0.5)
