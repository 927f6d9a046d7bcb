"""The image's bill of materials: beside the locked packages, the Python and Debian's packages that the container holds.

It is no part of the service, and not in the image. `make sbom` runs it. Change here to name more of what is inside.
"""

import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

from serving import ROOT
from serving.image import engine

_ASK = """
import platform, subprocess
release = platform.freedesktop_os_release()
where = release["ID"] + "-" + release["VERSION_ID"]
print("generic", "python", platform.python_version(), "", flush=True)
told = "deb/" + release["ID"] + " ${Package} ${Version} ?arch=${Architecture}&distro=" + where + r"\\n"
subprocess.run(["dpkg-query", "--show", "--showformat", told], check=True)
"""


def main(bill: Path) -> None:
    """Add what the container says of itself to a bill of materials in CycloneDX' JSON."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    start = shlex.split(os.environ.get("RUN") or f"{engine(os.environ)} run")
    image = os.environ.get("IMAGE") or f"{project}:latest"
    command = [*start, "--rm", "--entrypoint", "python", image, "-c", _ASK]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - podman or docker
    told = json.loads(bill.read_text())
    for line in done.stdout.splitlines():
        kind, name, version, more = line.split(" ")
        purl = f"pkg:{kind}/{name}@{quote(version, safe='~')}{more}"
        told["components"].append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    bill.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
