from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.errors import EdgekitError, ProfileError
from edgekit.yaml_model import key_error, nearest, parse_yaml_model


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tank(Section):
    total_mib: Annotated[int, Field(gt=0)]
    reserve_mib: int = 0
    flow_gb_per_s: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Tank:
        if self.reserve_mib >= self.total_mib:
            raise key_error("reserve_mib", "leaves nothing")
        return self


class Car(Section):
    name: str
    colour: Literal["red", "green"] = "red"
    fast: bool = False
    tags: Annotated[tuple[str, ...], Field(min_length=1)] = ("a",)
    flags: dict[str, bool | int | str] = {}
    tank: Tank
    trailer: Tank | None = None


GOOD = "name: x\ntank:\n  total_mib: 8\n"


def messages(text: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        parse_yaml_model(text, Car, source="car.yaml", error=ProfileError)
    return caught.value.message.split("\n")


def test_parse_yaml_model__valid_file() -> None:
    text = GOOD + "fast: true\ntags: [b, c]\nflags: {a: true, b: 2, c: d}\ntrailer:\n"
    car = parse_yaml_model(text, Car, source="", error=ProfileError)

    assert car.fast is True
    assert car.tags == ("b", "c")
    assert car.flags == {"a": True, "b": 2, "c": "d"}
    assert car.trailer is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour: gren\n", "4: colour: \"gren\" is not known here; did you mean 'green'?"),
        (GOOD + "colour: mauve\n", '4: colour: "mauve" is not known here; one of red, green'),
        (GOOD + "fast: 1\n", "4: fast: expected true or false, got 1"),
        (
            GOOD + "fast: on\n",
            "4: fast: 'on' is a boolean to some YAML readers; write true, or quote it as text",
        ),
        (GOOD + "tags: b\n", '4: tags: expected a list, got "b"; write [b]'),
        (GOOD + "tags: []\n", "4: tags: expected at least one item"),
        (GOOD + "tags: [b, 1.5]\n", '4: tags[1]: expected text, got 1.5; quote it: "1.5"'),
        (
            GOOD + "flags:\n  a: 8.7\n",
            '5: flags.a: expected text, a whole number, or true or false, got 8.7; quote it: "8.7"',
        ),
        (
            GOOD + "flags:\n  a: [1]\n",
            "5: flags.a: expected text, a whole number, or true or false, got a list",
        ),
        ("name: 3.11\ntank:\n  total_mib: 8\n", '1: name: expected text, got 3.11; quote it: "3.11"'),
        (
            "name: x\ntank:\n  total_mib: 8 GiB\n",
            '3: tank.total_mib: expected a whole number in MiB, got "8 GiB"; write 8192',
        ),
        (
            "name: x\ntank:\n  total_mib: 8 GB\n",
            '3: tank.total_mib: expected a whole number in MiB, got "8 GB"; write the number alone',
        ),
        (
            "name: x\ntank:\n  total_mib: '8'\n",
            '3: tank.total_mib: expected a whole number in MiB, got "8"; write it without quotes',
        ),
        ("name: x\ntank:\n  total_mib: 8.5\n", "3: tank.total_mib: expected a whole number in MiB, got 8.5"),
        ("name: x\ntank:\n  total_mib: 0\n", "3: tank.total_mib: should be greater than 0, got 0"),
        (
            "name: x\ntank:\n  total_mib: true\n",
            "3: tank.total_mib: expected a whole number in MiB, got true",
        ),
        ("name: x\ntank: 8\n", "2: tank: expected a section of keys, got 8"),
        ("name: x\ntank:\n", "2: tank: expected a section of keys, got nothing"),
        ("name: x\n", "1: tank: missing"),
        (GOOD + "trailer:\n  reserve_mib: 1\n", "4: trailer.total_mib: missing"),
        (GOOD + "  reserve_mib: 8\n", "4: tank.reserve_mib: leaves nothing"),
        (GOOD + "  total_gb: 8\n", "4: tank.total_gb: unknown key; did you mean 'total_mib'? (in MiB)"),
        (
            GOOD + "  flow_gbps: 8\n",
            "4: tank.flow_gbps: unknown key; did you mean 'flow_gb_per_s'? (in GB/s)",
        ),
        (GOOD + "tank_gb: 8\n", "4: tank_gb: unknown key; did you mean 'tank.total_mib'? (in MiB)"),
        (GOOD + "total_mib: 8\n", "4: total_mib: unknown key; did you mean 'tank.total_mib'?"),
        (GOOD + "trailor: {}\n", "4: trailor: unknown key; did you mean 'trailer'?"),
        (GOOD + "  zzz: {}\n", "4: tank.zzz: unknown key; known here: total_mib, reserve_mib, flow_gb_per_s"),
        ("- 1\n", "1: the file is not a mapping of keys to values"),
    ],
)
def test_parse_yaml_model__problem_has_line_key_and_next_step(text: str, message: str) -> None:
    assert messages(text) == [f"car.yaml:{message}"]


def test_parse_yaml_model__all_problems_at_once_in_order_of_lines() -> None:
    text = "name: 1\ncolour: rad\nspeed: 12:30\ntank:\n  total_mib: 8\n  total_mib: 9\n  x: 1\nfast: yes\n"

    assert messages(text) == [
        'car.yaml:1: name: expected text, got 1; quote it: "1"',
        "car.yaml:2: colour: \"rad\" is not known here; did you mean 'red'?",
        "car.yaml:3: speed: '12:30' is a base-60 number to some YAML readers; quote it",
        "car.yaml:6: tank.total_mib: key given twice; the first is on line 5",
        "car.yaml:7: tank.x: unknown key; known here: total_mib, reserve_mib, flow_gb_per_s",
        "car.yaml:8: fast: 'yes' is a boolean to some YAML readers; write true, or quote it as text",
    ]


def test_parse_yaml_model__raises_the_class_it_is_given() -> None:
    class FleetError(EdgekitError):
        pass

    with pytest.raises(FleetError, match=r"^a\.yaml:1: the file is empty$"):
        parse_yaml_model("", Car, source="a.yaml", error=FleetError)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("gpu_layer", "gpu_layers"), ("GPU_LAYERS", "gpu_layers"), ("slot", "slots"), ("humidity", None)],
)
def test_nearest(word: str, expected: str | None) -> None:
    assert nearest(word, ["gpu_layers", "slots", "threads"]) == expected
