"""Makes `schemas/KIND.json` of a CustomResourceDefinition: `... vendor_schemas CRD.yaml REPOSITORY@COMMIT`.

Descriptions go, since they are nine tenths of it, and objects with known fields become closed, as an API server closes
them by pruning: so a misspelt field is an error here and not silence there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).with_name("schemas")


def closed(node: Any) -> Any:
    """The schema without prose and extensions, its objects closed."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: {name: closed(one) for name, one in value.items()} if key == "properties" else closed(value)
        for key, value in node.items()
        if not key.startswith("x-") and not (key == "description" and isinstance(value, str))
    }
    if "properties" in kept and not node.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def main(path: Path, source: str) -> None:
    """Write the schema of the version that is stored."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
    version = next(one for one in definition["versions"] if one["storage"])
    kind = definition["names"]["kind"]
    schema = {
        "$comment": f"{definition['group']}/{version['name']} {kind}, {source}, Apache-2.0, by vendor_schemas.py",
        **closed(version["schema"]["openAPIV3Schema"]),
    }
    (FOLDER / f"{kind}.json").write_text(json.dumps(schema, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
