"""A page of HTML as a tree in which tests look things up."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input", "link", "img", "br", "wbr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def find(self, tag="", css="", **attributes):
        """All elements below with that tag, class and attributes, in order."""
        for child in self.children:
            if isinstance(child, Node):
                classes = (child.attributes.get("class") or "").split()
                wanted = all(child.attributes.get(k) == v for k, v in attributes.items())
                if wanted and tag in ("", child.tag) and (not css or css in classes):
                    yield child
                yield from child.find(tag, css, **attributes)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open = [Node("", {})]
        self.feed(text)
        assert len(self.open) == 1, "an element is not closed"

    @property
    def root(self):
        return self.open[0]

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(attributes))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].children.append(Node(tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def table(page, name):
    [region] = page.find(role="region", **{"aria-label": name})
    return {
        next(line.find("th")).text: [cell.text for cell in line.find("td")]
        for line in list(region.find("tr"))[1:]
    }
