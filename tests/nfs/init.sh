#!/bin/bash
# The first process of a host that lab.py has started as User-Mode Linux. Never run by hand.
#
# Its root is the machine's own, read-only, at the same paths; /run, /mnt, /dev/shm and /var/lib/nfs are its own. The
# kernel's command line gives, as environment:
#   LAB_NAME, LAB_NUMBER   its name, and the last byte of its addresses
#   LAB_ROLE               server or client
#   LAB_HERE               the directory of this script
#   LAB_PYTHON             the interpreter for the agent
#   LAB_MODULES            the directory with the modules of this kernel
#   LAB_SKEW               seconds by which its clock is ahead
#   LAB_NOTES              the directory of the machine that is to be at /mnt/notes
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run/tmp LANG=C.UTF-8 PYTHONPYCACHEPREFIX=/run/pycache
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir -p /run/tmp /run/lock /run/rpcbind /run/root/lib /mnt/nfs /mnt/notes
mount -t hostfs -o "$LAB_NOTES" none /mnt/notes
chmod 1777 /run/tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p /var/lib/nfs/{sm,sm.bak,v4recovery,rpc_pipefs}
touch /var/lib/nfs/{etab,rmtab,state}
chown -R statd:nogroup /var/lib/nfs/{sm,sm.bak,state}

# The machine may have no /lib/modules: modprobe is given another root, also where the kernel asks for a module.
ln -s "$LAB_MODULES" /run/root/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/root "$@"\n' >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe

hostname "$LAB_NAME"
echo "127.0.0.1 localhost" >/run/hosts
: >/run/resolv.conf # nobody is to wait for a name server
for file in hosts resolv.conf; do
    [ ! -e "/etc/$file" ] || mount --bind "/run/$file" "$(readlink -f "/etc/$file")"
done
ip link set lo up
# vec0 carries NFS, vec1 what the tests say. Large segments get lost between User-Mode Linux and its tap: one at a time.
for net in 0 1; do
    ip address add "10.7$((7 + net)).0.$LAB_NUMBER/24" dev "vec$net"
    ip link set "vec$net" gso_max_size 1400 gso_max_segs 1
    ip link set "vec$net" up
done
[ -z "$LAB_SKEW" ] || date -u -s "@$(($(date +%s) + LAB_SKEW))" >/dev/null

rpcbind
if [ "$LAB_ROLE" = server ]; then
    /run/modprobe lockd nlm_grace_period=3 # else locks of version 3 are refused for long after a start
    /run/modprobe nfsd
    mkdir -p /mnt/export
    /run/modprobe -a quota_tree quota_v2
    mount -t ext4 -o usrquota /dev/ubda /mnt/export # with limits enforced
    chmod 1777 /mnt/export
    mount -t nfsd nfsd /proc/fs/nfsd
    exportfs -o rw,no_root_squash,no_subtree_check,insecure,fsid=0 "10.77.0.0/24:/mnt/export"
    rpc.nfsd -L 10 -G 10 8
    rpc.mountd 2>/dev/null
else
    /run/modprobe -a nfs nfsv3 nfsv4
fi
rpc.statd --no-notify # without it, the first lock of version 3 waits for a minute
exec "$LAB_PYTHON" "$LAB_HERE/wire.py" serve "10.78.0.$LAB_NUMBER"
