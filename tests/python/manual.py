"""The programs of the Python daemon's manual, word by word but for names, addresses and how often; to be run on the
machine `gui` of a network of its own, since they scan it. The arguments: the address of Redis, and the rest of what is
different here, for the first line alone."""

import pathlib
import sys
import threading

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from daoServer import DaoServer, discover_redis  # noqa: E402

redis_host, shm_dir, tag = sys.argv[1:]
owner, wfs_name, dm_name = "rts", tag + "wfs", tag + "dm_commands"

# A machine that takes part, lists the others, and follows a stream.
server = DaoServer(redis_host=redis_host, redis_port=6379, role="minion", heartbeat_interval=30.0, base_pub_port=5560,
                   shm_dir=shm_dir)
threading.Thread(target=server.start, daemon=True).start()
for m in server.list_machines():
    print(m["hostname"], m["role"], m["shm_segments"])
wfs = server.get_remote_shm(owner, wfs_name)
for _ in range(100):
    frame = wfs.get_data(check=True)
    print(frame.shape, frame.mean())
server.release_remote_shm(owner, wfs_name)
server.stop()

# The same object goes on: writing into a mirror.
dm = server.get_remote_shm(owner, dm_name, bidirectional=True)
dm.set_data(np.ones(140, dtype=np.float32) * 0.01)
server.release_remote_shm(owner, dm_name)

# Several streams, one of them before `start`.
server = DaoServer(redis_host=redis_host, shm_dir=shm_dir)
dm = server.get_remote_shm(owner, dm_name, bidirectional=True)
threading.Thread(target=server.start, daemon=True).start()
wfs = server.get_remote_shm(owner, wfs_name)
print("several", wfs.get_data(check=True).shape, dm.get_data().shape)

# The registry.
server.register_machine()
print("registered", sorted(m["hostname"] for m in server.list_machines()))
server.deregister_machine()
try:
    server.deregister_machine("stale-rts-machine")
except PermissionError as error:
    print("PermissionError", error)

# Redis servers on the network.
results = DaoServer.discover()
print("discover", [(r["host"], r["port"], r["dao"], sorted(r["machines"])) for r in results])
results = discover_redis(port=6379, timeout=0.3, max_workers=64)
print("discover_redis", len(results))

# Errors by their names.
for host, name in (("nobody", "wfs"), (owner, "nothing")):
    try:
        server.get_remote_shm(host, name)
    except KeyError as error:
        print("KeyError", error)
try:
    server.get_remote_shm(owner, wfs_name, transport="rdma")
except NotImplementedError as error:
    print("NotImplementedError", error)
try:
    DaoServer(redis_host="10.78.1.250", hostname="other", shm_dir=shm_dir)
except ConnectionError as error:
    print("ConnectionError", error)
server.stop()
print("done")
