"""Configurations of a tool that nobody else has."""

from hfadapt.converters import Converter, Refused, To
from hfadapt.converters._common import domain, number


def settle(said):
    if not said.has("rows"):
        raise Refused("no rows")
    said.take("net", "model", said.near(str(said.get("net"))))
    said.take([], "task", "causal-lm")
    domain(said, ["rows"], [{"source": said.near(str(said.get("rows")))}])


FIELDS = {"pace": To("train.learning_rate", number)}
KIND = Converter("nobodys", "Nobody's tool", FIELDS, frozenset({"net", "rows"}), settle)
