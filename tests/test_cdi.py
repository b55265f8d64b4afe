"""The Container Device Interface, against what its specification (1.1.0, SPEC.md) orders."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from executor.errors import SandboxUnavailable
from executor.gpus.cdi import DeviceNode, Edits, Spec, all_edits, apply, devices_of, read_devices, resolved
from executor.gpus.devices import Device
from executor.gpus.driver import described, edits_for, numbers

# In the form of the specification's own example: devices, nodes, mounts and hooks of a vendor.
VENDOR: dict[str, Any] = {
    "cdiVersion": "0.7.0",
    "kind": "vendor.com/device",
    "devices": [
        {
            "name": "myDevice",
            "annotations": {"whatever": "true"},
            "containerEdits": {
                "deviceNodes": [
                    {
                        "hostPath": "/dev/null",
                        "path": "/dev/card1",
                        "type": "c",
                        "major": 25,
                        "minor": 25,
                        "fileMode": 384,
                    },
                    {"path": "/dev/card-render1", "type": "c", "major": 25, "minor": 26, "permissions": "rw"},
                ]
            },
        },
        {"name": "other", "containerEdits": {"env": ["ONE=of two"]}},
    ],
    "containerEdits": {
        "env": ["FOO=VALID_SPEC", "BAR=BARVALUE1"],
        "deviceNodes": [{"path": "/dev/vendorctl", "hostPath": "/dev/zero"}],
        "mounts": [
            {"hostPath": "/bin/vendorBin", "containerPath": "/bin/vendorBin"},
            {"hostPath": "/usr/lib/libVendor.so.0", "containerPath": "/usr/lib/libVendor.so.0", "options": ["ro"]},
            {"hostPath": "tmpfs", "containerPath": "/tmp/data", "type": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/bin/vendor-hook",
                "args": ["vendor-hook", "a"],
                "env": ["A=b"],
                "timeout": 5,
            },
            {"hookName": "startContainer", "path": "/usr/bin/ldconfig"},
        ],
        "additionalGids": [0, 5, 5],
    },
}
CONFIG: dict[str, Any] = {
    "process": {"env": ["PATH=/bin", "BAR=old"], "user": {"uid": 0, "gid": 0}},
    "mounts": [
        {"destination": "/usr/lib/deep/er", "source": "x"},
        {"destination": "/proc", "source": "proc"},
        {"destination": "/bin/vendorBin", "source": "what it replaces"},
    ],
    "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
}


def vendor(*names: str) -> list[Edits]:
    known = {device.name: device for device in devices_of(Spec.model_validate(VENDOR), "test")}
    return all_edits([known[f"vendor.com/device={name}"] for name in names])


def test_the_specs_edits_come_first_and_once_and_then_each_devices() -> None:
    assert [len(edit.deviceNodes) for edit in vendor("myDevice", "other")] == [1, 2, 0]
    assert [len(edit.env) for edit in vendor("myDevice", "other")] == [2, 0, 1]


def test_edits_are_made_as_the_specification_orders() -> None:
    before = json.dumps(CONFIG)
    new = apply(CONFIG, vendor("myDevice"))
    assert json.dumps(CONFIG) == before, "the configuration that went in is left alone"
    assert new["process"]["env"] == ["PATH=/bin", "BAR=BARVALUE1", "FOO=VALID_SPEC"]
    assert new["process"]["user"]["additionalGids"] == [5], "0 is ignored"
    mode = stat.S_IMODE(os.lstat("/dev/zero").st_mode)
    assert new["linux"]["devices"] == [
        {"path": "/dev/vendorctl", "type": "c", "major": 1, "minor": 5, "fileMode": mode},
        {"path": "/dev/card1", "type": "c", "major": 25, "minor": 25, "fileMode": 384},
        {"path": "/dev/card-render1", "type": "c", "major": 25, "minor": 26},
    ]
    assert new["linux"]["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": True, "type": "c", "major": 25, "minor": 25, "access": "rwm"},
        {"allow": True, "type": "c", "major": 25, "minor": 26, "access": "rw"},
    ]
    assert [mount["destination"] for mount in new["mounts"]] == [
        "/proc",
        "/bin/vendorBin",
        "/tmp/data",
        "/usr/lib/libVendor.so.0",
        "/usr/lib/deep/er",
    ], "by depth, and in their order within one"
    assert new["mounts"][1] == {"destination": "/bin/vendorBin", "source": "/bin/vendorBin"}
    assert new["mounts"][2] == {
        "destination": "/tmp/data",
        "source": "tmpfs",
        "type": "tmpfs",
        "options": ["nosuid", "mode=755"],
    }
    assert new["hooks"] == {
        "createContainer": [{"path": "/bin/vendor-hook", "args": ["vendor-hook", "a"], "env": ["A=b"], "timeout": 5}],
        "startContainer": [{"path": "/usr/bin/ldconfig"}],
    }


def test_a_node_takes_type_numbers_and_mode_from_the_hosts_where_it_names_none() -> None:
    node = resolved(DeviceNode(path="/dev/mine", hostPath="/dev/full"))
    assert (node.type, node.major, node.minor) == ("c", 1, 7)
    assert node.fileMode == stat.S_IMODE(os.lstat("/dev/full").st_mode)


def test_a_node_that_is_described_whole_needs_no_host() -> None:
    node = DeviceNode(path="/dev/not-here", type="c", major=195, minor=3)
    assert resolved(node) == node


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (DeviceNode(path="/dev/not-here"), "No such file"),
        (DeviceNode(path="/etc"), "not a device node"),
        (DeviceNode(path="/dev/null", type="b"), "of type c, not b"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_and_never_left_out(node: DeviceNode, why: str) -> None:
    with pytest.raises(SandboxUnavailable, match=why):
        apply(CONFIG, [Edits(deviceNodes=[node])])


def test_permissions_none_gives_a_node_that_nobody_may_open() -> None:
    new = apply({}, [Edits(deviceNodes=[DeviceNode(path="/dev/null", permissions="none")])])
    assert new["linux"]["resources"]["devices"][0]["access"] == ""


def test_a_node_belongs_to_the_containers_user_unless_the_spec_says_whose_it_is() -> None:
    config = {"process": {"user": {"uid": 1000, "gid": 100}}}
    nodes = [DeviceNode(path="/dev/null"), DeviceNode(path="/dev/zero", uid=0, gid=44)]
    own, named = apply(config, [Edits(deviceNodes=nodes)])["linux"]["devices"]
    assert (own["uid"], own["gid"]) == (1000, 100) and (named["uid"], named["gid"]) == (0, 44)


def test_network_devices_are_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="network devices"):
        apply({}, [Edits(netDevices=[{"hostInterfaceName": "eth0", "name": "eth0"}])])


# ---- spec files ----


def write(folder: Path, name: str, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    data = VENDOR | changes
    (folder / name).write_text(json.dumps(data) if name.endswith(".json") else yaml.safe_dump(data))


def test_files_are_read_as_json_and_as_yaml_and_the_later_folder_wins(tmp_path: Path) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    write(etc, "a.yaml")
    write(run, "b.json", containerEdits={"env": ["FROM=run"]})
    found = read_devices([etc, run])
    assert set(found) == {"vendor.com/device=myDevice", "vendor.com/device=other"}
    assert found["vendor.com/device=other"].source == str(run / "b.json")


def test_a_name_that_two_files_of_a_folder_claim_is_neithers(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml")
    write(tmp_path, "b.json", devices=[{"name": "other"}])
    assert set(read_devices([tmp_path])) == {"vendor.com/device=myDevice"}


@pytest.mark.parametrize(
    "changes", [{"cdiVersion": "9.0.0"}, {"kind": "vendor"}, {"devices": []}, {"devices": [{"name": "-"}]}]
)
def test_what_is_no_spec_is_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, "a.yaml", **changes)
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.yaml").write_text("!!python/object/apply:os.system ['false']")
    assert read_devices([tmp_path, tmp_path / "not-there"]) == {}


# ---- NVIDIA's ----


def nvidia(tmp_path: Path, library: str) -> Path:
    tmp_path.mkdir(exist_ok=True)
    edits = {
        "mounts": [
            {"hostPath": library, "containerPath": "/usr/lib64/nvidia/libcuda.so.1", "options": ["ro", "rbind"]},
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache"],
            }
        ],
        "deviceNodes": [{"path": "/dev/nvidiactl", "type": "c", "major": 195, "minor": 255}],
    }
    numbered = [
        {
            "name": str(n),
            "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{n}", "type": "c", "major": 195, "minor": n}]},
        }
        for n in (0, 1)
    ]
    every = {
        "name": "all",
        "containerEdits": {"deviceNodes": [n["containerEdits"]["deviceNodes"][0] for n in numbered]},
    }  # type: ignore[index]
    write(tmp_path, "nvidia.yaml", kind="nvidia.com/gpu", devices=[every, *numbered], containerEdits=edits)
    return tmp_path


def device(minor: int) -> Device:
    return Device(f"GPU-{minor}", "A100", 80 << 30, minor)


def test_a_device_is_found_by_its_node_whatever_the_spec_calls_it(tmp_path: Path) -> None:
    known = read_devices([nvidia(tmp_path, "/etc/hostname")])
    chosen = described([device(1)], known)
    assert chosen is not None and [one.name for one in chosen] == ["nvidia.com/gpu=1"]
    assert numbers(all_edits(chosen)) == {"195:255", "195:1"}
    assert described([device(5)], known) is None


def libraries(folder: Path) -> Path:
    """A driver's libraries where no linker looks."""
    folder.mkdir()
    for name in ("libcuda.so.1", "libnvidia-ml.so.1", "libGLX_nvidia.so.0"):
        (folder / name).write_bytes(b"")
    return folder


