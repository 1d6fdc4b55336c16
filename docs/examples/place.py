"""Places a VM on a GPU of a Berth fleet, waits until it has it, and gives it back.

    pip install grpcio grpcio-tools
    python place.py [HOST:PORT]

The client is made from proto/ when the script starts; a real program would make it when it is built.
"""

import pathlib
import sys
import tempfile
import uuid

import grpc
from grpc_tools import protoc

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7600"
PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"

generated = tempfile.TemporaryDirectory()
include = pathlib.Path(protoc.__file__).parent / "_proto"
files = ["berth/v1/common.proto", "berth/v1/placements.proto"]
made = protoc.main(
    ["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={generated.name}", f"--grpc_python_out={generated.name}", *files]
)
if made != 0:
    sys.exit("the protos do not compile")
sys.path.insert(0, generated.name)

from berth.v1 import common_pb2, placements_pb2, placements_pb2_grpc  # noqa: E402  (made just now)

NAME = f"python-{uuid.uuid4().hex[:8]}"


def wait_for(placements, name, wanted):
    """Follows the placement until it is in the wanted phase; a placement that fails says why."""
    for change in placements.Watch(placements_pb2.WatchPlacementsRequest(name=name), timeout=120):
        placement = change.placement
        print(f"{name}: {common_pb2.Phase.Name(placement.phase)}")
        if placement.phase == wanted:
            return placement
        if placement.phase == common_pb2.PHASE_FAILED:
            sys.exit(f"{name} failed: {placement.failure.text}")
    sys.exit("the controller ended the watch")


with grpc.insecure_channel(ADDRESS) as channel:
    placements = placements_pb2_grpc.PlacementsStub(channel)
    request = common_pb2.PlacementRequest(request_id=str(uuid.uuid4()), name=NAME, vm=f"{NAME}-vm", gpus=1)
    try:
        # Safe to repeat while it fails with UNAVAILABLE or UNKNOWN: the same request_id gets the same placement.
        held = placements.Create(placements_pb2.CreatePlacementRequest(request=request), timeout=30)
        print(f"{NAME}: {len(held.assignment.gpus)} GPU on {held.assignment.node}; its VM belongs there")
        wait_for(placements, NAME, common_pb2.PHASE_ACTIVE)
        placements.Release(placements_pb2.ReleasePlacementRequest(name=NAME, uid=held.uid), timeout=30)
        wait_for(placements, NAME, common_pb2.PHASE_RELEASED)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
