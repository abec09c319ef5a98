"""Wait for EC2 to announce that it takes this spot instance back, then drain its Ray node. Runs beside Ray on a worker.

EC2 gives two minutes. Kubernetes needs no such watcher: there the pod is deleted, and its preStop hook drains the node.
See "Spot Instance interruption notices" in the Amazon EC2 User Guide.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

METADATA = "http://169.254.169.254"
DRAIN = Path(__file__).with_name("drain_node.py")
_ANSWERS_S = 2
_TOKEN_S = 300


def interruption(metadata: str = METADATA) -> str | None:
    """The notice as EC2 words it, or None while there is none. Raises OSError if the service does not answer."""
    ask = urllib.request.Request(  # noqa: S310 (a fixed address)
        f"{metadata}/latest/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)},
    )
    with urllib.request.urlopen(ask, timeout=_ANSWERS_S) as answer:  # noqa: S310
        token = answer.read().decode()
    notice = urllib.request.Request(  # noqa: S310
        f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(notice, timeout=_ANSWERS_S) as answer:  # noqa: S310
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=5, help="seconds between questions")
    parser.add_argument("--deadline", type=int, default=100, help="seconds to drain in, of the 120 that EC2 gives")
    parser.add_argument("--metadata", default=METADATA, help="address of the instance metadata service")
    arguments = parser.parse_args()
    while True:
        try:
            notice = interruption(arguments.metadata)
        except OSError as error:  # a busy moment of the service must not end the watch
            sys.stderr.write(f"instance metadata: {error}\n")
            notice = None
        if notice:
            sys.stderr.write(f"spot notice: {notice}\n")
            command = [sys.executable, str(DRAIN), "--deadline", str(arguments.deadline), "--reason", "spot notice"]
            return subprocess.run(command, check=False).returncode  # noqa: S603
        time.sleep(arguments.every)


if __name__ == "__main__":
    sys.exit(main())