def test_of_a_spec_the_daemonless_backend_takes_the_lent_nodes_and_where_the_libraries_are(tmp_path: Path) -> None:
    found = libraries(tmp_path / "driver")
    known = read_devices([nvidia(tmp_path / "cdi", str(found / "libcuda.so.1"))])
    edits, way = edits_for([device(1)], "580.1", known)
    new = apply({}, edits)
    assert [node["path"] for node in new["linux"]["devices"]] == ["/dev/nvidiactl", "/dev/nvidia1"]
    assert {mount["destination"]: mount["source"] for mount in new["mounts"]} == {
        f"/run/nvidia/lib/{name}": str(found / name) for name in ("libcuda.so.1", "libnvidia-ml.so.1")
    }
    assert "hooks" not in new and "env" not in new["process"] and way == f"CDI, {tmp_path / 'cdi/nvidia.yaml'}"


def test_neither_sockets_nor_folders_of_services_nor_displays_get_in(tmp_path: Path) -> None:
    found = libraries(tmp_path / "driver")
    path = nvidia(tmp_path / "cdi", str(found / "libcuda.so.1")) / "nvidia.yaml"
    spec = yaml.safe_load(path.read_text())
    for service in ("/run/nvidia-persistenced/socket", "/tmp/nvidia-mps"):
        spec["containerEdits"]["mounts"].append({"hostPath": service, "containerPath": service})
    for node in ("/dev/dri/card0", "/dev/nvidia-modeset"):
        spec["containerEdits"]["deviceNodes"].append({"path": node, "type": "c", "major": 226, "minor": 0})
    path.write_text(yaml.safe_dump(spec))
    new = apply({}, edits_for([device(0)], "580.1", read_devices([path.parent]))[0])
    assert [node["path"] for node in new["linux"]["devices"]] == ["/dev/nvidiactl", "/dev/nvidia0"]
    assert all(mount["destination"].startswith("/run/nvidia/lib/") for mount in new["mounts"])


def test_what_was_lent_may_be_opened_whatever_the_hosts_mode_is(tmp_path: Path) -> None:
    found = libraries(tmp_path / "driver")
    edits, _ = edits_for([device(0)], "580.1", read_devices([nvidia(tmp_path / "cdi", str(found / "libcuda.so.1"))]))
    assert {node["fileMode"] for node in apply({}, edits)["linux"]["devices"]} == {0o666}


def test_a_spec_without_the_drivers_libraries_is_no_reason_to_start(tmp_path: Path) -> None:
    known = read_devices([nvidia(tmp_path / "cdi", "/nowhere/libcuda.so.1")])
    with pytest.raises(SandboxUnavailable, match="libcuda"):
        edits_for([device(1)], "580.1", known)
