#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, for tests: everything it writes is in FOLDER, and it needs
# no systemd. Install it with: apt-get install slurm-wlm munge. Two jobs run at the same time.
#
#   tests/slurm/cluster.sh start FOLDER; export SLURM_CONF=FOLDER/slurm.conf; sbatch ...
#   tests/slurm/cluster.sh stop FOLDER
set -euo pipefail
what=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
PATH=$PATH:/usr/sbin
export SLURM_CONF=$folder/slurm.conf

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
  command -v munged slurmctld slurmd sbatch > /dev/null || { echo "expected munge and slurm-wlm, found none"; exit 77; }
  local host user
  host=$(hostname -s) user=$(id -un)
  mkdir -p "$folder"/{state,spool}
  chmod 755 "$folder"
  (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  cat > "$SLURM_CONF" << END
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --num-threads=2 \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
  slurmctld -c
  slurmd -N "$host"
  for _ in $(seq 100); do
    if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then
      echo "SLURM runs: SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.3
  done
  echo "SLURM did not start within 30 s: see $folder/slurmctld.log and slurmd.log"
  stop
  exit 1
}

stop() {
  for daemon in slurmd slurmctld munged; do
    if [ -s "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" || true; fi
  done
}

"$what"
