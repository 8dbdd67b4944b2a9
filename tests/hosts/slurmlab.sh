#!/bin/bash
# slurmlab.sh COMMAND -- a Slurm cluster of several nodes on one machine.
#
#   up              start it; NODES=2 nodes, ACCT=1 with accounting. Ready when this returns (1.3 s; 4.5 s)
#   kill-node n2    power failure of a node: slurmd and all processes of its jobs are killed
#   cut-node n2     its slurmd hangs, its jobs run on; mend-node n2: it goes on
#   start-node n2   start it again
#   stop-ctl        the controller ends; start-ctl: with what it knew; forget: with nothing
#   down            end all, remove $WORK
#
# Everything is in $WORK. Point Slurm's commands to it with SLURM_CONF=$WORK/etc/slurm.conf; with
# $WORK/etc/without-accounting/slurm.conf they know the same cluster, and of no accounting. Each node is a slurmd in a
# UTS and a PID name space of its own: jobs see the host names n1, n2 … and process numbers of their own. Of a job's
# processes only the offspring is ended with it (proctrack/linuxproc: no control groups are needed).
#
# $WORK/caches are the caches in which bin/slurm-epilog.sh, run as the cluster's epilog, gives back what jobs hold.
#
# Needs root, slurmctld, slurmd, slurm-client, munge, iproute2; with ACCT=1 slurmdbd, mariadb-server-core,
# mariadb-client.
set -euo pipefail
: "${WORK:?the directory of the cluster}"
NODES=${NODES:-2} ACCT=${ACCT:-0}
export SLURM_CONF=$WORK/etc/slurm.conf PATH=$PATH:/usr/sbin:/sbin
BIN=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../bin" && pwd)

conf() {
    mkdir -p "$WORK"/{etc/without-accounting,munge,state,log,spool,run}
    chmod 755 "$WORK"
    touch "$WORK/caches"
    (umask 077; head -c 128 /dev/urandom >"$WORK/munge/key")
    chown -R munge:munge "$WORK/munge"; chmod 755 "$WORK/munge"
    cat >"$SLURM_CONF" <<EOF
ClusterName=lab
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$WORK/munge/socket
CredType=cred/munge
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool/%n
SlurmctldPidFile=$WORK/run/slurmctld.pid
SlurmdPidFile=$WORK/run/slurmd-%n.pid
SlurmctldLogFile=$WORK/log/slurmctld.log
SlurmdLogFile=$WORK/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdTimeout=5
SlurmctldTimeout=10
InactiveLimit=0
MinJobAge=300
KillWait=3
BatchStartTimeout=10
MessageTimeout=5
Epilog=$WORK/etc/epilog
PrologFlags=Alloc
JobRequeue=1
EOF
    for i in $(seq "$NODES"); do
        echo "NodeName=n$i NodeHostname=n$i NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=8 RealMemory=2000 State=UNKNOWN"
    done >>"$SLURM_CONF"
    echo "PartitionName=main Nodes=n[1-$NODES] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO" >>"$SLURM_CONF"
    cp "$SLURM_CONF" "$WORK/etc/without-accounting/slurm.conf"
    if [ "$ACCT" = 1 ]; then
        cat >>"$SLURM_CONF" <<EOF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$WORK/munge/socket
JobAcctGatherType=jobacct_gather/none
EOF
        cat >"$WORK/etc/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$WORK/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
PidFile=$WORK/run/slurmdbd.pid
LogFile=$WORK/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
EOF
        chmod 600 "$WORK/etc/slurmdbd.conf"
    fi
    cat >"$WORK/etc/epilog" <<EOF
#!/bin/sh
SC_DTOOL_CACHES=\$(paste -sd: "$WORK/caches") sh "$BIN/slurm-epilog.sh"
echo "job=\$SLURM_JOB_ID node=\$SLURMD_NODENAME code=\$?" >>"$WORK/log/epilogs"
EOF
    chmod 755 "$WORK/etc/epilog"
}

start_node() {
    mkdir -p "$WORK/spool/$1"
    # /dev/shm of its own: MPI takes what another node has put there for its own, because their process numbers are alike.
    # shellcheck disable=SC2016
    setsid unshare --uts --pid --mount --fork --kill-child=KILL --mount-proc \
        sh -c 'hostname "$1"; mount -t tmpfs shm /dev/shm; exec slurmd -D -N "$1" -f "$2" -L "$3"' - "$1" "$SLURM_CONF" "$WORK/log/slurmd-$1.log" \
        >"$WORK/log/slurmd-$1.out" 2>&1 </dev/null &
    echo $! >"$WORK/run/node-$1.pid"
}

