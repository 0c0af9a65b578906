"""The software bill of materials, CycloneDX 1.6 as JSON, from the lock: `python -m tools.sbom sbom.json`.

Every pin of requirements.txt with its hashes, and the bundled weights with theirs. Nothing is asked of an index or of
the environment it runs in, so that the same lock gives the same bytes; licences are therefore left out but for the
project's own.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

from sana_service import __version__
from sana_service.models import bundled

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.txt"

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


def libraries(lock: str) -> list[dict[str, Any]]:
    """A component for each pin; the hashes are those of every file that may be installed for it."""
    components = []
    for name, version, rest in _PIN.findall(lock):
        normal = re.sub(r"[-_.]+", "-", name).lower()
        purl = f"pkg:pypi/{normal}@{version.replace('+', '%2B')}"
        component = {"type": "library", "bom-ref": purl, "name": normal, "version": version, "purl": purl}
        if hashes := _HASH.findall(rest):
            component |= {"hashes": [{"alg": "SHA-256", "content": one} for one in hashes]}
        components.append(component)
    return components


def models() -> list[dict[str, Any]]:
    """The weights that travel with the package, a component for each file below a component for each model."""
    root = Path(bundled.__file__).parent
    components = []
    for folder in (bundled.base_folder(), bundled.sprint_folder()):
        name = f"bundled/{folder.name}"
        files = sorted(folder.rglob("*.safetensors"))
        components.append(
            {
                "type": "machine-learning-model",
                "bom-ref": f"{name}@{__version__}",
                "name": name,
                "version": __version__,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "components": [
                    {
                        "type": "file",
                        "name": file.relative_to(root).as_posix(),
                        "hashes": [{"alg": "SHA-256", "content": bundled.sha256(file)}],
                    }
                    for file in files
                ],
            }
        )
    return components


def bill() -> dict[str, Any]:
    """The whole document."""
    lock = LOCK.read_text(encoding="utf-8")
    components = [*libraries(lock), *models()]
    digest = hashlib.sha256(json.dumps(components, sort_keys=True).encode() + __version__.encode()).digest()
    reference = f"pkg:pypi/sana-service@{__version__}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=5)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": "sana-service",
                "version": __version__,
                "purl": reference,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": [
            {"ref": reference, "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": component["bom-ref"]} for component in components),
        ],
    }


if __name__ == "__main__":
    text = json.dumps(bill(), indent=2) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
