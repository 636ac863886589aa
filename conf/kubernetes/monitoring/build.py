"""Writes prometheusrule.yaml beside it: the rules and alerts of conf/prometheus, for the Prometheus Operator.

    .venv/bin/python conf/kubernetes/monitoring/build.py

A test holds the file to what this writes.
"""

import textwrap
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
RULES: Final = FOLDER.parents[1] / "prometheus"
GROUPS: Final = "groups:\n"
HEAD: Final = """\
# Written by build.py from the groups of conf/prometheus/rules.yml and alerts.yml: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tollhouse
  namespace: tollhouse
  labels: {app.kubernetes.io/name: tollhouse}
spec:
  groups:
"""


def build() -> str:
    """The manifest's text, with the comments of what it is made of."""
    files = (RULES / "rules.yml", RULES / "alerts.yml")
    return HEAD + "\n".join(textwrap.indent(file.read_text().partition(GROUPS)[2], "  ") for file in files)


def main() -> None:
    (FOLDER / "prometheusrule.yaml").write_text(build())


if __name__ == "__main__":
    main()