start_ctl() { # with -c: forget everything
    setsid unshare --uts sh -c 'hostname ctl; exec slurmctld -D "$@"' - "$@" -f "$SLURM_CONF" \
        >"$WORK/log/slurmctld.out" 2>&1 </dev/null &
    echo $! >"$WORK/run/ctl.pid"
}

stop_ctl() {
    kill_pid ctl TERM
    wait_for 120 sh -c "! kill -0 $(cat "$WORK/run/ctl.pid")"
}

wait_for() { # seconds, command...
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "slurmlab: timed out: $*" >&2; return 1; }
        sleep 0.1
    done
}

up() {
    PORT=${PORT:-$((20000 + RANDOM % 20000))}
    conf
    setpriv --reuid=munge --regid=munge --clear-groups munged --force --num-threads=2 --key-file="$WORK/munge/key" \
        --socket="$WORK/munge/socket" --pid-file="$WORK/munge/pid" --log-file="$WORK/munge/log" \
        --seed-file="$WORK/munge/seed" --foreground >"$WORK/log/munged.out" 2>&1 </dev/null &
    echo $! >"$WORK/run/munged.pid"
    wait_for 120 munge --socket="$WORK/munge/socket" -n
    if [ "$ACCT" = 1 ]; then
        mkdir -p "$WORK/db"
        mariadb-install-db --no-defaults --user=root --datadir="$WORK/db" --auth-root-authentication-method=socket \
            >"$WORK/log/db-install.log" 2>&1
        mariadbd --no-defaults --user=root --datadir="$WORK/db" --socket="$WORK/db/s" --skip-networking \
            --innodb-buffer-pool-size=64M --pid-file="$WORK/db/pid" >"$WORK/log/mariadbd.log" 2>&1 </dev/null &
        echo $! >"$WORK/run/mariadbd.pid"
        wait_for 120 mariadb-admin --no-defaults --socket="$WORK/db/s" ping
        MYSQL_UNIX_PORT=$WORK/db/s setsid slurmdbd -D >"$WORK/log/slurmdbd.out" 2>&1 </dev/null &
        echo $! >"$WORK/run/slurmdbd.pid"
        wait_for 120 sacctmgr -n show cluster
        sacctmgr -i add cluster lab >/dev/null 2>&1 || true
        sacctmgr -i add account lab >/dev/null 2>&1 || true
        sacctmgr -i add user root account=lab >/dev/null 2>&1 || true
    fi
    start_ctl -c
    for i in $(seq "$NODES"); do start_node "n$i"; done
    wait_for 120 all_idle
}

all_idle() { [ "$(sinfo -h -N -t idle -o %N | wc -l)" = "$NODES" ]; }

kill_pid() { # name, signal; only what this script has started
    local file="$WORK/run/$1.pid"
    if [ -f "$file" ]; then kill -"${2:-KILL}" "$(cat "$file")" 2>/dev/null || true; fi
}

node_pid() { # of a node's slurmd, which is process 1 of its name space
    pgrep -P "$(cat "$WORK/run/node-$1.pid")" -x slurmd
}

case ${1:-} in
    up) up ;;
    kill-node) kill_pid "node-$2" ;;
    start-node) start_node "$2" ;;
    cut-node) kill -STOP "$(node_pid "$2")" ;;
    mend-node) kill -CONT "$(node_pid "$2")" ;;
    stop-ctl) stop_ctl ;;
    start-ctl) start_ctl; wait_for 120 scontrol ping ;;
    forget) stop_ctl; start_ctl -c; wait_for 120 all_idle ;;
    down)
        for f in "$WORK"/run/node-n*.pid; do n=${f##*/}; kill_pid "${n%.pid}"; done
        kill_pid ctl TERM; kill_pid slurmdbd TERM
        [ ! -f "$WORK/run/ctl.pid" ] || wait_for 5 sh -c "! kill -0 $(cat "$WORK/run/ctl.pid")" || true
        for k in ctl slurmdbd mariadbd munged; do kill_pid $k; done
        rm -rf "$WORK" ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
