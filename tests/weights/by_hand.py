"""Files of PyTorch that PyTorch would not write, byte by byte."""

import pickle
import struct
import zipfile


def body(value) -> bytes:
    """A pickled value without the frame around it."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor(offset=0, shape=(2, 3), stride=(3, 1), size=6, storage=b"torch\nFloatStorage", key="0") -> bytes:
    reference = b"(" + body("storage") + b"c" + storage + b"\n" + body(key) + body("cpu") + body(size) + b"tQ"
    rest = body(offset) + body(shape) + body(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + rest + b"tR"


def pickled(*tensors: bytes) -> bytes:
    return b"\x80\x02}" + b"".join(body(f"w{i}") + t + b"s" for i, t in enumerate(tensors)) + b"."


def archive(path, content, compression=zipfile.ZIP_STORED, **entries):
    data = {"data.pkl": content, "version": b"3\n", "data/0": bytes(24), **entries}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, value in data.items():
            if value is not None:
                file.writestr(f"archive/{name}", value)
    return path


def legacy(path, content, *, little=True, protocol=1001):
    system = {"protocol_version": protocol, "little_endian": little}
    head = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, protocol, system))
    path.write_bytes(head + content + pickle.dumps(["0"], protocol=2) + struct.pack("<q", 6) + bytes(24))
    return path
