"""The plan as a picture."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree

from sage_prefect import Pipeline, Resources, operator
from sage_prefect.kernel.plan_drawing import image, svg

SVG = "{http://www.w3.org/2000/svg}"


@operator("a<b&c", adds=())
def odd_name(row):
    return {}


def plan_of_two_stages():
    pipeline = Pipeline("p").source([{"n": number} for number in range(640)])
    pipeline = pipeline.map(odd_name, resources=Resources(cpu=1))
    return pipeline.map(odd_name, resources=Resources(gpu=1)).sink().plan(partitions=2)


def test_a_box_per_operator_inside_the_picture():
    plan = plan_of_two_stages()
    root = ElementTree.fromstring(svg(plan))
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    boxes = root.findall(f"{SVG}rect")
    assert len(boxes) == sum(len(stage.operators) for stage in plan.stages)
    for box in boxes:
        assert int(box.attrib["x"]) + int(box.attrib["width"]) <= width
        assert int(box.attrib["y"]) + int(box.attrib["height"]) <= height
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert "a<b&c" in texts
    assert "stage 1: gpu=1, 2 partition(s)" in texts


def test_image_carries_the_picture():
    plan = plan_of_two_stages()
    data = re.fullmatch(r"!\[plan of p\]\(data:image/svg\+xml;base64,(.+)\)", image(plan))
    assert data is not None
    assert base64.b64decode(data[1]).decode() == svg(plan)
