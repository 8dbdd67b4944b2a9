"""What a directory is mounted from, told from what kernels have said."""

from __future__ import annotations

import pytest

from sccache_dtool.disk.mounts import find, mount_of

#: Of Linux 6.1, with a btrfs: its top, a subvolume of it mounted elsewhere, and that one bound to a third place.
BTRFS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684092k
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict,resuid=65534,resgid=65534
61 27 0:40 / /data rw,relatime - btrfs /dev/loop0 rw,discard=async,space_cache=v2,subvolid=5,subvol=/
62 27 0:40 /scratch /scratch rw,relatime - btrfs /dev/loop0 rw,discard=async,space_cache=v2,subvolid=256,subvol=/scratch
60 61 0:40 /scratch /data/bound rw,relatime - btrfs /dev/loop0 rw,space_cache=v2,subvolid=256,subvol=/scratch
""".splitlines()

NFS = r"""
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
70 27 0:50 / /home rw,relatime shared:1 - nfs4 server:/export/home rw,vers=4.2,rsize=1048576,hard,proto=tcp,sec=sys
71 27 0:51 / /home/my\040group rw,relatime - nfs server:/my\040group rw,vers=3,nolock,addr=10.0.0.1
72 27 254:0 /srv /mnt/srv rw,relatime - ext4 /dev/vda rw
73 27 8:1 / /mnt/stick rw,relatime - vfat /dev/sda1 rw
74 73 8:1 / /mnt/stick ro,relatime - vfat /dev/sda1 rw
75 27 0:60 / /overlaid rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c
not a line
""".splitlines()


@pytest.mark.parametrize(
    ("device", "path", "subvolume"),
    [
        ("0:41", "/data", "/"),
        ("0:42", "/data/scratch", "/"),
        ("0:43", "/data/scratch/inner/cache", "/"),
        ("0:42", "/scratch", "/scratch"),
        ("0:42", "/data/bound/deep", "/scratch"),
    ],
)
def test_a_subvolume_is_of_the_file_system_around_it(device: str, path: str, subvolume: str) -> None:
    """Of every btrfs it would be said that its type cannot be told, since none of its directories has its number."""
    mount = find(BTRFS, device, path)
    assert mount is not None
    assert (mount.type, mount.source, mount.options["subvol"]) == ("btrfs", "/dev/loop0", subvolume)


@pytest.mark.parametrize(
    ("device", "path"), [("0:99", "/home/ada"), ("0:99", "/overlaid/x"), ("9:9", "/"), ("0:99", "/")]
)
def test_a_device_that_nothing_tells_of_is_not_guessed(device: str, path: str) -> None:
    """What was mounted over, or in another name space, would be judged by the type of what is there now."""
    assert find(NFS, device, path) is None


@pytest.mark.parametrize(
    ("device", "path", "type", "source"),
    [
        ("254:0", "/usr", "ext4", "/dev/vda"),
        ("0:50", "/home/ada/cache", "nfs4", "server:/export/home"),
        ("0:50", "/home", "nfs4", "server:/export/home"),
        ("0:51", "/home/my group/cache", "nfs", "server:/my group"),
        ("0:51", "/elsewhere", "nfs", "server:/my group"),
        ("0:60", "/overlaid/x", "overlay", "overlay"),
    ],
)
def test_a_directory_is_on_the_device_whose_number_it_has(device: str, path: str, type: str, source: str) -> None:
    """A file system would be called fit, or unfit, for what another one can do."""
    mount = find(NFS, device, path)
    assert mount is not None
    assert (mount.type, mount.source) == (type, source)


def test_of_two_mounts_on_one_point_the_last_one_counts() -> None:
    """What was mounted read-only over itself would be tried, and end in an error."""
    mount = find(NFS, "8:1", "/mnt/stick/cache")
    assert mount is not None
    assert "ro" in mount.options


def test_this_machine_tells_of_its_own() -> None:
    """The form of the kernel's list would be another than the one that we read."""
    mount = mount_of("/proc")
    assert mount is not None
    assert mount.type == "proc"
    assert mount_of("/proc", "/nonexistent") is None
